"""The transposed lookup: gradients of vectors summed into gradients of the memory, as compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.hashing.mix import premix
from cce_core.sketching.addressing import TILE, find, rows_of, stage, unpack
from cce_core.sketching.block_ops import add_blocks, add_both, add_scaled, array_at
from cce_core.sketching.descriptors import (
    COLUMNS,
    COUNT,
    FIRST,
    KEPT,
    KEYS,
    MEMORY_OFFSET,
    N_KEYS,
    N_POINTERS,
    OFFSET,
    OUT_OFFSET,
    PAIRS,
    POINTERS,
    SIZE,
    TERMS,
    UNIT,
    WIDTH,
    WORD,
)
from cce_core.sketching.layout import BASE, REGION
from cce_core.storage.codec import FLOAT32

_zero, _one, _1 = np.uint64(0), np.uint64(1), np.float32(1.0)


@jit
def _shift(unit: np.uint64) -> Any:
    """log₂ of a unit, and whether it is a power of two: then a shift spares a division."""
    shift = _zero
    while _one << (shift + _one) <= unit:
        shift += _one
    return shift, _one << shift == unit


@jit
def owned(low: int, high: int, part: Any) -> Any:
    """The floats of a part whose units begin in [low, high) of all memories: a unit is never split between two threads."""
    unit, memory_offset, size = part[UNIT], part[MEMORY_OFFSET], part[SIZE]
    begin, end = -((memory_offset - low) // unit) * unit, -((memory_offset - high) // unit) * unit
    return min(max(begin, 0), size), min(max(end, 0), size)


@jit
def scatter_range(
    low: int, high: int, parts: Any, columns: Any, ids: Any, call_args: Any, offsets: Any, per_sample_weights: Any, weights: Any,
    kept: Any, slots: Any, touched: Any, spread: bool, stride: int, vectors: Any, out: Any,
) -> None:  # fmt: skip
    """The transposed lookup: the units that begin in [low, high) of the gradients of all parts, in the order of the ids.

    Where `slots` is not None, of one part, whose units lie in `out` in the order in which `compact_rows` has numbered them.
    """
    words, rows, scratch = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    other, before, fields = np.empty(TILE, np.uint64), words, np.empty(TILE, np.uint64)
    tos, froms, factors = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64), np.empty(TILE, np.float32)
    for p in range(parts.shape[0]):
        part, place = parts[p], call_args[p]
        if part[MEMORY_OFFSET] >= high or part[MEMORY_OFFSET] + part[SIZE] <= low:
            continue
        begin, end = owned(low, high, part)
        mine, over = np.uint64(begin), np.uint64(end)
        memory_offset = np.uint64(part[MEMORY_OFFSET])
        keys = array_at(part[KEYS], part[N_KEYS], np.uint64)
        pointers = array_at(part[POINTERS], part[N_POINTERS], np.uint64)
        own, terms = columns[part[FIRST] : part[FIRST] + part[COLUMNS]], part[TERMS]
        w, u = np.uint64(part[WIDTH]), np.uint64(part[UNIT])
        bag, (shift, even) = 0, _shift(u)
        for start in range(0, place[COUNT], TILE):
            stop = min(start + TILE, place[COUNT])
            bag = rows_of(start, stop, offsets, place[OFFSET], bag, part[OUT_OFFSET], stride, rows)
            stage(start, stop, ids, place, part, words)
            if kept.shape[0] == 0:
                unpack(0, stop - start, words, own, pointers, fields)
            count, plain = np.uint64(stop - start), weights is None and per_sample_weights is None
            for j in range(own.shape[0]):
                first, region = np.uint64(own[j, BASE]), np.uint64(own[j, REGION])
                past, left = first + region, np.uint64(j // terms) * w
                if past <= mine or first >= over:
                    continue  # all of the column is for other threads
                at = scratch if j % 2 == 0 else other
                if kept.shape[0] == 0:
                    find(0, stop - start, words, own[j], keys, pointers, fields, at)
                else:
                    begin = place[KEPT] + j * place[COUNT]
                    at = kept[begin + start : begin + stop]
                whole = slots is None and mine <= first and past <= over
                if whole and plain and part[PAIRS] == 1:
                    mate = own[j + 1 if j % 2 == 0 else j - 1]
                    if mine <= np.uint64(mate[BASE]) and np.uint64(mate[BASE] + mate[REGION]) <= over:
                        if j % 2 == 1:
                            add_both(out, before, memory_offset, vectors, vectors, rows, left, count, w, at, FLOAT32)
                        before = at
                        continue
                top = _zero
                for n in range(count):
                    top = max(top, at[n])
                if not plain:
                    for n in range(count):
                        factors[n] = (
                            _1 if per_sample_weights is None else per_sample_weights[np.uint64(place[WORD] + start) + n]
                        )
                        if weights is not None:
                            factors[n] *= weights[np.uint64(start) + n, np.uint64(j)]
                if whole and top + w <= past:
                    if plain:
                        add_blocks(out, at, memory_offset, vectors, vectors, rows, left, count, w, factors, FLOAT32)
                    else:
                        add_scaled(out, at, memory_offset, vectors, vectors, rows, left, count, w, factors, FLOAT32)
                    continue
                if u == w:  # blocks that are units lie in this range as a whole, or not at all
                    found = _zero
                    for n in range(count):
                        if at[n] >= mine and at[n] < over:
                            tos[found] = at[n]
                            if slots is not None:
                                unit = at[n] >> shift if even else at[n] // u
                                tos[found] = np.uint64(slots[place_of(unit, slots, touched, spread)]) * u
                            froms[found], factors[found] = rows[n], factors[n]
                            found += _one
                    to = memory_offset if slots is None else _zero
                    if plain:
                        add_blocks(out, tos, to, vectors, vectors, froms, left, found, w, factors, FLOAT32)
                    else:
                        add_scaled(out, tos, to, vectors, vectors, froms, left, found, w, factors, FLOAT32)
                    continue
                for n in range(count):
                    o = rows[n] + left
                    for i in range(w):
                        to = at[n] + i
                        if to >= past:
                            to -= region
                        if to >= mine and to < over:
                            if slots is None:
                                to += memory_offset
                            else:
                                to = np.uint64(slots[place_of(to // u, slots, touched, spread)]) * u + to % u
                            out[to] += vectors[o + i] if plain else factors[n] * vectors[o + i]


@jit
def places_for(most: int, units: int) -> int:
    """Places of a hash table that numbers at most `most` of `units` neighbouring units: a power of two, four times as many, or
    enough to leave each unit one of its own."""
    places = 1
    while places < min(4 * most, units):
        places *= 2
    return places


@jit
def place_of(unit: np.uint64, slots: Any, touched: Any, spread: bool) -> np.uint64:
    """Where the number of a unit stands in the hash table, or is to be written; `spread` unless each has a place of its own."""
    last = np.uint64(slots.shape[0] - 1)
    if not spread:
        return unit & last
    at = premix(unit) & last
    while slots[at] >= 0 and np.uint64(touched[slots[at]]) != unit:
        at = (at + _one) & last
    return at


@jit
def compact_rows(
    low: int, high: int, part: Any, columns: Any, ids: Any, place: Any, kept: Any, slots: Any, touched: Any, spread: bool
) -> int:  # fmt: skip
    """Number the units in the floats [low, high) of one part's memory that its ids touch, in order of first touch.

    slots[place_of(unit)] = number, where there was −1; touched[number] = unit; gives how many there are.
    """
    keys = array_at(part[KEYS], part[N_KEYS], np.uint64)
    pointers = array_at(part[POINTERS], part[N_POINTERS], np.uint64)
    own, u, count = columns[part[FIRST] : part[FIRST] + part[COLUMNS]], np.uint64(part[UNIT]), 0
    shift, even = _shift(u)
    words, fields, scratch = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    mine, over = np.uint64(low), np.uint64(high)
    for start in range(0, place[COUNT], TILE):
        stop = min(start + TILE, place[COUNT])
        stage(start, stop, ids, place, part, words)
        if kept.shape[0] == 0:
            unpack(0, stop - start, words, own, pointers, fields)
        for j in range(own.shape[0]):
            region = np.uint64(own[j, REGION])
            past = np.uint64(own[j, BASE]) + region
            if past <= mine or np.uint64(own[j, BASE]) >= over:
                continue
            at = scratch
            if kept.shape[0] == 0:
                find(0, stop - start, words, own[j], keys, pointers, fields, at)
            else:
                begin = place[KEPT] + j * place[COUNT]
                at = kept[begin + start : begin + stop]
            for n in range(stop - start):
                for i in range(0, part[WIDTH], part[UNIT]):
                    to = at[n] + np.uint64(i)
                    if to >= past:
                        to -= region
                    if to >= mine and to < over:
                        to = to >> shift if even else to // u
                        here = place_of(to, slots, touched, spread)
                        if slots[here] < 0:
                            slots[here] = count
                            touched[count] = to
                            count += 1
    return count
