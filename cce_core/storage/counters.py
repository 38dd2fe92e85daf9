"""How often ids were met, in one byte per id: counters that count in logarithms (Morris), right on average.

    c → c + 1 with probability q^−c,  q = 1 + 1/16                estimate(c) = 16 · (q^c − 1)

The expectation of the estimate is the count, its standard deviation 18 % of it at most; 255 stands for 82 million. The draws
are a hash of an occurrence's place in the batch under a key, so that equal keys give equal counters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core.hashing.mix import keyed, premix

_BASE = 16.0
_MOST = np.uint8(255)
_CHANCES = (1.0 + 1.0 / _BASE) ** -np.arange(256.0)
_ESTIMATES = (_BASE * ((1.0 + 1.0 / _BASE) ** np.arange(256.0) - 1.0)).astype(np.float32)
_ROOTS = np.sqrt(_ESTIMATES)
_SHIFT = np.uint64(11)


@jit
def _count(counts: Any, ids: Any, chances: Any, key: np.uint64) -> None:
    for n in range(ids.shape[0]):
        c = counts[ids[n]]
        draw = np.float64(keyed(premix(np.uint64(n)), key) >> _SHIFT) * 2.0**-53
        if c < _MOST and draw < chances[c]:
            counts[ids[n]] = c + np.uint8(1)


def count(counts: NDArray[np.uint8], ids: NDArray[np.uint64], key: int) -> None:
    """Count every occurrence of flat, checked ids, in place.

    Example:
        >>> import numpy as np
        >>> counts = np.zeros(3, np.uint8)
        >>> count(counts, np.array([0, 2, 2, 2], np.uint64), key=1)
        >>> estimates(counts).round(1)
        array([1. , 0. , 3.2], dtype=float32)
    """
    _count(counts, np.ascontiguousarray(ids), _CHANCES, np.uint64(key))


def estimates(counts: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How often each id was met, as its counter remembers it."""
    return _ESTIMATES[counts]


class Counts:
    """What counters remember as an array to read: float32, of which nothing is made before it is asked for.

    Args:
        counts: the counters.
        roots: whether to read the square roots of `estimates`.

    Example:
        >>> counts = Counts(np.array([0, 1, 35], np.uint8), roots=True)
        >>> len(counts), counts[1:]
        (3, array([ 1.      , 10.841891], dtype=float32))
    """

    def __init__(self, counts: NDArray[np.uint8], roots: bool = False) -> None:
        self._counts, self._values = counts, _ROOTS if roots else _ESTIMATES

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        return self._values[self._counts[rows]]
