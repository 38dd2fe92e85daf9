"""What the operators take, checked, since the loops behind them do not look."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch.operators.arrays import array


def row(tensor: Tensor, what: str) -> Tensor:
    """One row of int64, contiguous."""
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise RuntimeError(f"this operator takes one row of int64 {what}, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.contiguous()


def floats(tensor: Tensor, *shape: int) -> Tensor:
    """A float32 tensor of that shape, contiguous."""
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise RuntimeError(f"this operator takes float32 {shape} here, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.contiguous()


def words_of(ids: Tensor, end: np.uint64 | None) -> NDArray[np.uint64]:
    """Ids as the core has them, checked; without an end every id is one."""
    words = array(row(ids, "ids"))
    if end is not None:
        _check.ids_within(words, end)
    return words


def in_core(*tensors: Tensor | None) -> bool:
    """Whether the core's loops take them: float32."""
    for tensor in tensors:  # noqa: SIM110 (a generator would cost a call each)
        if tensor is not None and tensor.dtype != torch.float32:
            return False
    return True
