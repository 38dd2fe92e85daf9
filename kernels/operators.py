"""The three sums of one layout over tensors that come with each call, as the operators of an adapter need them.

With blocks b(n, j) of the memory M, weights w and vectors G, of id n and column j:

    gather   vectors[n, chunk] = Σ_j w[n, j] · M[b(n, j)]        over the columns of a chunk
    scatter  ∂M = Σ_n Σ_j w[n, j] · G[n, chunk of j]  at b(n, j)
    dot      ∂w[n, j] = ⟨M[b(n, j)], G[n, chunk of j]⟩

Unlike `tables`, which find weights and signs themselves, these take them from the caller, (n, columns), or none. A frame holds
no tensor of the caller's: their addresses are arguments of the kernels, so nothing is copied to the device at a call.
"""

from __future__ import annotations

import dataclasses

from cce_core.sketching.layout import HASH, Column, Layout
from cce_core.storage.codec import FLOAT32
from cce_kernels import lookup, ordered, scatter
from cce_kernels.addresses import GIVEN, fetch, wrapped
from cce_kernels.launch import CODEC, COLUMNS, MEMORY, SCALES, TERMS, WCODEC, WIDTH, Addresses, Launch, Member
from cce_kernels.lookup import TILE, ids_at, term
from cce_kernels.runtime import call, tl, torch, triton

_CODEC, _MEMORY, _SCALES = tl.constexpr(CODEC), tl.constexpr(MEMORY), tl.constexpr(SCALES)
_WIDTH, _COLUMNS, _TERMS = tl.constexpr(WIDTH), tl.constexpr(COLUMNS), tl.constexpr(TERMS)


@triton.jit
def _dot(
    rows, columns, memory_at, keys_at, pointers_at, weights_at, ids, grads, out, n_rows, grad_stride,
    N: tl.constexpr, C: tl.constexpr, W: tl.constexpr, TERMS: tl.constexpr, KINDS: tl.constexpr, WKIND: tl.constexpr,
    CODEC: tl.constexpr, WCODEC: tl.constexpr, SIGNED: tl.constexpr, WRAP: tl.constexpr, WWRAP: tl.constexpr,
    ALIGN: tl.constexpr, OUT: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """out[n, j] = ⟨block of column j, its part of grads[n]⟩; the sign of column j where SIGNED. 0 for ids out of range."""
    table = rows
    memory, scales, codec = tl.load(table + _MEMORY) + memory_at, tl.load(table + _SCALES), tl.load(table + _CODEC)
    width, terms = tl.multiple_of(tl.load(table + _WIDTH), OUT), tl.load(table + _TERMS)
    n = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = n < n_rows
    c, i = tl.arange(0, C)[None, :], tl.arange(0, W)[None, None, :]
    word, live, _ = ids_at(table, ids, n, inside, ids, tl.zeros([N], tl.int64), BOUNDED, False)
    for t in tl.static_range(TERMS):
        row, here, at, sign, _, _, _ = term(
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
        to = out + n[:, None] * tl.load(table + _COLUMNS) + c * terms + t
        if SIGNED:
            tl.store(to, sign + tl.zeros([N, C], tl.float32), mask=inside[:, None] & here)
        else:
            wanted = (live[:, None] & here)[:, :, None] & (i < width)
            place = wrapped(row[:, :, None], here[:, :, None], at[:, :, None] + i.to(tl.uint64), WRAP)
            value = fetch(memory, scales, codec, place, wanted, CODEC, ALIGN)
            grad = tl.load(grads + n[:, None, None] * grad_stride + (c * width)[:, :, None] + i, mask=wanted, other=0.0)
            tl.store(to, tl.sum(grad * value, 2), mask=inside[:, None] & here)


@dataclasses.dataclass(frozen=True)
class _Outline(Member):
    """A member whose tensors come with each call.

    Attributes:
        where: the device that they will be on.
        whole: whether the memory will begin at a multiple of 16 bytes.
        out: columns of the projection that will come; 0 for none.
    """

    where: torch.device | None = None
    whole: bool = True
    out: int = 0

    def __post_init__(self) -> None:
        """There is nothing to check yet."""

    @property
    def device(self) -> torch.device:
        """Where all tensors will be."""
        assert self.where is not None
        return self.where

    @property
    def aligned(self) -> bool:
        """Whether the memory will begin at a multiple of 16 bytes."""
        return self.whole

    @property
    def projected(self) -> bool:
        """Whether a projection will come."""
        return self.out > 0

    @property
    def dim(self) -> int:
        """Floats of a vector that comes out."""
        return self.out or self.layout.dim

    def row(self, first: int) -> list[int]:
        """The member's numbers, with addresses of 0; weights are float32."""
        out = super().row(first)
        out[WCODEC] = FLOAT32
        return out


def frame(
    layout: Layout, vocab: int | None, device: torch.device, codec: int = FLOAT32, *, given: bool = False,
    signed: bool = False, whole: bool = True, projected: int = 0,
) -> Launch:  # fmt: skip
    """What the sums of a layout are compiled and launched with; copies a few numbers to the device, so keep it.

    Args:
        layout: of the memory.
        vocab: ids are below it; None takes every 64-bit id.
        device: of all tensors.
        codec: of the memory: float32 or bfloat16.
        given: whether weights come with the ids.
        signed: for `signs` alone; the sums take signs as weights.
        whole: whether the memory begins at a multiple of 16 bytes.
        projected: columns of a projection behind the vectors, for `vectors`; 0 for none.
    """
    if not signed:
        plain = tuple(c._replace(a=0) if c.kind == HASH else c for c in layout.columns)
        layout = dataclasses.replace(layout, columns=plain)
    n = len(layout.columns)
    weight_layout = Layout((Column(GIVEN, 0, n, 1),), 1, n, n, n) if given else None
    member = _Outline(
        layout, None, codec=codec, vocab=vocab, weight_layout=weight_layout, where=device, whole=whole, out=projected
    )
    return Launch([member])


def gather(
    frame: Launch, memory: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, keys: torch.Tensor | None,
    pointers: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Vectors of int64 ids, float32 (n, dim), and on the device the place of the first id outside the vocabulary, or `GOOD`.

    All tensors are contiguous, of the frame's device, and as large as its layout says: callers see to that.

    Cost:
        One launch: ids, pointers' words, weights, blocks and vectors cross device memory once.
    """
    n, device = len(ids), frame.device
    out = torch.empty((n, frame.members[0].layout.dim), dtype=torch.float32, device=device)
    error = torch.full((1,), lookup.GOOD, dtype=torch.int64, device=device)
    if n:
        at = _addresses(memory, keys, pointers, weights)
        lookup.run(frame, ids, None, None, None, lookup.SUM, out, error, at=at)
    return out, error


def vectors(
    frame: Launch, memory: torch.Tensor, projection: torch.Tensor | None, ids: torch.Tensor, offsets: torch.Tensor | None,
    per_sample_weights: torch.Tensor | None, keys: torch.Tensor | None, pointers: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Vectors of ids, or sums of bags of them, each id times its amount, and through a projection with a bias.

        inner[r] = Σ_{n in r} amounts[n] · Σ_j M[b(n, j)]        out[r] = [inner[r], Σ amounts[n]] · projection

    Args:
        frame: `projected` to the columns of the projection, if there is one; without given weights.
        memory, ids, keys, pointers: as for `gather`.
        projection: float32 (inner + 1, dim), or None.
        offsets: int64 (bags + 1), where bags begin, and the end of the last; None takes each id for a row.
        per_sample_weights: float32 (n,), or None where all are 1.

    Returns:
        float32 (rows, dim), and the place of the first id out of range, as for `gather`.

    Cost:
        One launch: a bag's ids one after the other, the projection in it.
    """
    member, device = frame.members[0], frame.device
    rows = len(ids) if offsets is None else len(offsets) - 1
    out = torch.empty((rows, member.dim), dtype=torch.float32, device=device)
    error = torch.full((1,), lookup.GOOD, dtype=torch.int64, device=device)
    if rows:
        at, projected = _addresses(memory, keys, pointers, None), 0 if projection is None else projection.data_ptr()
        lookup.run(frame, ids, offsets, None, per_sample_weights, lookup.SUM, out, error, None, None, at, projected)
    return out, error


def spread(
    frame: Launch, grads: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, keys: torch.Tensor | None,
    pointers: torch.Tensor | None, deterministic: bool | None = None, offsets: torch.Tensor | None = None,
    per_sample_weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The scatter: float32 (units, unit), by atomic additions; or in a fixed order, by default where torch wants that.

    Ids outside the vocabulary count for nothing. Tensors as for `gather`, gradients float32; with offsets, or amounts without
    weights, those of the rows of `vectors`.

    Cost:
        One launch. In the fixed order, 20 bytes and a place in a sort for each block of each id besides.
    """
    layout = frame.members[0].layout
    out = torch.zeros((layout.n_units, layout.unit), dtype=torch.float32, device=frame.device)
    if len(ids) == 0:
        return out
    if torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic:
        units, sums = touched(frame, grads, ids, weights, keys, pointers, offsets, per_sample_weights)
        out[units] = sums
        return out
    at = _addresses(None, keys, pointers, weights)
    scatter.run(frame, ids, offsets, None, per_sample_weights, lookup.SUM, grads, frame.origin, out, None, at=at)
    return out


def touched(
    frame: Launch, grads: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, keys: torch.Tensor | None,
    pointers: torch.Tensor | None, offsets: torch.Tensor | None = None, per_sample_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The scatter's touched units alone, ascending, int64 (m,), and their sums in a fixed order, float32 (m, unit)."""
    at = _addresses(None, keys, pointers, weights)
    memory, _ = ordered.run(frame, ids, offsets, None, per_sample_weights, lookup.SUM, grads, at)
    return memory


def dot(
    frame: Launch, memory: torch.Tensor, grads: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor | None,
    pointers: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the weights: float32 (n, columns). The frame's weights are not given. Tensors as for `spread`."""
    return _columns(frame, memory, grads, ids, keys, pointers)


def signs(frame: Launch, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The signs that the columns draw for each id, 1 where one draws none: float32 (n, columns). The frame is `signed`."""
    return _columns(frame, None, None, ids, keys, None)


def _columns(
    frame: Launch, memory: torch.Tensor | None, grads: torch.Tensor | None, ids: torch.Tensor, keys: torch.Tensor | None,
    pointers: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    n = len(ids)
    out = torch.empty((n, frame.n_columns), dtype=torch.float32, device=frame.device)
    if n:
        block, g = frame.rows_of_a_tile(TILE, n), out if grads is None else grads
        call(_dot, frame.grid(n, block),
            frame.rows, frame.columns, *_addresses(memory, keys, pointers, None), ids, g, out, n, g.stride(0), N=block,
            **frame.meta,
        )  # fmt: skip
    return out


def _addresses(*tensors: torch.Tensor | None) -> Addresses:
    memory, keys, pointers, weights = (0 if t is None else t.data_ptr() for t in tensors)
    return memory, keys, pointers, weights
