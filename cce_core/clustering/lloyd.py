"""The two halves of Lloyd's iteration: points to their nearest centroids, and centroids to the mean of their points.

Distances are float32 sums of (x_j − c_j)² in the order of the coordinates. So that squares neither overflow nor vanish,
values whose largest is above 2^50 or below 2^−30 are first scaled by a power of two, all alike: what is 2^−75 of the largest
then vanishes in a distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.narrow import narrowed, some_of
from cce_core.clustering.nearest.label_kernels import add_tile
from cce_core.clustering.nearest.search import search, worth_narrowing
from cce_core.clustering.nearest.tile_kernels import LANES, TURN
from cce_core.clustering.nearest.tiles import Points, Tiles, tile
from cce_core.clustering.points import as_array, as_labels, as_weights, kind_of

_MANY = 2048  # centroids from which even a single search is worth arranging the points for
_BATCH = 1 << 18  # points of `assign` at a time, so that its scratch stays small
_LINE_GRAIN = 1 << 13  # points, on a line
_SUM_GRAIN = 1 << 14  # points, of sums
_BLOCKS = 16  # at most, for sums; their number may depend on the sizes alone, so that threads change no bit
_CELLS = 4  # of the grid on a line, a centroid


@jit
def _cell(value: np.float32, low: np.float64, scale: np.float64, cells: int) -> int:
    """The cell of a grid on a line, never falling as the value rises."""
    place = (np.float64(value) - low) * scale
    if place >= np.float64(cells - 1):
        return cells - 1
    if place > np.float64(0.0):
        return int(place)
    return 0


@jit
def _assign_line(start: int, stop: int, x: Any, line: Any, places: Any, labels: Any, distances: Any) -> None:
    """Points [start, stop) of x (n,) to the centroids line (k,), sorted; `call_args` are their labels.

    A grid gives the few centroids among which a point lies, a binary search the two around it. The rounded distance
    never falls as one walks away from there, so all centroids with the least one stand in one run.
    """
    k = line.shape[0]
    cells = _CELLS * k
    low = np.float64(line[0])
    width = np.float64(line[k - 1]) - low
    scale = np.float64(cells - 1) / width if width > np.float64(0.0) else np.float64(0.0)
    below = np.zeros(cells + 1, np.int32)  # below[c]: centroids in cells before c
    for j in range(k):
        below[_cell(line[j], low, scale, cells) + 1] = j + 1
    for c in range(cells):
        below[c + 1] = max(below[c], below[c + 1])
    for i in range(start, stop):
        value = x[i]
        cell = _cell(value, low, scale, cells)
        left, right = below[cell], below[cell + 1]
        while right - left > 4:
            middle = (left + right) >> 1
            if line[middle] <= value:
                left = middle + 1
            else:
                right = middle
        while left < right and line[left] <= value:
            left += 1
        left = max(left - 1, 0)  # the last centroid at or below the value, else the first
        apart = value - line[left]
        least = apart * apart
        if left + 1 < k:
            apart = value - line[left + 1]
            least = min(least, apart * apart)
        label = np.int32(k)
        j = left
        while j >= 0:
            apart = value - line[j]
            if apart * apart != least:
                break
            label = min(label, places[j])
            j -= 1
        j = left + 1
        while j < k:
            apart = value - line[j]
            if apart * apart != least:
                break
            label = min(label, places[j])
            j += 1
        labels[i] = label
        distances[i] = least


@jit
def add_up(start: int, stop: int, size: int, points: Any, n: int, labels: Any, weights: Any, sums: Any) -> None:
    """Per block [start, stop) of `size` tiles: weighted sums of each label's points, and its weight, (blocks, k, d + 1)."""
    whole, factors, weighted = n // LANES, np.ones(LANES, np.float32), weights.shape[0] > 0
    for block in range(start, stop):
        for t in range(block * size, min(points.shape[0], (block + 1) * size)):
            first = t * LANES
            if weighted:
                factors = weights[first : first + LANES]
            if t < whole:
                add_tile(points[t], labels[first : first + LANES], factors, sums[block])
                continue
            for i in range(n - first):
                weight = np.float64(factors[i])
                for j in range(points.shape[1]):
                    sums[block, labels[first + i], j] += weight * np.float64(points[t, j, i])
                sums[block, labels[first + i], points.shape[1]] += weight


def nearest(x: Points, centroids: Points, labels: NDArray[np.int32], distances: Points) -> None:
    """`assign` without checks, into arrays that the caller owns; safely scaled values are taken for granted."""
    n, d = x.shape
    k = centroids.shape[0]
    if d == 1:
        order = np.argsort(centroids[:, 0], kind="stable")
        line, places = centroids[order, 0], order.astype(np.int32)
        parallel_for(_assign_line, n, _LINE_GRAIN, x[:, 0], line, places, labels, distances)
        return
    for low in range(0, n, _BATCH):
        high = min(low + _BATCH, n)
        tiles = tile(x[low:high], k >= _MANY and worth_narrowing(high - low, d, k))
        near, costs = tiles.empty(np.int32), tiles.empty(np.float32)
        search(tiles, centroids, near, costs)
        tiles.into(near, labels[low:high])
        tiles.into(costs, distances[low:high])


def blocks_of(n: int, k: int) -> int:
    """Of how many blocks the sums of n points are made."""
    return min(_BLOCKS, max(1, n // max(16 * k, 4096)))


def means(tiles: Tiles, labels: NDArray[np.int32], k: int, weights: Points) -> tuple[Points, NDArray[np.float64]]:
    """`update` without checks, of points in tiles; `weights` is empty where all points count one."""
    count, d, _ = tiles.points.shape
    blocks = blocks_of(tiles.n, k)
    sums, size = np.zeros((blocks, k, d + 1)), -(-count // blocks)
    parallel_for(
        add_up, blocks, max(1, _SUM_GRAIN // (size * LANES)), size, tiles.points, tiles.n, labels, weights, sums
    )
    total = sums[0]
    for block in range(1, blocks):  # one after the other: a fixed order of sums
        total += sums[block]
    counts = total[:, d].copy()
    return (total[:, :d] / np.where(counts > 0, counts, 1.0)[:, None]).astype(np.float32), counts


def find(
    x: NDArray[Any], centroids: NDArray[Any], about: NDArray[Any], labels: NDArray[np.int32], distances: Points
) -> int:
    """`assign` without checks, into arrays that the caller owns; distances lack the factor 4^e of the e returned.

    Numbers are narrowed `about` points.
    """
    (points, rows), frame = narrowed(about, X=x, centroids=centroids)
    nearest(points, rows, labels, distances)
    return frame.exponent


def _out(out: Any, n: int) -> tuple[NDArray[np.int32], Points]:
    if out is None:
        return np.empty(n, np.int32), np.empty(n, np.float32)
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out must be a pair of arrays (labels, distances), got {type(out).__name__}")
    for array, kind in zip(out, (np.int32, np.float32)):
        if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != (n,):
            raise ValueError(f"out must be int32 labels and float32 distances of shape ({n},)")
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("out must be contiguous and writeable")
    return out


def assign(
    X: Any, centroids: Any, out: tuple[NDArray[np.int32], Points] | None = None
) -> tuple[NDArray[np.int32], Points]:
    """The nearest centroid of each point, `argmin_c Σ_j (X[n, j] − centroids[c, j])²`; ties go to the lowest c.

    Distances are float32 sums in the order of j. Where X or centroids are wider than float32 (float64, integers of 32
    bits and more), a coordinate of the centroids that stands behind an offset (its median m is more than 8 times as far
    from 0 as half of them are from m) is first taken about m in float64. So a number is off by at most 2^−24·|x_j − m_j|,
    or 2^−24·|x_j| where there is no such offset, and a distance by (d + 3)·2^−24 of itself beside that.

    Centroids that provably are not the nearest are left out; the result has the bits of the exhaustive search. It
    does not depend on the number of threads, nor on the batch a point comes in, unless that holds values so large or
    small that it must be scaled.

    Args:
        X: real numbers (n, d); n may be 0.
        centroids: real numbers (k, d), k at least 1.
        out: a pair of contiguous arrays to write into, int32 (n,) and float32 (n,).

    Returns:
        Labels, int32 (n,) in [0, k), and squared distances, float32 (n,). A distance beyond float32 is returned as the
        largest finite one; its label is right all the same.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN or infinity, beyond float32's reach, wrong shapes, no centroid.

    Cost:
        At most n·k·d multiply-adds; far fewer for many points of few coordinates. On a line 10 to 20 ns a point.

    Example:
        >>> import numpy as np
        >>> from cce_core.clustering import assign
        >>> labels, distances = assign([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [9.0, 9.0], [3.0, 3.0]])
        >>> labels.tolist(), distances.tolist()
        ([0, 2], [0.0, 1.0])
    """
    centroids = as_array("centroids", centroids)
    if not 1 <= centroids.shape[0] < 2**31 - TURN:
        raise ValueError(f"there must be at least one centroid and fewer than 2^31, got {centroids.shape[0]}")
    x = as_array("X", X, centroids.shape[1])
    labels, distances = _out(out, x.shape[0])
    exponent = find(x, centroids, centroids, labels, distances)
    if exponent:
        with np.errstate(over="ignore"):
            np.ldexp(distances, 2 * exponent, out=distances)
        np.minimum(distances, np.finfo(np.float32).max, out=distances)
    return labels, distances


def update(X: Any, labels: Any, k: int, sample_weight: Any = None) -> tuple[Points, NDArray[np.float64]]:
    """The mean of each label's points, `centroid[c] = Σ_{n: label n = c} w_n X[n] / Σ_{n: label n = c} w_n`.

    Sums are float64, over blocks of points whose number depends on the sizes alone, and added in their order: the same
    bits for any number of threads. X wider than float32 is taken about an origin, as by `KMeans`.

    Args:
        X: real numbers (n, d).
        labels: integers (n,) in [0, k).
        k: how many centroids, at least 1.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.

    Returns:
        Centroids (k, d), float64 where X is wider than float32, else float32; and the weight of each, float64
        (k,). A label without weight has centroid 0.

    Raises:
        TypeError: labels or k are not integers, X or weights not real numbers.
        ValueError: NaN or infinity, wrong shapes, negative weights or zeros only.
        IndexError: a label outside [0, k).

    Cost:
        n·d additions; scratch of X's size and of at most 16·k·(d + 1) float64.

    Example:
        >>> from cce_core.clustering import update
        >>> centroids, counts = update([[0.0], [2.0], [5.0]], [0, 0, 2], 3)
        >>> centroids.tolist(), counts.tolist()
        ([[1.0], [0.0], [5.0]], [2.0, 0.0, 1.0])
    """
    x = as_array("X", X)
    k = _check.integer("k", k, 1, 2**31 - 1 - TURN)
    places = as_labels(labels, x.shape[0], k)
    weights = as_weights(sample_weight, x.shape[0])
    if x.shape[0] == 0:
        return np.zeros((k, x.shape[1]), kind_of(x)), np.zeros(k)
    frame, points = None, x
    if x.dtype != np.float32:  # float64 sums of float32 need no scale
        (points,), frame = narrowed(some_of(x, weights), X=x)
    centroids, counts = means(tile(points, False), places, k, weights)
    if frame is not None:
        centroids = frame.back(centroids)
        centroids[counts == 0] = 0
    return centroids, counts
