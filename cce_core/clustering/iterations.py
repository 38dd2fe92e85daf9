"""Lloyd's iterations that remember nothing of the one before but labels, many in one compiled call.

What is computed is what `means` and `search` compute, bit for bit. Waking a thread takes as long as an iteration of a small
fit, so helpers are called once, and wait for work by looking for it, in between giving way to whoever wants their core. An
iteration has two parts, the sums and the search, each cut into tickets: leader and helpers take one after the other. A
helper that comes late or not at all is not waited for, only one that has taken a ticket.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._atomic import fetch_add, give_way, load, store
from cce_core._jit import COMPILED, jit
from cce_core._threads import beside, get_num_threads
from cce_core.clustering.lloyd import add_up, blocks_of
from cce_core.clustering.nearest.search import FEW, in_columns, search_some, worth_narrowing, worth_sifting
from cce_core.clustering.nearest.tile_kernels import LANES
from cce_core.clustering.nearest.tiles import FAN, Points, Tiles

# How `Turns` end: nothing is to be gained, the turns are used up, a cluster has no weight, a helper failed.
DONE, MORE, EMPTY, LOST = 0, 1, 2, 3
# The board, a line of the cache each: the open part and its next ticket, tickets that helpers have done, whether the leader has
# ended, whether a helper has failed.
_OPEN, _GIVEN, _ENDED, _FAILED, _BOARD = 0, 8, 16, 24, 32
_TICKET = (1 << 32) - 1  # the bits of a ticket; those of the part are above
_PIECES = 8  # of a search, a thread
_PATIENCE = 2000  # looks at the board, a millisecond or two, after which a helper goes
_THREAD = 1 << 21  # of `_effort`, about 50 µs: so much of each iteration makes another thread worth waking
_TURNS = 8  # over which waking it is spread
# Of `_effort`, some hundredths of a second: signals and other threads of Python wait for the end of a call.
_CALL = 1 << 30


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
def _move(sums: Any, centroids: Any, moved: Any, columns: Any, middle: Any) -> int:
    """From the sums, centroids `moved` to the means of their points; DONE where that is where they are, EMPTY, or MORE."""
    (k, d), blocks, sum_of = centroids.shape, sums.shape[0], sums[0]
    same = True
    for c in range(k):
        for block in range(1, blocks):
            for j in range(d + 1):
                sum_of[c, j] += sums[block, c, j]
        if sum_of[c, d] == np.float64(0.0):
            return EMPTY
        for j in range(d):
            moved[c, j] = np.float32(sum_of[c, j] / sum_of[c, d])
            same &= moved[c, j] == centroids[c, j]
    for j in range(d):
        mean = np.float64(0.0)
        for c in range(k):
            columns[j, c] = moved[c, j]
            mean += np.float64(moved[c, j])
        middle[j] = np.float32(mean / np.float64(k))
    return DONE if same else MORE


@jit
def _lead_or_help(
    leads: bool, board: Any, centroids: Any, inertia: Any, turns: int, tol: Any, points: Any, n: int, weights: Any,
    pieces: int, sums: Any, columns: Any, moved: Any, middle: Any, boxes: Any, sifting: bool, labels: Any, costs: Any,
    spare: Any, spare_costs: Any,
) -> Any:  # fmt: skip
    """`Turns`, compiled, or a helper of it: one function, so that no thread still compiles when its leader has ended.

    Parts are numbered 0 to 3, again and again: the sums of `labels`, the search for `spare`, the sums of that, the search
    for `labels`.
    """
    count, blocks, (mids, halves, firsts) = points.shape[0], sums.shape[0], boxes
    whole = FAN**2 if firsts.shape[0] > 0 else 1  # tiles that are not parted, since they share boxes
    size = -(-count // (pieces * whole)) * whole
    made, end, part, given, looks = 0, MORE, 0, 0, 0
    while made < turns and end == MORE:
        if leads:
            given += pieces if part % 2 else blocks
            store(board, _OPEN, part << 32)
        taken = 0
        while True:
            word = load(board, _OPEN)
            if (word & _TICKET) < (pieces if (word >> 32) % 2 else blocks):
                word = fetch_add(board, _OPEN)  # by now another part may be open
            here, ticket = word >> 32, word & _TICKET
            if ticket >= (pieces if here % 2 else blocks):
                break
            if here % 2:
                start, stop = min(count, ticket * size), min(count, (ticket + 1) * size)
                found, distances = (labels, costs) if here == 3 else (spare, spare_costs)
                search_some(
                    start, stop, points, columns, moved, mids, halves, firsts, middle, FEW, sifting, found, distances,
                )  # fmt: skip
            else:
                sums[ticket] = np.float64(0.0)
                add_up(
                    ticket, ticket + 1, -(-count // blocks), points, n, labels if here == 0 else spare, weights, sums
                )
            taken += 1
            if not leads:
                fetch_add(board, _GIVEN)
        if not leads:
            looks = 0 if taken > 0 else looks + 1
            if looks == _PATIENCE or load(board, _ENDED) != 0:
                end = DONE
            give_way()
            continue
        given -= taken
        while end == MORE and load(board, _GIVEN) != given:
            if load(board, _FAILED) != 0:
                end = LOST
            give_way()
        if end == LOST:
            break
        if part % 2 == 0:
            end = _move(sums, centroids, moved, columns, middle)
        else:
            now = total(n, costs if part == 3 else spare_costs, weights)
            if now > inertia:
                end = DONE
                break
            unchanged = True
            for i in range(n):
                unchanged &= labels[i] == spare[i]
            centroids[:] = moved
            made += 1
            if unchanged or inertia - now <= tol * inertia:
                end = DONE
            inertia = now
        part = (part + 1) % 4
    if leads and made % 2 == 1:  # the last good ones stand in the scratch
        labels[:], costs[:] = spare, spare_costs
    return made, inertia, end


def _effort(n: int, k: int, d: int) -> int:
    """Of an iteration, in multiply-adds: those of the search, and what points and coordinates take beside it."""
    return n * (k + 16) * (d + 4)


def _helper(board: NDArray[np.int64], *args: Any) -> None:
    """Help, and tell the leader if that fails: it may wait for a ticket that was taken."""
    try:
        _lead_or_help(False, board, *args)
    except BaseException:
        board[_FAILED] = 1
        raise


class Turns:
    """Iterations of a fit without lists.

    Args:
        tiles: the points.
        weights: float32 (n,), or empty.
        k: centroids.
    """

    def __init__(self, tiles: Tiles, weights: Points, k: int) -> None:
        n, d = tiles.n, tiles.points.shape[1]
        boxed = worth_narrowing(n, d, k)
        self.points, self.n, self.weights = tiles.points, n, weights
        self.effort = _effort(n, min(k, 64) if boxed else k, d)
        self.scratch = (
            np.empty((blocks_of(n, k), k, d + 1)), in_columns(np.empty((k, d), np.float32)), np.empty((k, d), np.float32),
            np.empty(d, np.float32), (tiles.mids, tiles.halves, tiles.firsts if boxed else tiles.firsts[:0]),
            worth_sifting(d, k, boxed),
        )  # fmt: skip

    def __call__(
        self, centroids: Points, labels: NDArray[np.int32], costs: Points, spare: NDArray[np.int32], spare_costs: Points,
        inertia: float, turns: int, tol: float,
    ) -> tuple[int, float, int]:  # fmt: skip
        """At most `turns` of them; centroids, labels and costs are written as each one is found to be good.

        Args:
            centroids: float32 (k, d).
            labels, costs: the nearest centroids, a place for each place of the tiles.
            spare, spare_costs: scratch of the same size.
            inertia: of `costs`.
            turns: at least 1.
            tol: as `KMeans` has it.

        Returns:
            Iterations made, the inertia, and how it ended.
        """
        turns = min(turns, max(1, _CALL // self.effort))
        threads = min(get_num_threads(), min(turns, _TURNS) * self.effort // (_TURNS * _THREAD)) if COMPILED else 1
        board, futures = np.zeros(_BOARD, np.int64), list[Future[Any]]()
        board[_OPEN] = _TICKET  # no part is open yet
        args = (
            board, centroids, inertia, turns, tol, self.points, self.n, self.weights, _PIECES * threads if threads > 1 else 1,
            *self.scratch, labels, costs, spare, spare_costs,
        )  # fmt: skip
        try:
            if threads > 1:
                futures = beside(threads - 1, _helper, *args)
            made, inertia, end = _lead_or_help(True, *args)
        finally:
            board[_ENDED] = 1
        if end == LOST:
            for future in futures:
                future.result()
        return made, inertia, end
