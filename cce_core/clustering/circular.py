"""k-means whose centroids are the windows of one circular memory, so that neighbours share most of their numbers.

A centroid of width w is a window, `window[p, i] = memory[(p + i) mod m]`: m floats hold m centroids. A point is assigned
to an offset p instead of a row, and a cell of the memory is moved to the mean of all coordinates that lie on it. It is
what learns the pointers of a ROBE-like memory.

Distances are float32 sums in the order of the coordinates, as `assign` has them: the windows are laid out, a few at a
time, and searched as if they were centroids of their own. Correlation by FFT was slower at every width up to 64, and exact
neither in its distances nor in its ties.

Numbers wider than float32 (float64, integers of 32 bits and more) are taken about an origin first, as by `assign` and `KMeans`
and within the same bounds, but one origin for all coordinates, since they share cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.lloyd import nearest
from cce_core.clustering.narrow import Frame, narrowed, some_of
from cce_core.clustering.nearest.tiles import Points
from cce_core.clustering.points import as_array, as_labels, as_points, as_weights, kind_of

_LAID_OUT = 1 << 16  # floats of windows searched at a time: they stay in the second cache
_BLOCKS = 16  # at most, for sums; their number may depend on the sizes alone, so that threads change no bit
_MOST_CELLS = 2**31 - 8


@jit
def _cover(start: int, stop: int, size: int, x: Any, labels: Any, weights: Any, sums: Any, mass: Any) -> None:
    """Per block [start, stop) of `size` points: weighted sums and weights (blocks, m) of what lies on each cell."""
    n, w = x.shape
    m = sums.shape[1]
    weighted = weights.shape[0] > 0
    for block in range(start, stop):
        for i in range(block * size, min(n, (block + 1) * size)):
            cell = int(labels[i])
            weight = np.float64(weights[i]) if weighted else np.float64(1.0)
            for j in range(w):
                sums[block, cell] += weight * np.float64(x[i, j])
                mass[block, cell] += weight
                cell = cell + 1 if cell + 1 < m else 0


def _as_memory(value: Any, kind: Any = None) -> NDArray[Any]:
    array = _check.array("memory", value, "real numbers")
    if array.ndim != 1 or not 1 <= array.size < _MOST_CELLS:
        fix = "; use memory.reshape(-1)" if array.ndim > 1 else ""
        raise ValueError(f"memory must have shape (cells,), at least 1 and fewer than 2^31, got {array.shape}{fix}")
    return (as_points if kind is np.float32 else as_array)("memory", array.reshape(-1, 1))[:, 0]


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """The same as points on a line: all coordinates share the memory's cells, so one origin serves all."""
    return array.reshape(-1, 1)


def _search(x: Points, memory: Points, stride: int, labels: NDArray[np.int32], distances: Points) -> None:
    """`circular_assign` without checks, into arrays that the caller owns; safely scaled values are taken for granted."""
    n, w = x.shape
    m = memory.size
    windows = np.lib.stride_tricks.sliding_window_view(np.resize(memory, m + w - 1), w)[::stride]
    at_once = len(windows) if w == 1 else max(1, _LAID_OUT // w)
    nearest(x, np.ascontiguousarray(windows[:at_once]), labels, distances)
    if at_once < len(windows):
        others, costs = np.empty(n, np.int32), np.empty(n, np.float32)
        for first in range(at_once, len(windows), at_once):
            nearest(x, np.ascontiguousarray(windows[first : first + at_once]), others, costs)
            closer = costs < distances  # and not where equal: the lowest offset wins
            np.copyto(distances, costs, where=closer)
            others += np.int32(first)
            np.copyto(labels, others, where=closer)
    labels *= np.int32(stride)


def _settle(x: Points, labels: NDArray[np.int32], memory: Points, weights: Points) -> Points:
    """`circular_update` without checks; `weights` is empty where all points count one."""
    (n, w), m = x.shape, memory.size
    blocks = min(_BLOCKS, max(1, n * w // max(4 * m, 1 << 16)))
    sums, mass = np.zeros((blocks, m)), np.zeros((blocks, m))
    parallel_for(_cover, blocks, 1, -(-n // blocks), x, labels, weights, sums, mass)
    total, covered = sums[0], mass[0]
    for block in range(1, blocks):  # one after the other: a fixed order of sums
        total += sums[block]
        covered += mass[block]
    seen = covered > 0
    moved = memory.copy()
    moved[seen] = total[seen] / covered[seen]
    return moved


def circular_assign(X: Any, memory: Any, *, stride: int = 1) -> tuple[NDArray[np.int32], Points]:
    """The offset of the window nearest to each point, `argmin_p Σ_i (X[n, i] − memory[(p + i) mod m])²`; ties go to the
    lowest p.

    Distances are float32 sums in the order of i, and the search is exhaustive: the result has the bits of
    `assign(X, windows)` with all windows laid out, and does not depend on the number of threads.

    Args:
        X: real numbers (n, w); n may be 0. A window wider than the memory goes round it.
        memory: real numbers (m,).
        stride: only offsets 0, stride, 2·stride, … below m are searched.

    Returns:
        Offsets, int32 (n,) in [0, m), and squared distances, float32 (n,). A distance beyond float32 is returned as the
        largest finite one; its offset is right all the same.

    Raises:
        TypeError: not real numbers, or stride is not an integer.
        ValueError: NaN or infinity, wrong shapes, an empty memory, stride below 1 or above m.

    Cost:
        n·w·m/stride multiply-adds, in up to twice the time of `assign` on all windows; scratch of 8 bytes a point and 512 KB.

    References:
        The memory is that of Desai, Chou and Shrivastava, Random Offset Block Embedding Array, arXiv:2108.02191.

    Example:
        >>> from cce_core.clustering import circular_assign
        >>> offsets, distances = circular_assign([[2.0, 3.0], [5.0, 1.0]], [1.0, 2.0, 3.0, 4.0])
        >>> offsets.tolist(), distances.tolist()
        ([1, 3], [0.0, 1.0])
    """
    memory = _as_memory(memory)
    stride = _check.integer("stride", stride, 1, memory.size)
    x = as_array("X", X)
    labels, distances = np.empty(x.shape[0], np.int32), np.empty(x.shape[0], np.float32)
    (points, cells), frame = narrowed(_numbers(memory), X=x, memory=memory)
    _search(points, cells, stride, labels, distances)
    if frame.exponent:
        with np.errstate(over="ignore"):
            np.ldexp(distances, 2 * frame.exponent, out=distances)
        np.minimum(distances, np.finfo(np.float32).max, out=distances)
    return labels, distances


def circular_update(X: Any, labels: Any, memory: Any, sample_weight: Any = None) -> Points:
    """The memory that is nearest to the points at given offsets: each cell the mean of the coordinates that lie on it.

        memory[j] = Σ w_n X[n, i] / Σ w_n        both sums over all n and i with (label_n + i) mod m = j

    A cell on which nothing with weight lies keeps its value. Sums are float64, over blocks of points whose number
    depends on the sizes alone, and added in their order: the same bits for any number of threads.

    Args:
        X: real numbers (n, w); n may be 0.
        labels: offsets, integers (n,) in [0, m).
        memory: real numbers (m,); it is not changed.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.

    Returns:
        The new memory (m,), float64 where X is wider than float32, else float32.

    Raises:
        TypeError: labels are not integers, X, memory or weights not real numbers.
        ValueError: NaN or infinity, wrong shapes, negative weights or zeros only.
        IndexError: a label outside [0, m).

    Cost:
        2·n·w additions; scratch of at most 32·m float64, and at most four times X.

    Example:
        >>> from cce_core.clustering import circular_update
        >>> circular_update([[2.0, 3.0], [5.0, 1.0]], [1, 2], [0.0, 0.0, 0.0, 7.0, 8.0]).tolist()
        [0.0, 2.0, 4.0, 1.0, 8.0]
    """
    x = as_array("X", X)
    memory = _as_memory(memory, kind_of(x))
    places, weights = as_labels(labels, x.shape[0], memory.size), as_weights(sample_weight, x.shape[0])
    if x.dtype == np.float32:  # float64 sums of float32 need no scale
        return _settle(x, places, memory, weights)
    (points, cells), frame = narrowed(_numbers(some_of(x, weights)), X=x, memory=memory)
    return _back(frame, _settle(points, places, cells, weights), cells, memory)


def circular_k_means(
    X: Any,
    memory: Any,
    n_iter: int = 25,
    sample_weight: Any = None,
    stride: int = 1,
    *,
    tol: float = 0.0,
    on_iteration: Callable[[int, float], Any] | None = None,
) -> tuple[Points, NDArray[np.int32], float, int]:
    """A memory whose windows make `Σ_n w_n · min_p Σ_i (X[n, i] − memory[(p + i) mod m])²`, the inertia, small.

    Lloyd's iteration from a given start: the memory goes to the means (`circular_update`), then every point to its
    nearest window (`circular_assign`). The inertia never rises: an iteration that raises it by rounding is undone and
    is the last. Cells on which no window lies stay as they are, so a start that looks like the data (the present
    memory, or points laid end to end) is what makes use of all of them.

    Args:
        X: real numbers (n, w), n at least 1. Chunks that share a memory are stacked.
        memory: the start, real numbers (m,); it is not changed.
        n_iter: most iterations, at least 0.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.
        stride: offsets are multiples of it.
        tol: an iteration that lowers the inertia by no more than tol times itself is the last; with 0 it goes on until
            no offset changes or the inertia falls no more.
        on_iteration: called with (iterations so far, inertia) after each iteration; a true result ends it there.

    Returns:
        The memory (m,), float64 where X is wider than float32, else float32; offsets of the nearest of its windows,
        int32 (n,); the inertia of these, a float; and how many iterations were made.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: NaN or infinity, no point, wrong shapes, an argument out of range.

    Cost:
        A `circular_assign` and a `circular_update` an iteration, and one `circular_assign` before.

    References:
        Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 1982.

    Example:
        >>> from cce_core.clustering import circular_k_means
        >>> memory, offsets, inertia, n_iter = circular_k_means([[1.0, 2.0], [2.0, 9.0]], [0.0, 2.0, 8.0, 0.0])
        >>> memory.tolist(), offsets.tolist(), inertia, n_iter
        ([1.0, 2.0, 9.0, 0.0], [0, 1], 0.0, 1)
    """
    _check.callback("on_iteration", on_iteration)
    x = as_array("X", X)
    memory = _as_memory(memory, kind_of(x))
    stride, limit = _check.integer("stride", stride, 1, memory.size), _check.integer("n_iter", n_iter, 0)
    tol = _check.number("tol", tol, 0.0)
    n = x.shape[0]
    if n == 0:
        raise ValueError("X must hold at least one point, got none")
    weights = as_weights(sample_weight, n)
    (points, cells), frame = narrowed(_numbers(some_of(x, weights)), X=x, memory=memory)
    unit = 4.0**frame.exponent
    labels, costs, now = np.empty(n, np.int32), np.empty(n, np.float32), cells
    spare = np.empty_like(labels)
    _search(points, now, stride, labels, costs)
    inertia, step = _total(costs, weights), 0
    while step < limit:
        moved = _settle(points, labels, now, weights)
        if np.array_equal(moved, now):
            break
        _search(points, moved, stride, spare, costs)
        total, before = _total(costs, weights), inertia
        if total > inertia:
            break
        unchanged = np.array_equal(spare, labels)
        labels, spare, now, inertia, step = spare, labels, moved, total, step + 1
        ended = on_iteration is not None and on_iteration(step, inertia * unit)
        if ended or unchanged or before - inertia <= tol * before:
            break
    return _back(frame, now, cells, memory), labels, inertia * unit, step


def _back(frame: Frame, moved: Points, cells: Points, memory: NDArray[Any]) -> NDArray[Any]:
    """A memory in the caller's numbers; cells that have not moved keep theirs."""
    return np.where(moved == cells, memory, frame.back(moved))


def _total(costs: Points, weights: Points) -> float:
    shares = np.multiply(costs, weights, dtype=np.float64) if weights.size else costs
    return float(np.sum(shares, dtype=np.float64))
