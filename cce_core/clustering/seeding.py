"""Where k-means starts: points drawn far from each other (k-means++, k-means||), or simply at random.

k-means++ leaves out, by their boxes, the tiles that a new centre cannot be nearest to. All draw with hashes of the seed,
so that a seed means the same points with every version of NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core.clustering.narrow import narrowed, some_of
from cce_core.clustering.nearest.search import search
from cce_core.clustering.nearest.tile_kernels import LANES, minimum
from cce_core.clustering.nearest.tiles import FAN, Points, Tiles, tile
from cce_core.clustering.points import as_array, as_weights
from cce_core.hashing.mix import derive_key, mix_hash

_TURNS, _SHARE = 5, 0.5  # of k-means||: rounds (the first draws one point), and points a round in units of k
_LARGE = 1 << 24  # multiply-adds a trial from which k-means++ is left to k-means||, for more than _FLAT coordinates
_FLAT, _MANY = 2, 1 << 21  # below, few of the centres drawn before are near: all is fast up to so many points
_U = np.float32(2.0**-24)
_TINY = np.float32(2.0**-100)


@jit
def _beyond(mid: Any, half: Any, centre: Any, most: np.float32) -> Any:
    """Whether each point of a box is farther from the centre than the square root of `most`, whatever is rounded."""
    d = centre.shape[0]
    total, size = np.float32(0.0), np.float32(0.0)
    for j in range(d):
        off = abs(centre[j, 0] - mid[j])
        apart = max(off - half[j], np.float32(0.0))
        total += apart * apart
        size += off * off + half[j] * half[j]
    return total > most + np.float32(8 * (d + 8)) * _U * (size + most) + _TINY


@jit
def _fall(tile: Any, weights: Any, closest: Any, centre: Any, now: Any, part: Any) -> np.float64:
    """`now` gets the tile's squared distances, `closest`, or those from the centre where they are less; their weighted sum."""
    minimum(tile, centre, closest, now)
    for i in range(LANES):
        part[i] = np.float64(now[i]) * np.float64(weights[i])
    for i in range(8):  # two by two: no sum waits for all before it
        part[i] += part[i + 8]
    for i in range(4):
        part[i] += part[i + 4]
    return (part[0] + part[2]) + (part[1] + part[3])


@jit
def _gather(touched: Any, many: int, firsts: Any, most: Any, sums: Any) -> None:
    """Take the largest and the sums of the `touched` boxes of the lowest level up the levels."""
    for level in range(1, firsts.shape[0]):
        low, high = firsts[level - 1], firsts[level]
        done = -1
        for i in range(many):
            box = touched[i] >> 2 * level
            if box == done:
                continue
            done = box
            start = low + box * FAN
            largest, total = most[start], sums[start]
            for child in range(start + 1, min(start + FAN, high)):
                largest, total = max(largest, most[child]), total + sums[child]
            most[high + box], sums[high + box] = largest, total


@jit
def _approach(
    points: Any, mids: Any, halves: Any, firsts: Any, weights: Any, closest: Any, most: Any, sums: Any, place: int,
    keep: bool, centre: Any, now: Any, part: Any, touched: Any,
) -> np.float64:  # fmt: skip
    """By how much the point at `place` as one more centre lowers the sum of costs; those are lowered where `keep`.

    `most` and `sums` hold the largest and the sum of the costs of each box.
    """
    count, d, _ = points.shape
    top = firsts.shape[0] - 1
    for j in range(d):
        centre[j, 0] = points[place // LANES, j, place % LANES]
    gain, many, t = np.float64(0.0), 0, 0
    while t < count:
        level = 0
        while level < top and t & ((FAN << 2 * level) - 1) == 0:
            level += 1
        while level >= 0:
            box = firsts[level] + (t >> 2 * level)
            if _beyond(mids[box], halves[box], centre, most[box]):
                break
            level -= 1
        if level >= 0:
            t += 1 << 2 * level
            continue
        first = t * LANES
        known = closest[first : first + LANES]
        total = _fall(points[t], weights[first : first + LANES], known, centre, now, part)
        gain += sums[t] - total
        if keep:
            sums[t], most[t] = total, np.float32(0.0)
            for i in range(LANES):
                known[i] = now[i]
                most[t] = max(most[t], now[i])
            touched[many] = t
            many += 1
        t += 1
    _gather(touched, many, firsts, most, sums)
    return gain


@jit
def _pick(uniform: np.float64, firsts: Any, weights: Any, closest: Any, sums: Any) -> int:
    """A place drawn in proportion to weight · closest; −1 where they are all 0."""
    top = firsts.shape[0] - 1
    total = np.float64(0.0)
    for box in range(firsts[top], sums.shape[0]):
        total += sums[box]
    target, start, stop = uniform * total, firsts[top], sums.shape[0]
    for level in range(top, -1, -1):
        found = -1
        for box in range(start, stop):
            if sums[box] > np.float64(0.0):  # rounding may leave the target beyond the last: the last is taken then
                found = box
                if target < sums[box]:
                    break
                target -= sums[box]
        if found < 0:
            return -1
        found -= firsts[level]
        if level > 0:
            start, stop = firsts[level - 1] + found * FAN, min(firsts[level - 1] + (found + 1) * FAN, firsts[level])
    picked = -1
    for place in range(found * LANES, (found + 1) * LANES):
        share = np.float64(closest[place]) * np.float64(weights[place])
        if share > np.float64(0.0):
            picked = place
            if target < share:
                break
            target -= share
    return picked


@jit
def _draw(
    points: Any, mids: Any, halves: Any, firsts: Any, weights: Any, uniforms: Any, trials: int, closest: Any, most: Any,
    sums: Any, picked: Any,
) -> int:  # fmt: skip
    """All draws; returns how many were made before nothing was left to draw from."""
    count, d, _ = points.shape
    centre, now, part = np.empty((d, 1), np.float32), np.empty(LANES, np.float32), np.empty(LANES)
    touched = np.arange(count)
    for t in range(count):  # the first draw goes by the weights alone
        sums[t], most[t] = np.float64(0.0), np.float32(np.inf)
        for place in range(t * LANES, (t + 1) * LANES):
            closest[place] = np.float32(1.0)
            sums[t] += np.float64(weights[place])
    _gather(touched, count, firsts, most, sums)
    picked[0] = _pick(uniforms[0], firsts, weights, closest, sums)
    for place in range(count * LANES):
        closest[place] = np.float32(np.inf)
    _approach(points, mids, halves, firsts, weights, closest, most, sums, picked[0], True, centre, now, part, touched)
    for c in range(1, picked.shape[0]):
        best, chosen = np.float64(-np.inf), -1
        for trial in range(trials):
            place = _pick(uniforms[1 + (c - 1) * trials + trial], firsts, weights, closest, sums)
            if place < 0:
                return c
            gain = np.float64(0.0)
            if trials > 1:
                gain = _approach(
                    points, mids, halves, firsts, weights, closest, most, sums, place, False, centre, now, part, touched
                )
            if gain > best:
                best, chosen = gain, place
        picked[c] = chosen
        if c + 1 < picked.shape[0]:
            _approach(
                points, mids, halves, firsts, weights, closest, most, sums, chosen, True, centre, now, part, touched
            )
    return picked.shape[0]


def _uniforms(n: int, seed: int) -> NDArray[np.float64]:
    """`n` numbers in (0, 1), a pure function of the seed."""
    words = mix_hash(np.arange(n, dtype=np.uint64), seed=seed)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def lowest(values: NDArray[Any], m: int, order: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The places of the `m` lowest values, lowest first; among equals the earlier place first, or the minimum `order`."""
    candidates = np.arange(values.size)
    if m < values.size:
        candidates = np.flatnonzero(values <= np.partition(values, m - 1)[m - 1])
    ties = candidates if order is None else order[candidates]
    return candidates[np.lexsort((ties, values[candidates]))[:m]]


def spread_places(tiles: Tiles, k: int, weights: Points, seed: int, trials: int) -> NDArray[np.int64]:
    """`k_means_plus_plus` without checks, for safely scaled points in tiles that have boxes: places in the tiles."""
    count = len(tiles.points)
    padded = np.zeros(count * LANES, np.float32)
    padded[: tiles.n] = weights if weights.size else 1.0
    closest, most, sums = np.empty_like(padded), np.empty(len(tiles.mids), np.float32), np.empty(len(tiles.mids))
    picked = np.empty(k, np.int64)
    uniforms = _uniforms(1 + (k - 1) * trials, seed)
    made = _draw(
        tiles.points, tiles.mids, tiles.halves, tiles.firsts, padded, uniforms, trials, closest, most, sums, picked
    )
    return np.resize(picked[:made], k)


def trials_of(k: int, d: int) -> int:
    """How many draws greedy k-means++ compares: as its authors advise, and fewer where each takes long."""
    return 2 + int(math.log(k)) if d <= 4 else 3


def start_places(tiles: Tiles, k: int, weights: Points, seed: int, parallel: bool) -> NDArray[np.int64]:
    """Greedy k-means++, or k-means|| where that is asked for or the data is large: places in the tiles."""
    n, d = tiles.n, tiles.points.shape[1]
    if not parallel and (n * k * d <= _LARGE or (d <= _FLAT and n <= _MANY)):
        return spread_places(tiles, k, weights, seed, trials_of(k, d))
    return parallel_places(tiles, k, weights, seed)


def parallel_places(tiles: Tiles, k: int, weights: Points, seed: int) -> NDArray[np.int64]:
    """k-means||: rounds of many draws at once, then k of what was drawn by k-means++, each with the weight nearest to it.

    In a round each point is drawn with the chance min(1, k/2 · its cost over the sum of costs).
    """
    padded = np.zeros(tiles.empty(np.float32).size)
    padded[: tiles.n] = weights if weights.size else 1.0
    ends = np.cumsum(padded)
    places = np.searchsorted(ends, _uniforms(1, derive_key(seed, 0)) * ends[-1], side="right")
    closest, near = np.full(padded.size, np.inf, np.float32), np.zeros(padded.size, np.int32)
    costs, labels = np.empty_like(closest), np.empty_like(near)
    fresh = places
    for turn in range(1, _TURNS + 1):
        search(tiles, tiles.rows(fresh), labels, costs)
        better = costs < closest
        near[better] = labels[better] + np.int32(len(places) - len(fresh))
        np.minimum(costs, closest, out=closest)
        shares = closest * padded
        total = shares.sum()
        drawn = _uniforms(tiles.n, derive_key(seed, turn)) * total < _SHARE * k * shares[: tiles.n]
        fresh = np.flatnonzero(drawn)
        if turn == _TURNS or fresh.size == 0:
            break
        places = np.append(places, fresh)
    masses = np.bincount(near, padded, minlength=len(places)).astype(np.float32)
    few = tile(tiles.rows(places), True)
    found = spread_places(few, k, few.back(masses), derive_key(seed, _TURNS + 1), trials_of(k, tiles.points.shape[1]))
    return places[found if few.order is None else few.order[found]]


def any_points(n: int, k: int, weights: Points, seed: int) -> NDArray[np.int64]:
    """`random_points` without checks: the places of the k least of −log(u) / w are such a draw."""
    keys = np.log(-np.log(_uniforms(n, seed)))
    if weights.size:
        positive = weights > 0
        keys[positive] -= np.log(weights[positive].astype(np.float64))
        keys[~positive] = np.inf
        n = int(positive.sum())
    return np.resize(lowest(keys, min(k, n)), k)


def k_means_plus_plus(
    X: Any, k: int, *, sample_weight: Any = None, seed: int = 0, trials: int = 1
) -> NDArray[np.int64]:
    """Draw k points far from each other, each with `P(n) ∝ w_n · min_c |X_n − X_c|²` over those drawn before.

    Args:
        X: real numbers (n, d), n at least 1; taken about an origin where wider than float32, as by `KMeans`.
        k: how many to draw. Where fewer points differ, those are repeated in turn.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.
        seed: 0 to 2^64 − 1.
        trials: with more than one, so many are drawn each time and the one that leaves the least sum of costs is taken
            (greedy k-means++); the first is drawn by the weights alone.

    Returns:
        Places in X, int64 (k,). Points of weight 0 are never drawn.

    Raises:
        TypeError: not real numbers, or k, seed or trials is not an integer.
        ValueError: NaN or infinity, no point, wrong shapes, k, seed or trials out of range.

    Cost:
        At most n·k·d multiply-adds a trial; far fewer for points of few coordinates, where a new centre is the nearest
        of few. Scratch of three times X's size.

    References:
        Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.

    Example:
        >>> from cce_core.clustering import k_means_plus_plus
        >>> sorted((k_means_plus_plus([[0.0], [0.0], [9.0], [9.0]], 2, seed=1) // 2).tolist())
        [0, 1]
    """
    x, k, weights = _checked(X, k, sample_weight)
    trials = _check.integer("trials", trials, 1, 1000)
    (points,), _ = narrowed(some_of(x, weights), X=x)
    tiles = tile(points, True)
    places = spread_places(tiles, k, tiles.back(weights), _check.seed(seed), trials)
    return places if tiles.order is None else tiles.order[places]


def random_points(X: Any, k: int, *, sample_weight: Any = None, seed: int = 0) -> NDArray[np.int64]:
    """Draw k points without replacement, each in proportion to its weight among those left.

    Args:
        X: real numbers (n, d), n at least 1.
        k: how many to draw. Where there are fewer (of positive weight), those are repeated in turn.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.
        seed: 0 to 2^64 − 1.

    Returns:
        Places in X, int64 (k,). Points of weight 0 are never drawn.

    Raises:
        TypeError: not real numbers, or k or seed is not an integer.
        ValueError: NaN or infinity, no point, wrong shapes, k or seed out of range.

    Cost:
        One hash and two logarithms a point.

    References:
        Efraimidis and Spirakis, Weighted random sampling with a reservoir, Information Processing Letters 2006.

    Example:
        >>> from cce_core.clustering import random_points
        >>> sorted(random_points([[5.0], [6.0], [7.0]], 2, sample_weight=[1, 0, 1]).tolist())
        [0, 2]
    """
    x, k, weights = _checked(X, k, sample_weight)
    return any_points(x.shape[0], k, weights, _check.seed(seed))


def run_seed(seed: int, run: int) -> int:
    """The seed of one start of several."""
    return derive_key(seed, run)


def _checked(X: Any, k: int, sample_weight: Any) -> tuple[NDArray[Any], int, Points]:
    x = as_array("X", X)
    if x.shape[0] == 0:
        raise ValueError("X must hold at least one point, got none")
    return x, _check.size("k", k, 1, 2**31), as_weights(sample_weight, x.shape[0])
