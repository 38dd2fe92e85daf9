"""What compiled threads share work by: whole numbers that change at once, and a core given up while there is nothing to do.

Without the compiler these are plain functions, for one thread alone.
"""

from __future__ import annotations

from typing import Any

from cce_core import _simd
from cce_core._jit import COMPILED


def _fetch_add_plain(numbers: Any, place: int) -> int:
    """Add 1 to `numbers[place]`, int64, at once; what stood there before."""
    before = int(numbers[place])
    numbers[place] += 1
    return before


def _load_plain(numbers: Any, place: int) -> int:
    """`numbers[place]`; all that its writer wrote before it can be read from now on."""
    return int(numbers[place])


def _store_plain(numbers: Any, place: int, value: int) -> None:
    """`numbers[place] = value`, after all that was written before."""
    numbers[place] = value


def _give_way_plain() -> None:
    """Let whoever waits for this core have it; a fraction of a microsecond where nobody does."""


fetch_add = _simd.fetch_add if COMPILED else _fetch_add_plain
load = _simd.load if COMPILED else _load_plain
store = _simd.store if COMPILED else _store_plain
give_way = _simd.give_way if COMPILED else _give_way_plain
