"""The transposed lookup: gradients of vectors back to the blocks they came from, by float32 atomic additions.

    ∂M[ address[n,c,t] + i ] += factor[n] · weight[n,c,t] · G[b, c·w + i]                   for n in bag b
    ∂weight[n,c,t] = factor[n] · Σ_i G[b, c·w + i] · M[ address[n,c,t] + i ]                likewise scattered
    ∂factor[n] = Σ_c,t,i weight[n,c,t] · G[b, c·w + i] · M[ address[n,c,t] + i ]

Atomic additions come in any order, so the last bits differ from run to run; `segments` has the sums in a fixed order.
"""

from __future__ import annotations

from cce_kernels.addresses import GIVEN, NONE, fetch, wrapped
from cce_kernels.launch import CHUNKS, CODEC, FIELDS, LEFT, MEMORY, OWN, SCALES, WIDTH, Addresses, Launch
from cce_kernels.lookup import MEAN, TILE, bag_of, ids_at, term
from cce_kernels.runtime import call, tl, torch, triton

_FIELDS, _WIDTH, _CHUNKS, _LEFT = tl.constexpr(FIELDS), tl.constexpr(WIDTH), tl.constexpr(CHUNKS), tl.constexpr(LEFT)
_GIVEN, _NONE = tl.constexpr(GIVEN), tl.constexpr(NONE)
_CODEC, _MEMORY, _SCALES = tl.constexpr(CODEC), tl.constexpr(MEMORY), tl.constexpr(SCALES)


@triton.jit
def gradients_of(
    table, ids, padding, grads, grad_stride, b, inside, start, stop, longest, c, i,
    OUT: tl.constexpr, MEAN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The tile of the rows' gradients, divided by the ids that count where their mean was taken."""
    width, chunks = tl.multiple_of(tl.load(table + _WIDTH), OUT), tl.load(table + _CHUNKS)
    left = tl.multiple_of(tl.load(table + _LEFT), OUT)
    at = grads + b[:, None, None] * grad_stride + left + (c * width)[:, :, None] + i
    grad = tl.load(at, mask=inside[:, None, None] & (c < chunks)[:, :, None] & (i < width), other=0.0)
    if MEAN:
        count = tl.zeros_like(start)
        bad = tl.zeros_like(start)
        for step in range(longest):
            _, live, _ = ids_at(table, ids, start + step, start + step < stop, padding, bad, True, PADDED)
            count += live.to(tl.int64)
        grad = tl.div_rn(grad, tl.maximum(count, 1).to(tl.float32)[:, None, None] + tl.zeros_like(grad))
    return grad


@triton.jit
def _scatter(
    rows, columns, memory_at, keys_at, pointers_at, weights_at, ids, offsets, padding, factors, grads, into, out, slopes, n_rows,
    grad_stride, scale,
    N: tl.constexpr, C: tl.constexpr, W: tl.constexpr, TERMS: tl.constexpr, KINDS: tl.constexpr, WKIND: tl.constexpr,
    CODEC: tl.constexpr, WCODEC: tl.constexpr, SIGNED: tl.constexpr, WRAP: tl.constexpr, WWRAP: tl.constexpr,
    ALIGN: tl.constexpr, OUT: tl.constexpr, BOUNDED: tl.constexpr, BAGS: tl.constexpr, MEAN: tl.constexpr,
    PADDED: tl.constexpr, FACTORS: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """Program (block, member): N rows of one member. `into` (members, 2) says where in `out` its memory and its weights begin."""
    member = tl.program_id(1)
    table = rows + member * _FIELDS
    memory, scales, codec = tl.load(table + _MEMORY) + memory_at, tl.load(table + _SCALES), tl.load(table + _CODEC)
    width = tl.load(table + _WIDTH)
    to, weights_to = out + tl.load(into + 2 * member), out + tl.load(into + 2 * member + 1)
    b = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = b < n_rows
    c, i = tl.arange(0, C)[None, :], tl.arange(0, W)[None, None, :]
    start, stop = bag_of(table, offsets, b, n_rows, inside, BAGS)
    longest = 1
    if BAGS:
        longest = tl.max(stop - start, 0)
    grad = (
        gradients_of(table, ids, padding, grads, grad_stride, b, inside, start, stop, longest, c, i, OUT, MEAN, PADDED)
        * scale
    )
    bad = tl.zeros([N], tl.int64)
    for step in range(longest):
        n = start + step
        word, live, bad = ids_at(table, ids, n, n < stop, padding, bad, BOUNDED, PADDED)
        share = live.to(tl.float32)
        if FACTORS:
            share = tl.load(factors + n, mask=live, other=0.0)
        slope = tl.zeros([N], tl.float32)
        for t in tl.static_range(TERMS):
            row, here, at, sign, weight, wplace, wlive = term(
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
            wanted = (live[:, None] & here)[:, :, None] & (i < width)
            factor = weight * sign * share[:, None]
            tl.atomic_add(to + place, grad * factor[:, :, None], mask=wanted, sem="relaxed")
            if SLOPES or (WKIND != _NONE and WKIND != _GIVEN):  # what weights are given have no gradient here
                value = fetch(memory, scales, codec, place, wanted, CODEC, ALIGN)
                product = tl.sum(grad * value, 2)
                if WKIND != _NONE and WKIND != _GIVEN:
                    tl.atomic_add(weights_to + wplace, product * sign * share[:, None], mask=wlive, sem="relaxed")
                slope += tl.sum(tl.where(live[:, None] & here, product * weight * sign, 0.0), 1)
        if SLOPES:  # two members of one table may have the same ids
            tl.atomic_add(slopes + n, slope, mask=live, sem="relaxed")


def run(
    launch: Launch, ids: torch.Tensor, offsets: torch.Tensor | None, padding: torch.Tensor | None,
    factors: torch.Tensor | None, mode: int, grads: torch.Tensor, into: torch.Tensor, out: torch.Tensor,
    slopes: torch.Tensor | None, scale: float = 1.0, at: Addresses = OWN,
) -> None:  # fmt: skip
    """Add `scale` times the gradient into `out`, and those of the factors into `slopes`. Arguments are checked by the caller."""
    n_rows = grads.shape[0]
    block = launch.rows_of_a_tile(TILE, n_rows)
    nothing = launch.rows  # an argument that the compiled code does not touch
    call(_scatter, launch.grid(n_rows, block),
        launch.rows, launch.columns, *at, ids, nothing if offsets is None else offsets, nothing if padding is None else padding,
        grads if factors is None else factors, grads, into, out, out if slopes is None else slopes, n_rows,
        grads.stride(0), scale, N=block, BAGS=offsets is not None, MEAN=mode == MEAN, PADDED=padding is not None,
        FACTORS=factors is not None, SLOPES=slopes is not None, **launch.meta,
    )  # fmt: skip
