"""Learned pointers at ⌈log₂ rows⌉ bits each, the fields of one id side by side, so that one id costs one cache line.

Field j of id i starts at bit `i · bits_per_id + offset_j` of a stream of 64-bit words, least significant bit first. The
stream is ⌈n · bits_per_id / 64⌉ words long: one million ids with four pointers to 256 rows each are 4,000,000 bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for

_one, _six, _63, _64 = np.uint64(1), np.uint64(6), np.uint64(63), np.uint64(64)
_GRAIN = 1 << 15
_MOST_IDS = 2**48


def bits_for(rows: int) -> int:
    """⌈log₂ rows⌉: the bits of a pointer to one of `rows` rows; 0 where there is nothing to choose.

    Example:
        >>> [bits_for(n) for n in (1, 2, 3, 256, 257)]
        [0, 1, 2, 8, 9]
    """
    return (_check.integer("rows", rows, 1) - 1).bit_length()


@jit
def read_bits(words: Any, position: np.uint64, bits: np.uint64) -> np.uint64:
    """The `bits` (0 to 63) bits that start at bit `position`."""
    if bits == np.uint64(0):
        return np.uint64(0)
    word, shift = position >> _six, position & _63
    # Without a branch: where the field ends in this word, the word itself stands for the next; the mask drops it.
    after = words[word + np.uint64(shift + bits > _64)]
    return ((words[word] >> shift) | ((after << _one) << (_63 - shift))) & ((_one << bits) - _one)


@jit
def write_bits(words: Any, position: np.uint64, bits: np.uint64, value: np.uint64) -> None:
    """Put `value` into the `bits` bits that start at bit `position`; all other bits stay."""
    if bits == np.uint64(0):
        return
    word, shift = position >> _six, position & _63
    mask = (_one << bits) - _one
    words[word] = (words[word] & ~(mask << shift)) | (value << shift)
    if shift + bits > _64:
        up = _64 - shift
        words[word + _one] = (words[word + _one] & ~(mask >> up)) | (value >> up)


@jit
def _read_many(
    start: int, stop: int, words: Any, first: np.uint64, per_id: np.uint64, offset: np.uint64, bits: np.uint64, out: Any
) -> None:
    for n in range(start, stop):
        out[n] = read_bits(words, (first + np.uint64(n)) * per_id + offset, bits)


@jit
def _write_many(
    start: int, stop: int, words: Any, first: np.uint64, per_id: np.uint64, offset: np.uint64, bits: np.uint64, v: Any
) -> None:
    for n in range(start, stop):
        write_bits(words, (first + np.uint64(n)) * per_id + offset, bits, v[n])


@dataclasses.dataclass(frozen=True)
class Packing:
    """How the pointers of `n` ids lie in 64-bit words: `bits[j]` bits for field j, the fields of an id side by side.

    Args:
        n: how many ids there are.
        bits: bits of each field, 0 to 63.

    Raises:
        TypeError, ValueError: a number is not whole, or out of range.

    Example:
        >>> import numpy as np
        >>> packing = Packing(1_000_000, (8, 8, 8, 8))
        >>> words = packing.empty()
        >>> words.nbytes
        4000000
        >>> packing.write(words, 2, 7, np.array([250, 251]))
        >>> packing.read(words, 2, 7, 9)
        array([250, 251], dtype=int32)
    """

    n: int
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _check.integer("n", self.n, 0, _MOST_IDS))
        given = _check.sequence("bits", self.bits, "the bits of each field")
        bits = tuple(_check.integer(f"bits[{j}]", b, 0, 63) for j, b in enumerate(given))
        object.__setattr__(self, "bits", bits)

    @functools.cached_property
    def bits_per_id(self) -> int:
        """Bits that one id takes."""
        return sum(self.bits)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """The bit within an id at which each field starts."""
        return tuple(itertools.accumulate(self.bits[:-1], initial=0))[: len(self.bits)]

    @functools.cached_property
    def n_words(self) -> int:
        """64-bit words in all."""
        return -(-self.n * self.bits_per_id // 64)

    def empty(self) -> NDArray[np.uint64]:
        """Words with every pointer 0."""
        return np.zeros(self.n_words, np.uint64)

    def read(
        self, words: NDArray[np.uint64], field: int, start: int, stop: int
    ) -> NDArray[np.int32] | NDArray[np.int64]:
        """Field `field` of the ids [start, stop): int32, or int64 where the field has more than 31 bits.

        Raises:
            TypeError, ValueError: `words` are not this packing's, or a number is not whole or out of range.
        """
        field = self._checked(words, field)
        start, stop = _check.integer("start", start, 0, self.n), _check.integer("stop", stop, start, self.n)
        out: Any = np.empty(stop - start, np.int32 if self.bits[field] < 32 else np.int64)
        parallel_for(_read_many, stop - start, _GRAIN, words, *self._place(field, start), out)
        return out

    def write(self, words: NDArray[np.uint64], field: int, start: int, values: NDArray[Any]) -> None:
        """Put `values` into field `field` of the ids from `start` on, in place.

        Raises:
            TypeError: the values are no integers, or `words` no uint64.
            ValueError: a value does not fit its bits, the ids end before the values do, or `words` are not this packing's.
        """
        field = self._checked(words, field)
        if not words.flags.writeable:
            raise ValueError("words must be writeable, got a read-only array: copy it first")
        given = _check.array("values", values, "integers")
        if given.ndim != 1:
            raise ValueError(f"values must be one row of integers, got shape {given.shape}")
        values = _check.as_ids(values, "values")
        start = _check.integer("start", start, 0, self.n)
        values = _check.array("values", values, "integers")
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise TypeError(f"values must be one row of integers, got {_check.shown(values)}")
        _check.integer("start + len(values)", start + len(values), 0, self.n)
        if len(values) and int(values.max()) >> self.bits[field]:  # a negative one is a word of 64 bits
            raise ValueError(
                f"pointers of {self.bits[field]} bits go from 0 to {(1 << self.bits[field]) - 1}, "
                f"got {int(given.min())} to {int(given.max())}"
            )
        # 64 ids fill whole words, so slices that start at multiples of 64 ids never share one.
        align = -start % 64
        head = min(align, len(values))
        _write_many(0, head, words, *self._place(field, start), values)
        rest = values[head:]
        parallel_for(_write_many, len(rest), _GRAIN, words, *self._place(field, start + head), rest, align=64)

    def _checked(self, words: NDArray[np.uint64], field: int) -> int:
        """The number of a field of words that are this packing's: nothing outside them is ever read."""
        if not isinstance(words, np.ndarray) or words.dtype != np.uint64:
            raise TypeError(f"words must be a uint64 array, got {getattr(words, 'dtype', type(words).__name__)}")
        if words.shape != (self.n_words,):
            raise ValueError(f"words must have shape ({self.n_words},), got {words.shape}")
        return _check.integer("field", field, 0, len(self.bits) - 1)

    def _place(self, field: int, start: int) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
        first, per_id = np.uint64(start), np.uint64(self.bits_per_id)
        return first, per_id, np.uint64(self.offsets[field]), np.uint64(self.bits[field])
