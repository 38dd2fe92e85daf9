"""A sketch and its memory, and the numbers by which the compiled loops know a table: one row of them each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._arrays import Addresses
from cce_core.sketching.layout import Layout

# Of a part's row.
CODES, N_CODES, SCALES, N_SCALES, KEYS, N_KEYS, POINTERS, N_POINTERS = range(8)
FIRST, COLUMNS, TERMS, WIDTH, UNIT, OUT_OFFSET, LAST, SIZE, MEMORY_OFFSET, PAIRS, N_FIELDS = range(8, 19)
# Of a part's row in one call: its first word and the step to the next, its first offset, its ids, its first kept address.
WORD, STEP, OFFSET, COUNT, KEPT, N_CALL_ARGS = range(6)

_NOTHING = np.empty(0, np.float32)


class Memory(NamedTuple):
    """The memory as it is kept: the number of its codec, its codes, and their scales."""

    codec: int
    codes: Any
    scales: Any = _NOTHING


class Sketch(NamedTuple):
    """H as arrays: the layout, and the hash keys and packed pointers that it reads."""

    layout: Layout
    keys: Any
    pointers: Any

    def part(self, layout: Layout) -> Sketch:
        """The same keys and pointers through another layout."""
        return self._replace(layout=layout)


# The addresses that a lookup has left where it has left none: for compiled loops an array is always an array.
NO_ADDRESSES: Addresses = np.empty(0, np.uint64)


def address_of(array: NDArray[Any]) -> int:
    """Where a contiguous array lies; whoever uses the address keeps the array alive."""
    if not array.flags.c_contiguous:
        raise ValueError("the arrays of a table must be contiguous: np.ascontiguousarray(array)")
    return int(array.__array_interface__["data"][0])
