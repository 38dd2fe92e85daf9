"""The lookup: ids → addresses → blocks summed → vectors, bags too, for many tables in one launch.

    out[b, c·w : (c+1)·w] = Σ_{n in bag b} factor[n] · Σ_t weight[n,c,t] · M[ address[n,c,t] : +w  (mod the region) ]

The kernel holds a tile (rows, chunks, width) of vectors in registers; addresses are found where they are used and never
written. It moves the ids, the offsets, pointers' words, the blocks and the vectors, each once.
"""

from __future__ import annotations

from cce_kernels.addresses import GIVEN, NONE, addresses, block_weight, column, fetch, flag, wrapped
from cce_kernels.hashing import as_word, premix
from cce_kernels.launch import (
    CHUNKS,
    CODEC,
    DIM,
    FIELDS,
    FINAL,
    FIRST,
    KEYS,
    LEFT,
    MEMORY,
    OWN,
    POINTERS,
    PROJECTION,
    SCALES,
    SOURCE,
    TERMS,
    VOCAB,
    WCODEC,
    WEIGHTS,
    WIDTH,
    WSCALES,
    Addresses,
    Launch,
)  # fmt: skip
from cce_kernels.runtime import INTERPRETED, call, tl, torch, triton

_FIELDS, _VOCAB, _TERMS, _WIDTH = tl.constexpr(FIELDS), tl.constexpr(VOCAB), tl.constexpr(TERMS), tl.constexpr(WIDTH)
_CHUNKS, _LEFT, _FIRST, _CODEC = tl.constexpr(CHUNKS), tl.constexpr(LEFT), tl.constexpr(FIRST), tl.constexpr(CODEC)
_MEMORY, _SCALES, _KEYS = tl.constexpr(MEMORY), tl.constexpr(SCALES), tl.constexpr(KEYS)
_POINTERS, _SOURCE, _WCODEC = tl.constexpr(POINTERS), tl.constexpr(SOURCE), tl.constexpr(WCODEC)
_FINAL, _PROJECTION, _DIM = tl.constexpr(FINAL), tl.constexpr(PROJECTION), tl.constexpr(DIM)
_WEIGHTS, _WSCALES = tl.constexpr(WEIGHTS), tl.constexpr(WSCALES)

SUM, MEAN = 0, 1
TILE = 1 << 15 if INTERPRETED else 1 << 11  # floats of a tile
GOOD = 2**63 - 1  # no bad id: above every position
_GOOD, _GIVEN, _NONE = tl.constexpr(GOOD), tl.constexpr(GIVEN), tl.constexpr(NONE)


@triton.jit
def bag_of(table, offsets, b, n_rows, here, BAGS: tl.constexpr):
    """Where the ids of the rows `b` begin and end."""
    start = tl.load(table + _SOURCE) * n_rows + b
    if BAGS:
        stop = tl.load(offsets + start + 1, mask=here, other=0)
        start = tl.load(offsets + start, mask=here, other=0)
    else:
        stop = start + here.to(tl.int64)
    return start, stop


@triton.jit
def ids_at(table, ids, n, live, padding, bad, BOUNDED: tl.constexpr, PADDED: tl.constexpr):
    """The ids at the places `n`, which of them count, and the first place of one outside the vocabulary so far."""
    word = as_word(tl.load(ids + n, mask=live, other=0))
    if PADDED:
        live = live & (word.to(tl.int64) != tl.load(padding + tl.load(table + _SOURCE)))
    if BOUNDED:
        # No vocab is 0, and all words are at most 0 − 1.
        fits = flag(word <= (tl.load(table + _VOCAB) - 1).to(tl.uint64))
        bad = tl.minimum(bad, tl.where(live & (fits == 0), n, _GOOD))
        live = live & fits
    return word, live, bad


@triton.jit
def term(
    table, columns, c, t: tl.constexpr, word, n, live, keys_at, pointers_at, weights_at, KINDS: tl.constexpr,
    WKIND: tl.constexpr, WCODEC: tl.constexpr, SIGNED: tl.constexpr, WWRAP: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Term `t` of every chunk: its column's numbers and whether there is one, addresses, signs, weights and where those lie.

    Given weights are found by the place `n` of an id, all others by the id.
    """
    keys = (tl.load(table + _KEYS) + keys_at).to(tl.pointer_type(tl.uint64))
    pointers = (tl.load(table + _POINTERS) + pointers_at).to(tl.pointer_type(tl.uint64))
    first, terms = tl.load(table + _FIRST), tl.load(table + _TERMS)
    here = (c < tl.load(table + _CHUNKS)) & (c * 0 + t < terms)
    row = column(columns, first, c, t, terms, 0)
    id, mixed, wanted = word[:, None], premix(word)[:, None], live[:, None] & here
    at, sign = addresses(row, here, id, mixed, wanted, keys, pointers, (KINDS >> (3 * t)) & 7, SIGNED, ALIGN)
    weight, wplace, wlive = tl.full([1, 1], 1.0, tl.float32), at, wanted
    if WKIND != _NONE:
        weight, wplace, wlive = block_weight(
            column(columns, first, c, t, terms, 1), here, n.to(tl.uint64)[:, None] if WKIND == _GIVEN else id, mixed, wanted,
            keys, pointers, tl.load(table + _WEIGHTS) + weights_at, tl.load(table + _WSCALES), tl.load(table + _WCODEC), WKIND,
            WCODEC, WWRAP,
        )  # fmt: skip
    return row, here, at, sign, weight, wplace, wlive


@triton.jit
def project(
    table, projection, total, seen, out, out_stride, b, inside, N: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """out[b] = total[b] · W + seen[b] · bias, D columns at a time; the products in float32, as the CPU's are."""
    width, chunks, dim = tl.load(table + _WIDTH), tl.load(table + _CHUNKS), tl.load(table + _DIM)
    weights = projection.to(tl.pointer_type(tl.float32))
    e, vectors = tl.arange(0, C * W), tl.reshape(total, [N, C * W])
    row, here = e // W * width + e % W, (e // W < chunks) & (e % W < width)
    final = tl.load(table + _FINAL)
    for low in range(0, dim, D):
        d = low + tl.arange(0, D)
        w = tl.load(weights + row[:, None] * dim + d[None, :], mask=here[:, None] & (d < dim)[None, :], other=0.0)
        bias = tl.load(weights + chunks * width * dim + d, mask=d < dim, other=0.0)
        value = tl.dot(vectors, w, input_precision="ieee") + seen[:, None] * bias[None, :]
        to = out + b[:, None] * out_stride + final + d[None, :]
        tl.store(to, value, mask=inside[:, None] & (d < dim)[None, :])


@triton.jit
def _lookup(
    rows, columns, memory_at, keys_at, pointers_at, weights_at, projection_at, ids, offsets, padding, factors, out, inner, mass,
    error, n_rows, out_stride, inner_stride,
    N: tl.constexpr, C: tl.constexpr, W: tl.constexpr, TERMS: tl.constexpr, KINDS: tl.constexpr, WKIND: tl.constexpr,
    CODEC: tl.constexpr, WCODEC: tl.constexpr, SIGNED: tl.constexpr, WRAP: tl.constexpr, WWRAP: tl.constexpr,
    ALIGN: tl.constexpr, OUT: tl.constexpr, BOUNDED: tl.constexpr, BAGS: tl.constexpr, MEAN: tl.constexpr, PADDED: tl.constexpr,
    FACTORS: tl.constexpr, MASS: tl.constexpr, INNER: tl.constexpr, PROJECT: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Program (block, member): N rows of one member. `error` gets the least place of an id outside its vocabulary."""
    table = rows + tl.program_id(1) * _FIELDS
    memory, scales, codec = tl.load(table + _MEMORY) + memory_at, tl.load(table + _SCALES), tl.load(table + _CODEC)
    # Divisibility that the compiler cannot know makes loads and stores up to 16 bytes wide.
    width, chunks = tl.multiple_of(tl.load(table + _WIDTH), OUT), tl.load(table + _CHUNKS)
    b = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = b < n_rows
    c, i = tl.arange(0, C)[None, :], tl.arange(0, W)[None, None, :]
    start, stop = bag_of(table, offsets, b, n_rows, inside, BAGS)
    longest = 1
    if BAGS:
        longest = tl.max(stop - start, 0)
    total = tl.zeros([N, C, W], tl.float32)
    # Ids are counted as integers, since a float32 stops growing at 2^24.
    seen = tl.zeros([N], tl.float32 if FACTORS else tl.int64)
    bad = tl.full([N], _GOOD, tl.int64)
    for step in range(longest):
        n = start + step
        word, live, bad = ids_at(table, ids, n, n < stop, padding, bad, BOUNDED, PADDED)
        vector = tl.zeros([N, C, W], tl.float32)
        for t in tl.static_range(TERMS):
            row, here, at, factor, weight, _, _ = term(
                table,
                columns,
                c,
                t,
                word,
                n,
                live,
                keys_at,
                pointers_at,
                weights_at,
                KINDS,
                WKIND,
                WCODEC,
                SIGNED,
                WWRAP,
                ALIGN,
            )
            place = wrapped(row[:, :, None], here[:, :, None], at[:, :, None] + i.to(tl.uint64), WRAP)
            value = fetch(memory, scales, codec, place, (live[:, None] & here)[:, :, None] & (i < width), CODEC, ALIGN)
            if SIGNED or WKIND != _NONE:
                value = value * (weight * factor)[:, :, None]
            if t == 0:
                vector = value
            else:
                vector = vector + value
        share = live.to(tl.int64)
        if FACTORS:
            share = tl.load(factors + n, mask=live, other=0.0)
            vector = vector * share[:, None, None]
        if BAGS:
            total += vector
        else:
            total = vector
        seen += share
    seen = seen.to(tl.float32)
    if MEAN:
        total = tl.div_rn(total, tl.maximum(seen, 1.0)[:, None, None] + tl.zeros_like(total))
        seen = tl.minimum(seen, 1.0)
    live = inside[:, None, None] & (c < chunks)[:, :, None] & (i < width)
    across = (c * width)[:, :, None] + i
    final = tl.multiple_of(tl.load(table + _FINAL), OUT)
    projection = tl.load(table + _PROJECTION) + projection_at
    if INNER:  # what torch makes more of, and what a projection's gradient is made from
        left = tl.multiple_of(tl.load(table + _LEFT), OUT)
        more = (across * 0 + final < 0) | (across * 0 + projection != 0)
        tl.store(inner + b[:, None, None] * inner_stride + left + across, total, mask=live & more)
    if PROJECT:
        if projection != 0:
            project(table, projection, total, seen, out, out_stride, b, inside, N, C, W, D)
        live = live & (across * 0 + projection == 0)
    tl.store(out + b[:, None, None] * out_stride + final + across, total, mask=live & (across * 0 + final >= 0))
    if MASS:
        tl.store(mass + tl.load(table + _SOURCE) * n_rows + b, seen, mask=inside)
    if BOUNDED:
        least = tl.min(bad, 0)
        tl.atomic_min(error, least, mask=least != _GOOD)


def run(
    launch: Launch, ids: torch.Tensor, offsets: torch.Tensor | None, padding: torch.Tensor | None,
    factors: torch.Tensor | None, mode: int, out: torch.Tensor, error: torch.Tensor,
    inner: torch.Tensor | None = None, mass: torch.Tensor | None = None, at: Addresses = OWN, projection_at: int = 0,
) -> None:  # fmt: skip
    """Fill the columns of `out` (rows, Σ dim), and of `inner` (rows, Σ of the memories' vectors) those that are not the same, for
    the launch's members. All arguments are checked by the caller."""
    n_rows = out.shape[0]
    block = launch.rows_of_a_tile(TILE, n_rows)
    nothing = launch.rows  # an argument that the compiled code does not touch
    call(_lookup, launch.grid(n_rows, block),
        launch.rows, launch.columns, *at, projection_at, ids, nothing if offsets is None else offsets,
        nothing if padding is None else padding,
        out if factors is None else factors, out, out if inner is None else inner, out if mass is None else mass, error,
        n_rows, out.stride(0), out.stride(0) if inner is None else inner.stride(0),
        N=block, BAGS=offsets is not None, MEAN=mode == MEAN, PADDED=padding is not None, FACTORS=factors is not None,
        MASS=mass is not None, INNER=inner is not None, **launch.wide, **launch.meta,
    )  # fmt: skip
