"""Click logs in Criteo's format drawn from a known truth: some categories carry vectors, counts carry weights.

    z = bias + Σ_j w_j · (log2(1 + count_j) − 2) + scale / sqrt(dim) · Σ_p <x_p, y_{p+1}>,    label ~ Bernoulli(sigmoid(z))

where p runs over the pairs of neighbours among the columns that carry vectors. As in `Synthetic`, every coordinate is a hash of
an id and every draw one of a row's number, in arithmetic that is the same on every machine.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.datasets.criteo import CARDINALITIES, CATEGORIES, COUNTS, MISSING, Clicks, logged, table_sizes
from cce_core.datasets.synthetic import (
    _COORD_UNIT,
    _LN2,
    _ROUNDS,
    _auc_and_logloss,
    _coordinate,
    _exp2,
    _log2,
    _scatter_rank,
    _uniform,
    _zipf_rank,
)
from cce_core.hashing.mix import derive_keys, keyed, mix_hash, premix

_GRAIN = 1 << 9
_MISSING_SHARE = 1.0 / 16.0  # of the counts
_MOST_BITS = 8.0  # counts go to 2^8
_COUNT_KEY, _LABEL_KEY = CATEGORIES, CATEGORIES + COUNTS
_SCATTER_KEYS = _LABEL_KEY + 1
_VECTOR_KEYS = _SCATTER_KEYS + CATEGORIES * _ROUNDS
_TOKEN = 0x9E3779B1  # odd, so ids below 2^32 keep different tokens
_KAGGLE_ROWS = 45_840_617

# The columns with the most categories, and two with few.
CARRIERS = (2, 20, 11, 5, 15, 3, 22, 23)


@jit
def _logit(counts: Any, ids: Any, keys: Any, carriers: Any, center: np.int64, slopes: Any, reals: Any) -> float:
    """z of one row; the inner products are exact, in whole numbers."""
    dim = np.int64(reals[0])
    dot = np.int64(0)
    for p in range(carriers.shape[0] - 1):
        first, second = premix(np.uint64(ids[carriers[p]])), premix(np.uint64(ids[carriers[p + 1]]))
        at = _VECTOR_KEYS + 2 * dim * p
        for d in range(dim):
            x = _coordinate(keyed(first, keys[at + d]), center)
            dot += x * _coordinate(keyed(second, keys[at + dim + d]), center)
    z = reals[1] * np.float64(dot) + reals[2]
    for j in range(COUNTS):
        if counts[j] != MISSING:
            z += slopes[j] * (_log2(1.0 + max(counts[j], 0)) - 2.0)
    return z


@jit
def _sigmoid(z: float) -> float:
    e = _exp2(-abs(z) / _LN2)
    return (1.0 if z >= 0.0 else e) / (1.0 + e)


@jit
def _draw_rows(
    start: int, stop: int, first: np.uint64, keys: Any, sizes: Any, halves: Any, powers: Any, tops: Any, carriers: Any,
    center: np.int64, slopes: Any, reals: Any, labels: Any, counts: Any, ids: Any, chances: Any,
) -> None:  # fmt: skip
    for n in range(start, stop):
        row = premix(first + np.uint64(n))
        for k in range(CATEGORIES):
            rank = _zipf_rank(keyed(row, keys[k]), sizes[k], powers[k], tops[k])
            at = _SCATTER_KEYS + _ROUNDS * k
            ids[n, k] = _scatter_rank(rank, sizes[k], halves[k], keys[at : at + _ROUNDS])
        for j in range(COUNTS):
            u = _uniform(keyed(row, keys[_COUNT_KEY + j]))
            if u < _MISSING_SHARE:
                counts[n, j] = MISSING
            else:
                # As in the original, few counts are below 0.
                counts[n, j] = np.int64(_exp2(_MOST_BITS * (u - _MISSING_SHARE) / (1.0 - _MISSING_SHARE))) - 2
        chances[n] = _sigmoid(_logit(counts[n], ids[n], keys, carriers, center, slopes, reals))
        labels[n] = _uniform(keyed(row, keys[_LABEL_KEY])) < chances[n]


@dataclass(frozen=True)
class SyntheticCriteo:
    """A stream of clicks of a known truth, in the shape of Criteo's: 13 counts, 26 categories, a label.

    It holds nothing but these numbers; rows are computed when asked for, so any number of them costs no memory.

    Args:
        n_rows: how many rows the stream has, at least 1.
        vocab: ids of a column are below it: one number or 26, 2 to 2^32; None takes the original's, in the measure of its rows
            (a column of more than 100 categories has `max(100, its own · n_rows / 45.8 million)`).
        carriers: columns (0 to 25) whose ids carry vectors, at least two; the first meets the second, the second the third…
        dim: width of these vectors, 1 to 1,024.
        zipf: popularity of the ids, as in `Synthetic`.
        scale: deviation of the logit that all pairs' vectors together cause, at `center` 0; above 0, up to 100.
        center: mean of every coordinate, -10 to 10: away from 0, an id has its own weight too.
        slope: the counts' weights are uniform in ±slope, 0 to 10.
        rate: the share of clicks, about, between 0 and 1: it sets the bias.
        seed: 0 to 2^64 − 1.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Cost:
        About 100 hashes a row: 4 to 5 µs a row and thread.

    Example:
        >>> from cce_core.datasets import SyntheticCriteo
        >>> stream = SyntheticCriteo(1_000_000, seed=1)
        >>> rows = next(stream.batches(256))
        >>> rows.dense.shape, rows.categories.shape, stream.sizes[:4]
        ((256, 13), (256, 26), (100, 100, 221009, 48049))
    """

    n_rows: int
    vocab: int | tuple[int, ...] | None = None
    carriers: tuple[int, ...] = CARRIERS
    dim: int = 4
    zipf: float = 1.05
    scale: float = 1.2
    center: float = 0.7
    slope: float = 0.1
    rate: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_rows", _check.integer("n_rows", self.n_rows, 1, 2**62))
        if max(self.sizes) > 2**32:
            raise ValueError(
                f"vocab must be at most {2**32:,}, which 8 hexadecimal digits hold, got {max(self.sizes):,}"
            )
        given = _check.sequence("carriers", self.carriers, "numbers of columns")
        carriers = tuple(_check.integer("each of the carriers", k, 0, CATEGORIES - 1) for k in given)
        if len(carriers) < 2 or len(set(carriers)) < len(carriers):
            raise ValueError(f"carriers must be at least two different columns, got {carriers}")
        object.__setattr__(self, "carriers", carriers)
        object.__setattr__(self, "dim", _check.integer("dim", self.dim, 1, 1024))
        _check.number("zipf", self.zipf, 0.0, 4.0)
        _check.number("scale", self.scale, 0.0, 100.0, open_at_least=True)
        _check.number("center", self.center, -10.0, 10.0)
        _check.number("slope", self.slope, 0.0, 10.0)
        if not 0 < _check.number("rate", self.rate, 0.0, 1.0) < 1:
            raise ValueError(f"rate must be between 0 and 1, got {self.rate:g}")
        _check.seed(self.seed)

    def __len__(self) -> int:
        return self.n_rows

    @property
    def sizes(self) -> tuple[int, ...]:
        """The columns' vocabularies."""
        if self.vocab is not None:
            return table_sizes(self.vocab)
        return tuple(n if n <= 100 else max(100, min(n, n * self.n_rows // _KAGGLE_ROWS)) for n in CARDINALITIES)

    @functools.cached_property
    def _arguments(self) -> tuple[Any, ...]:
        """What the kernels take."""
        sizes, pairs = self.sizes, len(self.carriers) - 1
        keys = derive_keys(self.seed, _VECTOR_KEYS + 2 * self.dim * pairs)
        halves = [max(1, (n - 1).bit_length() + 1 >> 1) for n in sizes]
        power = 1.0 - float(self.zipf)
        power = 0.0 if abs(power) < 1e-6 else power
        tops = [_log2(float(n + 1)) if power == 0.0 else _exp2(power * _log2(float(n + 1))) for n in sizes]
        slopes = [self.slope * (2.0 * _uniform(key) - 1.0) for key in derive_keys(self.seed, COUNTS, 0)]
        factor = float(self.scale) / (math.sqrt(self.dim * pairs) * _COORD_UNIT * _COORD_UNIT)
        middle = float(self.scale) * math.sqrt(self.dim * pairs) * self.center**2  # of the inner products
        bias = math.log(self.rate / (1.0 - self.rate)) - middle
        return (
            keys, np.array(sizes, np.uint64), np.array(halves, np.uint64),
            np.full(CATEGORIES, power), np.array(tops), np.array(self.carriers, np.int64),
            np.int64(round(self.center * _COORD_UNIT)), np.array(slopes), np.array([float(self.dim), factor, bias]),
        )  # fmt: skip

    def _drawn(self, start: int, stop: int) -> tuple[Any, ...]:
        start = _check.integer("start", start, 0, 2**62)
        n = _check.size("stop - start", _check.integer("stop", stop, start, 2**62) - start)
        columns = (
            np.empty(n, np.float32),
            np.empty((n, COUNTS), np.int64),
            np.empty((n, CATEGORIES), np.int64),
            np.empty(n),
        )
        parallel_for(_draw_rows, n, _GRAIN, np.uint64(start), *self._arguments, *columns)
        return columns

    def block(self, start: int, stop: int) -> Clicks:
        """Rows [start, stop) of the stream; the numbers may also lie beyond its end, where fresh rows are.

        Raises:
            ValueError: `start` is negative, or above `stop`.
        """
        labels, counts, ids, _ = self._drawn(start, stop)
        return Clicks(labels, logged(counts), ids)

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Clicks]:
        """Rows [start, stop), by default all, `size` at a time; the size does not change what the rows are.

        Raises:
            ValueError: `size` is below 1, or `start` is outside [0, stop].
        """
        size = _check.integer("size", size, 1)
        stop = self.n_rows if stop is None else _check.integer("stop", stop, 0)
        starts = range(_check.integer("start", start, 0, stop), stop, size)
        return (self.block(at, min(at + size, stop)) for at in starts)

    def probabilities(self, start: int, stop: int) -> NDArray[np.float64]:
        """The true probability of a click of rows [start, stop)."""
        chances: NDArray[np.float64] = self._drawn(start, stop)[3]
        return chances

    def best(self, start: int, stop: int) -> tuple[float | None, float | None]:
        """AUC and mean log loss (in nats) of the true probabilities on rows [start, stop): what no model beats but by chance.

        None stands for an AUC where all labels are the same, and for both where there are no rows.
        """
        labels, _, _, chances = self._drawn(start, stop)
        return _auc_and_logloss(chances, labels > 0.5) if len(labels) else (None, None)

    def lines(self, start: int, stop: int) -> bytes:
        r"""Rows [start, stop) as text in the format of `train.txt`; different ids of a column are different categories.

        Example:
            >>> from cce_core.datasets import SyntheticCriteo
            >>> SyntheticCriteo(10, vocab=50, seed=1).lines(0, 1).count(b"\t")
            39
        """
        labels, counts, ids, _ = self._drawn(start, stop)
        tokens = tokens_of(ids)
        return b"".join(
            b"%d\t%b\t%b\n"
            % (
                label,
                b"\t".join(b"" if c == MISSING else b"%d" % c for c in row),
                b"\t".join(b"%08x" % word for word in words),
            )
            for label, row, words in zip(labels.tolist(), counts.tolist(), tokens.tolist())
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the whole stream as a file that `CriteoFile` reads; some 250 bytes and 20 µs a row."""
        with _check.path("path", path).open("wb") as file:
            for at in range(0, self.n_rows, 1 << 14):
                file.write(self.lines(at, min(at + (1 << 14), self.n_rows)))


def tokens_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The 32-bit category that stands for an id in a file: a bijection in every column, so that no two ids are one category."""
    columns = mix_hash(np.arange(CATEGORIES)) & np.uint64(0xFFFFFFFF)
    return ((ids * np.int64(_TOKEN)) & 0xFFFFFFFF) ^ columns.view(np.int64)
