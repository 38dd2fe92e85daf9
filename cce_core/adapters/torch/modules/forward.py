"""From facts of a spec, tensors and ids to vectors: the operators, and torch's own products behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cce_core.adapters.torch.operators import blocks, eager, pooled, tensor_train
from cce_core.adapters.torch.operators.eager import HALVES, narrow, wide, wide_type
from cce_core.adapters.torch.operators.facts import HASHED, MEMORY, POINTED, WEIGHTS, Facts
from cce_core.adapters.torch.operators.pooled import Bags
from cce_core.adapters.torch.operators.registry import known_to_onnx


def lookup(facts: Facts, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool, bags: Bags | None = None) -> Tensor:
    """The vectors of one row of ids, (n, dim), or the sums of their bags: float32, or the parameters' type where that is wider.

    Parameters of half types are read as they are; the caller rounds what becomes of the vectors, once.

    Args:
        facts: of the table's spec.
        arrays: parameters and buffers by name; with `rows`, the pointers are rows of whole words, and rows[n] is that of ids[n].
        ids: int64 (n,).
        sparse: whether gradients of memory, weights and cores are sparse.
        bags: None where each id is a row.
    """
    if eager.exporting() and torch.onnx.is_in_onnx_export():
        known_to_onnx()
    kind = ids.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # an embedding keeps its type there, as torch's own does
        with torch.autocast(kind, enabled=False):
            return lookup(facts, arrays, ids, sparse, bags)
    if facts.plain and "rows" not in arrays:
        offsets, per_sample_weights = (None, None) if bags is None else bags
        memory, projection = arrays[MEMORY], arrays.get("projection")
        if facts.coded:
            memory = _memory(facts, arrays, ids)
        if projection is not None and projection.dtype in HALVES:
            projection = wide(projection)
        return pooled.vectors(
            memory,
            projection,
            ids,
            offsets,
            per_sample_weights,
            arrays.get("keys"),
            arrays.get("pointers"),
            facts.text,
            sparse,
        )
    vectors = _KINDS[facts.kind](facts, arrays, ids, sparse)
    return vectors if bags is None else pool(vectors, ids, bags)


def pool(vectors: Tensor, ids: Tensor, bags: Bags) -> Tensor:
    """The sum of each bag, from the vectors of all ids."""
    return pooled.sums(pooled.weighted(vectors, bags.per_sample_weights), ids, bags.offsets)


def _memory(facts: Facts, arrays: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """The memory, as its codec would give it back."""
    if not facts.coded:
        return arrays[MEMORY]
    keys, pointers = arrays.get("keys"), arrays.get("pointers")
    # What the ids read is rounded alone, but where the weights read other places, or pointers come from elsewhere.
    read = None if facts.weighed == MEMORY or "rows" in arrays else ids
    if facts.stored:
        return blocks.decoded(arrays[MEMORY], arrays["codes"], arrays["scales"], read, keys, pointers, facts.text)
    return blocks.rounded(arrays[MEMORY], read, keys, pointers, facts.text)


def _blocks(facts: Facts, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """Blocks of the memory, summed, weighted or multiplied, and widened."""
    memory = _memory(facts, arrays, ids)
    twice = facts.weighed == MEMORY or ("rows" in arrays and len(facts.halves) > 1)
    if twice and memory.dtype in HALVES:  # its gradients are added up before they are rounded
        memory = _SparseWide.apply(memory) if sparse else wide(memory)
    weights = found = None
    if facts.weighed:
        source = memory if facts.weighed == MEMORY else arrays[WEIGHTS]
        found = weights = _sum(facts, source, ids, None, arrays, WEIGHTS, sparse)
    if facts.signed:
        drawn = blocks.signs(ids, arrays["keys"], memory.detach(), facts.text)
        weights = drawn if found is None else found * drawn
    vectors = _sum(facts, memory, ids, weights, arrays, MEMORY, sparse)
    if facts.appends and found is not None:
        vectors = torch.cat([vectors, found], 1)
    if facts.factors:
        vectors = vectors.view(ids.shape[0], facts.factors, facts.inner).prod(1)
    if facts.rank:
        projection = wide(arrays["projection"])
        vectors = torch.addmm(projection[-1], vectors, projection[:-1])
    return vectors


def _sum(
    facts: Facts, source: Tensor, ids: Tensor, weights: Tensor | None, arrays: Mapping[str, Tensor], part: str, sparse: bool
) -> Tensor:  # fmt: skip
    """Blocks summed; where `rows` says so, those with pointers from the rows that were fetched for them."""
    keys, pointers, rows = arrays.get("keys"), arrays.get("pointers"), arrays.get("rows")
    if rows is None:
        return blocks.gather(source, ids, weights, keys, pointers, facts.text, part, sparse)
    halves = [
        blocks.gather(source, where, weights, keys, pointers, facts.text, part + kind, sparse)
        for where, kind in ((rows, POINTED), (ids, HASHED))
        if part + kind in facts.halves
    ]
    return halves[0] if len(halves) == 1 else halves[0] + halves[1]


class _SparseWide(torch.autograd.Function):
    """A core in the type of its sums; its sparse gradient is added up there, and only then rounded."""

    @staticmethod
    def forward(ctx: Any, core: Tensor) -> Tensor:
        ctx.kind = core.dtype
        return core.to(wide_type(core.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return narrow(grad, ctx.kind)


def _train(facts: Facts, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """The product of the cores' matrices, one for each digit."""
    cores = [arrays[f"core{k}"] for k in range(len(facts.cores))]
    cores = [_SparseWide.apply(core) if sparse and core.dtype in HALVES else wide(core) for core in cores]
    if not sparse and ids.device.type == "cpu" and cores[0].dtype == torch.float32:
        return tensor_train.train(torch.cat([core.reshape(-1) for core in cores]), ids, facts.text)
    return tensor_train.product(blocks.digits(ids, facts.text), cores, facts.cores, sparse and not eager.transformed())


def _network(facts: Facts, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """The features of the ids through the network, each distinct id once where shapes may depend on data."""
    where = None
    if not torch.compiler.is_compiling() and not eager.transformed():
        ids, where = torch.unique(ids, return_inverse=True)
    x = blocks.features(ids, arrays["keys"], facts.text).to(wide_type(arrays["w0"].dtype))
    for layer in range(facts.layers + 1):
        x = torch.addmm(wide(arrays[f"b{layer}"]), x, wide(arrays[f"w{layer}"]))
        x = functional.mish(x) if layer < facts.layers else x
    return x if where is None else x[where]


_KINDS = {"blocks": _blocks, "train": _train, "network": _network}
