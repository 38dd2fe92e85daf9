"""k-means: Lloyd's iteration from a drawn or a given start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering.estimator import MOST, Estimator, first_centroids, measured
from cce_core.clustering.iterations import DONE, MORE, Turns, total
from cce_core.clustering.lloyd import means
from cce_core.clustering.narrow import narrowed, some_of, warn_if_merged
from cce_core.clustering.nearest.search import worth_narrowing
from cce_core.clustering.nearest.shortlists import Nearest, worth_listing
from cce_core.clustering.nearest.tiles import Points, Tiles, tile
from cce_core.clustering.points import as_weights, kind_of
from cce_core.clustering.protocol import column_names
from cce_core.clustering.seeding import any_points, lowest, run_seed, start_places


class KMeans(Estimator):
    """Clusters that make `Σ_n w_n · min_c |X_n − C_c|²`, the inertia, small: Lloyd's iteration.

    Each iteration moves every centroid to the mean of its points, then every point to its nearest centroid (ties to
    the lowest index). A cluster without weight is first given one of the points that cost most: distinct ones, never
    the last of its cluster. The inertia never rises: an iteration that raises it by rounding is undone and is the last.

    The result is a pure function of arguments and data, whatever the number of threads. Distances are float32, sums
    float64. Values of any finite size are safe: no NaN, no label out of range. But all share one scale: beside a value above
    2^50 differences of less than 2^−75 of it count nothing, so take markers such as 3e38 out before. Fewer points than
    clusters, or fewer distinct ones, are allowed: spare centroids then repeat others and get no point. Points of weight 0
    are labelled but move nothing.

    X wider than float32 (float64, integers of 32 bits and more, lists) is taken about an origin in float64 before it is
    narrowed, so that an offset such as seconds since 1970 costs nothing: a coordinate whose median m is more than 8 times
    as far from 0 as half of the points are from m stands for x_j − m_j. A number is then off by at most 2^−24·|x_j − m_j|
    (2^−24·|x_j| without such an offset), a distance by (d + 3)·2^−24 of itself beside that, and centroids come back in
    float64. `predict`, `transform` and `score` keep the origin. Where groups lie so far
    apart that float32 can't tell points within them from each other, a RuntimeWarning names two; numbers beyond
    float32's reach (3.4e38) are refused.

    Follows scikit-learn's conventions (parameters, names of columns, `set_output`, routing of metadata, attributes with
    a trailing underscore); `fit` checks the arguments.

    Args:
        n_clusters: k, at least 1.
        init: where to start. "k-means++" draws points one by one, far from each other, the best of a few draws each
            time; for large data (n·k·d above 2^24, but for d ≤ 2 only above two million points) it stands for
            "k-means||", which draws about k/2 at once in each of four rounds and is as good within a few thousandths
            of the inertia after ten iterations. "random" draws points by their weights alone. Or the first centroids,
            real numbers (k, d); one to which no point is nearest is then given a point like any empty cluster.
        n_init: starts to try; the least inertia wins, the earlier among equals. An array gives one start.
        n_iter: most iterations, at least 0.
        tol: an iteration that lowers the inertia by no more than tol times itself is the last; with 0 it goes on until
            no label changes or the inertia falls no more.
        seed: 0 to 2^64 − 1.
        n_threads: at least 1; None uses `cce_core.get_num_threads()`. The result is the same.
        random_state: scikit-learn's name for the seed: a whole number, a NumPy `Generator` or `RandomState`, from which
            each fit draws its seed, or None, which leaves it to `seed`.

    Attributes:
        cluster_centers_: (k, d), float64 where X is wider than float32, else float32.
        labels_: int32 (n,), the nearest of `cluster_centers_` (before these are rounded, where they are subnormal).
        inertia_: of these, a float.
        n_iter_: iterations made.
        n_features_in_: d.
        feature_names_in_: the names of X's columns, where it is a data frame with names. `predict`, `transform` and
            `score` then refuse others, or another order.

    Cost:
        At most n·k·d multiply-adds an iteration; the more iterations go before and the fewer coordinates, the fewer.
        Scratch of about 32 bytes a point, three times X and the sums of `update`.

    References:
        Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 1982. Arthur and
        Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007. Bahmani et al., Scalable k-means++, VLDB
        2012.

    Example:
        >>> import numpy as np
        >>> from cce_core.clustering import KMeans
        >>> km = KMeans(2, init=[[0.0], [1.0]]).fit([[0.0], [1.0], [8.0], [9.0]])
        >>> km.cluster_centers_.tolist(), km.labels_.tolist(), km.inertia_, km.n_iter_
        ([[0.5], [8.5]], [0, 0, 1, 1], 1.0, 2)
    """

    labels_: NDArray[np.int32]
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int = 1,
        n_iter: int = 25,
        tol: float = 0.0,
        seed: int = 0,
        n_threads: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.n_iter = n_iter
        self.tol = tol
        self.seed = seed
        self.n_threads = n_threads
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        on_iteration: Callable[[int, float], Any] | None = None,
    ) -> KMeans:
        """Find the centroids.

        Args:
            X: real numbers (n, d), n at least 1; a data frame's columns are remembered by name.
            y: ignored.
            sample_weight: (n,), taken as float32, not negative, one of them positive; None lets each point count one.
            on_iteration: called with (iterations so far, inertia) after each iteration of each start; a true result
                ends that start there. What it raises leaves this object as it was.

        Returns:
            This object, with its attributes set.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: NaN or infinity, beyond float32's reach, no point, wrong shapes, an argument out of range.
        """
        _check.callback("on_iteration", on_iteration)
        k = _check.integer("n_clusters", self.n_clusters, 1, MOST)
        starts, limit = _check.integer("n_init", self.n_init, 1), _check.integer("n_iter", self.n_iter, 0)
        tol = _check.number("tol", self.tol, 0.0)
        names, x = column_names(X), self._points(X)
        n, d = x.shape
        weights, given = as_weights(sample_weight, n), first_centroids(self.init, k, d, kind_of(x))
        starts, seed = starts if given is None else 1, self._drawn_seed()
        with self._threads():
            self._fit(x, weights, given, k, starts, limit, tol, seed, on_iteration)
        self._remember(names, d)
        return self

    def _fit(
        self, x: NDArray[Any], weights: Points, given: NDArray[Any] | None, k: int, starts: int, limit: int, tol: float,
        seed: int, on_iteration: Callable[[int, float], Any] | None,
    ) -> None:  # fmt: skip
        n, d = x.shape
        arrays = {"X": x} if given is None else {"X": x, "init": given}
        (points, *first), frame = narrowed(some_of(x, weights), **arrays)
        unit = 4.0**frame.exponent
        watch = None if on_iteration is None else lambda step, inertia: on_iteration(step, inertia * unit)
        drawn = isinstance(self.init, str) and self.init != "random"
        tiles = tile(points, drawn or worth_narrowing(n, d, k) or worth_listing(n, d, k))
        mass = tiles.back(weights)
        best: tuple[Points, NDArray[np.int32], float, int] | None = None
        for run in range(starts):
            if first:
                start = first[0]
            elif self.init == "random":
                start = points[any_points(n, k, weights, run_seed(seed, run))]
            else:
                start = tiles.rows(start_places(tiles, k, mass, run_seed(seed, run), self.init == "k-means||"))
            found = _iterate(tiles, mass, start, limit, tol, watch)
            if best is None or found[2] < best[2]:
                best = found
        assert best is not None
        rows, near, inertia, steps = best
        labels, inertia, centroids = np.empty(n, np.int32), float(inertia * unit), frame.back(rows)
        tiles.into(near, labels)
        if frame.origin is not None:
            warn_if_merged(x, points, weights, best[2])
            if not frame.gives(rows, centroids):  # what is rounded anew when it is used is measured as it is used
                labels, inertia = measured(x, centroids, frame.origin[None], weights)
        self._origin = frame.origin
        self.cluster_centers_, self.labels_, self.inertia_, self.n_iter_ = centroids, labels, inertia, steps


def _iterate(
    tiles: Tiles,
    weights: Points,
    centroids: Points,
    limit: int,
    tol: float,
    watch: Callable[[int, float], Any] | None,
) -> tuple[Points, NDArray[np.int32], float, int]:
    """Lloyd's iteration from `centroids`: (centroids, labels, inertia, iterations), labels the nearest centroids.

    Weights and labels are in the order of the tiles.
    """
    n, k = tiles.n, len(centroids)
    labels, costs = tiles.empty(np.int32), tiles.empty(np.float32)
    spare, spare_costs = np.empty_like(labels), np.empty_like(costs)
    nearest = Nearest(tiles, k)
    nearest(centroids, labels, labels, costs)
    inertia, step = float(total(n, costs, weights)), 0
    if nearest.plain:
        centroids, iterate = centroids.copy(), Turns(tiles, weights, k)
    while step < limit:
        if nearest.plain:
            turns = limit - step if watch is None else 1
            made, inertia, end = iterate(centroids, labels, costs, spare, spare_costs, inertia, turns, tol)
            step += made
            if (made and watch is not None and watch(step, inertia)) or end == DONE:
                break
            if end == MORE:
                continue
        moved, mass = means(tiles, labels, k, weights)
        settled = labels
        empty = np.flatnonzero(mass == 0)
        if empty.size:
            refilled = refill(tiles, labels[:n], costs[:n], weights, empty, k)
            if refilled is not None:
                settled = refilled
                moved, mass = means(tiles, settled, k, weights)
                empty = np.flatnonzero(mass == 0)
            moved[empty] = centroids[empty]
        if np.array_equal(moved, centroids):
            break
        nearest(moved, labels, spare, spare_costs)
        now = total(n, spare_costs, weights)
        if now > inertia:
            break
        unchanged = np.array_equal(spare[:n], settled[:n])
        fall, before = inertia - now, inertia
        labels, spare, costs, spare_costs = spare, labels, spare_costs, costs
        centroids, inertia, step = moved, now, step + 1
        if (watch is not None and watch(step, inertia)) or unchanged or fall <= tol * before:
            break
    return centroids, labels, inertia, step


def refill(
    tiles: Tiles, labels: NDArray[np.int32], costs: Points, weights: Points, empty: NDArray[np.int64], k: int
) -> NDArray[np.int32] | None:
    """Labels with the costliest points given to the `empty` clusters, one each; None where there is nothing to give.

    A point may go if it costs anything, differs from those that went before, and leaves behind another one with weight.
    Of points that cost the same, the caller's first goes first.
    """
    shares = costs.astype(np.float64)
    left = np.bincount(labels, minlength=k)
    if weights.size:
        shares *= weights
        left = np.bincount(labels[weights > 0], minlength=k)
    order = np.arange(tiles.n) if tiles.order is None else tiles.order
    take = 4 * empty.size + 16
    while True:
        given: dict[bytes, int] = {}
        remaining = left.copy()
        for point in lowest(-shares, take, order):
            home, value = labels[point], (tiles.rows(point) + np.float32(0.0)).tobytes()  # + 0 makes −0 the same as 0
            if shares[point] > 0 and remaining[home] > 1 and value not in given:
                given[value] = int(point)
                remaining[home] -= 1
                if len(given) == empty.size:
                    break
        if len(given) == empty.size or take >= tiles.n:
            break
        take = tiles.n
    if not given:
        return None
    refilled = labels.copy()
    refilled[list(given.values())] = empty[: len(given)]
    return refilled
