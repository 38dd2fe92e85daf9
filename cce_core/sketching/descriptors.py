"""Several sketches and their memories as the compiled loops read them: one row of numbers each, arrays by their address.

A recommender has 26 tables. One compiled call serves them all, and takes no array for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core.sketching.layout import Layout
from cce_core.storage.codec import FLOAT32

# Of a part's row.
CODES, N_CODES, SCALES, N_SCALES, KEYS, N_KEYS, POINTERS, N_POINTERS = range(8)
FIRST, COLUMNS, TERMS, WIDTH, UNIT, LEFT, LAST, SIZE, SPAN, PAIRS, N_FIELDS = range(8, 19)
# Of a part's row in one call: its first word and the step to the next, its first offset, its ids, its first kept address.
WORD, STEP, OFFSET, COUNT, KEPT, N_PLACES = range(6)

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


class Part(NamedTuple):
    """One table of a bundle: its sketch and memory, where its vectors begin in a row, and its vocabulary (0: every id)."""

    sketch: Sketch
    memory: Memory
    left: int = 0
    vocab: int = 0


class Bundle:
    """Parts in the form that compiled loops read. It keeps their arrays alive, and must not be copied or pickled.

    Attributes:
        parts: int64 (parts, N_FIELDS).
        columns: int64, the columns of all parts.
        codec: that of every part.
        size: floats of all memories together; SPAN says where each begins.
        n_columns: of each part.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self._places: tuple[Any, NDArray[np.int64]] = (None, np.zeros((0, N_PLACES), np.int64))
        self.codec = parts[0].memory.codec
        self.parts = np.zeros((len(parts), N_FIELDS), np.int64)
        self.n_columns = [len(part.sketch.layout.columns) for part in parts]
        self.columns = np.concatenate([part.sketch.layout.array for part in parts])
        first = span = 0
        for row, (sketch, memory, left, vocab) in zip(self.parts, parts):
            layout = sketch.layout
            arrays = (memory.codes, memory.scales, sketch.keys, sketch.pointers)
            row[:FIRST] = [number for array in arrays for number in (_address(array), array.size)]
            last = vocab - 1  # for every id −1, which is the largest of all words
            columns = len(layout.columns)
            row[FIRST:] = (
                first,
                columns,
                layout.terms,
                layout.width,
                layout.unit,
                left,
                last,
                layout.size,
                span,
                _in_pairs(layout, memory),
            )
            first, span = first + columns, span + layout.size
        self.size = span

    @property
    def alone(self) -> tuple[Sketch, Memory]:
        """Sketch and memory of the first part."""
        return self._parts[0].sketch, self._parts[0].memory

    def __reduce__(self) -> Any:
        raise TypeError("a Bundle holds addresses of arrays: make a new one of the copied arrays")

    def places(
        self, counts: Sequence[int], bags: int = 0, starts: Sequence[int] | None = None, step: int = 1, sets: Any = None
    ) -> NDArray[np.int64]:
        """Where the words of a call lie: `counts` of them a part.

        Args:
            counts: ids of each part.
            bags: how many bags they come in, 0 where each is a row.
            starts: the first word of each part; where the last one ended by default.
            step: from one word of a part to the next.
            sets: which row of offsets is each part's; its own by default.
        """
        asked = counts, bags, step, starts
        known, out = self._places
        if known != asked:
            out = np.zeros((len(counts), N_PLACES), np.int64)
            word = kept = 0
            for p, (row, count, columns) in enumerate(zip(out, counts, self.n_columns)):
                first = word if starts is None else starts[p]
                row[:] = first, step, (p if sets is None else sets[p]) * (bags + 1), count, kept
                word, kept = word + count, kept + count * columns
            self._places = (list(counts), bags, step, starts), out  # batches are mostly of one size
        return out


def _in_pairs(layout: Layout, memory: Memory) -> bool:
    """Whether the two terms of a chunk may be moved at once: floats as they are, from regions that share nothing (or the
    order in which a float's gradients are added would change), where no block passes the end."""
    if layout.terms != 2 or memory.codec != FLOAT32:
        return False
    columns = layout.columns
    apart = all(
        max(a.base, b.base) >= min(a.base + a.size, b.base + b.size) for a, b in zip(columns[::2], columns[1::2])
    )
    inside = [(c.rows - 1) * c.stride + layout.width <= c.size for c in columns]
    return apart and all(inside)


def _address(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("the arrays of a table must be contiguous: np.ascontiguousarray(array)")
    return int(array.__array_interface__["data"][0])
