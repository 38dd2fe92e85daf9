"""Interactions drawn from a known truth, of any number over any vocabulary, without a table of anything.

    p(user, item) = sigmoid( scale / sqrt(dim) · <x_user, y_item> + bias ),    label ~ Bernoulli(p)

Every coordinate of x and y is a hash of its id, about normal with mean `center` and deviation 1; every draw is a hash
of the row's number. So a row is a pure function of (parameters, seed, row number): blocks of any size, in any order, on
any number of threads give the same rows. Only IEEE additions, multiplications and divisions are used, with a logarithm
and an exponential of our own, so that every machine gives the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.datasets.interactions import Interactions, Split
from cce_core.hashing.mix import derive_keys, keyed, mix_hash, premix

_GRAIN = 1 << 12  # rows that make a thread worth waking
_ROUNDS = 3  # of the Feistel network
_DRAWS = 3 + 2 * _ROUNDS  # keys before those of the coordinates
_MOST_MISSES = 64  # draws of items that a user has met before the next one is taken: steep popularity needs it
_MOST_IDS = 1 << 40

_LN2, _SQRT_HALF = 0.6931471805599453, 0.7071067811865476
_EXP = tuple(1.0 / math.factorial(k) for k in range(15, -1, -1))
_ARTANH = tuple(1.0 / k for k in range(23, 0, -2))
_COORD_MIDDLE = 2 * 65_535  # mean of the sum of four 16-bit numbers
_COORD_UNIT = 37_837.0  # its standard deviation, sqrt(4 (2^32 - 1) / 12), to the whole number
_s11, _s16, _s32, _s48 = np.uint64(11), np.uint64(16), np.uint64(32), np.uint64(48)
_low16 = np.uint64(0xFFFF)


@jit
def _log2(x: float) -> float:
    """Binary logarithm of x > 0, to a few units in the last place: ln m = 2 artanh((m - 1) / (m + 1))."""
    m, e = math.frexp(x)
    if m < _SQRT_HALF:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)
    square, total = s * s, 0.0
    for c in _ARTANH:
        total = total * square + c
    return 2.0 * s * total / _LN2 + e


@jit
def _exp2(x: float) -> float:
    """2^x, to a few units in the last place: the exponential series on [-ln 2 / 2, ln 2 / 2), scaled."""
    x = min(max(x, -1000.0), 1000.0)
    whole = math.floor(x + 0.5)
    t, total = (x - whole) * _LN2, 0.0
    for c in _EXP:
        total = total * t + c
    return math.ldexp(total, int(whole))


@jit
def _uniform(word: np.uint64) -> float:
    """A number strictly within (0, 1) from 64 random bits."""
    return (np.float64(word >> _s11) + 0.5) * 1.1102230246251565e-16


@jit
def _zipf_rank(word: np.uint64, n: np.uint64, power: float, top: float) -> np.uint64:
    """A rank in [0, n): floor of a draw of density x^-zipf on [1, n + 1); power = 1 - zipf, or 0 for 1."""
    u = _uniform(word)
    if power == 0.0:
        x = _exp2(u * top)
    else:
        x = 1.0 + u * (top - 1.0)
        if power != 1.0:
            x = _exp2(_log2(x) / power)
    return min(np.uint64(max(x - 1.0, 0.0)), n - np.uint64(1))


@jit
def _scatter_rank(rank: np.uint64, n: np.uint64, half: np.uint64, keys: Any) -> np.uint64:
    """A permutation of [0, n): a Feistel network on twice `half` bits, walked on until it lands below n."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    x = rank
    while True:
        left, right = x >> half, x & mask
        for k in range(_ROUNDS):
            left, right = right, left ^ (keyed(premix(right), keys[k]) & mask)
        x = (left << half) | right
        if x < n:
            return x


@jit
def _coordinate(word: np.uint64, center: np.int64) -> np.int64:
    """A whole number, about normal, of mean `center` and deviation `_COORD_UNIT`: the sum of four 16-bit numbers."""
    total = (word & _low16) + ((word >> _s16) & _low16) + ((word >> _s32) & _low16) + (word >> _s48)
    return np.int64(total) - _COORD_MIDDLE + center


@jit
def _probability(user: np.uint64, item: np.uint64, keys: Any, sizes: Any, reals: Any) -> float:
    """sigmoid(reals[4] · <x, y> + reals[5]); the inner product is exact, in whole numbers."""
    dim, center = np.int64(sizes[4]), np.int64(reals[6])
    first, second = premix(user), premix(item)
    dot = np.int64(0)
    for d in range(dim):
        x = _coordinate(keyed(first, keys[_DRAWS + d]), center)
        dot += x * _coordinate(keyed(second, keys[_DRAWS + dim + d]), center)
    z = reals[4] * np.float64(dot) + reals[5]
    e = _exp2(-abs(z) / _LN2)
    return (1.0 if z >= 0.0 else e) / (1.0 + e)


@jit
def _draw_item(word: np.uint64, keys: Any, sizes: Any, reals: Any) -> np.uint64:
    rank = _zipf_rank(word, sizes[2], reals[2], reals[3])
    return _scatter_rank(rank, sizes[2], sizes[3], keys[3 + _ROUNDS : _DRAWS])


@jit
def _draw_rows(
    start: int, stop: int, first: np.uint64, keys: Any, sizes: Any, reals: Any, users: Any, items: Any, labels: Any
) -> None:
    for n in range(start, stop):
        row = premix(first + np.uint64(n))
        rank = _zipf_rank(keyed(row, keys[0]), sizes[0], reals[0], reals[1])
        user = _scatter_rank(rank, sizes[0], sizes[1], keys[3 : 3 + _ROUNDS])
        item = _draw_item(keyed(row, keys[1]), keys, sizes, reals)
        users[n], items[n] = user, item
        labels[n] = _uniform(keyed(row, keys[2])) < _probability(user, item, keys, sizes, reals)


@jit
def _draw_histories(
    start: int, stop: int, ends: Any, keys: Any, sizes: Any, reals: Any, users: Any, items: Any, labels: Any
) -> None:
    """All rows of the users [start, stop): as many different items each as ends[u + 1] - ends[u] says."""
    seen = np.full(np.int64(sizes[2]), -1, np.int64)
    for user in range(start, stop):
        n, draw, misses = ends[user], np.uint64(user) << _s32, 0
        while n < ends[user + 1]:
            row = premix(draw)
            draw += np.uint64(1)
            item = _draw_item(keyed(row, keys[1]), keys, sizes, reals)
            if seen[item] == user:
                misses += 1
                if misses < _MOST_MISSES:
                    continue
                while seen[item] == user:
                    item = (item + np.uint64(1)) % sizes[2]
            misses = 0
            seen[item] = user
            users[n], items[n] = user, item
            labels[n] = _uniform(keyed(row, keys[2])) < _probability(np.uint64(user), item, keys, sizes, reals)
            n += 1


@jit
def _probabilities(start: int, stop: int, users: Any, items: Any, keys: Any, sizes: Any, reals: Any, out: Any) -> None:
    for n in range(start, stop):
        out[n] = _probability(users[n], items[n], keys, sizes, reals)


@dataclass(frozen=True)
class Synthetic:
    """A stream of interactions from a known truth, `label ~ Bernoulli(sigmoid(scale / sqrt(dim) · <x, y> + bias))`.

    It holds nothing but these numbers: vectors and rows are computed from ids and row numbers when asked for, so a
    vocabulary of ten million and a billion rows cost no memory. A user's rows are independent draws, so a pair of user
    and item may come again.

    Args:
        n_interactions: how many rows the stream has, at least 1.
        n_users: ids of users are below it; up to 2^40.
        n_items: likewise.
        dim: width of the true vectors, 1 to 1,024.
        zipf: popularity of items, `P(rank k) = ∫ x^-zipf dx` over [k + 1, k + 2), normed; 0 is uniform, up to 4. Ranks
            are scattered over the ids by a keyed permutation.
        user_zipf: likewise of users.
        scale: deviation of the logit that the vectors alone cause, at `center` 0; above 0, up to 100.
        center: mean of every coordinate, -10 to 10; away from 0 it makes some users kinder and some items better than
            others, which is most of what can be learned from few rows an id.
        bias: added to the logit, -1,000 to 1,000.
        seed: 0 to 2^64 − 1.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Cost:
        `2 · dim` hashes a row, about 0.3 µs a row and thread at dim 8.

    Example:
        >>> from cce_core.datasets import Synthetic
        >>> stream = Synthetic(1_000_000_000, 10_000_000, 1_000_000, seed=1)
        >>> rows = next(stream.batches(256))
        >>> len(rows), int(rows.users.max()) < 10_000_000, set(rows.labels.tolist())
        (256, True, {0.0, 1.0})
    """

    n_interactions: int
    n_users: int
    n_items: int
    dim: int = 8
    zipf: float = 1.0
    user_zipf: float = 0.0
    scale: float = 2.0
    center: float = 1.0
    bias: float = -3.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("n_interactions", 2**62), ("n_users", _MOST_IDS), ("n_items", _MOST_IDS), ("dim", 1024)):
            object.__setattr__(self, name, _check.integer(name, getattr(self, name), 1, most))
        _check.number("zipf", self.zipf, 0.0, 4.0)
        _check.number("user_zipf", self.user_zipf, 0.0, 4.0)
        _check.number("scale", self.scale, 0.0, 100.0, open_at_least=True)
        _check.number("center", self.center, -10.0, 10.0)
        _check.number("bias", self.bias, -1000.0, 1000.0)
        _check.seed(self.seed)

    def __len__(self) -> int:
        return self.n_interactions

    @functools.cached_property
    def _arguments(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
        """What every kernel takes: keys; sizes and widths; powers, scales and offsets."""
        keys = derive_keys(self.seed, _DRAWS + 2 * self.dim)
        halves = [max(1, (n - 1).bit_length() + 1 >> 1) for n in (self.n_users, self.n_items)]
        sizes = np.array([self.n_users, halves[0], self.n_items, halves[1], self.dim], np.uint64)
        reals = []
        for n, zipf in ((self.n_users, self.user_zipf), (self.n_items, self.zipf)):
            power, top = 1.0 - float(zipf), _log2(float(n + 1))
            if abs(power) < 1e-6:
                reals += [0.0, top]
            else:
                reals += [power, _exp2(power * top)]
        factor = float(self.scale) / (math.sqrt(self.dim) * _COORD_UNIT * _COORD_UNIT)
        reals += [factor, float(self.bias), float(round(self.center * _COORD_UNIT))]
        return keys, sizes, np.array(reals)

    def block(self, start: int, stop: int) -> Interactions:
        """Rows [start, stop) of the stream; the numbers may also lie beyond its end, where fresh rows are.

        Raises:
            ValueError: `start` is negative, or above `stop`.
        """
        start = _check.integer("start", start, 0, 2**63)
        n = _check.size("stop - start", _check.integer("stop", stop, start, 2**63) - start)
        users, items, labels = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.float32)
        parallel_for(_draw_rows, n, _GRAIN, np.uint64(start), *self._arguments, users, items, labels)
        return Interactions(users, items, labels)

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Interactions]:
        """Rows [start, stop), by default all, `size` at a time; the size does not change what the rows are.

        Raises:
            ValueError: `size` is below 1, or `start` is outside [0, stop].
        """
        size = _check.integer("size", size, 1)
        stop = self.n_interactions if stop is None else _check.integer("stop", stop, 0, 2**63)
        for at in range(_check.integer("start", start, 0, stop), stop, size):
            yield self.block(at, min(at + size, stop))

    def probabilities(self, users: Any, items: Any) -> NDArray[np.float64]:
        """The true probability of label 1 for pairs of ids, arrays of one shape.

        Raises:
            TypeError: ids are not integers.
            ValueError: the shapes differ.
            IndexError: an id is outside its vocabulary.
        """
        first, second = _check.as_ids(users, "user ids"), _check.as_ids(items, "item ids")
        if first.shape != second.shape:
            raise ValueError(f"users and items must have one shape, got {first.shape} and {second.shape}")
        _check.ids_within(first, self.n_users)
        _check.ids_within(second, self.n_items)
        out = np.empty(first.size)
        parallel_for(_probabilities, first.size, _GRAIN, first.reshape(-1), second.reshape(-1), *self._arguments, out)
        return out.reshape(first.shape)

    def best(self, rows: Interactions) -> tuple[float | None, float | None]:
        """AUC and mean log loss (in nats) of the true probabilities on some rows: what no model beats but by chance.

        None stands for an AUC where all labels are the same, and for both where there are no rows.
        """
        if not len(_check.instance("rows", rows, Interactions, "Interactions")):
            return None, None
        return _auc_and_logloss(self.probabilities(rows.users, rows.items), rows.labels > 0.5)

    def split(self, n_valid: int) -> Split:
        """The whole stream in memory for training, and the `n_valid` rows that follow it for validation.

        Raises:
            ValueError: `n_valid` is negative.
        """
        n = self.n_interactions
        train, valid = self.block(0, n), self.block(n, n + _check.size("n_valid", n_valid))
        return Split("synthetic", train, valid, self.n_users, self.n_items, *self.best(valid))

    def histories(self, n_last: int = 2, *, name: str = "synthetic") -> Split:
        """A data set such as people leave behind: every user meets different items, their last are for validation.

        Users differ in how much they do: the numbers of rows are close to an exponential distribution above one eighth
        of their mean, and sum to `n_interactions` exactly. `user_zipf` has no say here.

        Args:
            n_last: how many rows of each user are for validation; at least one more is for training.
            name: the split's name.

        Returns:
            The `Split`, `n_interactions - n_last · n_users` rows for training and `n_last · n_users` for validation,
            both by user, then by time.

        Raises:
            ValueError: too few rows for every user to have `n_last + 1`, or more for one user than there are items.
        """
        n_last = _check.size("n_last", n_last)
        ends = self._history_ends(n_last + 1)
        n = self.n_interactions
        users, items, labels = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.float32)
        min_chunk = max(1, _GRAIN * self.n_users // n)
        parallel_for(_draw_histories, self.n_users, min_chunk, ends, *self._arguments, users, items, labels)
        rows = Interactions(users, items, labels)
        held = np.zeros(n, bool)
        for k in range(1, n_last + 1):
            held[ends[1:] - k] = True
        valid = rows.take(held)
        return Split(name, rows.take(~held), valid, self.n_users, self.n_items, *self.best(valid))

    def _history_ends(self, least: int) -> NDArray[np.int64]:
        """Where each user's rows end, 0 in front: whole shares of `n_interactions`, each at least `least`."""
        n, n_users = self.n_interactions, self.n_users
        if least * n_users > n:
            raise ValueError(f"{n:,} interactions are too few for {n_users:,} users with {least} each; give more")
        floor = max(least, n // (8 * n_users))
        weights = np.array([-_log2((k + 0.5) / n_users) for k in range(n_users)])
        # Rounding the running sum, not each share, makes the shares sum to the whole.
        running = np.cumsum(weights)  # in order: np.sum's order is the machine's own
        running = np.floor((n - floor * n_users) * (running / running[-1]) + 0.5).astype(np.int64)
        shares = np.diff(running, prepend=0) + floor
        if shares.max() > self.n_items:
            raise ValueError(
                f"one user would meet {shares.max():,} different items of {self.n_items:,}; give more items"
            )
        order = np.argsort(mix_hash(np.arange(n_users), seed=self.seed, stream=_DRAWS + 2 * 1024), kind="stable")
        return np.concatenate([[0], np.cumsum(shares[order])]).astype(np.int64)


def _auc_and_logloss(p: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float | None, float]:
    inside = np.clip(p, 2.0**-53, 1.0 - 2.0**-53)
    logloss = -float(np.mean(np.where(positive, np.log(inside), np.log1p(-inside))))
    high, low = p[positive], np.sort(p[~positive])
    if not high.size or not low.size:
        return None, logloss
    wins = np.searchsorted(low, high, "left").sum() + np.searchsorted(low, high, "right").sum()
    return float(wins) / (2.0 * high.size * low.size), logloss


# Users, items, interactions without those of 3 stars. For MovieLens 100K as counted in the file; for the others users
# and items as published, and about the interactions that are left.
_SHAPES = {
    "ml-100k": (943, 1_642, 72_855),
    "ml-1m": (6_040, 3_706, 739_000),
    "ml-10m": (69_878, 10_677, 7_600_000),
    "ml-20m": (138_493, 26_744, 15_700_000),
    "ml-25m": (162_541, 59_047, 20_100_000),
    "ml-32m": (200_948, 84_432, 25_700_000),
    "ml-latest": (330_975, 83_239, 27_200_000),
    "ml-latest-small": (610, 9_724, 80_800),
}


def synthetic_like(name: str, seed: int = 0) -> Split:
    """A synthetic data set of the shape of a MovieLens one, for where that is not at hand.

    The truth has 4 dimensions, about 76 % of the labels are 1, and on "ml-100k" a dot-product model of 32 dimensions
    reaches about the AUC that it reaches on the real data (0.81), well below the best reachable (0.93).

    Args:
        name: "ml-100k" (943 users, 1,642 items, 70,969 training and 1,886 validation rows, as the real one), or
            another of MovieLens' names (about the real ones' shape; of the latest that of 2023, of the small one that
            of 2018).
        seed: 0 to 2^64 − 1.

    Returns:
        The `Split`, named `synthetic-<name>`, which knows its best reachable AUC and log loss.

    Raises:
        ValueError: there is no such shape.

    Example:
        >>> from cce_core.datasets import synthetic_like
        >>> split = synthetic_like("ml-100k", seed=1)
        >>> split.name, len(split.train), len(split.valid)
        ('synthetic-ml-100k', 70969, 1886)
    """
    seed = _check.seed(seed)
    n_users, n_items, n = _SHAPES[_check.choice("name", name, tuple(_SHAPES))]
    stream = Synthetic(n, n_users, n_items, dim=4, zipf=0.7, scale=2.0, center=1.0, bias=-1.2, seed=seed)
    return stream.histories(2, name=f"synthetic-{name}")
