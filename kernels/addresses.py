"""From ids to places in a memory, and from places to floats: device functions that all kernels of tables share.

    address = base + stride · index(id)        place = address + i, from the region's end on at its start

A tile is (ids, chunks): each address is found once, however wide its block is. What a table is comes from device memory as
two arrays of 64-bit numbers, one row a member and one row a column (`COLUMN`), so that one launch serves many tables.
"""

from __future__ import annotations

from cce_core.sketching.layout import (
    BASE,
    DIGIT,
    HASH,
    IDENTITY,
    KIND,
    MARKS,
    PER_ID,
    POINTER,
    REGION,
    ROWS,
    STRIDE,
    A,
    B,
)
from cce_core.storage import marks
from cce_core.storage.codec import BFLOAT16, BLOCK, FLOAT32, INT4, INT8
from cce_kernels.hashing import keyed, multiply_high
from cce_kernels.runtime import tl, triton

_IDENTITY, _HASH, _POINTER = tl.constexpr(IDENTITY), tl.constexpr(HASH), tl.constexpr(POINTER)
_DIGIT = tl.constexpr(DIGIT)
_FLOAT32, _BFLOAT16, _INT8, _INT4 = (tl.constexpr(codec) for codec in (FLOAT32, BFLOAT16, INT8, INT4))
_BLOCK = tl.constexpr(BLOCK)
# Beside the kinds of a column, and the codecs: pointers of marked ids (MAP, the same number, is not for kernels); a weight that
# the caller gives for column and id; not there; not the same for all.
MARKED, GIVEN, NONE, MIXED = 4, 5, 6, 7
_MARKED, _NONE, _MIXED = tl.constexpr(MARKED), tl.constexpr(NONE), tl.constexpr(MIXED)
_WORDS, _IDS, _COUNT_BITS = (tl.constexpr(n) for n in (marks.WORDS, marks.IDS, marks.COUNT_BITS))

# A column's numbers are those of `Layout.array`, then which float of the block is meant (of a weight), for the block and
# for its weight.
SHIFT, COLUMN = MARKS + 1, MARKS + 2
_SHIFT, _COLUMN = tl.constexpr(SHIFT), tl.constexpr(COLUMN)
_KIND, _BASE, _STRIDE, _ROWS = tl.constexpr(KIND), tl.constexpr(BASE), tl.constexpr(STRIDE), tl.constexpr(ROWS)
_A, _B, _REGION = tl.constexpr(A), tl.constexpr(B), tl.constexpr(REGION)
_PER_ID, _MARKS = tl.constexpr(PER_ID), tl.constexpr(MARKS)


@triton.jit
def flag(x):
    """A comparison of uint64 as a plain truth value: the interpreter keeps it as uint64, which goes with no int64."""
    return tl.where(x, 1, 0) != 0


@triton.jit
def column(columns, first, c, t, terms, WEIGHT: tl.constexpr):
    """Where the numbers of term `t` of the chunks `c` begin."""
    return columns + ((first + c * terms + t) * 2 + WEIGHT) * _COLUMN


@triton.jit
def read_bits(words, position, bits, live):
    """The `bits` (0 to 63) bits that start at bit `position`: one 64-bit load, or two where a field crosses words."""
    word, shift = position >> 6, position & 63
    live = live & flag(bits > 0)
    low = tl.load(words + word, mask=live, other=0)
    after = tl.load(words + word + 1, mask=live & flag(shift + bits > 64), other=0)
    one = tl.full([1], 1, tl.uint64)
    return ((low >> shift) | ((after << 1) << (63 - shift))) & ((one << bits) - 1)


@triton.jit
def ones(word):
    """How many bits of each word are 1."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F) * 0x0101010101010101) >> 56


@triton.jit
def entries(words, ids, live):
    """`cce_core.storage.marks.entry` of the tile: which ids have an entry, and its number."""
    one = tl.full([1, 1], 1, tl.uint64)
    low = (one << _COUNT_BITS) - 1
    block = ids // _IDS
    bit = ids - block * _IDS + _COUNT_BITS
    first, last, shift = block * _WORDS, bit >> 6, bit & 63
    here = tl.load(words + first + last, mask=live, other=0)
    marked = live & flag(((here >> shift) & 1) == 1)
    entry = tl.load(words + first, mask=marked, other=0) & low
    for w in tl.static_range(_WORDS):
        word = tl.load(words + first + w, mask=marked & flag(last > w), other=0)
        word = tl.where(last == w, here & ((one << shift) - 1), word)
        if w == 0:
            word = word & (low << _COUNT_BITS)
        entry += ones(word)
    return marked, entry


@triton.jit
def addresses(
    row, here, ids, mixed, live, keys, pointers, KIND: tl.constexpr, SIGNED: tl.constexpr, ALIGN: tl.constexpr
):
    """Addresses, uint64, and signs, float32, of the tile (ids, chunks).

    Args:
        row: pointers to the columns' numbers (1, chunks); `here` says which of them there are.
        ids, mixed: uint64 (ids, 1): the ids and their `premix`; `live` says which tile entries are wanted.
        keys, pointers: uint64 arrays.
        KIND: of all columns, or MIXED; SIGNED: whether any draws a sign; ALIGN: divides all addresses.
    """
    base = tl.load(row + _BASE, mask=here, other=0).to(tl.uint64)
    stride = tl.load(row + _STRIDE, mask=here, other=0).to(tl.uint64)
    rows = tl.maximum(tl.load(row + _ROWS, mask=here, other=1), 1).to(tl.uint64)
    a = tl.load(row + _A, mask=here, other=1).to(tl.uint64)
    b = tl.load(row + _B, mask=here, other=0).to(tl.uint64)
    kind = tl.load(row + _KIND, mask=here, other=_IDENTITY)
    index = ids + tl.zeros_like(base)
    sign = tl.full([1, 1], 1.0, tl.float32)
    if KIND == _HASH or KIND == _MIXED:
        hashed = keyed(mixed, tl.load(keys + b, mask=here & (kind == _HASH), other=0))
        index = tl.where(kind == _HASH, multiply_high(hashed, rows), index)
        if SIGNED:
            drawn = (kind == _HASH) & flag(a == 1)
            sign = tl.where(drawn & flag((hashed & 1) == 1), -1.0, 1.0)
    if KIND == _POINTER or KIND == _MIXED:
        per_id = tl.load(row + _PER_ID, mask=here, other=0).to(tl.uint64)
        bits = tl.where(kind == _POINTER, b, tl.zeros_like(b))
        pointer = read_bits(pointers, ids * per_id + a, bits, live)
        # Pointers of a damaged file must not lead out of the memory.
        index = tl.where(kind == _POINTER, tl.minimum(pointer, rows - 1), index)
    if KIND == _MARKED or KIND == _MIXED:
        marked, entry = entries(pointers, ids, live & (kind == _MARKED))
        first = tl.load(row + _MARKS, mask=here, other=0).to(tl.uint64) * 64
        per_id = tl.load(row + _PER_ID, mask=here, other=0).to(tl.uint64)
        pointer = tl.minimum(read_bits(pointers, first + entry * per_id + a, b, marked), rows - 1)
        index = tl.where(kind == _MARKED, tl.where(marked, pointer, tl.zeros_like(pointer)), index)
    if KIND == _DIGIT or KIND == _MIXED:
        divisor = tl.where(kind == _DIGIT, a, tl.full([1, 1], 1, tl.uint64))
        index = tl.where(kind == _DIGIT, (ids // divisor) % rows, index)
    at = base + stride * index
    if ALIGN > 1:
        at = tl.multiple_of(at, [ALIGN, ALIGN])
    return at, sign


@triton.jit
def wrapped(row, here, place, WRAP: tl.constexpr):
    """The place, taken back to the start of the region where it passed its end."""
    if WRAP:
        base = tl.load(row + _BASE, mask=here, other=0).to(tl.uint64)
        region = tl.load(row + _REGION, mask=here, other=0).to(tl.uint64)
        place = tl.where(place >= base + region, place - region, place)
    return place


@triton.jit
def fetch_float32(memory, place, live, ALIGN: tl.constexpr):
    start = memory.to(tl.pointer_type(tl.float32))
    if ALIGN > 1:  # said here, since a call would lose it
        start = tl.multiple_of(start, 16)
    return tl.load(start + place, mask=live, other=0.0)


@triton.jit
def fetch_bfloat16(memory, place, live, ALIGN: tl.constexpr):
    start = memory.to(tl.pointer_type(tl.uint16))
    if ALIGN > 1:  # said here, since a call would lose it
        start = tl.multiple_of(start, 16)
    code = tl.load(start + place, mask=live, other=0)
    return (code.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def fetch_int8(memory, scales, place, live, ALIGN: tl.constexpr):
    start = memory.to(tl.pointer_type(tl.int8))
    if ALIGN > 1:  # said here, since a call would lose it
        start = tl.multiple_of(start, 16)
    code = tl.load(start + place, mask=live, other=0)
    return code.to(tl.float32) * tl.load(scales.to(tl.pointer_type(tl.float32)) + place // _BLOCK, mask=live, other=0.0)


@triton.jit
def fetch_int4(memory, scales, place, live):
    two = tl.load(memory.to(tl.pointer_type(tl.uint8)) + (place >> 1), mask=live, other=0)
    nibble = (two.to(tl.uint32) >> ((place & 1) << 2).to(tl.uint32)) & 15
    scale = tl.load(scales.to(tl.pointer_type(tl.float32)) + place // _BLOCK, mask=live, other=0.0)
    return (nibble.to(tl.float32) - 8.0) * scale


@triton.jit
def fetch(memory, scales, codec, place, live, CODEC: tl.constexpr, ALIGN: tl.constexpr):
    """The floats at `place`, as `cce_core.storage.codec.fetch` has them; `codec` is read where CODEC is MIXED."""
    if CODEC == _FLOAT32:
        return fetch_float32(memory, place, live, ALIGN)
    elif CODEC == _BFLOAT16:
        return fetch_bfloat16(memory, place, live, ALIGN)
    elif CODEC == _INT8:
        return fetch_int8(memory, scales, place, live, ALIGN)
    elif CODEC == _INT4:
        return fetch_int4(memory, scales, place, live)
    else:
        # All lanes of a program have one member: three of the four have no lane that is live, and load nothing.
        kind = tl.zeros_like(place).to(tl.int64) + codec
        value = fetch_float32(memory, place, live & (kind == _FLOAT32), ALIGN)
        value += fetch_bfloat16(memory, place, live & (kind == _BFLOAT16), ALIGN)
        value += fetch_int8(memory, scales, place, live & (kind == _INT8), ALIGN)
        four = fetch_int4(memory, scales, place, live & (kind == _INT4))
        return tl.where(kind == _INT4, four, value)


@triton.jit
def block_weight(
    row, here, ids, mixed, live, keys, pointers, weights, scales, codec,
    WKIND: tl.constexpr, WCODEC: tl.constexpr, WRAP: tl.constexpr,
):  # fmt: skip
    """The trained weights of the columns at `row`, found as blocks are found, 1 where a column has none; and their places."""
    kind = tl.load(row + _KIND, mask=here, other=_NONE)
    live = live & (kind != _NONE)
    place, _ = addresses(row, here, ids, mixed, live, keys, pointers, WKIND, False, 1)
    place += tl.load(row + _SHIFT, mask=here, other=0).to(tl.uint64)
    place = wrapped(row, here, place, WRAP)
    value = fetch(weights, scales, codec, place, live, WCODEC, 1)
    return tl.where(kind == _NONE, 1.0, value), place, live
