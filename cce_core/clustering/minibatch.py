"""k-means over a stream: each batch moves the centroids it comes near to, by less and less."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering.estimator import MOST, Estimator, first_centroids, measured
from cce_core.clustering.kmeans import refill
from cce_core.clustering.lloyd import means
from cce_core.clustering.narrow import narrowed, origin_of, some_of
from cce_core.clustering.nearest.search import search
from cce_core.clustering.nearest.tiles import Points, tile
from cce_core.clustering.points import as_array, as_weights, kind_of
from cce_core.clustering.protocol import column_names
from cce_core.clustering.seeding import any_points, run_seed, start_places

_STARTED_FROM = 3  # batches of `fit` that the first centroids are drawn from


class MiniBatchKMeans(Estimator):
    """Clusters of a stream: each centroid is the mean of all points that were nearest to it when they came.

        C_c ← C_c + Σ_{n: label n = c} w_n (X_n − C_c) / (weight of c so far, this batch included)

    The first batch draws the first centroids. A cluster that never got weight is given one of the batch's costliest
    points, as `KMeans` does. Follows scikit-learn's conventions; the result is a pure function of arguments and
    batches, whatever the number of threads. Batches wider than float32 are taken about their own medians, within
    the same bounds as by `KMeans`; centroids are float64 from the first such batch on.

    Args:
        n_clusters: k, at least 1.
        init: as for `KMeans`.
        batch_size: points that `fit` takes at once; `partial_fit` takes what it is given.
        n_iter: passes of `fit` over the points, at least 1, each in another order.
        seed: 0 to 2^64 − 1.
        n_threads: at least 1; None uses `cce_core.get_num_threads()`. The result is the same.
        random_state: as for `KMeans`.

    Attributes:
        cluster_centers_: (k, d), float64 where a batch is wider than float32, else float32.
        counts_: float64 (k,), the weight that each centroid has seen.
        labels_: int32 (n,): after `fit` the nearest of `cluster_centers_`; after `partial_fit` those of the batch, before
            the centroids moved.
        inertia_: of these labels, a float.
        n_iter_: passes made by `fit`.
        n_steps_: batches seen.
        n_features_in_: d.
        feature_names_in_: the names of the columns, where the first batch is a data frame with names.

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
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.seed = seed
        self.n_threads = n_threads
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Forget what was learned, then learn from X, batch by batch.

        Args:
            X: real numbers (n, d), n at least 1.
            y: ignored.
            sample_weight: (n,), not negative, one of them positive; None lets each point count one.

        Returns:
            This object, with its attributes set.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: NaN or infinity, beyond float32's reach, no point, wrong shapes or names of columns, an
                argument out of range.
        """
        size, passes = _check.integer("batch_size", self.batch_size, 1), _check.integer("n_iter", self.n_iter, 1)
        names, x = column_names(X), self._points(X)
        weights, seed = as_weights(sample_weight, len(x)), self._drawn_seed()
        none, given = np.empty(0, np.float32), weights.size > 0
        with self._threads():
            some = _STARTED_FROM * max(size, self._k())
            if len(x) > some:  # a sample in which each weighs the same
                centroids = self._start(x[any_points(len(x), some, weights, run_seed(seed, 0))], none, seed)
            else:
                centroids = self._start(x, weights, seed)
            counts, steps = np.zeros(len(centroids)), 0
            for turn in range(passes):
                order = any_points(len(x), len(x), none, run_seed(seed, turn + 1))
                for low in range(0, len(x), size):
                    part = np.sort(order[low : low + size])
                    mass = weights[part] if given else none
                    if given and not mass.any():
                        continue
                    centroids, counts, _, _, _ = _step(x[part], mass, centroids, counts)
                    steps += 1
            origin = None if kind_of(x) is np.float32 else origin_of(some_of(x, weights))
            labels, inertia = measured(x, centroids, centroids if origin is None else origin[None], weights)
        self.cluster_centers_, self.counts_, self.labels_, self.inertia_ = centroids, counts, labels, inertia
        self.n_iter_, self.n_steps_, self._origin = passes, steps, origin
        self._remember(names, x.shape[1])
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Learn from one more batch.

        Args:
            X: real numbers (n, d), n at least 1; d as in the batches before.
            y: ignored.
            sample_weight: (n,), not negative, one of them positive; None lets each point count one.

        Returns:
            This object, with its attributes set.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: NaN or infinity, beyond float32's reach, no point, wrong shapes or names of columns, an
                argument out of range.
        """
        known = hasattr(self, "cluster_centers_")
        names, x = column_names(X), self._points(X, known)
        if len(x) == 0:
            raise ValueError("X must hold at least one point, got none")
        weights = as_weights(sample_weight, len(x))
        with self._threads():
            if known:
                centroids, counts = as_array("cluster_centers_", self.cluster_centers_), self.counts_
            else:
                centroids = self._start(x, weights, self._drawn_seed())
                counts = np.zeros(len(centroids))
            centroids, counts, labels, inertia, self._origin = _step(x, weights, centroids, counts)
        self.cluster_centers_, self.counts_, self.labels_, self.inertia_ = centroids, counts, labels, inertia
        self.n_steps_ = self.n_steps_ + 1 if known else 1
        if not known:
            self._remember(names, x.shape[1])
        return self

    def set_partial_fit_request(self, **asked: Any) -> MiniBatchKMeans:
        """Whether meta-estimators pass metadata to `partial_fit`, as `set_fit_request` says it for `fit`."""
        return self._ask("partial_fit", asked)

    def _k(self) -> int:
        return _check.integer("n_clusters", self.n_clusters, 1, MOST)

    def _start(self, x: NDArray[Any], weights: Points, seed: int) -> NDArray[Any]:
        k = self._k()
        given = first_centroids(self.init, k, x.shape[1], kind_of(x))
        if given is not None:
            return given.astype(kind_of(x))
        if self.init == "random":
            return x[any_points(len(x), k, weights, seed)].astype(kind_of(x), copy=False)
        (points,), _ = narrowed(some_of(x, weights), X=x)
        tiles = tile(points, True)
        places = start_places(tiles, k, tiles.back(weights), seed, self.init == "k-means||")
        assert tiles.order is not None
        return x[tiles.order[places]].astype(kind_of(x), copy=False)


def _step(
    x: NDArray[Any], weights: Points, centroids: NDArray[Any], counts: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int32], float, NDArray[np.float64] | None]:
    """Centroids and their weights after one more batch; its labels and inertia before, and the origin of its numbers."""
    k = len(centroids)
    (points, rows), frame = narrowed(some_of(x, weights), X=x, cluster_centers_=centroids)
    tiles = tile(points, False)
    near, costs = tiles.empty(np.int32), tiles.empty(np.float32)
    search(tiles, rows, near, costs)
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
    if frame.origin is None:
        moved = frame.back((rows + share * (batch.astype(np.float64) - rows)).astype(np.float32))
    else:  # centroids that stay, stay exactly
        moved = centroids + share * (frame.back(batch) - centroids)
    return moved, total, labels, inertia * 4.0**frame.exponent, frame.origin
