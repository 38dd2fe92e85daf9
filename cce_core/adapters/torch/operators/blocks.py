"""The operators `torch.ops.cce.*`: the core's loops over torch's memory on the CPU, `cuda` on a GPU, plain torch elsewhere.

With blocks b(n, j) of the memory M, weights w and vectors G, all three sums are derivatives of one number,

    F(M, w, G) = Σ_n Σ_j w[n, j] · ⟨M[b(n, j)], G[n, chunk of j]⟩

    gather  = ∂F/∂G        scatter = ∂F/∂M        dot = ∂F/∂w

so that each has the other two as its gradients, to any order. `rounded` and `decoded` pass gradients straight through; `signs`,
`digits` and `features` have none. Forward mode is not defined, and raises; but under the transforms of `torch.func` each operator
is the plain torch operations that it stands for, which have gradients of every order, forward mode and batching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch.operators import cuda, eager, rounding, shapes
from cce_core.adapters.torch.operators.arguments import floats, group_of, in_core, words_of
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.facts import bases_of, end_of, part_of, spec_of
from cce_core.adapters.torch.operators.openmp import used
from cce_core.adapters.torch.operators.registry import (
    Context,
    Inputs,
    define,
    differentiable,
    handover,
    using,
)
from cce_core.hashing.digits import digits as core_digits
from cce_core.method import deep_hash
from cce_core.sketching import blocks as core
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.group import TableGroup
from cce_core.sketching.layout import Layout
from cce_core.storage.codec import FLOAT32, codec

_NO_WORDS = np.empty(0, np.uint64)


def _sketch(layout: Layout, keys: Tensor | None, pointers: Tensor | None) -> Sketch:
    return Sketch(
        layout,
        _NO_WORDS if keys is None else array(keys.contiguous()),
        _NO_WORDS if pointers is None else array(pointers.contiguous()),
    )


def _fit(weights: Tensor | None, n: int, layout: Layout) -> Any:
    shape = (n, len(layout.columns))
    return None if weights is None else array(floats(weights, *shape)).reshape(shape)


# --- the three sums ---------------------------------------------------------------------------------------------------


def _gather(
    memory: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None,
    spec: str, part: str, sparse: bool = False,
) -> Tensor:  # fmt: skip
    if not in_core(memory, weights):
        return eager.gather(memory, ids, weights, keys, pointers, spec, part)
    layout, end = part_of(spec, part)
    words = words_of(ids, end)
    source = Memory(FLOAT32, array(floats(memory, layout.n_units, layout.unit)))
    group, out = TableGroup.of(_sketch(layout, keys, pointers), source), np.empty((len(words), layout.dim), np.float32)
    left, _ = group.forward(JaggedBatch.alone(words), handover.wanted, out, _fit(weights, len(words), layout))
    if handover.wanted:
        handover.addresses = left.kept
    return torch.from_numpy(out)


def _scatter(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor:  # fmt: skip
    if not in_core(grads, weights):
        return eager.scatter(grads, ids, weights, keys, pointers, spec, part)
    layout, end = part_of(spec, part)
    words = words_of(ids, end)
    vectors, factors = array(floats(grads, len(words), layout.dim)), _fit(weights, len(words), layout)
    group = TableGroup.of(_sketch(layout, keys, pointers))
    out = core.scatter(group, JaggedBatch.alone(words), vectors, factors, handover.addresses)
    return torch.from_numpy(out).view(layout.n_units, layout.unit)


@used
def scatter_sparse(
    grads: Tensor, ids: Tensor, weights: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor:  # fmt: skip
    layout, end = part_of(spec, part)
    if type(grads) is Tensor and cuda.here(grads):
        found_there = cuda.scatter_sparse(grads, ids, weights, keys, pointers, spec, part)
        if found_there is not None:
            return found_there
    if type(grads) is not Tensor or grads.device.type != "cpu" or not in_core(grads, weights):  # or it is being traced
        return eager.scatter_sparse(grads, ids, weights, keys, pointers, spec, part)
    words = words_of(ids, end if handover.addresses is None else None)  # else the forward pass has looked at them
    keys, pointers = None if keys is None else keys.contiguous(), None if pointers is None else pointers.contiguous()
    group = group_of(spec, part, None, keys, pointers)
    found = core.scatter_sparse(
        group, JaggedBatch.alone(words), array(floats(grads, len(words), layout.dim)),
        _fit(weights, len(words), layout), handover.addresses,
    )  # fmt: skip
    index, values = torch.from_numpy(found.index)[None], torch.from_numpy(found.values)
    return torch.sparse_coo_tensor(index, values, (layout.n_units, layout.unit), check_invariants=False)


def _dot(
    memory: Tensor, grads: Tensor, ids: Tensor, keys: Tensor | None, pointers: Tensor | None, spec: str, part: str
) -> Tensor:  # fmt: skip
    if not in_core(memory, grads):
        return eager.dot(memory, grads, ids, keys, pointers, spec, part)
    layout, end = part_of(spec, part)
    words = words_of(ids, end)
    source = Memory(FLOAT32, array(floats(memory, layout.n_units, layout.unit)))
    vectors = array(floats(grads, len(words), layout.dim))
    group = TableGroup.of(_sketch(layout, keys, pointers), source)
    return torch.from_numpy(core.dot(group, words, vectors, handover.addresses))


# --- what has no gradient, and what passes it through -----------------------------------------------------------------


def _signs(ids: Tensor, keys: Tensor, like: Tensor, spec: str) -> Tensor:
    if eager.wide_type(like.dtype) != torch.float32:
        return eager.signs(ids, keys, like, spec)
    layout, end = part_of(spec, "memory")
    return torch.from_numpy(core.signs(_sketch(layout, keys, None), words_of(ids, end)))


def _digits(ids: Tensor, spec: str) -> Tensor:
    found = core_digits(words_of(ids, end_of(spec)), bases_of(spec))
    return torch.from_numpy(np.ascontiguousarray(found.T, np.int64))


def _features(ids: Tensor, keys: Tensor, spec: str) -> Tensor:
    words, hashed = words_of(ids, end_of(spec)), array(keys.contiguous())
    return torch.from_numpy(deep_hash.encode(spec_of(spec), words, hashed))


def _rounded(memory: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str) -> Tensor:
    memory = eager.wide(memory)
    if not in_core(memory):
        return eager.rounded(memory, ids, keys, pointers, spec)
    layout, end = part_of(spec, "memory")
    coder, values = codec(spec_of(spec).codec), array(floats(memory, layout.n_units, layout.unit))
    if ids is None or layout.unit < layout.width:
        out = rounding.rounded(values, coder)
    else:
        out = rounding.rounded_for(values, coder, _sketch(layout, keys, pointers), words_of(ids, end))
    return torch.from_numpy(out).view(memory.shape)


def _decoded(
    memory: Tensor, codes: Tensor, scales: Tensor, ids: Tensor | None, keys: Tensor | None, pointers: Tensor | None, spec: str
) -> Tensor:  # fmt: skip
    layout, end = part_of(spec, "memory")
    coder, chosen, held = codec(spec_of(spec).codec), None, array(codes.contiguous())
    if (
        memory.shape != (layout.n_units, layout.unit)
        or held.nbytes != coder.n_codes(layout.size) * np.dtype(coder.dtype).itemsize
    ):
        raise RuntimeError(f"this operator takes codes of {layout.size:,} floats, got {tuple(codes.shape)} bytes")
    if ids is not None and layout.unit == layout.width:
        chosen = rounding.touched(_sketch(layout, keys, pointers), words_of(ids, end), layout.size)
    out = rounding.decoded(held, array(floats(scales, coder.n_scales(layout.size))), coder, layout.size, chosen)
    return torch.from_numpy(out).view(memory.shape)


_AT = "Tensor? keys, Tensor? pointers, str spec"
gather = define(
    "gather", f"(Tensor memory, Tensor ids, Tensor? weights, {_AT}, str part, bool sparse=False) -> Tensor",
    _gather, eager.gather, shapes.gather,
)  # fmt: skip
scatter = define(
    "scatter", f"(Tensor grads, Tensor ids, Tensor? weights, {_AT}, str part) -> Tensor", _scatter, eager.scatter, shapes.scatter
)  # fmt: skip
dot = define(
    "dot", f"(Tensor memory, Tensor grads, Tensor ids, {_AT}, str part) -> Tensor", _dot, eager.dot, shapes.dot
)
signs = define("signs", "(Tensor ids, Tensor keys, Tensor like, str spec) -> Tensor", _signs, eager.signs, shapes.signs)
digits = define("digits", "(Tensor ids, str spec) -> Tensor", _digits, eager.digits, shapes.digits)
features = define(
    "features", "(Tensor ids, Tensor keys, str spec) -> Tensor", _features, eager.features, shapes.features
)
bags = define("bags", "(Tensor offsets, Tensor ids) -> Tensor", eager.bags, eager.bags, shapes.bags)
rounded = define("rounded", f"(Tensor memory, Tensor? ids, {_AT}) -> Tensor", _rounded, eager.rounded, shapes.rounded)

# The memory is there for its gradient alone.
decoded = define(
    "decoded", f"(Tensor memory, Tensor codes, Tensor scales, Tensor? ids, {_AT}) -> Tensor",
    _decoded, eager.decoded, lambda memory, *rest: shapes.rounded(memory, None, None, None, ""),
)  # fmt: skip


# --- gradients: `ctx` counts the inputs from 1, after the dispatcher's keys -------------------------------------------


def _save_gather(ctx: Context, inputs: Inputs) -> None:
    memory, ids, weights, keys, pointers, ctx.spec, ctx.part, *rest = inputs
    ctx.sparse, ctx.n_inputs = bool(rest and rest[0]), len(inputs)  # the dispatcher leaves out what is the default
    ctx.kind = memory.dtype
    ctx.save_for_backward(memory if weights is not None else None, ids, weights, keys, pointers)


def _back_gather(ctx: Context, grad: Tensor) -> Any:
    memory, ids, weights, keys, pointers = ctx.saved_tensors
    to_memory = to_weights = None
    if ctx.needs_input_grad[1]:
        back = scatter_sparse if ctx.sparse else scatter
        to_memory = using(ctx.addresses, back, grad, ids, weights, keys, pointers, ctx.spec, ctx.part)
        to_memory = eager.narrow(to_memory, ctx.kind)
    if ctx.needs_input_grad[3]:
        to_weights = using(ctx.addresses, dot, memory, grad, ids, keys, pointers, ctx.spec, ctx.part)
    return (to_memory, None, to_weights, *(None,) * (ctx.n_inputs - 3))


def _save_scatter(ctx: Context, inputs: Inputs) -> None:
    grads, ids, weights, keys, pointers, ctx.spec, ctx.part = inputs
    ctx.save_for_backward(grads if weights is not None else None, ids, weights, keys, pointers)


def _back_scatter(ctx: Context, grad: Tensor) -> Any:
    grads, ids, weights, keys, pointers = ctx.saved_tensors
    to_grads = to_weights = None
    if ctx.needs_input_grad[1]:
        to_grads = gather(grad, ids, weights, keys, pointers, ctx.spec, ctx.part)
    if ctx.needs_input_grad[3]:
        to_weights = dot(grad, grads, ids, keys, pointers, ctx.spec, ctx.part)
    return to_grads, None, to_weights, None, None, None, None


def _save_dot(ctx: Context, inputs: Inputs) -> None:
    memory, grads, ids, keys, pointers, ctx.spec, ctx.part = inputs
    ctx.save_for_backward(memory, grads, ids, keys, pointers)


def _back_dot(ctx: Context, grad: Tensor) -> Any:
    memory, grads, ids, keys, pointers = ctx.saved_tensors
    to_memory = to_grads = None
    if ctx.needs_input_grad[1]:
        to_memory = scatter(grads, ids, grad, keys, pointers, ctx.spec, ctx.part)
    if ctx.needs_input_grad[2]:
        to_grads = gather(memory, ids, grad, keys, pointers, ctx.spec, ctx.part)
    return to_memory, to_grads, None, None, None, None, None


def _save_rounded(ctx: Context, inputs: Inputs) -> None:
    ctx.kind = inputs[0].dtype


differentiable(gather, _save_gather, _back_gather, keeps=True)
differentiable(scatter, _save_scatter, _back_scatter)
differentiable(dot, _save_dot, _back_dot)
differentiable(
    rounded, _save_rounded, lambda ctx, grad: (eager.narrow(grad, ctx.kind), None, None, None, None),
    transformed=lambda memory, *rest: eager.rounded(memory.detach(), *rest) + (memory - memory.detach()),
)  # fmt: skip
differentiable(
    decoded, _save_rounded, lambda ctx, grad: (eager.narrow(grad, ctx.kind), *(None,) * 6),
    transformed=lambda memory, *rest: eager.decoded(memory.detach(), *rest) + (memory - memory.detach()),
)  # fmt: skip
