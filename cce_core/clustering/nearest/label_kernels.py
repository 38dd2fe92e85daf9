"""What follows a search: how far each point of a tile is from its centroid, and sums by label.

These are the definitions; compiled callers get vector instructions (`_loops.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core import _loops
from cce_core._jit import COMPILED
from cce_core.clustering.nearest.tile_kernels import LANES


def _apart_plain(tile: Any, rows: Any, labels: Any, now: Any) -> None:
    """The squared distance from each point of a tile to the centroid of its label, summed as in `argmin_exact`.

    Args:
        tile: float32 (d, LANES).
        rows: float32 (k or more, d), a centroid a row.
        labels: int32 (LANES,).
        now: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(tile.shape[0]):
        apart = rows[labels, j] - tile[j]
        total += apart * apart
    now[:] = total


def _add_tile_plain(tile: Any, labels: Any, weights: Any, sums: Any) -> None:
    """Add the points of a whole tile, each times its weight, to the sums of their labels, one point after the other.

    Args:
        tile: float32 (d, LANES).
        labels: int32 (LANES,).
        weights: float32 (LANES,).
        sums: float64 (k, d + 1), added to; the last column gets the weights.
    """
    for i in range(LANES):
        weight = np.float64(weights[i])
        sums[labels[i], :-1] += weight * tile[:, i].astype(np.float64)
        sums[labels[i], -1] += weight


apart = _loops.label_loop("apart", LANES) if COMPILED else _apart_plain
add_tile = _loops.label_loop("add_tile", LANES) if COMPILED else _add_tile_plain
