"""What k-means estimators share: scikit-learn's protocol, their checks, and what a set of centroids is good for."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._threads import using
from cce_core.clustering.lanes import TURN
from cce_core.clustering.lloyd import as_points, assign, scale_of
from cce_core.clustering.tiles import Points

MOST = 2**31 - 1 - TURN  # centroids
STARTS = ("k-means++", "k-means||", "random")
_ROWS = 1 << 14  # of `transform` at a time, so that its scratch stays small


class NotFittedError(ValueError, AttributeError):
    """A method that needs `fit` was called before it. Where scikit-learn is loaded, it is its error of that name too."""


def first_centroids(init: Any, k: int, d: int) -> Points | None:
    """The centroids that `init` gives, float32 (k, d); None where it names a way to draw them."""
    if isinstance(init, str):
        _check.choice("init", init, STARTS)
        return None
    given = as_points("init", init, d)
    if given.shape[0] != k:
        raise ValueError(f"init must hold n_clusters = {k} centroids, got {given.shape[0]}")
    return given


class Estimator:
    """Parameters by the names of the constructor's arguments; `cluster_centers_` once it is fitted."""

    cluster_centers_: Points
    n_features_in_: int
    init: Any
    n_threads: int | None

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name; `deep` changes nothing."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor by name.

        Raises:
            ValueError: there is no such argument; none is set then.
        """
        for name in params:
            _check.choice("parameter", name, tuple(self._names()))
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.get_params().items() if name != "n_threads" or value is not None}
        if not isinstance(self.init, str):
            shown["init"] = "<array>"
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks for; called by it alone."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]),
            input_tags=InputTags(),
        )

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        return using(None if self.n_threads is None else _check.integer("n_threads", self.n_threads, 1))

    def _points(self, X: Any, d: int | None = None) -> Points:
        """X as points, at least one to fit and of `d` coordinates to predict, with errors that scikit-learn knows."""
        if not isinstance(X, np.ndarray) and not hasattr(X, "tocsr"):
            X = np.asarray(X)
        if X.dtype.kind == "O":
            X = X.astype(np.float64)
        elif np.iscomplexobj(X):
            raise ValueError(f"Complex data not supported: X must be real numbers, got {X.dtype}")
        shape = np.shape(X)
        if len(shape) == 2 and shape[1] == 0:
            raise ValueError(f"X has 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
        if d is not None and len(shape) == 2 and shape[1] != d:
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {d} features as input "
                f"(coordinates a point)"
            )
        x = as_points("X", X)
        if d is None and x.shape[0] == 0:
            raise ValueError("X must hold at least one point, got none")
        return x

    def _fitted(self) -> Points:
        if not hasattr(self, "cluster_centers_"):
            theirs = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", None)
            kind = NotFittedError if theirs is None else type("NotFittedError", (NotFittedError, theirs), {})
            raise kind(f"this {type(self).__name__} has no centroids yet: call fit first")
        return self.cluster_centers_

    def predict(self, X: Any) -> NDArray[np.int32]:
        """The nearest centroid of each point: `assign(X, cluster_centers_)`.

        Args:
            X: real numbers (n, d).

        Returns:
            Labels, int32 (n,).

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: not real numbers.
            ValueError: NaN or infinity, or not d coordinates.
        """
        centroids = self._fitted()
        with self._threads():
            return assign(self._points(X, centroids.shape[1]), centroids)[0]

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the centroids."""
        raise NotImplementedError  # each estimator has its own

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.int32]:
        """`fit`, then the labels of the same points."""
        return self.fit(X, y, sample_weight).labels_  # type: ignore[attr-defined]

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Points:
        """`fit`, then `transform` of the same points."""
        return self.fit(X, y, sample_weight).transform(X)

    def transform(self, X: Any) -> Points:
        """The distance of each point from each centroid, `sqrt(Σ_j (X[n, j] − C[c, j])²)`.

        Args:
            X: real numbers (n, d).

        Returns:
            float32 (n, k); a distance beyond float32 is the largest finite one.

        Raises:
            NotFittedError: `fit` was not called.
            TypeError: not real numbers.
            ValueError: NaN or infinity, or not d coordinates.
        """
        centroids = self._fitted()
        x = self._points(X, centroids.shape[1])
        exponent = scale_of(x, centroids)
        if exponent:
            x, centroids = np.ldexp(x, -exponent), np.ldexp(centroids, -exponent)
        out = np.zeros((x.shape[0], centroids.shape[0]), np.float32)
        for low in range(0, x.shape[0], _ROWS):
            part = out[low : low + _ROWS]
            for j in range(x.shape[1]):
                part += np.square(x[low : low + _ROWS, j, None] - centroids[None, :, j])
        np.sqrt(out, out=out)
        if exponent:
            with np.errstate(over="ignore"):
                np.ldexp(out, exponent, out=out)
            np.minimum(out, np.finfo(np.float32).max, out=out)
        return out
