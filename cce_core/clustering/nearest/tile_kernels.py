"""The inner loops of the nearest-centroid search: their definitions, in plain Python.

Compiled callers get vector instructions (`_loops.py`): the `LANES` points of a tile side by side in a register, a few centroids
at a time, what is least so far kept in registers.

`argmin_exact` is the definition: the sum over coordinates in order, each step rounded to float32 (no fused multiply-add), so
that a distance has the same bits here, in NumPy and in plain Python. `argmin_expanded` takes a third of the work by the expanded
square, rounded as it comes; it also says how near the runner-up is, so that its caller can tell when that decides.
`argmin_named` looks only at centroids on a list, and `below` makes such lists; `minimum` is for one centre alone,
and `recentre_tile`
readies a tile for `argmin_expanded` and `below`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core import _loops
from cce_core._jit import COMPILED

LANES = 16  # points of a tile: one register of AVX-512, two of AVX2
TURN = 8  # centroids a turn, and what lists are padded to; `argmin_exact`, whose lists are short, takes half as many


def _argmin_exact_plain(tile: Any, centroids: Any, count: int, best: Any, which: Any) -> None:
    """Least squared distance from each point of a tile to `count` centroids, and the first centroid that has it.

        best[l] = min_c Σ_j (centroids[j, c] − tile[j, l])²        which[l] = the least such c

    Args:
        tile: float32 (d, LANES), a point a column.
        centroids: float32 (d, room), a centroid a column; those from `count` to the next multiple of TURN are infinite.
        count: how many there are.
        best: float32 (LANES,), written.
        which: int32 (LANES,), written.
    """
    least = np.full(LANES, np.inf, np.float32)
    first = np.zeros(LANES, np.int32)
    for c in range(count):
        total = np.zeros(LANES, np.float32)
        for j in range(tile.shape[0]):
            apart = centroids[j, c] - tile[j]
            total += apart * apart
        near = total < least
        least[near] = total[near]
        first[near] = c
    best[:] = least
    which[:] = first


def _scores(tile: Any, centroids: Any, count: int) -> Any:
    """score[c, l] = centroids[d, c] + Σ_j centroids[j, c] · tile[j, l], float32 (count, LANES)."""
    d = tile.shape[0]
    scores = np.repeat(centroids[d, :count, None], LANES, axis=1)
    for j in range(d):
        scores += centroids[j, :count, None] * tile[j]
    return scores


def _argmin_expanded_plain(tile: Any, centroids: Any, count: int, best: Any, which: Any, second: Any) -> None:
    """Least score of each point of a tile over `count` centroids, a centroid that has it, and the least of the others.

        score[c, l] = centroids[d, c] + Σ_j centroids[j, c] · tile[j, l]

    With −x in the tile and |c|²/2 in the last row, that is (|x − c|² − |x|²)/2 but for rounding, which is the compiler's
    affair.

    Args:
        tile: float32 (d, LANES).
        centroids: float32 (d + 1, room); the last row of those from `count` to the next multiple of TURN is infinite,
            and what stands above it finite.
        count: how many there are.
        best: float32 (LANES,), written.
        which: int32 (LANES,), written.
        second: float32 (LANES,), written; infinite for a single centroid.
    """
    scores = _scores(tile, centroids, count)
    which[:] = scores.argmin(0)
    best[:] = scores.min(0)
    scores[which, np.arange(LANES)] = np.inf
    second[:] = scores.min(0)


def _argmin_named_plain(tile: Any, rows: Any, names: Any, count: int, best: Any, which: Any) -> None:
    """`argmin_exact` of the centroids `rows[names[i]]`, i < count; `which` gets the name.

    Args:
        rows: float32 (k + 1, d), a centroid a row, the last one infinite.
        names: int32, padded with k to the next multiple of TURN.
    """
    _argmin_exact_plain(tile, rows[names[:count]].T, count, best, which)
    which[:] = names[which]


def _below_plain(tile: Any, centroids: Any, count: int, limits: Any, out: Any) -> int:
    """Which centroids' scores (see `argmin_expanded`) are at most the limit for one point of the tile at least; how many.

    Args:
        limits: float32 (LANES,).
        out: int32, the places of those centroids, in their order, written from its start; room for `count` and a TURN.
    """
    found = np.flatnonzero((_scores(tile, centroids, count) <= limits).any(axis=1))
    out[: len(found)] = found
    return len(found)


def _minimum_plain(tile: Any, centre: Any, known: Any, now: Any) -> None:
    """The squared distance from each point of a tile to one centre, as in `argmin_exact`, or what is known where that is less.

    Args:
        tile: float32 (d, LANES).
        centre: float32 (d, 1).
        known: float32 (LANES,).
        now: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(tile.shape[0]):
        apart = centre[j, 0] - tile[j]
        total += apart * apart
    now[:] = np.minimum(known, total)


def _recentre_tile_plain(tile: Any, mid: Any, turned: Any, lengths: Any) -> None:
    """The way from each point of a tile to `mid`, and its squared length as in `argmin_exact`.

    Args:
        tile: float32 (d, LANES).
        mid: float32 (d,).
        turned: float32, its first d rows written.
        lengths: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(mid.shape[0]):
        turned[j] = mid[j] - tile[j]
        total += turned[j] * turned[j]
    lengths[:] = total


argmin_exact = _loops.tile_loop("argmin_exact", LANES, TURN) if COMPILED else _argmin_exact_plain
argmin_expanded = _loops.tile_loop("argmin_expanded", LANES, TURN) if COMPILED else _argmin_expanded_plain
argmin_named = _loops.tile_loop("argmin_named", LANES, TURN) if COMPILED else _argmin_named_plain
below = _loops.tile_loop("below", LANES, TURN) if COMPILED else _below_plain
minimum = _loops.tile_loop("minimum", LANES, TURN) if COMPILED else _minimum_plain
recentre_tile = _loops.tile_loop("recentre_tile", LANES, TURN) if COMPILED else _recentre_tile_plain
