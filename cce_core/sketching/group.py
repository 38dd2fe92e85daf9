"""Several sketches and their memories as the compiled loops read them: one row of numbers each, arrays by their address.

A recommender has 26 tables. One compiled call serves them all, and takes no array for each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._arrays import CallArgs, Floats
from cce_core._threads import parallel_for
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import (
    CODES,
    COUNT,
    FIRST,
    N_CALL_ARGS,
    N_CODES,
    N_FIELDS,
    NO_ADDRESSES,
    WIDTH,
    Memory,
    Sketch,
    address_of,
)
from cce_core.sketching.gather import gather_of
from cce_core.sketching.layout import Layout
from cce_core.sketching.one_block import blocks_of, copy_of, of_blocks, wide
from cce_core.sketching.projection import PRODUCTS_A_THREAD, projection_row, widen_rows
from cce_core.storage.codec import FLOAT32

KEPT_IDS = 1 << 14  # addresses of larger batches are found again: that is cheaper than to write and read them
_IDS_A_THREAD, _MOST_MADE = 1 << 12, 1 << 16
_NOWHERE = np.zeros((0, N_CALL_ARGS), np.int64)
_NO_MEMORY = Memory(FLOAT32, np.empty(0, np.float32))  # for gradients, which do not read it


class Member(NamedTuple):
    """One table of a group: sketch and memory, its first column in a row, its vocabulary (0: every id), its projection."""

    sketch: Sketch
    memory: Memory = _NO_MEMORY
    left: int = 0
    vocab: int = 0
    projection: Floats | None = None


class Left(NamedTuple):
    """What a lookup leaves for its backward pass, of a group of tables or of a table by itself.

    Attributes:
        kept: the addresses, uint64, or None; of a method that is more than blocks what it keeps itself.
        inner: float32 (rows, within), the vectors before the projection, where there is one.
        call_args: int64 (parts, N_CALL_ARGS), where the words of a group lie.
        where: int64 (rows, dim), which id gave each float of a table's maximum; None in other modes.
    """

    kept: Any
    inner: Floats | None
    call_args: CallArgs = _NOWHERE
    where: NDArray[np.int64] | None = None


_NOTHING = Left(None, None)


class TableGroup:
    """Tables whose blocks one compiled call moves: of one codec, and all projected or none.

    It keeps their arrays alive, and must not be copied or pickled.

    Attributes:
        members: the tables.
        tables: their numbers among the tables of a batch.
        sketch, memory: of the first.
        parts: int64 (parts, N_FIELDS).
        columns: int64, the columns of all parts.
        size: floats of all memories together; SPAN says where each begins.
        n_columns: of each part.
        projections: int64 (parts, 6), as `projection` reads them; None where they are not projected.
        within: floats of a row before the projection: of each part its vector and what its ids weigh together; 0 without one.
        n_projected: floats of all projections, whose gradients follow those of the memories.
        blocks: of all parts, where each id has one that is copied as it is; else 0.
    """

    def __init__(self, parts: Sequence[Member], tables: Sequence[int] | None = None) -> None:
        self.members, self.tables = list(parts), list(range(len(parts)) if tables is None else tables)
        self._call_args: tuple[Any, NDArray[np.int64]] = (None, _NOWHERE)
        self.sketch, self.memory, *_ = parts[0]
        self._gather, self._copy = gather_of(self.memory.codec), copy_of(self.memory.codec)
        self.parts = np.zeros((len(parts), N_FIELDS), np.int64)
        self.n_columns = [len(part.sketch.layout.columns) for part in parts]
        self.columns = np.concatenate([part.sketch.layout.array for part in parts])
        self.size, self.within, self.n_projected = sum(part.sketch.layout.size for part in parts), 0, 0
        first, memory_offset, projections = 0, 0, []
        for row, (sketch, memory, left, vocab, projection) in zip(self.parts, parts):
            layout = sketch.layout
            arrays = (memory.codes, memory.scales, sketch.keys, sketch.pointers)
            row[:FIRST] = [number for array in arrays for number in (address_of(array), array.size)]
            if projection is not None:
                projections.append(projection_row(projection, self.within, left, self.size + self.n_projected))
                left, self.n_projected = self.within, self.n_projected + projection.size
                self.within += layout.dim + 1
            last = vocab - 1  # for every id −1, which is the largest of all words
            row[FIRST:] = (
                first, len(layout.columns), layout.terms, layout.width, layout.unit, left, last, layout.size, memory_offset,
                _in_pairs(layout, memory),
            )  # fmt: skip
            first, memory_offset = first + len(layout.columns), memory_offset + layout.size
        self.projections = np.array(projections, np.int64) if projections else None
        blocks = [blocks_of(part.sketch.layout, self.memory.codec) for part in parts]
        self.blocks = sum(blocks) if all(blocks) else 0
        self._make = bool(projections) or self.memory.codec != FLOAT32  # a vector is more than floats to copy

    @classmethod
    def of(cls, sketch: Sketch, memory: Memory = _NO_MEMORY) -> TableGroup:
        """One table, without a projection."""
        return cls([Member(sketch, memory)])

    def __reduce__(self) -> Any:
        raise TypeError("a TableGroup holds addresses of arrays: make a new one of the copied arrays")

    def call_args(self, batch: JaggedBatch) -> CallArgs:
        """Where the words of a batch lie: int64 (parts, N_CALL_ARGS)."""
        asked = batch.counts, batch.starts, batch.step, None if batch.offsets is None else batch.rows
        known, out = self._call_args
        if known != asked:
            out = np.zeros((len(self.tables), N_CALL_ARGS), np.int64)
            kept, ends = 0, 0 if batch.offsets is None else batch.rows + 1
            for row, t, columns in zip(out, self.tables, self.n_columns):
                row[:] = batch.starts[t], batch.step, t * ends, batch.counts[t], kept
                kept += batch.counts[t] * columns
            self._call_args = asked, out  # batches are mostly of one size
        return out

    def forward(
        self, batch: JaggedBatch, keep: bool, out: Floats | None, weights: Floats | None = None
    ) -> tuple[Left, bool]:
        """Look ids or bags up: what that leaves, and whether an id was outside its vocabulary (vectors then mean nothing).

        Args:
            batch: the ids.
            keep: whether a backward pass follows.
            out: contiguous float32 (rows, width), whose columns of these tables are filled; None where the vectors before the
                projection are enough.
            weights: float32 (n, columns), for one part without a projection.
        """
        kept, inner, into, offsets = None, None, out, batch.offsets
        known, call_args = self._call_args
        if known != (batch.counts, batch.starts, batch.step, None if offsets is None else batch.rows):
            call_args = self.call_args(batch)
        work = batch.rows * len(call_args)
        alone = bool(self.blocks) and offsets is None and batch.weights is None and weights is None
        few = 2 * self.blocks <= work and self.blocks <= _MOST_MADE  # more vectors would leave the caches
        if alone and self._make and few and out is not None and not keep:
            return _NOTHING, self._copied(batch, call_args, out)
        if offsets is not None:
            offsets, work = offsets.reshape(-1), work + int(call_args[:, COUNT].sum())
        if keep and len(batch.ids) <= KEPT_IDS * len(batch.counts):
            kept = np.empty(len(batch.ids) * max(self.n_columns), np.uint64)
        if self.projections is not None:
            inner = into = np.empty((batch.rows, self.within), np.float32)
        assert into is not None
        left = NO_ADDRESSES if kept is None else kept
        first, flat = (self.parts, self.columns, batch.ids, call_args, batch.rows), into.reshape(-1)
        if alone:
            wide = into if out is None else out
            projections = None if out is None else self.projections
            rest: Any = (left, into.shape[1], flat, projections, wide.shape[1], wide.reshape(-1))
        else:
            rest = (offsets, batch.weights, weights, left, into.shape[1], flat)
        move = self._copy if alone else self._gather
        small = work < 2 * _IDS_A_THREAD  # of one id's lookup a further call would be a tenth
        outside = move(0, work, *first, *rest) if small else parallel_for(move, work, _IDS_A_THREAD, *first, *rest)
        if inner is not None and out is not None and not alone:
            weight_sums = None if offsets is None and batch.weights is None else batch.weight_sums(self.tables)
            rest = self.projections, weight_sums, inner.reshape(-1), self.within, out.reshape(-1), out.shape[1]
            min_chunk = PRODUCTS_A_THREAD // self.n_projected
            if batch.rows < 2 * min_chunk:
                widen_rows(0, batch.rows, *rest)
            else:
                parallel_for(widen_rows, batch.rows, min_chunk, *rest)
        return (Left(kept, inner, call_args) if keep or inner is not None else _NOTHING), bool(outside)

    @functools.cached_property
    def _wide(self) -> tuple[list[TableGroup], TableGroup]:
        """The blocks of each part, as the ids of a table; and the parts with blocks that are vectors, which lie nowhere yet."""
        each, parts = [], []
        for sketch, memory, left, vocab, projection in self.members:
            layout = sketch.layout
            dim = layout.dim if projection is None else projection.shape[1]
            each.append(TableGroup([Member(sketch.part(of_blocks(layout)), memory, 0, 0, projection)]))
            parts.append(Member(sketch.part(wide(layout, dim)), _NO_MEMORY, left, vocab))
        return each, TableGroup(parts)

    def _copied(self, batch: JaggedBatch, call_args: CallArgs, out: Floats) -> bool:
        """`forward` of ids that are more than the blocks: each block's vector, copied to its ids."""
        each, together = self._wide
        parts, made = together.parts.copy(), []  # made: until all is copied
        for row, blocks in zip(parts, each):
            made.append(np.empty((blocks.blocks, row[WIDTH]), np.float32))
            blocks.forward(JaggedBatch.alone(np.arange(blocks.blocks)), False, made[-1])
            row[CODES], row[N_CODES] = address_of(made[-1]), made[-1].size
        rows = out.shape[1], out.reshape(-1)
        args = parts, together.columns, batch.ids, call_args, batch.rows, NO_ADDRESSES, *rows, None, *rows
        return bool(parallel_for(together._copy, batch.rows * len(parts), _IDS_A_THREAD, *args))


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
