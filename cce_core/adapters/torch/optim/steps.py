"""The core's optimisers in plain torch operations, where there is nothing faster; `cce_core.training` has the formulas."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from cce_core.training import SGD, Adagrad, AdamW
from cce_core.training.optimizer import Optimizer

Gradient: TypeAlias = Tensor | tuple[Tensor, Tensor]  # of all rows; or rows' numbers and their gradients


def update(optimizer: Optimizer, p: Tensor, grad: Gradient, unit: int, step: int, arrays: dict[str, Tensor]) -> None:
    """One step of a parameter in place.

    Args:
        optimizer: of the core, without clipping: its numbers are read.
        p: float32, contiguous and flat.
        grad: as many floats; or (rows' numbers, their gradients), rows of `unit` floats, distinct.
        unit: floats of a row.
        step: how many there have been, with this one.
        arrays: the state by the core's names, flat; grows at the first step.
    """
    p = p.view(-1, unit)
    rows: slice | Tensor = slice(None)
    if isinstance(grad, tuple):
        index, grad = grad
        if optimizer.updates_all():
            grad = torch.zeros_like(p).index_copy_(0, index, grad)
        else:
            rows = index
    grad, value = grad.view(-1, unit), p[rows]
    if isinstance(optimizer, SGD):
        grad = grad + optimizer.weight_decay * value
        if optimizer.momentum:
            momentum = _state(arrays, "momentum", p)
            grad = momentum[rows] = grad + optimizer.momentum * momentum[rows]
        p[rows] = value - optimizer.lr * grad
    elif isinstance(optimizer, Adagrad):
        squares = _state(arrays, "squares", p[:, :1] if optimizer.rowwise else p)
        added = grad * grad
        squares[rows] += added.mean(1, keepdim=True) if optimizer.rowwise else added
        p[rows] = value - optimizer.lr * grad / (squares[rows].sqrt() + optimizer.eps)
    elif isinstance(optimizer, AdamW):
        b1, b2, left, rate, correct, eps = optimizer.constants(step)
        m, v = (_state(arrays, name, p) for name in ("m", "v"))
        m[rows] = b1 * m[rows] + (1.0 - b1) * grad
        v[rows] = b2 * v[rows] + (1.0 - b2) * grad * grad
        p[rows] = left * value - rate * m[rows] / (v[rows].sqrt() * correct + eps)
    else:
        raise TypeError(f"optimizer must be an SGD, Adagrad or AdamW of cce_core, got {type(optimizer).__name__}")


def _state(arrays: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The array of that name, in the shape of `like`; zeros when it is first asked for."""
    if name not in arrays:
        arrays[name] = torch.zeros(like.numel(), dtype=torch.float32, device=like.device)
    return arrays[name].view(like.shape)
