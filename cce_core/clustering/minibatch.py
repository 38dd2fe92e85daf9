"""k-means over a stream: each batch moves the centroids it comes near to, by less and less."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering.estimator import MOST, Estimator, first_centroids
from cce_core.clustering.init import any_points, run_seed, start_places
from cce_core.clustering.kmeans import refill
from cce_core.clustering.lloyd import as_weights, assign, means, scale_of
from cce_core.clustering.search import search
from cce_core.clustering.tiles import Points, tile

_STARTED_FROM = 3  # batches of `fit` that the first centroids are drawn from


class MiniBatchKMeans(Estimator):
    """Clusters of a stream: each centroid is the mean of all points that were nearest to it when they came.

        C_c ← C_c + Σ_{n: label n = c} w_n (X_n − C_c) / (weight of c so far, this batch included)

    The first batch draws the first centroids. A cluster that never got weight is given one of the batch's costliest
    points, as `KMeans` does. Follows scikit-learn's conventions; the result is a pure function of arguments and
    batches, whatever the number of threads.

    Args:
        n_clusters: k, at least 1.
        init: as for `KMeans`.
        batch_size: points that `fit` takes at once; `partial_fit` takes what it is given.
        n_iter: passes of `fit` over the points, at least 1, each in another order.
        seed: 0 to 2^64 − 1.
        n_threads: at least 1; None uses `cce_core.get_num_threads()`. The result is the same.

    Attributes:
        cluster_centers_: float32 (k, d).
        counts_: float64 (k,), the weight that each centroid has seen.
        labels_: int32 (n,): after `fit` the nearest of `cluster_centers_`; after `partial_fit` those of the batch, before
            the centroids moved.
        inertia_: of these labels, a float.
        n_iter_: passes made by `fit`.
        n_steps_: batches seen.
        n_features_in_: d.

    Cost:
        One search for nearest centroids a batch; see `assign`.

    References:
        Sculley, Web-scale k-means clustering, WWW 2010.

    Example:
        >>> import numpy as np
        >>> from cce_core.clustering import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, init=[[0.0], [9.0]])
        >>> for batch in ([[1.0], [8.0]], [[3.0], [8.0]]):
        ...     km = km.partial_fit(batch)
        >>> km.cluster_centers_.tolist(), km.counts_.tolist(), km.n_steps_
        ([[2.0], [8.0]], [2.0, 2.0], 2)
    """

    labels_: NDArray[np.int32]
    counts_: NDArray[np.float64]
    inertia_: float
    n_iter_: int
    n_steps_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        batch_size: int = 4096,
        n_iter: int = 3,
        seed: int = 0,
        n_threads: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.seed = seed
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Forget what was learned, then learn from X, batch by batch.

        Args:
            X: real numbers (n, d), taken as float32, n at least 1.
            y: ignored.
            sample_weight: (n,), not negative, one of them positive; None lets each point count one.

        Returns:
            This object, with its attributes set.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: NaN or infinity, no point, wrong shapes, an argument out of range.
        """
        size, passes = _check.integer("batch_size", self.batch_size, 1), _check.integer("n_iter", self.n_iter, 1)
        x, seed = self._points(X), _check.seed(self.seed)
        weights = as_weights(sample_weight, len(x))
        none, given = np.empty(0, np.float32), weights.size > 0
        with self._threads():
            some = _STARTED_FROM * max(size, self._k())
            if len(x) > some:  # a sample in which each weighs the same
                centroids = self._start(x[any_points(len(x), some, weights, run_seed(seed, 0))], none)
            else:
                centroids = self._start(x, weights)
            counts, steps = np.zeros(len(centroids)), 0
            for turn in range(passes):
                order = any_points(len(x), len(x), none, run_seed(seed, turn + 1))
                for low in range(0, len(x), size):
                    part = np.sort(order[low : low + size])
                    mass = weights[part] if given else none
                    if given and not mass.any():
                        continue
                    centroids, counts, _, _ = _step(x[part], mass, centroids, counts)
                    steps += 1
            exponent = scale_of(x, centroids)  # scaled here, so that the costs are in range as well
            labels, costs = assign(np.ldexp(x, -exponent), np.ldexp(centroids, -exponent))
        self.cluster_centers_, self.counts_, self.labels_ = centroids, counts, labels
        total = float(np.sum(costs * (weights.astype(np.float64) if given else 1.0), dtype=np.float64))
        self.inertia_ = total * 4.0**exponent
        self.n_iter_, self.n_steps_, self.n_features_in_ = passes, steps, x.shape[1]
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Learn from one more batch.

        Args:
            X: real numbers (n, d), taken as float32, n at least 1; d as in the batches before.
            y: ignored.
            sample_weight: (n,), not negative, one of them positive; None lets each point count one.

        Returns:
            This object, with its attributes set.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: NaN or infinity, no point, wrong shapes, an argument out of range.
        """
        known = hasattr(self, "cluster_centers_")
        x = self._points(X, self.n_features_in_ if known else None)
        if len(x) == 0:
            raise ValueError("X must hold at least one point, got none")
        weights = as_weights(sample_weight, len(x))
        with self._threads():
            centroids = self.cluster_centers_ if known else self._start(x, weights)
            counts = self.counts_ if known else np.zeros(len(centroids))
            centroids, counts, labels, inertia = _step(x, weights, centroids, counts)
        self.cluster_centers_, self.counts_, self.labels_, self.inertia_ = centroids, counts, labels, inertia
        self.n_steps_ = self.n_steps_ + 1 if known else 1
        self.n_features_in_ = x.shape[1]
        return self

    def _k(self) -> int:
        return _check.integer("n_clusters", self.n_clusters, 1, MOST)

    def _start(self, x: Points, weights: Points) -> Points:
        k, seed = self._k(), _check.seed(self.seed)
        given = first_centroids(self.init, k, x.shape[1])
        if given is not None:
            return given.copy()
        if self.init == "random":
            return x[any_points(len(x), k, weights, seed)]
        exponent = scale_of(x)
        tiles = tile(np.ldexp(x, -exponent) if exponent else x, True)
        places = start_places(tiles, k, tiles.back(weights), seed, self.init == "k-means||")
        assert tiles.order is not None
        return x[tiles.order[places]]


def _step(
    x: Points, weights: Points, centroids: Points, counts: NDArray[np.float64]
) -> tuple[Points, NDArray[np.float64], NDArray[np.int32], float]:
    """Centroids and their weights after one more batch; its labels and inertia before."""
    k, exponent = len(centroids), scale_of(x, centroids)
    if exponent:
        x, centroids = np.ldexp(x, -exponent), np.ldexp(centroids, -exponent)
    tiles = tile(x, False)
    near, costs = tiles.empty(np.int32), tiles.empty(np.float32)
    search(tiles, centroids, near, costs)
    labels, costs = near[: tiles.n], costs[: tiles.n]
    inertia = float(np.sum(costs * (weights.astype(np.float64) if weights.size else 1.0), dtype=np.float64))
    settled, now = labels, np.bincount(labels, weights if weights.size else None, minlength=k)
    empty = np.flatnonzero((now == 0) & (counts == 0))
    if empty.size:
        refilled = refill(tiles, labels, costs, weights, empty, k)
        settled = labels if refilled is None else refilled
    batch, mass = means(tiles, settled, k, weights)
    total = counts + mass
    share = (mass / np.where(total > 0, total, 1.0))[:, None]
    moved = centroids + share * (batch.astype(np.float64) - centroids)
    out = moved.astype(np.float32)
    return (np.ldexp(out, exponent) if exponent else out), total, labels, inertia * 4.0**exponent
