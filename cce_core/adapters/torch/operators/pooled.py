"""The operators of tables that are plain sums of blocks: ids, or bags of ids, to vectors in one pass of the core's loops.

With a row r that is an id or a bag, a_n what its n-th id counts (1 where nothing is given), b(n, j) the blocks of the memory M,
and W a projection whose last row is the bias,

    x[r] = [ Σ_{n ∈ r} a_n · Σ_j M[b(n, j)],  Σ_{n ∈ r} a_n ]            vectors[r] = x[r] · W

or x alone, without its last column, where there is no projection. `spread` is the gradient of M from those of x; `unwiden` gives
those of x and W from those of the vectors; `weigh` those of a, from the vectors of all ids. Each is linear in every one of its
tensors, and has its gradient in terms of the others. Off the CPU, and in other types than float32, they are made of
`blocks.gather`, `blocks.scatter` and torch's own operations. Sums are float32 at least, and returned so: of a memory in a half
type, too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch.operators import blocks, eager
from cce_core.adapters.torch.operators.arguments import floats, group_of, in_core, row
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.facts import MEMORY, part_of
from cce_core.adapters.torch.operators.registry import (
    Context,
    Inputs,
    define,
    differentiable,
    handover,
    using,
)
from cce_core.sketching import blocks as core
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.projection import unwidened


class Bags(NamedTuple):
    """Bags of ids that are summed.

    Attributes:
        offsets: int64 (bags + 1,), where each begins in the row of ids, and the end of the last, which is their number.
        per_sample_weights: (n,), what every id is multiplied by; None where all are 1.
    """

    offsets: Tensor
    per_sample_weights: Tensor | None


@functools.lru_cache(maxsize=1024)
def _projection_at(address: int, rank: int, dim: int) -> NDArray[np.int64]:
    """What `projection` of the core reads of one that lies alone."""
    return np.array([[address, rank, dim, 0, 0, 0]], np.int64)


def _batch(ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> JaggedBatch:
    """Ids and bags as the core has them, checked but for the vocabulary."""
    words, factors = array(row(ids, "ids")), None
    if per_sample_weights is not None:
        factors = array(floats(per_sample_weights, len(words)))
    if offsets is None:
        return JaggedBatch(words, [0], 1, [len(words)], len(words), None, factors)
    n, ends = len(words), array(row(offsets, "offsets")).view(np.int64)
    if not len(ends) or ends[0] != 0 or ends[-1] != n or (ends[1:] < ends[:-1]).any():
        eager.check_ends(offsets, n)  # raises
    return JaggedBatch(words, [0], 1, [n], len(ends) - 1, ends[None], factors)


# --- on the CPU -------------------------------------------------------------------------------------------------------


def _vectors(
    memory: Tensor, projection: Tensor | None, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None,
    keys: Tensor | None, pointers: Tensor | None, spec: str, sparse: bool,
) -> Tensor:  # fmt: skip
    for given in (memory, projection, per_sample_weights):
        if given is not None and given.dtype != torch.float32:
            return _vectors_anywhere(memory, projection, ids, offsets, per_sample_weights, keys, pointers, spec, sparse)
    layout, end = part_of(spec, MEMORY)
    batch = _batch(ids, offsets, per_sample_weights)
    if memory.shape != (layout.n_units, layout.unit):
        floats(memory, layout.n_units, layout.unit)  # raises
    if projection is not None and projection.shape[:-1] != (layout.dim + 1,):
        floats(projection, layout.dim + 1, projection.shape[-1])  # raises
    memory, projection = memory.contiguous(), None if projection is None else projection.contiguous()
    keys, pointers = None if keys is None else keys.contiguous(), None if pointers is None else pointers.contiguous()
    group = group_of(spec, MEMORY, memory, keys, pointers, projection)
    out = np.empty((batch.rows, layout.dim if projection is None else projection.shape[-1]), np.float32)
    left, outside = group.forward(batch, handover.wanted, out)
    if outside:
        _check.ids_within(batch.ids, end or 0)  # raises
    if handover.wanted:
        handover.addresses = left.kept
        if left.inner is not None:
            handover.inner = torch.from_numpy(left.inner)
    return torch.from_numpy(out)


def _spread(
    grads: Tensor, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, keys: Tensor | None,
    pointers: Tensor | None, spec: str,
) -> Tensor:  # fmt: skip
    if not in_core(grads, per_sample_weights):
        return _spread_anywhere(grads, ids, offsets, per_sample_weights, keys, pointers, spec)
    layout, end = part_of(spec, MEMORY)
    batch, kept = _batch(ids, offsets, per_sample_weights), handover.addresses
    if end is not None and kept is None:  # else the forward pass has looked at them
        _check.ids_within(batch.ids, end)
    keys, pointers = None if keys is None else keys.contiguous(), None if pointers is None else pointers.contiguous()
    group = group_of(spec, MEMORY, None, keys, pointers)
    vectors = array(floats(grads, batch.rows, layout.dim))
    out = core.scatter(group, batch, vectors, None, kept)
    return torch.from_numpy(out).view(layout.n_units, layout.unit)


def _unwiden(grads: Tensor, inner: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    if not in_core(grads, inner, projection):
        return _unwiden_anywhere(grads, inner, projection)
    rows, within = inner.shape
    dim, projection = projection.shape[-1], projection.contiguous()
    at = _projection_at(floats(projection, within, dim).data_ptr(), within - 1, dim)
    to_inner, to_projection = unwidened(
        at, array(floats(inner, rows, within)).reshape(rows, within), array(floats(grads, rows, dim)).reshape(rows, dim),
        0, projection.numel(), within - 1,
    )  # fmt: skip
    return torch.from_numpy(to_inner), torch.from_numpy(to_projection).view(within, dim)


def _weigh(each: Tensor, grads: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
    if not in_core(each, grads):
        return _weigh_anywhere(each, grads, ids, offsets)
    batch, dim = _batch(ids, offsets, None), each.shape[1]
    rows = array(floats(grads, batch.rows, dim)).reshape(batch.rows, dim)
    return torch.from_numpy(batch.slopes(0, array(floats(each, len(ids), dim)).reshape(len(ids), dim), rows, 0))


# --- elsewhere ---------------------------------------------------------------------------------------------------------


def of_ids(rows: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
    """The row of every id."""
    return rows if offsets is None else rows.index_select(0, blocks.bags(offsets, ids))


def weighted(values: Tensor, per_sample_weights: Tensor | None) -> Tensor:
    """A row for every id, times its amount."""
    return values if per_sample_weights is None else values * per_sample_weights[:, None]


def sums(values: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
    """The sum over each bag of what is given for every id, in its type: not a half one, which would stop growing."""
    if offsets is None:
        return values
    out = values.new_zeros((offsets.shape[0] - 1, *values.shape[1:]))
    return out.index_add(0, blocks.bags(offsets, ids), values)


def counts(ids: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
    """How many ids each bag holds, int64; of those alone that `keep` says, where it is given."""
    return offsets.diff() if keep is None else sums(keep.to(torch.int64), ids, offsets)


def _masses(like: Tensor, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
    """What the ids of each row weigh together, in the type of `like`; whole numbers are added up exactly, however many."""
    if per_sample_weights is None:
        return like.new_ones(ids.shape) if offsets is None else counts(ids, offsets).to(like.dtype)
    kind = like.dtype if per_sample_weights.device.type == "mps" else torch.float64  # which mps does not have
    return sums(per_sample_weights.to(kind), ids, offsets).to(like.dtype)


def _vectors_anywhere(
    memory: Tensor, projection: Tensor | None, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None,
    keys: Tensor | None, pointers: Tensor | None, spec: str, sparse: bool,
) -> Tensor:  # fmt: skip
    each = blocks.gather(memory, ids, None, keys, pointers, spec, MEMORY)
    out = sums(weighted(each, per_sample_weights), ids, offsets)
    if projection is None:
        return out
    inner = torch.cat([out, _masses(out, ids, offsets, per_sample_weights)[:, None]], 1)
    if handover.wanted:
        handover.inner = inner
    return inner @ projection.to(inner.dtype)


def _spread_anywhere(
    grads: Tensor, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, keys: Tensor | None,
    pointers: Tensor | None, spec: str,
) -> Tensor:  # fmt: skip
    each = weighted(eager.wide(of_ids(grads, ids, offsets)), per_sample_weights)
    return blocks.scatter(each, ids, None, keys, pointers, spec, MEMORY)


def _unwiden_anywhere(grads: Tensor, inner: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    grads, inner, projection = eager.wide(grads), eager.wide(inner), eager.wide(projection)
    return grads @ projection[:-1].t(), inner.t() @ grads


def _weigh_anywhere(each: Tensor, grads: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
    return (eager.wide(each) * eager.wide(of_ids(grads, ids, offsets))).sum(1)


# --- shapes for tracing -----------------------------------------------------------------------------------------------


def _vectors_like(
    memory: Tensor, projection: Tensor | None, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None,
    keys: Tensor | None, pointers: Tensor | None, spec: str, sparse: bool,
) -> Tensor:  # fmt: skip
    rows = ids.shape[0] if offsets is None else offsets.shape[0] - 1
    dim = part_of(spec, MEMORY).layout.dim if projection is None else projection.shape[1]
    return memory.new_empty((rows, dim), dtype=eager.wide_type(memory.dtype))


def _spread_like(
    grads: Tensor, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None, keys: Tensor | None,
    pointers: Tensor | None, spec: str,
) -> Tensor:  # fmt: skip
    layout = part_of(spec, MEMORY).layout
    return grads.new_empty((layout.n_units, layout.unit), dtype=eager.wide_type(grads.dtype))


def _unwiden_like(grads: Tensor, inner: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    kind = eager.wide_type(grads.dtype)
    return grads.new_empty((inner.shape[0], inner.shape[1] - 1), dtype=kind), torch.empty_like(projection, dtype=kind)


def _weigh_like(each: Tensor, grads: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
    return each.new_empty((each.shape[0],), dtype=eager.wide_type(each.dtype))


# --- gradients: `ctx` counts the inputs from 1, after the dispatcher's keys -------------------------------------------


def _slope(
    memory: Tensor, projection: Tensor | None, grads: Tensor, bags: tuple[Tensor, Tensor | None], rest: list[Any]
) -> Tensor:  # fmt: skip
    """The gradient of the per-sample weights."""
    each = vectors(memory, projection, bags[0], None, None, *rest, False)
    return weigh(each, grads, *bags)


def _save_vectors(ctx: Context, inputs: Inputs) -> None:
    memory, projection, ids, offsets, per_sample_weights, keys, pointers, ctx.spec, ctx.sparse = inputs
    ctx.kind, read = memory.dtype, projection is not None or ctx.needs_input_grad[5]
    ctx.save_for_backward(memory if read else None, projection, ids, offsets, per_sample_weights, keys, pointers)


def _back_vectors(ctx: Context, grad: Tensor) -> Any:
    memory, projection, ids, offsets, per_sample_weights, *rest = ctx.saved_tensors
    bags, rest = (ids, offsets), [*rest, ctx.spec]
    to_memory = to_projection = to_weights = None
    if ctx.needs_input_grad[5]:
        to_weights = _slope(memory, projection, grad, bags, rest)
    if projection is not None:
        inner = ctx.inner
        if inner is None or torch.is_grad_enabled():
            inner = vectors(memory, None, *bags, per_sample_weights, *rest, False)
            inner = torch.cat([inner, _masses(inner, *bags, per_sample_weights)[:, None]], 1)
        grad, to_projection = unwiden(grad, inner, projection)
    if ctx.needs_input_grad[1]:
        if ctx.sparse:
            each = weighted(of_ids(grad, *bags), per_sample_weights)
            to_memory = using(ctx.addresses, blocks.scatter_sparse, each, ids, None, *rest, MEMORY)
        else:
            to_memory = using(ctx.addresses, spread, grad, *bags, per_sample_weights, *rest)
        to_memory = eager.narrow(to_memory, ctx.kind)
    return to_memory, to_projection, None, None, to_weights, None, None, None, None


def _save_spread(ctx: Context, inputs: Inputs) -> None:
    grads, ids, offsets, per_sample_weights, keys, pointers, ctx.spec = inputs
    ctx.save_for_backward(grads if ctx.needs_input_grad[4] else None, ids, offsets, per_sample_weights, keys, pointers)


def _back_spread(ctx: Context, grad: Tensor) -> Any:
    grads, ids, offsets, per_sample_weights, *rest = ctx.saved_tensors
    bags, rest = (ids, offsets), [*rest, ctx.spec]
    to_grads = to_weights = None
    if ctx.needs_input_grad[1]:
        to_grads = vectors(grad, None, *bags, per_sample_weights, *rest, False)
    if ctx.needs_input_grad[4]:
        to_weights = _slope(grad, None, grads, bags, rest)
    return to_grads, None, None, to_weights, None, None, None


def _back_unwiden(ctx: Context, to_inner: Tensor, to_projection: Tensor) -> Any:
    grads, inner, projection = ctx.saved_tensors
    a = to_inner @ projection[:-1] + inner @ to_projection
    c = torch.cat([to_inner.t() @ grads, grads.new_zeros((1, grads.shape[1]))])
    return a, grads @ to_projection.t(), c


def _save_all(ctx: Context, inputs: Inputs) -> None:
    ctx.save_for_backward(*inputs)


def _back_weigh(ctx: Context, grad: Tensor) -> Any:
    each, grads, *bags = ctx.saved_tensors
    return grad[:, None] * of_ids(grads, *bags), sums(grad[:, None] * each, *bags), None, None


_BAGS = "Tensor ids, Tensor? offsets, Tensor? amounts, Tensor? keys, Tensor? pointers, str spec"
vectors = differentiable(
    define(
        "vectors", f"(Tensor memory, Tensor? projection, {_BAGS}, bool sparse) -> Tensor",
        _vectors, _vectors_anywhere, _vectors_like,
    ),
    _save_vectors, _back_vectors, keeps=True, kernel=_vectors,
)  # fmt: skip
spread = differentiable(
    define("spread", f"(Tensor grads, {_BAGS}) -> Tensor", _spread, _spread_anywhere, _spread_like),
    _save_spread, _back_spread, kernel=_spread,
)  # fmt: skip
unwiden = differentiable(
    define(
        "unwiden", "(Tensor grads, Tensor inner, Tensor projection) -> (Tensor, Tensor)",
        _unwiden, _unwiden_anywhere, _unwiden_like,
    ),
    _save_all, _back_unwiden, kernel=_unwiden,
)  # fmt: skip
weigh = differentiable(
    define(
        "weigh", "(Tensor each, Tensor grads, Tensor ids, Tensor? offsets) -> Tensor", _weigh, _weigh_anywhere, _weigh_like
    ),
    _save_all, _back_weigh, kernel=_weigh,
)  # fmt: skip
