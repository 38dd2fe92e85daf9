"""The operators of tensor trains: the core's loops, for dense gradients of float32 cores on the CPU.

`train` takes the cores as one flat row; its gradient is `train_back`, whose own comes from the plain products (in
eager mode: tracing does not go that deep).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cce_core.adapters.torch.operators import eager
from cce_core.adapters.torch.operators.arguments import words_of
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.facts import end_of, spec_of
from cce_core.adapters.torch.operators.registry import Context, Inputs, define, differentiable
from cce_core.method.tensor_train import IDS_PER_TREE, core_shapes
from cce_core.sketching import tensor_train as core


def _cores(flat: Tensor, spec: str) -> list[core.Core]:
    values, out, at = array(flat.contiguous()), [], 0
    for base, left, d, right in core_shapes(spec_of(spec)):
        size = base * left * d * right
        out.append(core.Core(values[at : at + size], base, left, d, right))
        at += size
    if flat.dtype != torch.float32 or at != values.size:
        raise RuntimeError(f"this operator takes float32 ({at},) here, got {flat.dtype} {tuple(flat.shape)}")
    return out


def _train(flat: Tensor, ids: Tensor, spec: str) -> Tensor:
    words, cores = words_of(ids, end_of(spec)), _cores(flat, spec)
    out = np.empty((len(words), spec_of(spec).dim), np.float32)
    for start in range(0, len(words), IDS_PER_TREE):
        core.vectors(core.grow(words[start : start + IDS_PER_TREE], cores), out[start : start + IDS_PER_TREE])
    return torch.from_numpy(out)


def _train_back(grads: Tensor, flat: Tensor, ids: Tensor, spec: str) -> Tensor:
    words, cores = words_of(ids, end_of(spec)), _cores(flat, spec)
    vectors = array(grads.contiguous()).reshape(len(words), spec_of(spec).dim)
    total = np.zeros(flat.numel(), np.float32)
    for start in range(0, len(words), IDS_PER_TREE):
        part = slice(start, start + IDS_PER_TREE)
        found: list[Any] = core.gradients(core.grow(words[part], cores), vectors[part], True)
        total += np.concatenate([gradient.reshape(-1) for gradient in found])
    return torch.from_numpy(total)


def product(digits: Tensor, cores: list[Tensor], sizes: tuple[tuple[int, int], ...], sparse: bool = False) -> Tensor:
    """The plain product of the cores' matrices: (n, dim).

    Args:
        digits: int64 (cores, n).
        cores: a row a digit.
        sizes: (left, d · right) of each.
        sparse: whether their gradients are.
    """
    n, floats = digits.shape[1], 1
    vectors = cores[0].new_ones((n, 1, 1))
    for k, (left, width) in enumerate(sizes):
        matrices = functional.embedding(digits[k], cores[k], sparse=sparse).view(n, left, width)
        vectors = torch.bmm(vectors.reshape(n, floats // left, left), matrices)
        floats = floats // left * width
    return vectors.reshape(n, floats)


def _plain(flat: Tensor, ids: Tensor, spec: str) -> Tensor:
    shapes = core_shapes(spec_of(spec))
    parts = flat.split([base * left * d * right for base, left, d, right in shapes])
    cores = [part.view(shape[0], -1) for part, shape in zip(parts, shapes, strict=True)]
    return product(eager.digits(ids, spec), cores, tuple((left, d * right) for _, left, d, right in shapes))


def _save_train(ctx: Context, inputs: Inputs) -> None:
    flat, ids, ctx.spec = inputs
    ctx.save_for_backward(flat, ids)


def _back_train(ctx: Context, grad: Tensor) -> Any:
    flat, ids = ctx.saved_tensors
    return train_back(grad, flat, ids, ctx.spec), None, None


def _save_train_back(ctx: Context, inputs: Inputs) -> None:
    grads, flat, ids, ctx.spec = inputs
    ctx.save_for_backward(grads, flat, ids)


def _back_train_back(ctx: Context, grad: Tensor) -> Any:
    grads, flat, ids = ctx.saved_tensors
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # views: where the gradients came from the cores, the graph behind them is not to be walked here
        g, f = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (grads, flat))
        (first,) = torch.autograd.grad(_plain(f, ids, ctx.spec), f, g, create_graph=True)
        to_grads, to_flat = torch.autograd.grad(first, (g, f), grad, create_graph=further)
    return to_grads, to_flat, None, None


def _like(flat: Tensor, ids: Tensor, spec: str) -> Tensor:
    return flat.new_empty((ids.shape[0], spec_of(spec).dim))


train = define("train", "(Tensor flat, Tensor ids, str spec) -> Tensor", _train, _plain, _like)
train_back = define(
    "train_back", "(Tensor grads, Tensor flat, Tensor ids, str spec) -> Tensor", _train_back, None,
    lambda grads, flat, ids, spec: torch.empty_like(flat),
)  # fmt: skip
differentiable(train, _save_train, _back_train)
differentiable(train_back, _save_train_back, _back_train_back)
