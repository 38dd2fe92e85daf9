"""The transposed lookup in a fixed order: every addition is written down, sorted by where it goes, and summed run by run.

A run of equal places is cut into pieces of `PIECE` additions; the pieces' sums are runs in turn, until there is one a place. The
tree of sums depends on the ids alone: the same bits every time, whatever runs beside it. Unlike `scatter` it keeps
an index of every addition in device memory, 20 bytes each, and sorts it; what comes out is the gradient of the touched units.
"""

from __future__ import annotations

from cce_kernels.addresses import GIVEN, NONE, fetch, wrapped
from cce_kernels.launch import CODEC, COLUMNS, LEFT, MEMORY, OWN, SCALES, TERMS, WIDTH, Addresses, Launch
from cce_kernels.lookup import MEAN, TILE, bag_of, ids_at, term
from cce_kernels.runtime import INTERPRETED, call, power_of_two, tl, torch, triton

_WIDTH, _LEFT = tl.constexpr(WIDTH), tl.constexpr(LEFT)
_CODEC, _MEMORY, _SCALES = tl.constexpr(CODEC), tl.constexpr(MEMORY), tl.constexpr(SCALES)
_GIVEN, _NONE = tl.constexpr(GIVEN), tl.constexpr(NONE)
_COLUMNS, _TERMS = tl.constexpr(COLUMNS), tl.constexpr(TERMS)

PIECE = 64  # additions of one sum
_SUMS = 1 << 12 if INTERPRETED else 1 << 10  # floats of a tile of sums
NOWHERE = 2**62  # the place of an addition that does not count: past the last


@triton.jit
def _emit(
    rows, columns, memory_at, keys_at, pointers_at, weights_at, ids, offsets, padding, factors, grads, keys,
    sources, coefficients, weight_keys, slopes, n_rows, grad_stride, unit,
    N: tl.constexpr, C: tl.constexpr, W: tl.constexpr, U: tl.constexpr, TERMS: tl.constexpr, KINDS: tl.constexpr,
    WKIND: tl.constexpr, CODEC: tl.constexpr, WCODEC: tl.constexpr, SIGNED: tl.constexpr, WRAP: tl.constexpr,
    WWRAP: tl.constexpr, ALIGN: tl.constexpr, OUT: tl.constexpr, BOUNDED: tl.constexpr, BAGS: tl.constexpr,
    MEAN: tl.constexpr, PADDED: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """Program (block, 0): the additions of N rows of the launch's one member.

    For id n, column j and unit u of its block: which unit of the memory gets it, where in the gradients it comes from, and
    its coefficient; for id n and column j: the place of its weight, and the gradient of that.
    """
    table = rows
    memory, scales, codec = tl.load(table + _MEMORY) + memory_at, tl.load(table + _SCALES), tl.load(table + _CODEC)
    width, left, n_columns = tl.load(table + _WIDTH), tl.load(table + _LEFT), tl.load(table + _COLUMNS)
    b = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = b < n_rows
    c, i, u = tl.arange(0, C)[None, :], tl.arange(0, W)[None, None, :], tl.arange(0, U)[None, None, :]
    start, stop = bag_of(table, offsets, b, n_rows, inside, BAGS)
    longest = 1
    if BAGS:
        longest = tl.max(stop - start, 0)
    units = width // unit
    bad = tl.zeros([N], tl.int64)
    count = tl.zeros([N], tl.int64)
    if MEAN:
        for step in range(longest):
            _, live, _ = ids_at(table, ids, start + step, start + step < stop, padding, bad, BOUNDED, PADDED)
            count += live.to(tl.int64)
    count = tl.maximum(count, 1).to(tl.float32)
    for step in range(longest):
        n = start + step
        word, live, bad = ids_at(table, ids, n, n < stop, padding, bad, BOUNDED, PADDED)
        share = live.to(tl.float32)
        if FACTORS:
            share = tl.load(factors + n, mask=live, other=0.0)
        share = tl.div_rn(share, count)
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
            entry = n[:, None] * n_columns + c * tl.load(table + _TERMS) + t
            wanted = live[:, None] & here
            place = wrapped(row[:, :, None], here[:, :, None], at[:, :, None] + (u * unit).to(tl.uint64), WRAP)
            each = entry[:, :, None] * units + u
            mine = wanted[:, :, None] & (u < units)
            tl.store(keys + each, place.to(tl.int64) // unit, mask=mine)
            source = b[:, None, None] * grad_stride + left + (c * width)[:, :, None] + u * unit
            tl.store(sources + each, source, mask=mine)
            factor = weight * sign * share[:, None]
            tl.store(coefficients + each, factor[:, :, None] + tl.zeros([N, C, U], tl.float32), mask=mine)
            if WKIND != _NONE and WKIND != _GIVEN:
                place = wrapped(row[:, :, None], here[:, :, None], at[:, :, None] + i.to(tl.uint64), WRAP)
                live_floats = wanted[:, :, None] & (i < width)
                from_ = grads + b[:, None, None] * grad_stride + left + (c * width)[:, :, None] + i
                grad = tl.load(from_, mask=live_floats, other=0.0)
                value = fetch(memory, scales, codec, place, live_floats, CODEC, ALIGN)
                slope = tl.sum(grad * value, 2) * sign * share[:, None]
                tl.store(weight_keys + entry, wplace.to(tl.int64), mask=wlive)
                tl.store(slopes + entry, slope, mask=wlive)


@triton.jit
def _sum_pieces(
    order, sources, coefficients, values, starts, out, n_pieces, unit,
    N: tl.constexpr, U: tl.constexpr, ORDERED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out[p] = Σ coefficient · values[source : +unit] over the additions starts[p] … starts[p + 1], one after the other.

    Without `ORDERED`, addition k is the k-th unit of `values` itself.
    """
    p = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    i = tl.arange(0, U)[None, :]
    inside = p < n_pieces
    start = tl.load(starts + p, mask=inside, other=0)
    stop = tl.load(starts + p + 1, mask=inside, other=0)
    total = tl.zeros([N, U], values.dtype.element_ty)
    for step in range(tl.max(stop - start, 0)):
        k = start + step
        live = k < stop
        if ORDERED:
            entry = tl.load(order + k, mask=live, other=0)
            source = tl.load(sources + entry, mask=live, other=0)
        else:
            entry = k
            source = k * unit
        value = tl.load(values + source[:, None] + i, mask=live[:, None] & (i < unit), other=0.0)
        if SCALED:
            value = value * tl.load(coefficients + entry, mask=live, other=0.0)[:, None]
        total += value
    tl.store(out + p[:, None] * unit + i, total, mask=inside[:, None] & (i < unit))


def sum_runs(
    keys: torch.Tensor, sources: torch.Tensor, coefficients: torch.Tensor | None, values: torch.Tensor, unit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of all additions that have the same key, in the order in which they stand.

    Args:
        keys: int64 (n,), where each addition goes; `NOWHERE` leaves it out.
        sources: int64 (n,), the first of its `unit` floats in the flat `values` (float32 or float64).
        coefficients: float32 (n,), or None where they are all 1.

    Returns:
        The distinct keys, ascending, int64 (m,), and the sums (m, unit), of the type of `values`.
    """
    ordered, order = torch.sort(keys, stable=True)
    live = int((ordered < NOWHERE).sum())
    ordered, order = ordered[:live], order[:live]
    index = torch.unique_consecutive(ordered)
    first = True
    while True:
        starts = _pieces(ordered)
        count = len(starts) - 1
        out = torch.empty((count, unit), dtype=values.dtype, device=keys.device)
        if count:
            wide = power_of_two(unit)
            block = max(1, min(_SUMS // wide, power_of_two(count)))
            call(_sum_pieces, (triton.cdiv(count, block),),
                order, sources, sources if coefficients is None else coefficients, values, starts, out, count, unit,
                N=block, U=wide, ORDERED=first, SCALED=first and coefficients is not None,
            )  # fmt: skip
        if count == len(index):
            return index, out
        ordered, values, first = ordered[starts[:-1]], out.view(-1), False


def _pieces(ordered: torch.Tensor) -> torch.Tensor:
    """Where the pieces of the runs of equal numbers begin, and the end of all."""
    n = len(ordered)
    place = torch.arange(n, device=ordered.device)
    fresh = torch.ones(n, dtype=torch.bool, device=ordered.device)
    fresh[1:] = ordered[1:] != ordered[:-1]
    firsts = fresh.nonzero().view(-1)
    within = place - firsts[fresh.cumsum(0) - 1]
    return torch.cat([(within % PIECE == 0).nonzero().view(-1), place.new_tensor([n])])


def run(
    launch: Launch, ids: torch.Tensor, offsets: torch.Tensor | None, padding: torch.Tensor | None,
    factors: torch.Tensor | None, mode: int, grads: torch.Tensor, at: Addresses = OWN,
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:  # fmt: skip
    """Of a launch of one member: (units, sums) of its memory, and (places, sums) of its weights where it has some."""
    layout = launch.members[0].layout
    columns, units = len(layout.columns), layout.width // layout.unit
    n_rows, n, device = grads.shape[0], ids.numel() * columns, grads.device
    keys = torch.full((n * units,), NOWHERE, dtype=torch.int64, device=device)
    sources = torch.empty(n * units, dtype=torch.int64, device=device)
    coefficients = torch.empty(n * units, dtype=torch.float32, device=device)
    weight_keys = torch.full((n if launch.learned else 0,), NOWHERE, dtype=torch.int64, device=device)
    slopes = torch.empty(len(weight_keys), dtype=torch.float32, device=device)
    block = launch.rows_of_a_tile(TILE, n_rows)
    nothing = launch.rows
    if n_rows and n:
        call(_emit, (triton.cdiv(n_rows, block),),
            launch.rows, launch.columns, *at, ids, nothing if offsets is None else offsets,
            nothing if padding is None else padding, grads if factors is None else factors, grads, keys, sources,
            coefficients, weight_keys, slopes, n_rows, grads.stride(0), layout.unit, N=block, U=power_of_two(units),
            BAGS=offsets is not None, MEAN=mode == MEAN, PADDED=padding is not None, FACTORS=factors is not None,
            **launch.meta,
        )  # fmt: skip
    memory = sum_runs(keys, sources, coefficients, grads, layout.unit)
    if not launch.learned:
        return memory, None
    own = torch.arange(n, device=device)
    return memory, sum_runs(weight_keys, own, None, slopes, 1)
