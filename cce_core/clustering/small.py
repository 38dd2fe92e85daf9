"""Iterations of a small fit in one compiled call: there a call from Python takes longer than what it asks for.

What is computed is what `means` and `search` compute, bit for bit, on one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.clustering.lanes import LANES
from cce_core.clustering.lloyd import add_up
from cce_core.clustering.search import search_some

DONE, MORE, EMPTY = (
    0,
    1,
    2,
)  # how `settle` ends: nothing is to be gained, the turns are used up, a cluster has no weight


@jit
def total(n: int, costs: Any, weights: Any) -> np.float64:
    """The sum of the first n costs, times their weights where there are any; in lanes, so that no sum waits for all before."""
    lanes = np.zeros(LANES)
    if weights.shape[0] > 0:
        for i in range(n):
            lanes[i % LANES] += np.float64(costs[i]) * np.float64(weights[i])
    else:
        whole = n - n % LANES
        for first in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += np.float64(costs[first + lane])
        for i in range(whole, n):
            lanes[i - whole] += np.float64(costs[i])
    found = np.float64(0.0)
    for lane in range(LANES):
        found += lanes[lane]
    return found


@jit
def settle(
    points: Any, n: int, weights: Any, sums: Any, centroids: Any, labels: Any, costs: Any, spare: Any, spare_costs: Any,
    few: int, sifting: bool, inertia: Any, turns: int, tol: Any,
) -> Any:  # fmt: skip
    """At most `turns` iterations of Lloyd's; centroids, labels and costs are written as each one is found to be good.

    Args:
        points: float32 (tiles, d, LANES), of which n are points.
        weights: float32 (n,), or empty.
        sums: float64 (blocks, k, d + 1), scratch.
        centroids: float32 (k, d).
        labels, costs: the nearest centroids, a place for each place of the tiles.
        spare, spare_costs: scratch of the same size.
        few, sifting: as `search_some` takes them.
        inertia: of `costs`.
        turns: at least 1.
        tol: as `KMeans` has it.

    Returns:
        Iterations made, the inertia, and how it ended.
    """
    count, d, _ = points.shape
    blocks, k, _ = sums.shape
    size = -(-count // blocks)
    columns = np.full((d + 1, (k + 2 * LANES - 1) // LANES * LANES), np.inf, np.float32)
    columns[d, :k] = np.float32(0.0)
    middle, boxes, firsts = np.empty(d, np.float32), np.empty((0, d), np.float32), np.empty(0, np.int64)
    sum_of, moved = sums[0], np.empty((k, d), np.float32)
    here, their, there, next_costs = labels, costs, spare, spare_costs  # which change places with every iteration
    made, end = turns, MORE
    for step in range(turns):
        for block in range(blocks):
            for c in range(k):
                for j in range(d + 1):
                    sums[block, c, j] = np.float64(0.0)
        add_up(0, blocks, size, points, n, here, weights, sums)
        same = True
        for c in range(k):
            for block in range(1, blocks):
                for j in range(d + 1):
                    sum_of[c, j] += sums[block, c, j]
            if sum_of[c, d] == np.float64(0.0):
                end = EMPTY
                break
            for j in range(d):
                moved[c, j] = np.float32(sum_of[c, j] / sum_of[c, d])
                same &= moved[c, j] == centroids[c, j]
        if end == EMPTY or same:
            made, end = step, EMPTY if end == EMPTY else DONE
            break
        for j in range(d):
            mean = np.float64(0.0)
            for c in range(k):
                columns[j, c] = moved[c, j]
                mean += np.float64(moved[c, j])
            middle[j] = np.float32(mean / np.float64(k))
        search_some(0, count, points, columns, moved, boxes, boxes, firsts, middle, few, sifting, there, next_costs)
        now = total(n, next_costs, weights)
        if now > inertia:
            made, end = step, DONE
            break
        unchanged = True
        for i in range(n):
            unchanged &= there[i] == here[i]
        here, there, their, next_costs = there, here, next_costs, their
        fall, before, inertia = inertia - now, inertia, now
        for c in range(k):
            for j in range(d):
                centroids[c, j] = moved[c, j]
        if unchanged or fall <= tol * before:
            made, end = step + 1, DONE
            break
    if made % 2 == 1:  # the last good ones stand in the scratch
        labels[:], costs[:] = here, their
    return made, inertia, end
