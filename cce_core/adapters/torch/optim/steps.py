"""The core's optimisers in plain torch operations, where there is nothing faster; `cce_core.training` has the formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cce_core.training import SGD, Adagrad, AdamW


def update(optimizer: Any, p: Tensor, grad: Any, step: int, arrays: dict[str, Tensor]) -> None:
    """One step of a parameter in place.

    Args:
        optimizer: of the core: its numbers are read.
        p: float32 (rows, unit).
        grad: of that shape, or (rows' numbers, their gradients), distinct.
        step: how many there have been, with this one.
        arrays: the state by the core's names, flat; grows at the first step.
    """
    rows: Any = slice(None)
    if isinstance(grad, tuple):
        rows, grad = grad
        if optimizer.moves_all():
            rows, grad = slice(None), torch.zeros_like(p).index_copy_(0, rows, grad)
    value = p[rows]
    if isinstance(optimizer, SGD):
        grad = grad + optimizer.weight_decay * value
        if optimizer.momentum:
            grad = grad + optimizer.momentum * _state(arrays, "momentum", p)[rows]
            _state(arrays, "momentum", p)[rows] = grad
        p[rows] = value - optimizer.lr * grad
    elif isinstance(optimizer, Adagrad):
        squares = _state(arrays, "squares", p[:, :1] if optimizer.rowwise else p)
        added = grad * grad
        squares[rows] += added.mean(1, keepdim=True) if optimizer.rowwise else added
        p[rows] = value - optimizer.lr * grad / (squares[rows].sqrt() + optimizer.eps)
    elif isinstance(optimizer, AdamW):
        (b1, b2), (m, v) = optimizer.betas, (_state(arrays, name, p) for name in ("m", "v"))
        m[rows] = b1 * m[rows] + (1.0 - b1) * grad
        v[rows] = b2 * v[rows] + (1.0 - b2) * grad * grad
        rate, correct = optimizer.lr / (1.0 - b1**step), (1.0 - b2**step) ** -0.5
        p[rows] = (1.0 - optimizer.lr * optimizer.weight_decay) * value - rate * m[rows] / (
            v[rows].sqrt() * correct + optimizer.eps
        )
    else:
        raise TypeError(f"optimizer must be an SGD, Adagrad or AdamW of cce_core, got {type(optimizer).__name__}")


def _state(arrays: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The array of that name, in the shape of `like`; zeros when it is first asked for."""
    if name not in arrays:
        arrays[name] = torch.zeros(like.numel(), dtype=torch.float32, device=like.device)
    return arrays[name].view(like.shape)
