"""Clicks without end by users and items without end, drawn from a known truth: ids are born, rise, fade, and some return.

    rank       ~ Zipf over `n_slots` slots, those of users and those of items apart: at every moment the same law
    tenure     slot r is held for L_r rows by one id after the other, L_r = minute · 2^(u_r · log2(lifetime)), u_r ~ U(0, 1)
    id         that of (slot r, holder h): of row n, x = n + phase_r, h = ⌊x / L_r⌋, or h + 1 with probability (x mod L_r) / L_r
    click      ~ Bernoulli(sigmoid( scale / sqrt(dim) · <x_user, y_item> + bias ))      as in `Synthetic`, by the raw ids

So an id rises for L_r rows while the holder before it fades, and fades for as many while the next one rises; at each moment a
slot's two ids have its popularity together. In a share `returning` of the slots ids come back: h is taken modulo 3.

Every coordinate of x and y is a hash of its id, and every draw one of a row's number, so nothing is kept of any id: a row is a
pure function of (parameters, seed, row number).
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
from cce_core.datasets.interactions import Interactions
from cce_core.datasets.synthetic import (
    _COORD_UNIT,
    _DRAWS,
    _auc_and_logloss,
    _exp2,
    _log2,
    _probability,
    _uniform,
    _zipf_rank,
)
from cce_core.hashing.mix import derive_keys, keyed, premix

_GRAIN = 1 << 11  # rows that make a thread worth waking
_MOST_ROWS = 1 << 62
_RETURN_AFTER = np.uint64(3)  # holders of a slot whose ids come back
_ID_STREAM = 0x636C69636B  # "click"
_PLACES = 6  # keys of a side: rank, lifetime, phase, return, holder, id
_zero, _one = np.uint64(0), np.uint64(1)


@jit
def _holder(row: np.uint64, n: np.uint64, keys: Any, n_slots: np.uint64, reals: Any) -> np.uint64:
    """The id of one side (users or items) in row n, `row` being its premixed number.

    reals: 1 − zipf and the top of the ranks, as `_zipf_rank` takes them, rows of a minute, log2 of the longest tenure in
    minutes, share of slots whose ids return.
    """
    slot = premix(_zipf_rank(keyed(row, keys[0]), n_slots, reals[0], reals[1]))
    tenure = np.uint64(max(1.0, reals[2] * _exp2(reals[3] * _uniform(keyed(slot, keys[1])))))
    x = n + keyed(slot, keys[2]) % tenure
    holder, late = x // tenure, x % tenure
    if _uniform(keyed(row, keys[4])) * np.float64(tenure) < np.float64(late):
        holder += _one
    if _uniform(keyed(slot, keys[3])) < reals[4]:
        holder %= _RETURN_AFTER
    return keyed(premix(keyed(slot, keys[5]) ^ holder), keys[5])


@jit
def _draw_rows(
    start: int, stop: int, first: np.uint64, sides: Any, n_slots: Any, laws: Any, keys: Any, sizes: Any, reals: Any,
    users: Any, items: Any, labels: Any, chances: Any,
) -> None:  # fmt: skip
    for k in range(start, stop):
        n = first + np.uint64(k)
        row = premix(n)
        user = _holder(row, n, sides[0], n_slots[0], laws[0])
        item = _holder(row, n, sides[1], n_slots[1], laws[1])
        users[k], items[k] = user, item
        chances[k] = _probability(user, item, keys, sizes, reals)
        labels[k] = _uniform(keyed(row, keys[0])) < chances[k]


@dataclass(frozen=True)
class ClickStream:
    """An endless stream of clicks of a known truth, with raw 64-bit ids of which new ones come every minute.

    It holds nothing but these numbers; rows are computed when asked for, from any row on, so any number of rows and ids costs
    no memory. It has no beginning either: ids of the first rows are as old as those of any other.

    Args:
        n_rows: how many rows the stream has, at least 1; further ones can be asked for.
        n_users: slots of users, 1 to 2^40: so many are about at any moment, and twice as many ids.
        n_items: likewise.
        minute: rows of a minute, the shortest tenure of an id; at least 1.
        lifetime: the longest tenure, in minutes, 1 to 10^9.
        zipf: popularity of the slots of items, as in `Synthetic`, 0 to 4.
        user_zipf: likewise of users.
        returning: the share of slots whose ids come back after two others, 0 to 1.
        dim: width of the true vectors, 1 to 1,024.
        scale: deviation of the logit that the vectors cause together; above 0, up to 100.
        center: mean of every coordinate, -10 to 10: away from 0, an id has its own weight too.
        rate: the share of clicks, about, between 0 and 1: it sets the bias.
        strings: ids are strings, "u" or "i" and 16 hexadecimal digits.
        seed: 0 to 2^64 − 1.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Cost:
        About 20 hashes a row: 0.5 µs a row and thread; strings take 1 µs each.

    Example:
        >>> from cce_core.datasets import ClickStream
        >>> stream = ClickStream(10**9, seed=1)
        >>> rows = stream.block(10**9 - 2, 10**9)
        >>> rows.users.dtype, bool((rows.users == stream.block(10**9 - 2, 10**9).users).all())
        (dtype('int64'), True)
        >>> ClickStream(10, seed=1, strings=True).block(0, 1).items.tolist()[0][:1]
        'i'
    """

    n_rows: int
    n_users: int = 300_000
    n_items: int = 100_000
    minute: int = 10_000
    lifetime: float = 1000.0
    zipf: float = 1.1
    user_zipf: float = 0.9
    returning: float = 0.1
    dim: int = 4
    scale: float = 1.5
    center: float = 1.0
    rate: float = 0.25
    strings: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        most = {"n_rows": _MOST_ROWS, "n_users": 1 << 40, "n_items": 1 << 40, "minute": 1 << 40, "dim": 1024}
        for name, largest in most.items():
            object.__setattr__(self, name, _check.integer(name, getattr(self, name), 1, largest))
        for name, low, high in (
            ("lifetime", 1.0, 1e9), ("zipf", 0.0, 4.0), ("user_zipf", 0.0, 4.0), ("returning", 0.0, 1.0), ("center", -10.0, 10.0),
        ):  # fmt: skip
            _check.number(name, getattr(self, name), low, high)
        _check.number("scale", self.scale, 0.0, 100.0, open_at_least=True)
        if not 0 < _check.number("rate", self.rate, 0.0, 1.0) < 1:
            raise ValueError(f"rate must be between 0 and 1, got {self.rate:g}")
        if self.minute * self.lifetime > _MOST_ROWS:
            raise ValueError(
                f"lifetime must be at most 2^62 rows, got {self.lifetime:g} minutes of {self.minute:,} rows"
            )
        _check.flag("strings", self.strings)
        _check.seed(self.seed)

    def __len__(self) -> int:
        return self.n_rows

    @functools.cached_property
    def _arguments(self) -> tuple[Any, ...]:
        """What the kernel takes: keys, slots and laws of either side; keys, sizes and reals of the probability."""
        sides = derive_keys(self.seed, 2 * _PLACES, _ID_STREAM).reshape(2, _PLACES)
        laws, slots = [], (self.n_users, self.n_items)
        for n, zipf in zip(slots, (self.user_zipf, self.zipf), strict=True):
            power, top = 1.0 - float(zipf), float(_log2(float(n + 1)))
            power, top = (0.0, top) if abs(power) < 1e-6 else (power, float(_exp2(power * top)))
            laws.append([power, top, float(self.minute), _log2(float(self.lifetime)), float(self.returning)])
        keys = derive_keys(self.seed, _DRAWS + 2 * self.dim)
        # Of both sides' coordinates, each of deviation 1 and that mean, the products' deviation is √(1 + 2 center²).
        factor = float(self.scale) / math.sqrt(self.dim * (1.0 + 2.0 * self.center**2))
        bias = math.log(self.rate / (1.0 - self.rate)) - factor * self.dim * self.center**2
        reals = [
            0.0,
            0.0,
            0.0,
            0.0,
            factor / (_COORD_UNIT * _COORD_UNIT),
            bias,
            float(round(self.center * _COORD_UNIT)),
        ]
        sizes = np.array([0, 0, 0, 0, self.dim], np.uint64)
        return sides, np.array(slots, np.uint64), np.array(laws), keys, sizes, np.array(reals)

    def _drawn(self, start: int, stop: int) -> tuple[Any, ...]:
        start = _check.integer("start", start, 0, _MOST_ROWS)
        n = _check.size("stop - start", _check.integer("stop", stop, start, _MOST_ROWS) - start)
        columns = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.float32), np.empty(n)
        parallel_for(_draw_rows, n, _GRAIN, np.uint64(start), *self._arguments, *columns)
        return columns

    def drawn(self, start: int, stop: int) -> tuple[Interactions, NDArray[np.float64]]:
        """Rows [start, stop), and the true probability of a click of each: float64 (n,).

        Raises:
            ValueError: `start` is negative, or above `stop`.
        """
        users, items, labels, chances = self._drawn(start, stop)
        if self.strings:
            return Interactions(_named("u", users), _named("i", items), labels), chances
        return Interactions(users.view(np.int64), items.view(np.int64), labels), chances

    def block(self, start: int, stop: int) -> Interactions:
        """Rows [start, stop) of the stream; the numbers may also lie beyond its end, where fresh rows are.

        Returns:
            Ids as int64, all 64 bits of which count, or as strings of NumPy's type 'U17'.

        Raises:
            ValueError: `start` is negative, or above `stop`.
        """
        return self.drawn(start, stop)[0]

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Interactions]:
        """Rows [start, stop), by default all, `size` at a time; the size does not change what the rows are.

        Raises:
            ValueError: `size` is below 1, or `start` is outside [0, stop].
        """
        size = _check.integer("size", size, 1)
        stop = self.n_rows if stop is None else _check.integer("stop", stop, 0, _MOST_ROWS)
        starts = range(_check.integer("start", start, 0, stop), stop, size)
        return (self.block(at, min(at + size, stop)) for at in starts)

    def probabilities(self, start: int, stop: int) -> NDArray[np.float64]:
        """The true probability of a click of rows [start, stop)."""
        return self.drawn(start, stop)[1]

    def best(self, start: int, stop: int) -> tuple[float | None, float | None]:
        """AUC and mean log loss (in nats) of the true probabilities on rows [start, stop): what no model beats but by chance.

        None stands for an AUC where all labels are the same, and for both where there are no rows.
        """
        _, _, labels, chances = self._drawn(start, stop)
        return _auc_and_logloss(chances, labels > 0.5) if len(labels) else (None, None)


def _named(letter: str, words: NDArray[np.uint64]) -> NDArray[Any]:
    return np.array([f"{letter}{word:016x}" for word in words.tolist()], "U17")
