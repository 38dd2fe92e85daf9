"""The lookup: blocks summed into vectors, and its derivative by the weights, as compiled loops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.sketching.addressing import TILE, find, rows_of, share, stage, unpack, whole_bags
from cce_core.sketching.block_ops import add_blocks, add_scaled, array_at, copy_blocks, copy_rows, sum_blocks
from cce_core.sketching.descriptors import (
    CODES,
    COLUMNS,
    COUNT,
    FIRST,
    KEPT,
    KEYS,
    N_CODES,
    N_KEYS,
    N_POINTERS,
    N_SCALES,
    OFFSET,
    OUT_OFFSET,
    PAIRS,
    POINTERS,
    SCALES,
    TERMS,
    WIDTH,
    WORD,
)
from cce_core.sketching.layout import BASE, REGION
from cce_core.storage.codec import BLOCK, CODECS, INT4, codec, fetch

_zero, _one, _15, _block = np.uint64(0), np.uint64(1), np.uint64(15), np.uint64(BLOCK)
_0 = np.float32(0.0)
# From a column's addresses to the next one's: a power of two would put all on the same lines of the cache.
_APART = TILE + 8


# The loops below index flat arrays with unsigned numbers: Numba then leaves out its test for negative indices. `kept` holds
# the addresses of a forward pass for its backward pass; a lookup fills it, the others read it; an empty one finds them anew
# (an array always, for each type of an argument is compiled by itself, for seconds).


def _make_gather(number: int) -> Callable[..., int]:
    """The lookup in memories of codec `number`, for a share [begin, end) of the work on all parts, part by part: a row counts 1,
    and an id of a bag another 1. So a thread mostly has memories of its own to read."""
    kind = codec(CODECS[number]).dtype
    scaled, halves = codec(CODECS[number]).most > 0, number == INT4

    @jit
    def gather(
        begin: int, end: int, parts: Any, columns: Any, ids: Any, call_args: Any, n_rows: int, offsets: Any,
        per_sample_weights: Any,
        weights: Any, kept: Any, stride: int, out: Any,
    ) -> int:  # fmt: skip
        words, rows, fields = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
        heads, tos = np.empty(TILE + 1, np.uint64), np.empty(TILE, np.uint64)
        most = 0
        for p in range(parts.shape[0]):
            most = max(most, parts[p, COLUMNS])
        ats, inside = np.empty(most * _APART, np.uint64), np.empty(most, np.bool_)
        spare, outside = np.empty(TILE, np.float32), False
        adds = offsets is not None or per_sample_weights is not None or weights is not None
        before_part, past_part = 0, 0
        for p in range(parts.shape[0]):
            part, place = parts[p], call_args[p]
            before_part, past_part = past_part, past_part + n_rows + (0 if offsets is None else place[COUNT])
            if past_part <= begin or before_part >= end:
                continue  # all of the part is for other threads
            start = share(begin - before_part, n_rows, offsets, place[OFFSET])
            stop = share(end - before_part, n_rows, offsets, place[OFFSET])
            codes = array_at(part[CODES], part[N_CODES], kind)
            scales = array_at(part[SCALES], part[N_SCALES], np.float32)
            keys = array_at(part[KEYS], part[N_KEYS], np.uint64)
            pointers = array_at(part[POINTERS], part[N_POINTERS], np.uint64)
            own, terms, w = columns[part[FIRST] : part[FIRST] + part[COLUMNS]], part[TERMS], np.uint64(part[WIDTH])
            low, last, bag, starts = start, stop, start, place[OFFSET]
            if offsets is not None:
                low, last = offsets[starts + start], offsets[starts + stop]
            # Columns of a sum of bags.
            together = 2 if part[PAIRS] == 1 and per_sample_weights is None and weights is None else 1
            if adds:
                for row in range(start, stop):
                    at_left = row * stride + part[OUT_OFFSET]
                    out[at_left : at_left + own.shape[0] // terms * part[WIDTH]] = _0
            high, n_bags, at_bag = low, 0, bag
            while low < last:
                if offsets is None:
                    high = min(low + TILE, last)
                    rows_of(low, high, offsets, starts, 0, part[OUT_OFFSET], stride, rows)
                else:
                    at_bag = bag
                    high, n_bags, bag = whole_bags(
                        low, stop, offsets, starts, bag, part[OUT_OFFSET], stride, heads, tos
                    )
                outside |= stage(low, high, ids, place, part, words)
                unpack(0, high - low, words, own, pointers, fields)
                count, bags = np.uint64(high - low), np.uint64(n_bags)
                plain = not adds
                for j in range(own.shape[0]):
                    at = ats[j * _APART : (j + 1) * _APART]
                    find(0, high - low, words, own[j], keys, pointers, fields, at)
                    if kept.shape[0]:
                        first = place[KEPT] + j * place[COUNT] + low
                        kept[first : first + high - low] = at[: high - low]
                    if together == 1:
                        region = np.uint64(own[j, REGION])
                        past, top, split = np.uint64(own[j, BASE]) + region, _zero, False
                        for n in range(count):
                            top = max(top, at[n])
                            if scaled:  # moves are of up to 16 floats, each with one scale
                                a, z = at[n], at[n] + w - _one
                                split |= (a & _15) != _zero and (
                                    a // _block != z // _block or (halves and (a & _one) == _one)
                                )
                        inside[j] = top + w <= past and not split
                        plain &= inside[j]
                if plain:
                    sizes = np.uint64(own.shape[0] // terms), np.uint64(terms)
                    copy_rows(out, rows, _zero, codes, scales, ats, np.uint64(_APART), count, w, sizes, number)
                    low = high
                    continue
                for j in range(own.shape[0]):
                    at, left = ats[j * _APART : (j + 1) * _APART], np.uint64(j // terms) * w
                    if offsets is not None and together == 2:  # without bags both went with the whole row
                        if j % 2 == 1:
                            before = ats[(j - 1) * _APART : j * _APART]
                            sum_blocks(out, tos, left, codes, scales, before, heads, bags, w, at, number)
                        continue
                    factors = spare
                    if weights is not None:
                        for n in range(count):
                            spare[n] = weights[np.uint64(low) + n, np.uint64(j)]
                            if per_sample_weights is not None:
                                spare[n] *= per_sample_weights[np.uint64(place[WORD] + low) + n]
                    elif per_sample_weights is not None:
                        factors = per_sample_weights[place[WORD] + low : place[WORD] + high]
                    copies = not adds and j % terms == 0
                    if inside[j]:
                        if offsets is not None and (weights is not None or per_sample_weights is not None):
                            sum_blocks(out, tos, left, codes, scales, at, heads, bags, w, factors, number)
                        elif offsets is not None:
                            sum_blocks(out, tos, left, codes, scales, at, heads, bags, w, None, number)
                        elif weights is not None or per_sample_weights is not None:
                            add_scaled(out, rows, left, codes, scales, at, _zero, count, w, factors, number)
                        elif copies:
                            copy_blocks(out, rows, left, codes, scales, at, _zero, count, w, factors, number)
                        else:
                            add_blocks(out, rows, left, codes, scales, at, _zero, count, w, factors, number)
                        continue
                    if offsets is not None:
                        rows_of(low, high, offsets, starts, at_bag, part[OUT_OFFSET], stride, rows)
                    region = np.uint64(own[j, REGION])
                    past = np.uint64(own[j, BASE]) + region
                    for n in range(count):
                        for i in range(w):
                            source = at[n] + i
                            if source >= past:
                                source -= region
                            value, o = fetch(number, codes, scales, source), rows[n] + left + i
                            if weights is not None or per_sample_weights is not None:
                                value *= factors[n]
                            out[o] = value if copies else out[o] + value
                low = high
        return int(outside)

    return gather


def _make_dot(number: int) -> Callable[..., None]:
    """The gradient of the weights: out[n, j] = ⟨vectors[n, chunk of j], block of column j⟩."""

    @jit
    def dot(
        start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, memory: Any, scales: Any,
        kept: Any, terms: int, width: int, vectors: Any, out: Any,
    ) -> None:  # fmt: skip
        w = np.uint64(width)
        dim = np.uint64(columns.shape[0] // terms) * w
        scratch, fields = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
        for low in range(start, stop, TILE):
            high = min(low + TILE, stop)
            if kept.shape[0] == 0:
                unpack(low, high, ids, columns, pointers, fields)
            for j in range(columns.shape[0]):
                at = scratch
                if kept.shape[0] == 0:
                    find(low, high, ids, columns[j], keys, pointers, fields, at)
                else:
                    at = kept[j * ids.shape[0] + low : j * ids.shape[0] + high]
                region = np.uint64(columns[j, REGION])
                past, left = np.uint64(columns[j, BASE]) + region, np.uint64(j // terms) * w
                for n in range(np.uint64(high - low)):
                    o, total = (np.uint64(low) + n) * dim + left, np.float32(0.0)
                    for i in range(w):
                        place = at[n] + i
                        if place >= past:
                            place -= region
                        total += vectors[o + i] * fetch(number, memory, scales, place)
                    out[np.uint64(low) + n, np.uint64(j)] = total

    return dot


@functools.cache
def gather_of(number: int) -> Callable[..., int]:
    """The lookup for memories of that codec."""
    return _make_gather(number)


@functools.cache
def dot_of(number: int) -> Callable[..., None]:
    """The derivative by the weights for memories of that codec."""
    return _make_dot(number)
