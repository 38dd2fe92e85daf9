"""From a plan, tensors and ids to vectors: the operators, and torch's own products behind them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from cce_core.adapters.torch import ops
from cce_core.adapters.torch.plan import MEMORY, WEIGHTS, Plan


def lookup(plan: Plan, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """The vectors of one row of ids: (n, dim), in the type of the parameters.

    Args:
        plan: of the table's spec.
        arrays: parameters and buffers by name.
        ids: int64 (n,).
        sparse: whether gradients of memory, weights and cores are sparse.
    """
    kind = ids.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # an embedding keeps its type there, as torch's own does
        with torch.autocast(kind, enabled=False):
            return _KINDS[plan.kind](plan, arrays, ids, sparse)
    return _KINDS[plan.kind](plan, arrays, ids, sparse)


def _blocks(plan: Plan, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """Blocks of the memory, summed, weighted or multiplied, and widened."""
    memory, keys, pointers = arrays[MEMORY], arrays.get("keys"), arrays.get("pointers")
    if plan.coded:
        memory = ops.rounded(memory, plan.text)
    weights = found = None
    if plan.weighed:
        source = memory if plan.weighed == MEMORY else arrays[WEIGHTS]
        found = weights = ops.gather(source, ids, None, keys, pointers, plan.text, WEIGHTS, sparse)
    if plan.signed:
        assert keys is not None
        drawn = ops.signs(ids, keys, memory.detach(), plan.text)
        weights = drawn if found is None else found * drawn
    vectors = ops.gather(memory, ids, weights, keys, pointers, plan.text, MEMORY, sparse)
    if plan.appends and found is not None:
        vectors = torch.cat([vectors, found], 1)
    if plan.factors:
        vectors = vectors.view(ids.shape[0], plan.factors, plan.inner).prod(1)
    if plan.rank:
        projection = arrays["projection"]
        vectors = torch.addmm(projection[-1], vectors, projection[:-1])
    return vectors


def _train(plan: Plan, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """The product of the cores' matrices, one for each digit."""
    digits = ops.digits(ids, plan.text)
    n, floats = ids.shape[0], 1
    vectors = arrays["core0"].new_ones((n, 1, 1))
    for k, (left, width) in enumerate(plan.cores):
        matrices = functional.embedding(digits[k], arrays[f"core{k}"], sparse=sparse).view(n, left, width)
        vectors = torch.bmm(vectors.reshape(n, floats // left, left), matrices)
        floats = floats // left * width
    return vectors.reshape(n, floats)


def _network(plan: Plan, arrays: Mapping[str, Tensor], ids: Tensor, sparse: bool) -> Tensor:
    """The features of the ids through the network, each distinct id once where shapes may depend on data."""
    where = None
    if not torch.compiler.is_compiling():
        ids, where = torch.unique(ids, return_inverse=True)
    x = ops.features(ids, arrays["keys"], plan.text).to(arrays["w0"].dtype)
    for layer in range(plan.layers):
        x = functional.mish(torch.addmm(arrays[f"b{layer}"], x, arrays[f"w{layer}"]))
    x = torch.addmm(arrays[f"b{plan.layers}"], x, arrays[f"w{plan.layers}"])
    return x if where is None else x[where]


_KINDS = {"blocks": _blocks, "train": _train, "network": _network}
