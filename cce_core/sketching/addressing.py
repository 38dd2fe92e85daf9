"""Ids → addresses: the columns of a layout, read in tiles of ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.hashing.mix import keyed, multiply_high, multiply_high_32, premix
from cce_core.sketching.block_ops import load_bits
from cce_core.sketching.descriptors import LAST, STEP, WORD
from cce_core.sketching.layout import BASE, HASH, IDENTITY, KIND, MAP, MARKS, PER_ID, POINTER, ROWS, STRIDE, A, B
from cce_core.storage.marks import NONE, entry
from cce_core.tiers.buckets import row_of, salt_of

TILE = 256  # ids whose addresses are found before their blocks are moved
_zero, _one, _two, _three, _six, _8, _63, _low, _none = (np.uint64(n) for n in (0, 1, 2, 3, 6, 8, 63, 0xFFFFFFFF, NONE))
TABLE_BITS, TABLE = np.uint64(16), np.uint64(0xFFFF)
_slots, _pointer = np.uint64(32), np.uint64(48)  # of a MAP with settled ids, where these numbers begin
_AT_ONCE = np.uint64(57)  # bits that are always within the 64 from the byte where they begin


@jit
def _bits_from(pointers: Any, place: np.uint64) -> np.uint64:
    """What begins at a bit of the packed pointers: 57 bits of it, or all there are."""
    byte = min(place >> _three, np.uint64(pointers.shape[0] * 8 - 8))
    return load_bits(pointers, byte) >> (place - (byte << _three))


@jit
def _marked(pointers: Any, i: np.uint64, per_id: np.uint64, words: np.uint64) -> np.uint64:
    """The pointers of an id of which there are some, behind so many words of marks; 0 where it has none."""
    place = entry(pointers, i)
    return _zero if place == _none else _bits_from(pointers, (words << _six) + place * per_id)


@jit
def unpack(start: int, stop: int, ids: Any, columns: Any, pointers: Any, fields: Any) -> None:
    """The pointers of the ids [start, stop) that a part has, if they fit in one word: fields[0 : stop − start], for `find`."""
    for j in range(columns.shape[0]):
        per_id = np.uint64(columns[j, PER_ID])
        if columns[j, KIND] == POINTER:
            first, words = np.uint64(start), np.uint64(columns[j, MARKS])
            n_ids = np.uint64(stop - start) if _zero < per_id <= _AT_ONCE else _zero
            if words > _zero:
                for n in range(n_ids):
                    fields[n] = _marked(pointers, ids[first + n], per_id, words)
            elif per_id == _8:
                octets = pointers.view(np.uint8)
                for n in range(n_ids):
                    fields[n] = np.uint64(octets[ids[first + n]])
            else:
                for n in range(n_ids):
                    fields[n] = _bits_from(pointers, ids[first + n] * per_id)
            return


@jit
def find(start: int, stop: int, ids: Any, column: Any, keys: Any, pointers: Any, fields: Any, at: Any) -> None:
    """Addresses of the ids [start, stop) in one column: at[0 : stop − start]; `fields` are what `unpack` gave for them."""
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
        # `min`: pointers of a damaged file must not lead out of the memory
        per_id, last, mask = np.uint64(column[PER_ID]), count - _one, (_one << b) - _one
        if b == _zero:
            at[: stop - start] = base
        elif per_id <= _AT_ONCE:
            for n in range(n_ids):
                at[n] = base + stride * min((fields[n] >> a) & mask, last)
        else:
            for n in range(n_ids):
                at[n] = base + stride * min(_bits_from(pointers, ids[first + n] * per_id + a) & mask, last)
    elif kind == IDENTITY:
        for n in range(n_ids):
            at[n] = base + stride * ids[first + n]
    elif kind == MAP:
        bits, table, tables = np.uint64(column[PER_ID]), b & TABLE, _one + ((b >> TABLE_BITS) & TABLE)
        slots, pointer_bits, begin = np.int64((b >> _slots) & TABLE), b >> _pointer, _zero
        places, buckets = a >> _two, max(a >> _two, np.uint64(column[MARKS]))
        fold = (buckets + places - _one) // places
        width, before = bits, a
        while (_one << (width - bits)) < fold:
            width += _one
        if slots > 0:
            begin, before = ((a * width + _63) >> _six) << _six, a + (tables << pointer_bits)
        salt, shared = salt_of(table, keys), (count - before) // tables
        for n in range(n_ids):
            at[n] = base + stride * row_of(
                ids[first + n] ^ salt, table, keys[0], pointers, a, shared, bits, tables, buckets, fold, width, begin,
                pointer_bits, slots,
            )  # fmt: skip
    else:
        for n in range(n_ids):
            at[n] = base + stride * ((ids[first + n] // a) % count)


@jit
def stage(low: int, high: int, ids: Any, place: Any, part: Any, words: Any) -> bool:
    """The ids [low, high) of a part as words[0 : high − low]; whether one is outside the vocabulary."""
    base, step, last = np.uint64(place[WORD]), np.uint64(place[STEP]), np.uint64(part[LAST])
    first, over = np.uint64(low), False
    for n in range(np.uint64(high - low)):
        word = ids[base + (first + n) * step]
        over |= word > last
        words[n] = min(word, last)  # so that nothing outside the memory is read before the error is raised
    return over


@jit
def rows_of(low: int, high: int, offsets: Any, own: int, bag: int, left: int, stride: int, rows: Any) -> int:
    """Where the row of each of the ids [low, high) begins, `bag` or a later one being the first's; gives the last's bag.

    The offsets of the part begin at offsets[own]; they are None where an id is a row.
    """
    wide, shift, first = np.uint64(stride), np.uint64(left), np.uint64(low)
    if offsets is None:
        for n in range(np.uint64(high - low)):
            rows[n] = (first + n) * wide + shift
    else:
        for n in range(low, high):
            while n >= offsets[own + bag + 1]:
                bag += 1
            rows[n - low] = np.uint64(bag) * wide + shift
    return bag


@jit
def share(work: int, n_rows: int, offsets: Any, own: int) -> int:
    """How many rows begin in the first `work` of a part's work, where a row counts 1, and an id of a bag another 1."""
    if offsets is None:
        return min(max(work, 0), n_rows)
    low, high = 0, n_rows
    while low < high:
        middle = (low + high) // 2
        if offsets[own + middle] + middle < work:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def whole_bags(
    low: int, stop: int, offsets: Any, own: int, bag: int, left: int, stride: int, heads: Any, tos: Any
) -> Any:
    """A tile of ids from `low` on, in bag `bag`, that ends where a bag below `stop` ends; of a bag that is larger than a tile a
    tile's worth from where it begins, so that the order of its sum is its own. `heads` are where its bags begin and `tos` where
    their rows do; gives the end of the tile, how many bags it has, and the bag that is next.
    """
    count, high = 0, low
    while bag < stop and count < TILE:
        end = offsets[own + bag + 1]
        if end - low > TILE:
            if count == 0:  # it is the first of the tile: as much of it as goes in
                heads[0], heads[1], tos[0] = _zero, np.uint64(TILE), np.uint64(bag * stride + left)
                return low + TILE, 1, bag
            break
        heads[count], tos[count] = np.uint64(high - low), np.uint64(bag * stride + left)
        count, bag, high = count + 1, bag + 1, end
    heads[count] = np.uint64(high - low)
    return high, count, bag


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
    at, fields = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    for low in range(start, stop, TILE):
        high = min(low + TILE, stop)
        unpack(low, high, ids, columns, pointers, fields)
        for j in range(columns.shape[0]):
            find(low, high, ids, columns[j], keys, pointers, fields, at)
            for n in range(low, high):
                out[n, j] = at[n - low]
