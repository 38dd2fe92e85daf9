"""What the operators take, checked, since the loops behind them do not look, and as these read it."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.facts import part_of
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.group import Member, TableGroup
from cce_core.storage.codec import FLOAT32


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


def _there(address: int, n: int, kind: str) -> NDArray[Any]:
    """The n numbers at an address, which are not kept alive."""
    where = {"version": 3, "data": (address, False), "shape": (n,), "typestr": kind}
    return np.asarray(SimpleNamespace(__array_interface__=where)) if n else np.empty(0, kind)


@functools.lru_cache(maxsize=1024)
def _group_at(
    text: str, part: str, memory: int, keys: int, n_keys: int, pointers: int, n_pointers: int, projection: int, dim: int
) -> TableGroup:  # fmt: skip
    """A group that holds addresses alone: good whenever tensors of these sizes lie there, and only as long as they do."""
    layout, end = part_of(text, part)
    sketch = Sketch(layout, _there(keys, n_keys, "<u8"), _there(pointers, n_pointers, "<u8"))
    held = Memory(FLOAT32, _there(memory, layout.size if memory else 0, "<f4"))
    rank = layout.dim + 1
    matrix = _there(projection, rank * dim, "<f4").reshape(rank, dim) if projection else None
    return TableGroup([Member(sketch, held, 0, int(end or 0), matrix)])


def group_of(
    text: str, part: str, memory: Tensor | None, keys: Tensor | None, pointers: Tensor | None, projection: Tensor | None = None
) -> TableGroup:  # fmt: skip
    """Contiguous tensors, which the caller holds on to, as the core's loops read them; without a memory, for gradients alone."""
    return _group_at(
        text,
        part,
        0 if memory is None else memory.data_ptr(),
        0 if keys is None else keys.data_ptr(),
        0 if keys is None else keys.numel(),
        0 if pointers is None else pointers.data_ptr(),
        0 if pointers is None else pointers.numel(),
        0 if projection is None else projection.data_ptr(),
        0 if projection is None else projection.shape[-1],
    )
