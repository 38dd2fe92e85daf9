"""Where k-means starts: points drawn far from each other (k-means++), or simply at random.

Both draw with hashes of the seed, so that a seed means the same points with every version of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import get_num_threads, sliced
from cce_core.clustering.lloyd import as_points, as_weights, scale_of
from cce_core.clustering.tiles import Points
from cce_core.hashing.mix import derive_key, mix_hash

_BLOCK = 512  # points whose costs are summed together; a draw looks for its block first
_LANES = 16
_GRAIN = 32  # blocks that make another thread worth waking


@jit
def _approach(start: int, stop: int, columns: Any, weights: Any, chosen: int, closest: Any, sums: Any) -> None:
    """Lower `closest` (n,), squared distances, to those from point `chosen`; `sums` get each block's weighted sum.

    `columns` are the points transposed, (d, n), with n a whole number of blocks: points of weight 0 fill the last. With
    chosen = −1 there is no such point: the sums alone are taken.
    """
    d = columns.shape[0] if chosen >= 0 else 0
    costs, shares, lanes = np.empty(_BLOCK, np.float32), np.empty(_BLOCK), np.empty(_LANES)
    for block in range(start, stop):
        here = slice(block * _BLOCK, (block + 1) * _BLOCK)  # so that indices are seen to be positive, below
        known, part = closest[here], weights[here]
        for i in range(_BLOCK):
            costs[i] = np.float32(0.0) if d > 0 else known[i]
        for j in range(d):
            centre, column = columns[j, chosen], columns[j, here]
            for i in range(_BLOCK):
                apart = column[i] - centre
                costs[i] += apart * apart
        for i in range(_BLOCK):  # not stored back at once: "store where less" would be a branch a point
            shares[i] = np.float64(min(costs[i], known[i]))
        for i in range(_BLOCK):
            known[i] = np.float32(shares[i])
        for i in range(_LANES):
            lanes[i] = np.float64(0.0)
        for first in range(0, _BLOCK, _LANES):  # sums side by side: each need not wait for the one before
            for i in range(_LANES):
                lanes[i] += shares[first + i] * np.float64(part[first + i])
        total = np.float64(0.0)
        for i in range(_LANES):
            total += lanes[i]
        sums[block] = total


@jit
def _pick(uniform: np.float64, weights: Any, closest: Any, sums: Any) -> int:
    """A point drawn in proportion to weight · closest; −1 where they are all 0."""
    total = np.float64(0.0)
    for block in range(sums.shape[0]):
        total += sums[block]
    target, found = uniform * total, -1
    for block in range(sums.shape[0]):
        if sums[block] > np.float64(0.0):
            found = block
            if target < sums[block]:
                break
            target -= sums[block]
    picked = -1
    for i in range(found * _BLOCK, (found + 1) * _BLOCK if found >= 0 else 0):
        share = np.float64(closest[i]) * np.float64(weights[i])
        if share > np.float64(
            0.0
        ):  # rounding may leave the target beyond the last: the last with a share is taken then
            picked = i
            if target < share:
                break
            target -= share
    return picked


@jit
def _draw(columns: Any, weights: Any, uniforms: Any, closest: Any, sums: Any, picked: Any) -> int:
    """All draws on one thread; returns how many were made before nothing was left to draw from."""
    for c in range(picked.shape[0]):
        chosen = picked[c - 1] if c > 0 else -1
        _approach(0, sums.shape[0], columns, weights, chosen, closest, sums)
        found = _pick(uniforms[c], weights, closest, sums)
        if found < 0:
            return c
        picked[c] = found
        if c == 0:
            for i in range(closest.shape[0]):
                closest[i] = np.float32(np.inf)
    return picked.shape[0]


def _uniforms(n: int, seed: int) -> NDArray[np.float64]:
    """`n` numbers in (0, 1), a pure function of the seed."""
    words = mix_hash(np.arange(n, dtype=np.uint64), seed=seed)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def lowest(values: NDArray[Any], m: int, order: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The places of the `m` lowest values, lowest first; among equals the earlier place first, or the lower `order`."""
    candidates = np.arange(values.size)
    if m < values.size:
        candidates = np.flatnonzero(values <= np.partition(values, m - 1)[m - 1])
    ties = candidates if order is None else order[candidates]
    return candidates[np.lexsort((ties, values[candidates]))[:m]]


def spread_points(x: Points, k: int, weights: Points, seed: int) -> NDArray[np.int64]:
    """`k_means_plus_plus` without checks, for safely scaled points."""
    n, d = x.shape
    blocks = -(-n // _BLOCK)
    columns, padded = np.zeros((d, blocks * _BLOCK), np.float32), np.zeros(blocks * _BLOCK, np.float32)
    columns[:, :n] = x.T
    padded[:n] = weights if weights.size else 1.0
    closest = np.ones_like(padded)  # ones: the first draw goes by the weights alone
    uniforms, sums, picked = _uniforms(k, seed), np.empty(blocks), np.empty(k, np.int64)
    if get_num_threads() == 1 or blocks < 2 * _GRAIN:
        made = _draw(columns, padded, uniforms, closest, sums, picked)
        return np.resize(picked[:made], k)
    for c in range(k):
        chosen = int(picked[c - 1]) if c else -1
        sliced(_approach, blocks, _GRAIN, columns, padded, chosen, closest, sums)
        found = _pick(uniforms[c], padded, closest, sums)
        if found < 0:
            return np.resize(picked[:c], k)
        picked[c] = found
        if c == 0:
            closest.fill(np.inf)
    return picked


def any_points(n: int, k: int, weights: Points, seed: int) -> NDArray[np.int64]:
    """`random_points` without checks: the places of the k least of −log(u) / w are such a draw."""
    keys = np.log(-np.log(_uniforms(n, seed)))
    if weights.size:
        positive = weights > 0
        keys[positive] -= np.log(weights[positive].astype(np.float64))
        keys[~positive] = np.inf
        n = int(positive.sum())
    return np.resize(lowest(keys, min(k, n)), k)


def k_means_plus_plus(X: Any, k: int, *, sample_weight: Any = None, seed: int = 0) -> NDArray[np.int64]:
    """Draw k points far from each other, each with `P(n) ∝ w_n · min_c |X_n − X_c|²` over those drawn before.

    Args:
        X: real numbers (n, d), taken as float32, n at least 1.
        k: how many to draw. Where fewer points differ, those are repeated in turn.
        sample_weight: (n,), not negative, one of them positive; None lets each point count one.
        seed: 0 to 2^64 − 1.

    Returns:
        Places in X, int64 (k,). Points of weight 0 are never drawn.

    Raises:
        TypeError: not real numbers, or k or seed is not an integer.
        ValueError: NaN or infinity, no point, wrong shapes, k or seed out of range.

    Cost:
        n·k·d multiply-adds in k passes over X; scratch of X's size.

    References:
        Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.

    Example:
        >>> from cce_core.clustering import k_means_plus_plus
        >>> sorted((k_means_plus_plus([[0.0], [0.0], [9.0], [9.0]], 2, seed=1) // 2).tolist())
        [0, 1]
    """
    x, k, weights = _checked(X, k, sample_weight)
    exponent = scale_of(x)
    return spread_points(np.ldexp(x, -exponent) if exponent else x, k, weights, _check.seed(seed))


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


def _checked(X: Any, k: int, sample_weight: Any) -> tuple[Points, int, Points]:
    x = as_points("X", X)
    if x.shape[0] == 0:
        raise ValueError("X must hold at least one point, got none")
    return x, _check.integer("k", k, 1), as_weights(sample_weight, x.shape[0])
