"""Which ids are worth a pointer, where a budget of bits is short: those that count most, as many as leave least over.

    loss = Σ_{i pointed} w_i · |x_i − nearest centroid|² + Σ_{other i} w_i · |x_i − their mean|²

Fewer pointers leave bits for more centroids. What k centroids leave over is found by k-means on a sample at a few k and falls
about as a power of k in between and beyond, so each way to spend the bytes costs a moment to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cce_core.clustering import KMeans
from cce_core.hashing.mix import derive_key
from cce_core.learning.sampling import Weights, weighted_ids
from cce_core.method.spec import SAMPLES, TableSpec

POINTS, MOST_TRIED = 1 << 13, 256  # of the sample, and centroids for it
_ITERATIONS, _TRIED, _EACH = 6, (16, 64, MOST_TRIED), 8
_BLOCK = 1 << 16
_BINS = 1 << 16


class Ranked:
    """The ids in order of what they count, which is read a block at a time: nothing of the vocabulary's size is kept.

    Ids whose weights share their first 16 bits (sign, exponent and 7 bits) are alike: of these the first come first.

    Args:
        weights: (vocab,), at least 0.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights, self.vocab = weights, len(weights)
        self._held = np.zeros(_BINS, np.int64)
        for low in range(0, self.vocab, _BLOCK):
            self._held += np.bincount(self.bins(low, low + _BLOCK), minlength=_BINS)
        self._above = self.vocab - np.cumsum(self._held)  # ids in higher bins

    def bins(self, low: int, high: int) -> NDArray[np.int64]:
        """Of the ids [low, high): the greater, the more they count."""
        values = np.ascontiguousarray(self.weights[low:high], np.float32) + np.float32(0.0)  # −0 counts as 0 does
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.int64)

    def edge(self, n: int) -> tuple[int, int, float]:
        """The bin of the last of the n > 0 ids that count most, how many of its ids are among them, and which share that is."""
        found = int(np.argmax(self._above < n))
        left = n - int(self._above[found])
        return found, left, left / int(self._held[found])

    def first(self, n: int) -> NDArray[np.bool_]:
        """Which ids are the n that count most: bool (vocab,)."""
        out, (edge, left, _) = np.empty(self.vocab, bool), self.edge(n)
        for low in range(0, self.vocab, _BLOCK):
            bins = self.bins(low, low + _BLOCK)
            alike = np.flatnonzero(bins == edge)[:left]
            out[low : low + _BLOCK] = bins > edge
            out[low + alike] = True
            left -= len(alike)
        return out


def best(
    shapes: Mapping[TableSpec, tuple[int, int]],
    ranked: Ranked,
    weights: Weights,
    n_points: int,
    rows: Callable[[NDArray[np.uint64]], NDArray[np.float32]],
    generation: int,
) -> TableSpec:
    """The one of the specs that leaves least over of a sample of ids, drawn by their weights.

    Args:
        shapes: how many rows each has, and how many ids with pointers.
        ranked: the ids by what they count.
        weights: (vocab,), what an id's error counts.
        n_points: ids that are drawn, at most `POINTS`.
        rows: gives vectors of ids, float32 (n, width), whose distances count.
        generation: of the table, for the seed.
    """
    seed = derive_key(next(iter(shapes)).seed, SAMPLES, generation, 0, 3)
    rng = np.random.Generator(np.random.PCG64(seed))
    ids, times = weighted_ids(rng, weights, n_points)
    each = np.repeat(np.arange(len(ids)), times.astype(np.int64))
    points = rows(ids)[each]
    bins = np.concatenate([ranked.bins(int(i), int(i) + 1) for i in ids])[each]
    drawn = rng.random(len(ids))[each]  # for the ids of the last bin, some of which are among the first

    def loss(spec: TableSpec) -> float:
        k, n = shapes[spec]
        edge, _, share = ranked.edge(n)
        own = (bins > edge) | ((bins == edge) & (drawn < share))
        return left_by(points[own], k, seed) + left_by(points[~own], 1, seed)

    return min(shapes, key=loss)


def left_by(points: NDArray[np.float32], k: int, seed: int) -> float:
    """What k centroids leave over of points, the sum of squares, or what it would be by those at smaller k."""
    if not len(points):
        return 0.0
    found = {1: float(np.square(points - points.mean(0), dtype=np.float64).sum())}
    for tried in _TRIED:
        if k > 1 and tried * _EACH <= len(points):
            found[tried] = float(KMeans(tried, n_iter=_ITERATIONS, seed=seed).fit(points).inertia_)
    if k in found or not found[1]:
        return found.get(k, 0.0)
    ks, sums = np.array([*found]), np.array([*found.values()])
    if not sums.all():  # exact from some k on
        return 0.0 if k >= ks[np.argmin(sums)] else float(np.interp(np.log(k), np.log(ks), sums))
    if k <= ks[-1]:
        return float(np.exp(np.interp(np.log(k), np.log(ks), np.log(sums))))
    slope = np.log(sums[-1] / sums[-2]) / np.log(ks[-1] / ks[-2]) if len(ks) > 1 else 0.0
    return float(sums[-1] * (k / ks[-1]) ** slope)
