"""Lookups of ids that have one block each: no sum, and no block that is cut by the end of its region or of its scale.

Where there are fewer blocks than ids, each block's vector is made once, and then copied:

    T = H · M · W + b = H · (M · W + b),        for H with a single 1 in each row

The right side takes rank · dim multiplications a block instead of an id, and gives the same bits: a block's product does not
depend on the rows beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.sketching.addressing import TILE, find, rows_of, stage, unpack
from cce_core.sketching.block_ops import array_at, copy_blocks
from cce_core.sketching.descriptors import (
    CODES,
    FIRST,
    KEPT,
    KEYS,
    N_CODES,
    N_KEYS,
    N_POINTERS,
    N_SCALES,
    OUT_OFFSET,
    POINTERS,
    SCALES,
    WIDTH,
)
from cce_core.sketching.layout import IDENTITY, Column, Layout
from cce_core.sketching.projection import widen_rows
from cce_core.storage.codec import CODECS, INT4, codec

_zero, _move = np.uint64(0), 16  # floats of a coded memory that are moved at once


def blocks_of(layout: Layout, number: int) -> int:
    """How many blocks the ids share in a memory of codec `number`, if each id has one, and none is cut; else 0."""
    column, *more = layout.columns
    width = layout.width
    alone = not more and column.stride == width and column.size == column.rows * width and column.base % width == 0
    whole = not codec(CODECS[number]).most or width % _move == 0 or _move % width == 0
    return column.rows if alone and whole and (number != INT4 or width % 2 == 0) else 0


def of_blocks(layout: Layout) -> Layout:
    """The layout by which block i is looked up as id i."""
    (column,) = layout.columns
    return layout.part((Column(IDENTITY, column.base, column.stride, column.rows),))


def wide(layout: Layout, dim: int) -> Layout:
    """The layout of the same ids into blocks of `dim` floats, side by side from the first on."""
    (column,) = layout.columns
    column = column._replace(base=0, stride=dim, region=0)
    return Layout((column,), 1, dim, column.size, dim, layout.bits_per_id, layout.marks, layout.pointed)


@functools.cache
def copy_of(number: int) -> Callable[..., int]:
    """The lookup in memories of codec `number` for a share [begin, end) of the ids of all parts, part by part: blocks into
    `inner`, rows of `within` floats, and from there through the projections, if any, into `out`, rows of `stride` floats."""
    kind = codec(CODECS[number]).dtype

    @jit
    def copy(
        begin: int, end: int, parts: Any, columns: Any, ids: Any, call_args: Any, n_rows: int, kept: Any, within: int, inner: Any,
        projections: Any, stride: int, out: Any,
    ) -> int:  # fmt: skip
        words, rows, fields = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
        at, spare, outside = np.empty(TILE, np.uint64), np.empty(0, np.float32), False
        for p in range(begin // max(1, n_rows), -(-end // max(1, n_rows))):
            part, place = parts[p], call_args[p]
            codes = array_at(part[CODES], part[N_CODES], kind)
            scales = array_at(part[SCALES], part[N_SCALES], np.float32)
            keys = array_at(part[KEYS], part[N_KEYS], np.uint64)
            pointers = array_at(part[POINTERS], part[N_POINTERS], np.uint64)
            own, w = columns[part[FIRST] : part[FIRST] + 1], np.uint64(part[WIDTH])
            last = min(end - p * n_rows, n_rows)
            for low in range(max(begin - p * n_rows, 0), last, TILE):
                high = min(low + TILE, last)
                rows_of(low, high, None, 0, 0, part[OUT_OFFSET], within, rows)
                outside |= stage(low, high, ids, place, part, words)
                unpack(0, high - low, words, own, pointers, fields)
                find(0, high - low, words, own[0], keys, pointers, fields, at)
                if kept.shape[0]:
                    first = place[KEPT] + low
                    kept[first : first + high - low] = at[: high - low]
                copy_blocks(inner, rows, _zero, codes, scales, at, _zero, np.uint64(high - low), w, spare, number)
                if projections is not None:
                    widen_rows(low, high, projections[p : p + 1], None, inner, within, out, stride)
        return int(outside)

    return copy
