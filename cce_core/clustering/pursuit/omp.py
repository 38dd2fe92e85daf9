"""Sparse codes: each vector as a weighted sum of a few atoms of a dictionary, chosen greedily."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.nearest.tiles import Points
from cce_core.clustering.points import as_points

_BATCH = 1 << 21  # numbers of scratch a batch of rows
_GRAIN = 1 << 17  # correlations that make another thread worth waking
_LANES = 16
_LEAST = 1e-6  # of |x|: an atom that correlates less with what is left of x explains nothing
_APART = 0.01  # from the span of the chosen atoms: nearer ones would get huge weights that cancel each other


@jit
def _best(row: Any, atoms: Any, residual: Any, margin: np.float32) -> int:
    """The atom whose product with the residual is largest, the lowest among equals; −1 where none reaches `_LEAST`.

    Products in `row` are float32, off by half the margin at most: those that may be largest are taken again in float64.
    So the choice depends on neither BLAS, its threads, nor the batch. Atoms taken before have products near 1e−16.
    """
    k, dim = atoms.shape
    lanes = np.zeros(_LANES, np.float32)
    whole = k - k % _LANES
    for first in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], abs(row[first + lane]))
    least = np.float32(0.0)
    for lane in range(_LANES):
        least = max(least, lanes[lane])
    for j in range(whole, k):
        least = max(least, abs(row[j]))
    least -= margin
    best, found = -1, np.float64(_LEAST)
    for first in range(0, k, 64):
        last, any_here = min(k, first + 64), 0
        for j in range(first, last):  # without a branch, so that it becomes vector instructions
            any_here |= int(abs(row[j]) >= least)
        if any_here:
            for j in range(first, last):
                if abs(row[j]) >= least:
                    product = np.float64(0.0)
                    for c in range(dim):
                        product += atoms[j, c] * residual[c]
                    if abs(product) > found:
                        best, found = j, abs(product)
    return best


@jit
def _choose(
    start: int,
    stop: int,
    turn: int,
    products: Any,
    atoms: Any,
    residuals: Any,
    lengths: Any,
    basis: Any,
    triangle: Any,
    heights: Any,
    chosen: Any,
    counts: Any,
) -> None:
    """One more atom for the rows [start, stop) that have not ended: atom t = Σ_u triangle[u, t] basis[u], and
    x = Σ_t heights[t] basis[t] + residual."""
    dim = atoms.shape[1]
    for i in range(start, stop):
        if counts[i] < turn:
            continue
        margin = np.float32(lengths[i] * np.float64(dim + 8) * np.float64(2.0**-23))
        best = _best(products[i], atoms, residuals[i], margin)
        if best < 0:
            continue
        new, size = basis[i, turn], np.float64(1.0)
        new[:] = atoms[best]
        for _ in range(2):  # Gram and Schmidt, again where much was taken away: twice is enough for orthogonality
            before, size = size, np.float64(0.0)
            for t in range(turn):
                share = np.float64(0.0)
                for c in range(dim):
                    share += basis[i, t, c] * new[c]
                triangle[i, t, turn] += share
                for c in range(dim):
                    new[c] -= share * basis[i, t, c]
            for c in range(dim):
                size += new[c] * new[c]
            if size > np.float64(0.5) * before:
                break
        size = np.sqrt(size)
        if size < np.float64(_APART):
            continue
        height = np.float64(0.0)
        for c in range(dim):
            new[c] /= size
            height += new[c] * residuals[i, c]
        left = np.float64(0.0)
        for c in range(dim):
            residuals[i, c] -= height * new[c]
            left += residuals[i, c] * residuals[i, c]
        triangle[i, turn, turn], heights[i, turn], lengths[i] = size, height, np.sqrt(left)
        chosen[i, turn] = best
        counts[i] = turn + 1


@jit
def _solve(
    start: int, stop: int, triangle: Any, heights: Any, counts: Any, norms: Any, sizes: Any, indices: Any, weights: Any
) -> None:
    """Least-squares weights of rows [start, stop) by back-substitution; rows that ended early are filled up."""
    s = indices.shape[1]
    for i in range(start, stop):
        count = counts[i]
        for t in range(count - 1, -1, -1):
            for u in range(t + 1, count):
                heights[i, t] -= triangle[i, t, u] * heights[i, u]
            heights[i, t] /= triangle[i, t, t]
            weights[i, t] = np.float32(heights[i, t] * sizes[i] / norms[indices[i, t]])
        atom = 0
        for t in range(count, s):
            used = True
            while used:
                used = False
                for u in range(count):
                    used |= indices[i, u] == atom
                atom += 1
            indices[i, t], weights[i, t] = atom - 1, np.float32(0.0)


def omp(X: Any, D: Any, n_nonzero: int) -> tuple[NDArray[np.int32], Points]:
    """Sparse codes by orthogonal matching pursuit: few atoms a row whose weighted sum is near it, `X ≈ Σ_t weight_t D[index_t]`.

    A row takes, one after the other, the atom with the largest `|⟨residual, D_j⟩| / |D_j|` (the lowest j among equals),
    the residual being what the best weights of those taken so far leave of it. The weights minimise
    `|X_n − Σ_t weight[n, t] D[index[n, t]]|²` over the atoms taken.

    A row ends early where no atom correlates with more than 1e-6 of |X_n|, or the best one lies within 0.01 (of its
    length) of the span of those taken: near-collinear atoms get no huge weights that cancel. It is filled up with the
    lowest unused atoms at weight 0. Choices are made in float64, and depend on neither the number of threads nor the batch.

    Args:
        X: real numbers (n, dim), taken as float32: each off by up to 2^−24 of itself, 0 below 1e-45; n may be 0. An
            offset belongs to what is coded, so none is taken away.
        D: the dictionary, real numbers (K, dim), K at least 1. Atoms may have any length; those of length 0 are never taken.
        n_nonzero: s, atoms a row, 1 to K.

    Returns:
        Indices, int32 (n, s), distinct within a row, in the order taken; weights, float32 (n, s).

    Raises:
        TypeError: not real numbers, or n_nonzero is not an integer.
        ValueError: NaN or infinity, wrong shapes, n_nonzero out of range, a weight that float32 cannot hold.

    Cost:
        n·s·K·dim multiply-adds through BLAS, and about 2·n·s²·dim more; scratch of 16 MB and 20 bytes a number of D.

    References:
        Pati, Rezaiifar and Krishnaprasad, Orthogonal matching pursuit, Asilomar 1993.

    Example:
        >>> from cce_core.clustering import omp
        >>> indices, weights = omp([[3.0, 0.0, 2.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 4.0]], 2)
        >>> indices.tolist(), weights.tolist()
        ([[0, 2]], [[3.0, 0.5]])
    """
    D = as_points("D", D)
    k, dim = D.shape
    if not 1 <= k < 2**31:
        raise ValueError(f"D must hold at least one atom and fewer than 2^31, got {k}")
    s = _check.integer("n_nonzero", n_nonzero, 1, k)
    x = as_points("X", X, dim)
    n = x.shape[0]
    norms = np.linalg.norm(D.astype(np.float64), axis=1)
    atoms = D / np.where(norms > 0, norms, 1.0)[:, None]
    columns = atoms.astype(np.float32).T
    indices, weights = np.zeros((n, s), np.int32), np.zeros((n, s), np.float32)
    at_once = max(1, _BATCH // (k + (2 * s + 3) * (dim + s)))
    for first in range(0, n, at_once):
        rows = slice(first, first + at_once)
        residuals = x[rows].astype(np.float64)
        sizes = np.linalg.norm(residuals, axis=1)
        residuals /= np.where(sizes > 0, sizes, 1.0)[:, None]
        b = len(residuals)
        lengths, counts = np.ones(b), np.zeros(b, np.int32)
        basis, triangle, heights = np.empty((b, s, dim)), np.zeros((b, s, s)), np.empty((b, s))
        products = np.empty((b, k), np.float32)
        for turn in range(s):
            np.matmul(residuals.astype(np.float32), columns, out=products)
            state = (products, atoms, residuals, lengths, basis, triangle, heights, indices[rows], counts)
            parallel_for(_choose, b, max(1, _GRAIN // (k + turn * dim)), turn, *state)
            if not (counts > turn).any():
                break
        min_chunk = max(1, _GRAIN // (s * s))
        parallel_for(_solve, b, min_chunk, triangle, heights, counts, norms, sizes, indices[rows], weights[rows])
    if not np.isfinite(weights).all():
        row, place = (int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise ValueError(
            f"row {row} needs a weight beyond float32 for atom {indices[row, place]}; scale D's atoms to length 1"
        )
    return indices, weights
