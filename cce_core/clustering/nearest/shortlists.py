"""Short lists: for each tile the few centroids that may be nearest to its points, good until centroids have moved far.

A list is drawn up when a bound u(x) on the distance of each of the tile's points x to its nearest centroid is known. With
a spare s for all and σ_c for each centroid (a few times as far as it moved of late), it holds every centroid c with

    |x − c| ≤ u(x) + s + σ_c        for one of the points at least.

Later, when c has gone the way δ_c, whatever is not on the list lies beyond u(x) + s + (σ_c − δ_c) from every x. So the
nearest of the list is the nearest of all if it is nearer than that, which is checked for every point; where it fails, the
tile gets a new list. A centroid that has gone farther than its σ_c allows has run away: those, few as they are, join the
lists that were drawn up before.

Distances to the centroids of a list are by the definition. Bounds are widened by 8·(d + 8)·2^−24 of what they are computed
from, several times the rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.clustering.nearest.search import in_columns, middle_of, narrow, recentre, search, worth_narrowing
from cce_core.clustering.nearest.tile_kernels import LANES, TURN, argmin_named, below, recentre_tile
from cce_core.clustering.nearest.tiles import FAN, Points, Tiles

_U = np.float32(2.0**-24)
_TINY = np.float32(2.0**-60)  # what may vanish below float32's range in a distance, several times over
_GRAIN = 1 << 8  # tiles that make another thread worth waking
_FEW = 8  # centroids that are not worth narrowing
_KEPT = 12  # searches back that a list may have been drawn up at
_NARROWEST = 3  # coordinates from which lists are of use: boxes alone leave little to do for fewer
_FEWEST, _LEAST = 112, 1 << 20  # centroids, and points times centroids, from which lists are of use
_CALM = 0.12  # of a point's distance: where centroids move farther, at first, lists would be long
_RUNAWAYS = 48  # that lists take in; where there are more, they are drawn up anew


@jit
def _widened(columns: Any, count: int, mid: Any, local: Any) -> None:
    """Centroids for `below`: as for `argmin_expanded`, with their spare σ as one more coordinate: (r + σ)² in place of r²."""
    d = mid.shape[0]
    recentre(columns, count, mid, local)
    spares, own, norms = columns[d], local[d], local[d + 1]
    for i in range(count):
        own[i] = spares[i]
        norms[i] -= np.float32(0.5) * (spares[i] * spares[i])
    for i in range(count, count + TURN):
        own[i] = np.float32(0.0)


@jit
def _survey(now: Any, places: Any, spares: Any, common: Any, far: Any, runaways: Any, many: Any) -> None:
    """For each of the past searches: which centroids have run away since, and how far beyond their spare the others are."""
    past, k, d = places.shape
    for e in range(past):
        far[e], many[e] = np.float32(0.0), 0
        for c in range(k):
            total = np.float64(0.0)
            for j in range(d):
                apart = np.float64(now[c, j]) - np.float64(places[e, c, j])
                total += apart * apart
            beyond = np.float32(np.sqrt(total) * (1.0 + 2.0**-20)) - spares[e, c]
            if beyond <= np.float32(0.25) * common[e]:
                far[e] = max(far[e], beyond)
            else:
                if many[e] < _RUNAWAYS:
                    runaways[e, many[e]] = c
                many[e] += 1
        for i in range(min(many[e], _RUNAWAYS), runaways.shape[1]):
            runaways[e, i] = k


@jit
def _follow(
    start: int, stop: int, points: Any, columns: Any, rows: Any, mids: Any, halves: Any, firsts: Any, centre: Any,
    spare: np.float32, widest: np.float32, now: int, far: Any, runaways: Any, many: Any, listed: Any, counts: Any,
    drawn: Any, reach: Any, before: Any, labels: Any, costs: Any, work: Any,
) -> None:  # fmt: skip
    """Tiles [start, stop): the nearest of their lists, and a new list where that may not be the nearest of all."""
    d, k, room, levels = points.shape[1], rows.shape[0] - 1, columns.shape[1], firsts.shape[0]
    lists, names = np.empty((levels + 1, d + 1, room), np.float32), np.empty((levels + 1, room), np.int32)
    sizes, homes, boxes = np.empty(levels + 1, np.int64), np.zeros(levels + 1, np.int64), np.full(levels, -1, np.int64)
    near, rest, places = np.empty(room, np.float32), np.empty(room, np.float32), np.empty(room, np.int32)
    lists[levels], sizes[levels], homes[levels] = columns, k, levels
    for i in range(k):
        names[levels, i] = i
    local, turned = np.empty((d + 2, room), np.float32), np.empty((d + 1, LANES), np.float32)
    ends, lengths = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    best, which = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    others, whose = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    wide = np.float32(8 * (d + 8)) * _U
    if levels == 0:
        _widened(columns, k, centre, local)
    for t in range(start, stop):
        tile, first, count, past, outside = points[t], t * LANES, counts[t], drawn[t], 0
        if count >= 0 and many[past] <= _RUNAWAYS:
            argmin_named(tile, rows, listed[t], count, best, which)
            if many[past] > 0:
                argmin_named(tile, rows, runaways[past], many[past], others, whose)
                for i in range(LANES):
                    if others[i] < best[i] or (others[i] == best[i] and whose[i] < which[i]):
                        which[i] = whose[i]
                    best[i] = min(best[i], others[i])
            for i in range(LANES):
                ends[i] = np.sqrt(best[i]) + far[past]
                outside += 1 if ends[i] + wide * ends[i] >= reach[first + i] else 0
            work[t] = count
        else:
            outside = 1
            for i in range(LANES):
                best[i] = np.float32(0.0)
                for j in range(d):
                    apart = tile[j, i] - rows[before[first + i], j]
                    best[i] += apart * apart
        if outside > 0:
            home, mid = homes[0], centre
            for level in range(levels - 1, -1, -1):
                box = firsts[level] + (t >> 2 * level)
                if box != boxes[level]:
                    above = homes[level + 1]
                    homes[level], boxes[level] = above, box
                    if sizes[above] > _FEW:
                        homes[level] = level
                        sizes[level] = narrow(
                            lists[above], names[above], sizes[above], mids[box], halves[box],
                            best.max() if level == 0 else np.float32(np.inf), spare,
                            lists[level], names[level], near, rest, places,
                        )  # fmt: skip
            home = homes[0]
            if levels > 0:
                mid = mids[firsts[0] + t]
                _widened(lists[home], sizes[home], mid, local)
            recentre_tile(tile, mid, turned, lengths)
            for i in range(LANES):
                ends[i] = np.sqrt(best[i]) + spare
                ends[i] += wide * ends[i] + _TINY
                turned[d, i] = -ends[i]
                most = np.sqrt(lengths[i]) + ends[i] + widest
                ends[i] = np.float32(0.5) * (ends[i] * ends[i] - lengths[i]) + wide * most * most
            count = below(turned, local, sizes[home], ends, places)
            for i in range(count):
                places[i] = names[home, places[i]]
            for i in range(count, count + TURN):
                places[i] = k
            argmin_named(tile, rows, places, count, best, which)
            work[t] = -count
            drawn[t], counts[t] = now, -1
            if count <= listed.shape[1] - TURN:
                counts[t] = count
                listed[t, : count + TURN] = places[: count + TURN]
            for i in range(LANES):
                ends[i] = np.sqrt(best[i]) + spare
                reach[first + i] = ends[i] - wide * ends[i] - _TINY
        for i in range(LANES):
            labels[first + i] = which[i]
            costs[first + i] = best[i]


def worth_listing(n: int, d: int, k: int) -> bool:
    """Whether lists leave out enough centroids to pay for themselves."""
    return d >= _NARROWEST and k >= max(_FEWEST, 20 * d) and n * k >= _LEAST


class Nearest:
    """The nearest centroids of the same points again and again, while centroids move: exactly, with what is remembered.

    Args:
        tiles: of points that are safely scaled.
        k: centroids.
    """

    def __init__(self, tiles: Tiles, k: int) -> None:
        _, d, _ = tiles.points.shape
        self.tiles, self.k, self.searches = tiles, k, 0
        self.last: Points | None = None
        self.scale = 0.0  # of distances, at the last search in full
        self.worth = tiles.order is not None and worth_listing(tiles.n, d, k)
        self.boxed = worth_narrowing(tiles.n, d, k)
        self.started = False
        self.horizon = 3.0 if self.boxed else 2.0  # σ of a centroid, in units of how far it last moved
        self.room = min(k, min(max(16 * d, 96), 256))
        self.aim = 40.0 if self.boxed else min(10.0 + k / 20.0, 0.6 * self.room)  # centroids that a list should hold

    @property
    def plain(self) -> bool:
        """Whether no lists will ever be of use: all searches are in full."""
        return not self.worth

    def _start(self) -> None:
        count, d, _ = self.tiles.points.shape
        room = self.room
        self.listed, self.counts = np.empty((count, room + TURN), np.int32), np.full(count, -1, np.int32)
        self.drawn, self.reach = np.zeros(count, np.int32), self.tiles.empty(np.float32)
        self.work = np.zeros(count, np.int32)
        self.places, self.spares = np.zeros((_KEPT, self.k, d), np.float32), np.zeros((_KEPT, self.k), np.float32)
        self.common, self.runaways = np.zeros(_KEPT, np.float32), np.zeros((_KEPT, _RUNAWAYS + TURN), np.int32)
        self.started = True

    def __call__(self, centroids: Points, before: NDArray[np.int32], labels: NDArray[np.int32], costs: Points) -> None:
        """The nearest centroid of each point and its squared distance, as `search` finds them.

        Args:
            centroids: float32 (k, d), safely scaled.
            before: the labels that the last call gave; anything at the first.
            labels: int32, written; a place for each place of the tiles.
            costs: float32, written, likewise.
        """
        last, self.last = self.last, centroids
        if last is not None and self.worth:
            moved = np.sqrt(np.square(centroids.astype(np.float64) - last).sum(axis=1))
            if self.started or moved.mean() < _CALM * self.scale:
                self._follow(centroids, moved, before, labels, costs)
                return
        search(self.tiles, centroids, labels, costs)
        self.scale = float(np.sqrt(costs.mean(dtype=np.float64)))

    def _follow(
        self,
        centroids: Points,
        moved: NDArray[Any],
        before: NDArray[np.int32],
        labels: NDArray[np.int32],
        costs: Points,
    ) -> None:
        if not self.started:
            self._start()
        tiles, now = self.tiles, self.searches % _KEPT
        count, d, _ = tiles.points.shape
        spare = np.float32(self.horizon * moved.mean())
        self.places[now], self.common[now] = centroids, spare
        self.spares[now] = np.maximum(self.horizon * moved, spare)
        if self.searches >= _KEPT:
            self.counts[self.drawn == now] = -1
        far, many = np.zeros(_KEPT, np.float32), np.zeros(_KEPT, np.int64)
        _survey(centroids, self.places, self.spares, self.common, far, self.runaways, many)
        rows = np.full((self.k + 1, d), np.inf, np.float32)
        rows[:-1] = centroids
        parallel_for(
            _follow, count, _GRAIN, tiles.points, in_columns(centroids, self.spares[now]), rows, tiles.mids,
            tiles.halves, tiles.firsts if self.boxed else tiles.firsts[:0], middle_of(centroids), spare,
            self.spares[now].max(), now, far, self.runaways, many, self.listed, self.counts, self.drawn, self.reach,
            before, labels, costs, self.work, align=FAN**2,
        )  # fmt: skip
        self.searches += 1
        fresh = self.work < 0
        if np.count_nonzero(fresh) > count // 5:
            length = float(-self.work[fresh].mean())
            self.horizon *= min(max((self.aim / length) ** 0.5, 0.5), 2.0)
        self.horizon = min(self.horizon * 1.1, 12.0)
