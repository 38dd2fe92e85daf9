"""What k-means estimators share: their checks, and what a set of centroids is good for."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._threads import using
from cce_core.clustering.lloyd import find
from cce_core.clustering.narrow import narrowed
from cce_core.clustering.nearest.tile_kernels import TURN
from cce_core.clustering.nearest.tiles import Points
from cce_core.clustering.points import as_array, as_points, as_weights
from cce_core.clustering.protocol import Protocol

MOST = 2**31 - 1 - TURN  # centroids
STARTS = ("k-means++", "k-means||", "random")
_NONE: Points = np.empty(0, np.float32)
_ROWS = 1 << 14  # of `transform` at a time, so that its scratch stays small


class NotFittedError(ValueError, AttributeError):
    """A method that needs `fit` was called before it. Where scikit-learn is loaded, it is its error of that name too."""


def first_centroids(init: Any, k: int, d: int, kind: Any) -> NDArray[Any] | None:
    """The centroids that `init` gives, (k, d), float32 where that is `kind`; None where it names a way to draw them."""
    if isinstance(init, str):
        _check.choice("init", init, STARTS)
        return None
    given = as_points("init", init, d) if kind is np.float32 else as_array("init", init, d)
    if given.shape[0] != k:
        raise ValueError(f"init must hold n_clusters = {k} centroids, got {given.shape[0]}")
    return given


def measured(
    x: NDArray[Any], centroids: NDArray[Any], about: NDArray[Any], weights: Points
) -> tuple[NDArray[np.int32], float]:
    """The labels of points, and their inertia; numbers are narrowed `about` points."""
    labels, costs = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    exponent = find(x, centroids, about, labels, costs)
    total = float(np.sum(costs * (weights.astype(np.float64) if weights.size else 1.0), dtype=np.float64))
    return labels, total * 4.0**exponent


class Estimator(Protocol):
    """Parameters by the names of the constructor's arguments; `cluster_centers_` once it is fitted."""

    cluster_centers_: NDArray[Any]
    init: Any
    n_threads: int | None
    _origin: NDArray[np.float64] | None  # of the frame in which the centroids were found

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        return using(None if self.n_threads is None else _check.integer("n_threads", self.n_threads, 1))

    def _points(self, X: Any, known: bool = False) -> NDArray[Any]:
        """X as points, at least one to fit, or with the coordinates of a fit; errors that scikit-learn knows."""
        if known:
            self._check_names(X)
        if not isinstance(X, np.ndarray) and not hasattr(X, "tocsr"):
            X = _check.array("X", X, "real numbers")
        if X.dtype.kind == "O":
            try:
                X = X.astype(np.float64)
            except (TypeError, ValueError) as error:  # in NumPy's words, for which scikit-learn looks
                raise type(error)(f"X must be real numbers: {error}; fill or drop what is missing") from error
        elif X.dtype.kind == "b":
            X = X.astype(np.float32)
        elif np.iscomplexobj(X):
            raise ValueError(f"Complex data not supported: X must be real numbers, got {X.dtype}")
        shape = np.shape(X)
        if len(shape) == 2 and shape[1] == 0:
            raise ValueError(f"X has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
        if known:
            self._check_width(shape)
        x = as_array("X", X)
        if not known and x.shape[0] == 0:
            raise ValueError("X must hold at least one point, got none")
        return x

    def _fitted(self) -> NDArray[Any]:
        if not hasattr(self, "cluster_centers_"):
            theirs = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", None)
            kind = NotFittedError if theirs is None else type("NotFittedError", (NotFittedError, theirs), {})
            raise kind(f"this {type(self).__name__} has no centroids yet: call fit first")
        return self.cluster_centers_

    def _about(self, centroids: NDArray[Any]) -> NDArray[Any]:
        """What `predict` narrows about: what `fit` did, or the centroids where that was float32."""
        origin = getattr(self, "_origin", None)
        return centroids if origin is None else origin[None]

    def predict(self, X: Any) -> NDArray[np.int32]:
        """The nearest centroid of each point: `assign(X, cluster_centers_)`.

        Args:
            X: real numbers (n, d).

        Returns:
            Labels, int32 (n,).

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: not real numbers.
            ValueError: NaN or infinity, not d coordinates, other names of columns than `fit` saw.
        """
        centroids, x = as_array("cluster_centers_", self._fitted()), self._points(X, True)
        with self._threads():
            return measured(x, centroids, self._about(centroids), _NONE)[0]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the inertia of these points, `−Σ_n w_n · min_c |X_n − C_c|²`: more is better.

        Args:
            X: real numbers (n, d).
            y: ignored.
            sample_weight: (n,), not negative, one of them positive; None lets each point count one.

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: not real numbers.
            ValueError: NaN or infinity, not d coordinates, other names of columns than `fit` saw, weights out of range.
        """
        centroids, x = as_array("cluster_centers_", self._fitted()), self._points(X, True)
        weights = as_weights(sample_weight, len(x))
        with self._threads():
            return -measured(x, centroids, self._about(centroids), weights)[1]

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the centroids."""
        raise NotImplementedError  # each estimator has its own

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.int32]:
        """`fit`, then the labels of the same points."""
        return self.fit(X, y, sample_weight).labels_  # type: ignore[attr-defined]

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `transform` of the same points."""
        return self.fit(X, y, sample_weight).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The names of the columns of `transform`: "kmeans0", "kmeans1", …, after the class.

        Args:
            input_features: the names of the columns of X, checked alone.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: other names than `fit` saw, or not d of them.
        """
        return self._names_out(len(self._fitted()), input_features)

    def transform(self, X: Any) -> Any:
        """The distance of each point from each centroid, `sqrt(Σ_j (X[n, j] − C[c, j])²)`.

        Args:
            X: real numbers (n, d).

        Returns:
            (n, k), computed in float32 where X and the centroids are, in float64 where one is wider; a data frame where
            `set_output` asks for one. A distance beyond float32 is the largest finite one in float32.

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: not real numbers.
            ValueError: NaN or infinity, not d coordinates, other names of columns than `fit` saw.
        """
        centroids, x = as_array("cluster_centers_", self._fitted()), self._points(X, True)
        _, frame = narrowed(self._about(centroids), X=x, cluster_centers_=centroids)
        if frame.origin is not None:
            frame = frame._replace(origin=np.zeros(1))  # float64 needs none
        rows = frame.shifted(centroids)
        out = np.zeros((x.shape[0], rows.shape[0]), rows.dtype)
        for low in range(0, x.shape[0], _ROWS):
            part, points = out[low : low + _ROWS], frame.shifted(x[low : low + _ROWS])
            for j in range(x.shape[1]):
                part += np.square(points[:, j, None] - rows[None, :, j])
        np.sqrt(out, out=out)
        if frame.exponent:
            with np.errstate(over="ignore"):
                np.ldexp(out, frame.exponent, out=out)
            np.minimum(out, np.finfo(rows.dtype).max, out=out)
        return self._in_container(out, self.get_feature_names_out(), X)
