"""Numbers of any real type as float32 that kernels can square: about an origin of their own, scaled by a power of two.

What float32 holds exactly goes in as it is. Wider numbers (float64, integers of 32 bits and more) lose what lies 2^−24
below them, which is everything where they stand behind an offset, such as seconds since 1970. Differences are all that
distances need, so the offset is first taken away in float64, a coordinate at a time, and centroids are given back in
float64 with the offset on them.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering.nearest.tiles import Points

_MOST = np.finfo(np.float32).max
_SAMPLE = 4096  # points that tell whether a coordinate stands behind an offset
_FAR = 8.0  # times the reach of most points: an offset below takes three bits at most
_NUMBERS = 1 << 18  # made float64 at a time
_LOST = 2.0**-44  # of the squares of all points: an inertia below may be rounding alone


class Frame(NamedTuple):
    """What float32 numbers stand for: `origin + 2^exponent · number`.

    Attributes:
        origin: float64 (d,), or one for all coordinates; None where the numbers were float32 to begin with.
        exponent: the power of two.
    """

    origin: NDArray[np.float64] | None
    exponent: int

    def shifted(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array's numbers within the frame, in float64 where there is an origin."""
        if self.origin is None:
            return np.ldexp(array, -self.exponent) if self.exponent else array
        out = array.astype(np.float64)
        out -= self.origin
        return np.ldexp(out, -self.exponent) if self.exponent else out

    def points(self, array: NDArray[Any]) -> Points:
        """The same, rounded to float32, with little float64 at a time."""
        if self.origin is None:
            return self.shifted(array)
        out = np.empty(array.shape, np.float32)
        rows = max(1, _NUMBERS // max(1, array[:1].size))
        with np.errstate(over="ignore"):
            for low in range(0, len(array), rows):
                out[low : low + rows] = self.shifted(array[low : low + rows])
        return out

    def back(self, points: Points) -> NDArray[Any]:
        """What these numbers stand for: float64 where there is an origin, else float32; always a new array."""
        if self.origin is None:
            return np.ldexp(points, self.exponent) if self.exponent else points.copy()
        return self.origin + np.ldexp(points.astype(np.float64), self.exponent)

    def gives(self, points: Points, rows: NDArray[Any]) -> bool:
        """Whether `rows` are exactly what `points` stand for."""
        return self.exponent == 0 and np.array_equal(self.points(rows), points)


def as_array(name: str, value: Any, d: int | None = None) -> NDArray[Any]:
    """`value` as finite real numbers (n, d): contiguous float32 where that holds them exactly, else as they are.

    ValueError or TypeError says what is wrong with it.
    """
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} must be a dense array, got a sparse one, which is not supported; use {name}.toarray()")
    array = _check.array(name, value, "real numbers")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        fix = f". Reshape your data: {name}.reshape(-1, 1) for points on a line" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must have shape (points, coordinates), at least one coordinate, got {array.shape}{fix}"
        )
    if d is not None and array.shape[1] != d:
        raise ValueError(f"{name} must have {d} coordinates a point, got {array.shape[1]}")
    if np.can_cast(array.dtype, np.float32):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if array.size and not (array.max() <= _MOST and array.min() >= -_MOST):
        outside = ~(np.abs(array, dtype=np.float64) <= _MOST)
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        value = array[place]
        fix = "scale it down, or drop such rows" if np.isfinite(value) else "drop or mend rows with NaN or inf"
        raise ValueError(f"{name} must be finite in float32, got {value} at {place}; {fix}")
    return array


def as_points(name: str, value: Any, d: int | None = None) -> Points:
    """`value` as contiguous finite float32 (n, d), rounded where it is wider; the errors of `as_array`."""
    return np.ascontiguousarray(as_array(name, value, d), dtype=np.float32)


def as_weights(value: Any, n: int) -> Points:
    """Sample weights as float32 (n,), none negative, one positive; None gives an empty array: all points count one."""
    if value is None:
        return np.empty(0, np.float32)
    given = _check.array("sample_weight", value, "real numbers")
    weights = as_points("sample_weight", given.reshape(-1, 1))[:, 0]
    if given.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), one weight a point, got {given.shape}")
    if weights.min() < 0:
        raise ValueError(f"sample_weight must not be negative, got {weights.min():g} at {int(weights.argmin())}")
    if weights.max() == 0:
        what = "zeros only" if not given.any() else f"{given.max():g} at most, which is 0 in float32; scale them up"
        raise ValueError(f"sample_weight must be positive for one point at least, got {what}")
    return weights


def kind_of(*arrays: NDArray[Any]) -> type[np.floating[Any]]:
    """float32 where all arrays are, else float64: the type of what is made of them."""
    return np.float32 if all(array.dtype == np.float32 for array in arrays) else np.float64


def scale_of(*arrays: Points) -> int:
    """The exponent e for which 2^−e times these values may be squared safely; 0 where they may be as they are."""
    largest = max((_largest(a) for a in arrays), default=0.0)
    return 0 if largest == 0 or 2.0**-30 <= largest <= 2.0**50 else int(np.frexp(largest)[1])


def narrowed(about: NDArray[Any], **arrays: NDArray[Any]) -> tuple[list[Points], Frame]:
    """Arrays that `as_array` gave, by name, as float32 that may be squared, all within one frame.

    Where all are float32, the frame only scales. Else its origin is chosen by the points `about`: a coordinate whose
    median m is more than 8 times as far from 0 as half of the points are from m is taken about m; so that of a single
    point is the point.
    """
    if kind_of(*arrays.values()) is np.float32:
        frame = Frame(None, scale_of(*arrays.values()))
        return [frame.points(array) for array in arrays.values()], frame
    frame = Frame(origin_of(about), 0)
    points = [frame.points(array) for array in arrays.values()]
    exponent = scale_of(*points)
    if not 2.0**-30 <= max(map(_largest, points)) < np.inf:  # float32 does not tell: all may be 0, or far from it
        exponent = _wide_exponent(frame, *arrays.values())
    if exponent:
        frame = Frame(frame.origin, exponent)
        points = [frame.points(array) for array in arrays.values()]
    return points, frame


def some_of(x: NDArray[Any], weights: Points) -> NDArray[Any]:
    """A few of the points that have weight, evenly spaced."""
    if not weights.size:
        return _spread(x)
    return x[_spread(np.flatnonzero(weights))]


def warn_if_merged(x: NDArray[Any], points: Points, weights: Points, inertia: float) -> None:
    """RuntimeWarning where clusters of `points` (x narrowed) are as narrow as float32 resolves, but not as float64 does."""
    squares = np.einsum("nd,nd->n", points, points, dtype=np.float64)
    total = float(squares @ weights if weights.size else squares.sum())
    if inertia > _LOST * total or len(x) < 2:
        return
    order = np.lexsort(points.T)
    places = np.flatnonzero((points[order[1:]] == points[order[:-1]]).all(axis=1))
    rows = max(1, _NUMBERS // x.shape[1])
    for low in range(0, places.size, rows):
        here = places[low : low + rows]
        a, b = x[order[here]].astype(np.float64), x[order[here + 1]].astype(np.float64)
        unlike = (np.abs(a - b) > _LOST * np.maximum(np.abs(a), np.abs(b))).any(axis=1)
        if unlike.any():
            i, j = (int(order[here[unlike][0] + more]) for more in (0, 1))
            warnings.warn(
                f"X[{min(i, j)}] and X[{max(i, j)}] differ, but not in float32, and clusters are as narrow: its numbers "
                f"lie in groups too far apart; cluster each group alone, or drop markers",
                RuntimeWarning,
                stacklevel=4,
            )
            return


def _largest(array: NDArray[Any]) -> float:
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def _spread(rows: NDArray[Any]) -> NDArray[Any]:
    m = min(len(rows), _SAMPLE)
    return rows[np.arange(m) * len(rows) // max(1, m)]


def origin_of(about: NDArray[Any]) -> NDArray[np.float64]:
    """The origin that `narrowed` chooses by these points, (d,)."""
    rows = _spread(about).astype(np.float64)
    m = len(rows)
    if m == 0:
        return np.zeros(rows.shape[1])
    with np.errstate(over="ignore"):
        middle = np.partition(rows, (m - 1) // 2, axis=0)[(m - 1) // 2]
        reach = np.partition(np.abs(rows - middle), m // 2, axis=0)[m // 2]
        return np.where(np.abs(middle) > _FAR * reach, middle, 0.0)


def _wide_exponent(frame: Frame, *arrays: NDArray[Any]) -> int:
    """`scale_of` in float64."""
    largest = 0.0
    for array in arrays:
        rows = max(1, _NUMBERS // max(1, array[:1].size))
        for low in range(0, len(array), rows):
            largest = max(largest, _largest(frame.shifted(array[low : low + rows])))
    return int(np.frexp(largest)[1]) if largest else 0
