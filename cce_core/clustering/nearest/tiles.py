"""Points in tiles of neighbours: what lets the nearest-centroid search leave out most centroids.

A tile holds `LANES` points, a point a column. The points are arranged by halving them again and again at the median of
their widest coordinate (a k-d tree), so that those of a tile, of four tiles in a row, of sixteen … lie close together,
each within a box. Points never move while centroids do: one arrangement serves a whole fit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.nearest.tile_kernels import LANES

Points = NDArray[np.float32]

FAN = 4  # boxes within a box of the next level
_LOOKS = 24  # points that tell which coordinate of a part is the widest
_BELOW = 1 << 14  # a part this small is halved to the end by one thread, in its cache
# Points up to which they are sorted, so that no draw depends on where equal points stand, or how often.
_SORTED = 1 << 10
_GRAIN, _FILL_GRAIN = 1 << 14, 1 << 15  # points to be split or filled in that make another thread worth waking
_PLACE = np.int64(2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Points in tiles.

    Attributes:
        points: float32 (tiles, d, LANES); copies of the last point fill the last tile.
        order: int64 (n,), the caller's place of each point; None where points are as the caller has them.
        mids, halves: float32 (boxes, d), where each box is centred and how far it reaches from there, level by level.
        firsts: int64 (levels,), the first box of each level. Box b of level l holds tiles [b·FAN^l, (b + 1)·FAN^l).
        n: points.
    """

    points: Points
    order: NDArray[np.int64] | None
    mids: Points
    halves: Points
    firsts: NDArray[np.int64]
    n: int

    def empty(self, kind: Any) -> NDArray[Any]:
        """A new array with a place for each place of the tiles."""
        return np.empty(len(self.points) * LANES, kind)

    def into(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """`values`, one a place in the tiles, into the caller's order."""
        if self.order is None:
            out[:] = values[: self.n]
        else:
            out[self.order] = values[: self.n]

    def rows(self, places: Any) -> Points:
        """The points at these places of the tiles, (…, d)."""
        return self.points[places // LANES, :, places % LANES]

    def back(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values`, one a point, from the caller's order into that of the tiles."""
        return values if self.order is None or not values.size else values[self.order]


@jit
def _widest(x: Any, words: Any, start: int, stop: int) -> int:
    """The coordinate in which some of these points lie farthest apart."""
    step = max(1, (stop - start) // _LOOKS)
    best, chosen = np.float32(-1.0), 0
    for j in range(x.shape[1]):
        low = high = x[words[start] & _PLACE, j]
        for i in range(start, stop, step):
            value = x[words[i] & _PLACE, j]
            low, high = min(low, value), max(high, value)
        if high - low > best:
            best, chosen = high - low, j
    return chosen


@jit
def _pivot(words: Any, low: int, middle: int, high: int, sample: Any) -> np.int64:
    """A word of [low, high) that is likely near the place `middle` in their order, and never the lowest of them."""
    size = min(sample.shape[0], 3 + (high - low) // 64)
    step = (high - low) // size
    for i in range(size):
        word, at = words[low + i * step], i
        while at > 0 and sample[at - 1] > word:
            sample[at] = sample[at - 1]
            at -= 1
        sample[at] = word
    return sample[min(max(1, (middle - low) * size // (high - low)), size - 1)]


@jit
def _halve(x: Any, bits: Any, words: Any, start: int, middle: int, stop: int, sample: Any) -> None:
    """Put the points [start, stop) that are low in their widest coordinate before `middle`, the high ones after."""
    j = _widest(x, words, start, stop)
    for i in range(start, stop):
        place = words[i] & _PLACE
        key = np.int64(bits[place, j])
        words[i] = ((key ^ ((key >> 63) & _PLACE >> 1)) << 32) | place  # in the order of the coordinates; no two equal
    low, high = start, stop
    while high - low > 2:
        pivot, end = _pivot(words, low, middle, high, sample), low
        for i in range(low, high):  # without a branch, which would go wrong half the time
            word = words[i]
            words[i] = words[end]
            words[end] = word
            end += 1 if word < pivot else 0
        if end > middle:
            high = end
        elif end < middle:
            low = end
        else:
            return
    if high - low == 2 and words[low] > words[low + 1]:
        words[low], words[low + 1] = words[low + 1], words[low]


@jit
def _split(start: int, stop: int, x: Any, bits: Any, words: Any, size: int, smallest: int) -> None:
    """Halve parts [start, stop) of `size` points until they have `smallest`; the low half of a word is a point's place."""
    n, sample = x.shape[0], np.empty(31, np.int64)
    for part in range(start, stop):
        width = size
        while width > smallest:
            half = width >> 1
            for first in range(part * size, min((part + 1) * size, n), width):
                if first + half < n:
                    _halve(x, bits, words, first, first + half, min(first + width, n), sample)
            width = half


@jit
def _fill(start: int, stop: int, x: Any, words: Any, points: Any, lows: Any, highs: Any) -> None:
    """Tiles [start, stop), and the ends of their boxes, from the places in x that `words` say, if they say any."""
    n, d = x.shape
    arranged = words.shape[0] > 0
    for t in range(start, stop):
        for i in range(LANES):
            place = np.uint64(min(t * LANES + i, n - 1))  # unsigned: no test for negative indices
            if arranged:
                place = np.uint64(words[place])
            for j in range(np.uint64(d)):
                points[t, j, np.uint64(i)] = x[place, j]
        if arranged:
            for j in range(d):
                low = high = points[t, j, 0]
                for i in range(1, LANES):
                    low, high = min(low, points[t, j, i]), max(high, points[t, j, i])
                lows[t, j], highs[t, j] = low, high


def tile(x: Points, arranged: bool) -> Tiles:
    """The points x (n, d), n at least 1, in tiles; with boxes where they are to be arranged."""
    n, d = x.shape
    count, words = -(-n // LANES), np.empty(0, np.int64)
    order: NDArray[np.int64] | None = None
    if arranged and n <= _SORTED:
        order = words = np.lexsort(x.T[::-1])
    elif arranged:
        words, bits = np.arange(n), x.view(np.int32)
        size = LANES << (count - 1).bit_length()
        while size > LANES:
            smallest = size >> 1 if size > _BELOW else LANES
            parallel_for(_split, -(-n // size), max(1, _GRAIN // size), x, bits, words, size, smallest)
            size = smallest
        words &= _PLACE
        order = words
    points = np.empty((count, d, LANES), np.float32)
    ends = np.empty((2, count if arranged else 0, d), np.float32)
    parallel_for(_fill, count, max(1, _FILL_GRAIN // LANES), x, words, points, ends[0], ends[1])
    if not arranged:
        return Tiles(points, None, ends[0], ends[1], np.empty(0, np.int64), n)
    lows, highs = [ends[0]], [ends[1]]
    while len(lows[-1]) > FAN * FAN:
        starts = np.arange(0, len(lows[-1]), FAN)
        lows.append(np.minimum.reduceat(lows[-1], starts))
        highs.append(np.maximum.reduceat(highs[-1], starts))
    low, high = np.concatenate(lows), np.concatenate(highs)
    mids = low + (high - low) * np.float32(0.5)
    firsts = np.cumsum([0] + [len(part) for part in lows[:-1]])
    return Tiles(points, order, mids, np.maximum(high - mids, mids - low), firsts, n)
