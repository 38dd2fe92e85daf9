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

from cce_core.clustering.nearest.tiles import Points
from cce_core.clustering.points import kind_of

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
