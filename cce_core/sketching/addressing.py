"""Ids → addresses: the columns of a layout, read in tiles of ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.hashing.mix import keyed, multiply_high, multiply_high_32, premix
from cce_core.sketching.bundle import LAST, LEFT, OFFSET, STEP, WORD
from cce_core.sketching.layout import BASE, HASH, IDENTITY, KIND, PER_ID, POINTER, ROWS, STRIDE, A, B
from cce_core.sketching.moves import prefetch
from cce_core.storage.packed import read_bits

TILE = 256  # ids whose addresses are found before their blocks are moved, so that the memory's lines can be asked for ahead
_zero, _one, _low, _six = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFF), np.uint64(6)


@jit
def find(start: int, stop: int, ids: Any, column: Any, keys: Any, pointers: Any, at: Any) -> None:
    """Addresses of the ids [start, stop) in one column: at[0 : stop − start]."""
    kind, base, stride = column[KIND], np.uint64(column[BASE]), np.uint64(column[STRIDE])
    count, a, b = np.uint64(column[ROWS]), np.uint64(column[A]), np.uint64(column[B])
    first, n_ids = np.uint64(start), np.uint64(stop - start)
    if kind == HASH:
        key = keys[b]
        if count <= _low:  # the usual case: half of the multiplications
            for n in range(n_ids):
                at[n] = base + stride * multiply_high_32(keyed(premix(ids[first + n]), key), count)
        else:
            for n in range(n_ids):
                at[n] = base + stride * multiply_high(keyed(premix(ids[first + n]), key), count)
    elif kind == POINTER:
        per_id, last = np.uint64(column[PER_ID]), count - _one
        if a == np.uint64(0):  # an id's pointers lie side by side: its first column asks for the memory of all of them
            for n in range(n_ids):
                prefetch(pointers, (ids[first + n] * per_id) >> _six)
        for n in range(n_ids):  # `min`: pointers of a damaged file must not lead out of the memory
            at[n] = base + stride * min(read_bits(pointers, ids[first + n] * per_id + a, b), last)
    elif kind == IDENTITY:
        for n in range(n_ids):
            at[n] = base + stride * ids[first + n]
    else:
        for n in range(n_ids):
            at[n] = base + stride * ((ids[first + n] // a) % count)


@jit
def stage(
    low: int, high: int, ids: Any, place: Any, offsets: Any, bag: int, part: Any, stride: int, words: Any, rows: Any
) -> int:
    """The ids [low, high) of a part, and where in `out` the row of each begins; gives the bag that the last is in, or, where
    an id is outside the vocabulary, −1 − bag."""
    base, step, last = np.uint64(place[WORD]), np.uint64(place[STEP]), np.uint64(part[LAST])
    wide, left, first = np.uint64(stride), np.uint64(part[LEFT]), np.uint64(low)
    over = False
    for n in range(np.uint64(high - low)):
        word = ids[base + (first + n) * step]
        over |= word > last
        words[n] = min(word, last)  # so that nothing outside the memory is read before the error is raised
    if offsets is None:
        for n in range(np.uint64(high - low)):
            rows[n] = (first + n) * wide + left
    else:
        for n in range(low, high):
            while n >= offsets[place[OFFSET] + bag + 1]:
                bag += 1
            rows[n - low] = np.uint64(bag) * wide + left
    return -1 - bag if over else bag


@jit
def signs_range(start: int, stop: int, ids: Any, columns: Any, keys: Any, out: Any) -> None:
    """The sign of each column: the hash's lowest bit, which hardly moves the index; 1 where a column draws none."""
    for j in range(columns.shape[0]):
        if columns[j, KIND] == HASH and columns[j, A] == 1:
            key = keys[columns[j, B]]
            for n in range(start, stop):
                out[n, j] = np.float32(1.0) - np.float32(2.0) * np.float32(keyed(premix(ids[n]), key) & _one)
        else:
            for n in range(start, stop):
                out[n, j] = np.float32(1.0)


@jit
def addresses_range(start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, out: Any) -> None:
    at = np.empty(TILE, np.uint64)
    for low in range(start, stop, TILE):
        high = min(low + TILE, stop)
        for j in range(columns.shape[0]):
            find(low, high, ids, columns[j], keys, pointers, at)
            for n in range(low, high):
                out[n, j] = at[n - low]
