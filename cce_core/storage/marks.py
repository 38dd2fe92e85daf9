"""Which ids have an entry of their own, in a bit an id: marks, and the number of an id's entry among those of all marked ids.

Blocks of 8 words, one cache line: the low 32 bits of the first say how many marks the blocks before have, the other 480 bits are
the marks of 480 ids, the least significant first. So a look at one line tells whether an id is marked, and where its entry is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit

WORDS, IDS, COUNT_BITS = 8, 480, 32  # of a block
MOST_MARKS = 2**COUNT_BITS - 1
NONE = 2**64 - 1
_none, _zero, _one, _three, _six, _63 = (np.uint64(n) for n in (NONE, 0, 1, 3, 6, 63))
_ids, _count_bits, _low = np.uint64(IDS), np.uint64(COUNT_BITS), np.uint64(MOST_MARKS)
_ODD_BITS, _ODD_PAIRS, _ODD_FOURS = (np.uint64(n) for n in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
_BYTES, _TOP = np.uint64(0x0101010101010101), np.uint64(56)
_two, _four = np.uint64(2), np.uint64(4)


def n_words(n: int) -> int:
    """64-bit words for the marks of n ids: 1.07 bits an id."""
    return WORDS * -(-n // IDS)


@jit
def _ones(word: np.uint64) -> np.uint64:
    """How many bits are 1: sums of neighbours, twice as wide each time."""
    word = word - ((word >> _one) & _ODD_BITS)
    word = (word & _ODD_PAIRS) + ((word >> _two) & _ODD_PAIRS)
    return (((word + (word >> _four)) & _ODD_FOURS) * _BYTES) >> _TOP


@jit
def entry(words: Any, i: np.uint64) -> np.uint64:
    """The number of id i's entry, or `NONE` where it has none."""
    block = i // _ids
    bit = i - block * _ids + _count_bits
    first = block << _three
    last, shift = first + (bit >> _six), bit & _63
    here = words[last]
    if (here >> shift) & _one == _zero:
        return _none
    below = here & ((_one << shift) - _one)
    if last == first:
        return (here & _low) + _ones(below & ~_low)
    found = (words[first] & _low) + _ones(words[first] & ~_low) + _ones(below)
    for word in range(first + _one, last):
        found += _ones(words[word])
    return found


@jit
def _mark(words: Any, first: int, wanted: Any, before: int) -> int:
    """Mark those of the ids from `first` on that are wanted; gives how many marks there are then, `before` included."""
    for n in range(wanted.shape[0]):
        i = np.uint64(first + n)
        block = i // _ids
        bit = i - block * _ids + _count_bits
        if bit == _count_bits:
            words[block << _three] = np.uint64(before)
        if wanted[n]:
            words[(block << _three) + (bit >> _six)] |= _one << (bit & _63)
            before += 1
    return before


@jit
def _entries(words: Any, ids: Any, out: Any) -> None:
    for n in range(ids.shape[0]):
        out[n] = entry(words, ids[n])


def mark(words: NDArray[np.uint64], first: int, wanted: NDArray[np.bool_], before: int) -> int:
    """Mark ids from `first` on, in words that are 0 from there on; the ids below have been marked, `before` of them.

    Returns:
        How many marks there are now.

    Example:
        >>> import numpy as np
        >>> words = np.zeros(n_words(1000), np.uint64)
        >>> mark(words, 0, np.arange(1000) % 3 == 0, 0)
        334
        >>> entries(words, np.array([0, 1, 3, 999], np.uint64)).view(np.int64)
        array([  0,  -1,   1, 333])
    """
    _check.integer("first", first, 0)
    return int(_mark(words, first, wanted, before))


def entries(words: NDArray[np.uint64], ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The number of each id's entry among those of all marked ids, `NONE` where it has none; uint64 (n,)."""
    out = np.empty(len(ids), np.uint64)
    _entries(words, ids, out)
    return out
