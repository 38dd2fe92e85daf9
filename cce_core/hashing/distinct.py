"""Distinct words numbered, inside compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.hashing.mix import premix

_one = np.uint64(1)


@jit
def number_distinct(words: Any, numbers: Any, firsts: Any) -> int:
    """Number distinct words in the order in which they come first, by a hash table of at most half its slots.

    Args:
        words: uint64 (n,).
        numbers: int64 (n,), written: the number of each word.
        firsts: int64 (n,), written from its start: where each number comes first, so that `words[firsts[numbers]]` are the words.

    Returns:
        How many distinct words there are.
    """
    size = 16
    while size < 2 * words.shape[0]:
        size *= 2
    slots, last = np.full(size, -1, np.int64), np.uint64(size - 1)
    count = 0
    for n in range(words.shape[0]):
        at = premix(words[n]) & last
        while slots[at] >= 0 and words[firsts[slots[at]]] != words[n]:
            at = (at + _one) & last
        if slots[at] < 0:
            slots[at] = count
            firsts[count] = n
            count += 1
        numbers[n] = slots[at]
    return count
