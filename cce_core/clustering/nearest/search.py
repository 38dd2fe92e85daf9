"""The nearest centroid of every point of a tile, exactly as the definition has it, with most centroids left out.

Three steps, each of which may only leave out what it can prove not to matter:

1. Down the boxes, each hands on the centroids that may be nearest to a point within it. Let z be the centroid nearest
   to the middle of the box. A centroid c is left out where the plane between c and z does not cut the box: with middle
   m, reach h, a = c − m and b = z − m, every point of the box is nearer to z than to c if

       |a|² − |b|² − 2 Σ_j h_j |a_j − b_j| > 0.

   It is also left out where the box is farther from c than any of its points was from the centroid that it had.
2. What is left is searched through, in the order of the centroids: by the definition (`argmin_exact`) where that is cheap, else
   by the expanded square (`argmin_expanded`).
3. After `argmin_expanded`, a point whose runner-up is so near that rounding might decide is searched again by the definition.

Margins: u = 2^−24 is the rounding of float32. A squared distance by the definition lies within (d + 2)·u of the true one,
relatively; every quantity compared in step 1 is a sum of at most 3d terms, each bounded by |a|² + |b|² + |h|², so that
8·(d + 8)·u times that covers all roundings on both sides several times over. For step 3 see `_doubtful`. What vanishes
below float32's range is at most d·2^−149, which the constant `_TINY` covers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.nearest.label_kernels import apart
from cce_core.clustering.nearest.tile_kernels import LANES, TURN, argmin_exact, argmin_expanded, recentre_tile
from cce_core.clustering.nearest.tiles import FAN, Points, Tiles

_U = np.float32(2.0**-24)
_TINY = np.float32(2.0**-100)
_SCANNED = 4  # coordinates up to which the definition is as fast for the few centroids that boxes leave
FEW = 8  # centroids that are not worth narrowing
_SIFTED = 112  # centroids from which, with boxes, the expanded square is worth settling its doubts
_GRAIN = 1 << 21  # multiply-adds that make another thread worth waking


@jit
def narrow(
    above: Any, names: Any, count: int, mid: Any, half: Any, limit: np.float32, spare: np.float32, kept: Any,
    kept_names: Any, near: Any, rest: Any, places: Any,
) -> int:  # fmt: skip
    """Step 1 for one box: of the `count` centroids `above` (d + 1, room), those that matter into `kept`; how many.

    A centroid is left out where it is farther from each point of the box than another one is by more than `spare` and
    what its own last row says.
    """
    d = mid.shape[0]
    slack = np.float32(8 * (d + 8)) * _U
    reach = np.float32(0.0)
    for j in range(d):
        reach += half[j] * half[j]
    for i in range(count):
        near[i] = np.float32(0.0)
    for j in range(d):
        row, middle = above[j], mid[j]
        for i in range(count):
            apart = row[i] - middle
            near[i] += apart * apart
    chief, least = 0, near[0]
    for i in range(count):
        if near[i] < least:
            chief, least = i, near[i]
    most = least + slack * (least + reach) + _TINY
    for i in range(count):
        rest[i] = near[i] - slack * near[i] - most
    for j in range(d):
        row, centre, width = above[j], above[j, chief], half[j] + half[j]
        for i in range(count):
            rest[i] -= width * abs(row[i] - centre)
    own = above[d]
    if spare > np.float32(0.0):  # |x − c|² − |x − z|² is the difference of the distances times their sum
        ends = np.sqrt(least) + np.float32(2.0) * np.sqrt(reach)
        for i in range(count):
            rest[i] -= np.float32(1.001) * (spare + own[i]) * (np.sqrt(near[i]) + ends)
    if limit < np.float32(np.inf):
        root = np.sqrt(limit)
        for i in range(count):
            most = root + spare + own[i]
            near[i] = np.float32(0.0) - slack * (near[i] + reach) - (most + slack * most) * most - _TINY
        for j in range(d):
            row, middle, width = above[j], mid[j], half[j]
            for i in range(count):
                apart = max(abs(row[i] - middle) - width, np.float32(0.0))
                near[i] += apart * apart
        for i in range(count):
            rest[i] = max(rest[i], near[i])
    found = 0
    for i in range(count):
        places[found] = i
        found += 1 if rest[i] <= np.float32(0.0) else 0
    for j in range(d + 1):
        row, out = above[j], kept[j]
        for i in range(found):
            out[i] = row[places[i]]
        for i in range(found, found + TURN):
            out[i] = np.float32(np.inf)
    for i in range(found):
        kept_names[i] = names[places[i]]
    return found


@jit
def recentre(centroids: Any, count: int, mid: Any, local: Any) -> None:
    """Centroids as seen from `mid`, and in the last row half their squared length, into `local`, for `argmin_expanded`."""
    d = mid.shape[0]
    norms = local[local.shape[0] - 1]
    for i in range(count):
        norms[i] = np.float32(0.0)
    for j in range(d):
        row, out, middle = centroids[j], local[j], mid[j]
        for i in range(count):
            apart = row[i] - middle
            out[i] = apart
            norms[i] += np.float32(0.5) * (apart * apart)
        for i in range(count, count + TURN):
            out[i] = np.float32(0.0)
    for i in range(count, count + TURN):
        norms[i] = np.float32(np.inf)


@jit
def _doubtful(d: int, length: np.float32, best: np.float32, longest: np.float32) -> np.float32:
    """How far above the best score, for a point of squared length `length`, rounding may hide the nearest centroid.

    A score is (|x − c|² − |x|²)/2 and comes out within e = (d + 2)·u·(|c|²/2 + |x||c|), its coordinates were rounded
    when they were recentred, which is another 2u·(|x|² + |c|²), and the definition rounds by (d + 2)·u·|x − c|². A
    centroid whose score is about the best has |c|² ≤ 4·(|x|² + |score|), or it would be worse by far.
    """
    most = min(np.float32(4.25) * (length + abs(best)), longest)
    score = most + np.float32(0.5) * length  # 2|x||c| is at most |x|² + |c|²: no root is worth taking
    distance = length + np.float32(2.0) * abs(best)
    u = np.float32(2.5) * _U
    return u * (np.float32(d + 3) * score + np.float32(2.0) * (length + most) + np.float32(d + 3) * distance) + _TINY


@jit
def _settle(points: Any, lane: int, centroids: Any, count: int, near: Any) -> int:
    """The first nearest of `count` centroids (d, room) to one point, by the definition."""
    for i in range(count):
        near[i] = np.float32(0.0)
    for j in range(points.shape[0]):
        row, value = centroids[j], points[j, lane]
        for i in range(count):
            apart = value - row[i]
            near[i] += apart * apart
    chief = 0
    for i in range(1, count):
        if near[i] < near[chief]:
            chief = i
    return chief


@jit
def search_some(
    start: int, stop: int, points: Any, columns: Any, rows: Any, mids: Any, halves: Any, firsts: Any,
    centre: Any, few: int, sifting: bool, labels: Any, costs: Any,
) -> None:  # fmt: skip
    """Tiles [start, stop) to the centroids `rows` (k, d), also given as `columns` (d + 1, room); all of them without `firsts`."""
    d, room, levels, k = points.shape[1], columns.shape[1], firsts.shape[0], rows.shape[0]
    lists, names = np.empty((levels + 1, d + 1, room), np.float32), np.empty((levels + 1, room), np.int32)
    counts = np.empty(levels + 1, np.int64)
    near, rest, places = np.empty(room, np.float32), np.empty(room, np.float32), np.empty(room, np.int32)
    lists[levels] = columns
    for i in range(k):
        names[levels, i] = i
    counts[levels] = k
    homes = np.zeros(levels + 1, np.int64)  # which list a level uses: its own, or, where that is short, the one above
    homes[levels] = levels
    best, which, second = np.empty(LANES, np.float32), np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    local = np.empty((d + 1, room if sifting else 0), np.float32)
    turned, lengths = np.empty((d, LANES), np.float32), np.empty(LANES, np.float32)
    doubts = np.empty(LANES, np.int32)
    longest = np.float32(np.inf)
    mid = centre
    if sifting and levels == 0:
        recentre(columns, k, centre, local)
        longest = np.float32(2.0) * local[d, :k].max()
    boxes = np.full(levels, -1, np.int64)
    for t in range(start, stop):
        for level in range(levels - 1, -1, -1):
            box = firsts[level] + (t >> 2 * level)
            if box != boxes[level]:
                above = homes[level + 1]
                homes[level], boxes[level] = above, box
                if counts[above] > few:
                    homes[level] = level
                    counts[level] = narrow(
                        lists[above], names[above], counts[above], mids[box], halves[box], np.float32(np.inf),
                        np.float32(0.0), lists[level], names[level], near, rest, places,
                    )  # fmt: skip
        home = homes[0]
        here, these, named, count = points[t], lists[home, :d], names[home], counts[home]
        first = t * LANES
        if not sifting:
            argmin_exact(here, these, count, costs[first : first + LANES], labels[first : first + LANES])
            if home < levels:
                for i in range(LANES):
                    labels[first + i] = named[labels[first + i]]
            continue
        if levels > 0:
            mid = mids[firsts[0] + t]
            recentre(these, count, mid, local)
        recentre_tile(here, mid, turned, lengths)
        argmin_expanded(turned, local, count, best, which, second)
        open_ones = 0
        for i in range(LANES):
            doubts[i] = second[i] - best[i] <= _doubtful(d, lengths[i], best[i], longest)
            open_ones += doubts[i]
        if open_ones > 0:
            for i in range(LANES):
                if doubts[i]:
                    which[i] = _settle(here, i, these, count, near)
        for i in range(LANES):
            labels[first + i] = named[which[i]]
        apart(here, rows, labels[first : first + LANES], costs[first : first + LANES])


def worth_narrowing(n: int, d: int, k: int) -> bool:
    """Whether boxes leave out enough centroids to pay for themselves: from n·k of about 2^(17.5 + 2.5·d) on.

    Boxes grow smaller with more points, and lie between fewer centroids; both the slower, the more coordinates there are.
    """
    return d <= 6 and k >= 48 and (n * k) ** 2 >= 1 << 35 + 5 * d


def worth_sifting(d: int, k: int, boxed: bool) -> bool:
    """Whether the expanded square is worth settling its doubts: it takes less for each centroid, and more for each tile."""
    if boxed:
        return d > _SCANNED and k >= _SIFTED
    return d >= 3 and k >= 12 + 80 // d


def in_columns(centroids: Points, extra: Any = 0.0) -> Points:
    """Centroids (k, d) a column each, (d + 1, room) with `extra` in the last row; what is beyond them is infinite."""
    k, d = centroids.shape
    columns = np.full((d + 1, -(-k // LANES) * LANES + LANES), np.inf, np.float32)
    columns[:d, :k] = centroids.T
    columns[d, :k] = extra
    return columns


def middle_of(centroids: Points) -> Points:
    """From where centroids are looked at when squares are expanded."""
    return centroids.mean(axis=0, dtype=np.float64).astype(np.float32)


def search(tiles: Tiles, centroids: Points, labels: NDArray[np.int32], costs: Points) -> None:
    """The nearest centroid of each point and its squared distance, into arrays with a place for each place of the tiles.

    Args:
        tiles: of points that are safely scaled.
        centroids: float32 (k, d), likewise.
        labels: int32 (tiles · LANES,), written.
        costs: float32 (tiles · LANES,), written.
    """
    count, d, _ = tiles.points.shape
    k = centroids.shape[0]
    firsts = tiles.firsts if worth_narrowing(tiles.n, d, k) else tiles.firsts[:0]
    min_chunk = max(1, _GRAIN // (LANES * min(k, 64 if firsts.size else k) * (d + 2)))
    parallel_for(
        search_some, count, min_chunk, tiles.points, in_columns(centroids), np.ascontiguousarray(centroids), tiles.mids,
        tiles.halves, firsts, middle_of(centroids), FEW, worth_sifting(d, k, firsts.size > 0), labels, costs,
        align=FAN**2 if firsts.size else 1,
    )  # fmt: skip
