"""A dictionary learned together with its sparse codes: K-SVD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.nearest.tiles import Points
from cce_core.clustering.points import as_points
from cce_core.clustering.pursuit.omp import omp
from cce_core.clustering.seeding import k_means_plus_plus

_GRAIN = 1 << 16  # multiply-adds that make another thread worth waking


class KSVD(NamedTuple):
    """What `k_svd` found: `X ≈ Σ_t weights[n, t] · dictionary[indices[n, t]]`.

    Attributes:
        dictionary: float32 (K, dim), atoms of length 1.
        indices: int32 (n, s), distinct within a row.
        weights: float32 (n, s).
        errors: float64 (iterations + 1,): the squared error of the start, and after each iteration. It never rises.
    """

    dictionary: Points
    indices: NDArray[np.int32]
    weights: Points
    errors: NDArray[np.float64]


@jit
def _leave(start: int, stop: int, x: Any, atoms: Any, indices: Any, weights: Any, left: Any, errors: Any) -> None:
    """What the codes leave of rows [start, stop), and its squared length."""
    dim = x.shape[1]
    for i in range(start, stop):
        for c in range(dim):
            left[i, c] = np.float64(x[i, c])
        for t in range(indices.shape[1]):
            weight = np.float64(weights[i, t])
            if weight != np.float64(0.0):
                for c in range(dim):
                    left[i, c] -= weight * np.float64(atoms[indices[i, t], c])
        errors[i] = np.float64(0.0)
        for c in range(dim):
            errors[i] += left[i, c] * left[i, c]


@jit
def _move(atoms: Any, weights: Any, left: Any, order: Any, ends: Any) -> None:
    """Each atom d in turn, and the weights g of its rows: d' ∝ Rᵀg + |g|²d, of length 1, then g' = R·d' + g(d·d').

    `order[ends[j]:ends[j + 1]]` are the places of atom j in `weights`, flat; R are the rows of `left`, kept up to date.
    """
    s = weights.shape[1]
    dim = atoms.shape[1]
    new = np.empty(dim, np.float64)
    for j in range(atoms.shape[0]):
        old = atoms[j]
        for c in range(dim):
            new[c] = np.float64(0.0)
        square = np.float64(0.0)
        for place in order[ends[j] : ends[j + 1]]:
            i, g = place // s, weights[place // s, place % s]
            square += g * g
            for c in range(dim):
                new[c] += g * left[i, c]
        size = np.float64(0.0)
        for c in range(dim):
            new[c] += square * old[c]
            size += new[c] * new[c]
        size = np.sqrt(size)
        if not size > np.float64(0.0):
            continue
        same = np.float64(0.0)
        for c in range(dim):
            new[c] /= size
            same += new[c] * old[c]
        for place in order[ends[j] : ends[j + 1]]:
            i, g = place // s, weights[place // s, place % s]
            moved = g * same
            for c in range(dim):
                moved += left[i, c] * new[c]
            for c in range(dim):
                left[i, c] += g * old[c] - moved * new[c]
            weights[i, place % s] = moved
        for c in range(dim):
            old[c] = new[c]


def _unit(x: Points) -> NDArray[np.float64]:
    """Rows scaled to length 1; those of zeros stay."""
    rows = x.astype(np.float64)
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(sizes > 0, sizes, 1.0)


def _start(x: Points, k: int, seed: int) -> Points:
    """Atoms that point where samples do, far from each other; the axes where all samples are zero."""
    directions = _unit(x).astype(np.float32)
    usable = directions.any(axis=1)
    if not usable.any():
        return np.eye(x.shape[1], dtype=np.float32)[np.arange(k) % x.shape[1]]
    return directions[k_means_plus_plus(directions, k, sample_weight=usable.astype(np.float32), seed=seed)]


def _replace(atoms: Points, unused: NDArray[np.int64], x: Points, errors: NDArray[np.float64]) -> None:
    """Point the unused atoms at the worst-represented samples, distinct ones; where those end, they stay."""
    worst = np.argsort(-errors, kind="stable")[: np.count_nonzero(errors)]
    directions = _unit(x[worst]).astype(np.float32)
    firsts = np.sort(np.unique(directions, axis=0, return_index=True)[1])[: unused.size]
    atoms[unused[: firsts.size]] = directions[firsts]


def k_svd(
    X: Any,
    n_atoms: int,
    n_nonzero: int,
    *,
    n_iter: int = 10,
    seed: int = 0,
    on_iteration: Callable[[int, float], Any] | None = None,
) -> KSVD:
    """A dictionary and sparse codes that make `Σ_n |X_n − Σ_t weight[n, t] D[index[n, t]]|²`, the error, small.

    The first atoms are samples drawn by k-means++ of their directions, coded by `omp`. An iteration moves each atom d
    in turn, with the weights g of the rows Ω that use it and what the codes leave of these rows, R_Ω:

        d' ∝ R_Ωᵀ g + |g|² d  of length 1,    g' = R_Ω d' + g (d · d')

    which is one step of the power iteration that K-SVD's singular vectors come from. Then atoms that no row uses are
    pointed at the worst-represented samples, and all rows are coded again. A row keeps its code where the new one is no
    nearer, so the error never rises: an iteration that does not lower it is undone and is the last.

    The result is a pure function of arguments and data, whatever the number of threads.

    Args:
        X: real numbers (n, dim), taken as float32 as by `omp`, n at least n_atoms. Equal rows and rows of zeros are safe.
        n_atoms: K, at least 1.
        n_nonzero: s, atoms a row, 1 to K.
        n_iter: most iterations, at least 0.
        seed: 0 to 2^64 − 1.
        on_iteration: called with (iterations so far, error) after each iteration; a true result ends it there.

    Returns:
        A `KSVD`: dictionary, indices, weights, errors.

    Raises:
        TypeError: not real numbers, or a number that should be whole is not.
        ValueError: NaN or infinity, wrong shapes, fewer rows than atoms, an argument out of range.

    Cost:
        An `omp` and about 6·n·s·dim multiply-adds an iteration; scratch of about 24 bytes a number of X and 48 a weight.

    References:
        Aharon, Elad and Bruckstein, K-SVD: an algorithm for designing overcomplete dictionaries for sparse
        representation, IEEE Transactions on Signal Processing 2006. Rubinstein, Zibulevsky and Elad, Efficient
        implementation of the K-SVD algorithm using batch orthogonal matching pursuit, Technion CS-2008-08.

    Example:
        >>> from cce_core.clustering import k_svd
        >>> found = k_svd([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]], 2, 1)
        >>> (found.dictionary[found.indices[:, 0]] * found.weights).tolist(), found.errors[-1].item()
        ([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]], 0.0)
    """
    _check.callback("on_iteration", on_iteration)
    k, limit, seed = _check.integer("n_atoms", n_atoms, 1), _check.integer("n_iter", n_iter, 0), _check.seed(seed)
    s = _check.integer("n_nonzero", n_nonzero, 1, k)
    x = as_points("X", X)
    n, dim = x.shape
    if n < k:
        raise ValueError(f"X must hold at least n_atoms = {k:,} rows, got {n:,}; pass more rows or n_atoms={n}")
    left, costs, new_costs = np.empty((n, dim)), np.empty(n), np.empty(n)

    def measure(atoms: Points, indices: NDArray[np.int32], weights: Points, out: NDArray[np.float64]) -> None:
        parallel_for(_leave, n, max(1, _GRAIN // (s * dim)), x, atoms, indices, weights, left, out)

    atoms = _start(x, k, seed)
    indices, weights = omp(x, atoms, s)
    measure(atoms, indices, weights, costs)
    errors = [float(costs.sum())]
    for step in range(1, limit + 1):
        used = np.flatnonzero(weights)  # the atoms that fill up short rows have weight 0
        order = used[np.argsort(indices.ravel()[used], kind="stable")]
        ends = np.searchsorted(indices.ravel()[order], np.arange(k + 1))
        exact_atoms, exact_weights = atoms.astype(np.float64), weights.astype(np.float64)
        measure(atoms, indices, weights, new_costs)
        _move(exact_atoms, exact_weights, left, order, ends)
        moved, old_weights = exact_atoms.astype(np.float32), exact_weights.astype(np.float32)
        measure(moved, indices, old_weights, costs)
        unused = np.flatnonzero(ends[1:] == ends[:-1])
        if unused.size:
            _replace(moved, unused, x, costs)
        new_indices, new_weights = omp(x, moved, s)
        measure(moved, new_indices, new_weights, new_costs)
        kept = new_costs >= costs
        new_indices[kept], new_weights[kept] = indices[kept], old_weights[kept]
        error = float(np.minimum(costs, new_costs).sum())
        if error >= errors[-1]:
            break
        atoms, indices, weights = moved, new_indices, new_weights
        errors.append(error)
        if on_iteration is not None and on_iteration(step, error):
            break
    return KSVD(atoms, indices, weights, np.array(errors))
