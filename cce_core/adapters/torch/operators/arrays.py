"""Torch's tensors as NumPy's arrays and back: over the same memory where that can be, or as copies."""

from __future__ import annotations

import collections
import functools
import operator
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Device: TypeAlias = str | int | torch.device
_TYPES = {torch.float32: "<f4", torch.int64: "<u8", torch.int32: "<u4", torch.uint8: "|u1"}
_ITSELF = (np.float32, np.uint8)  # types that both have; words of 64 and 32 bits are int64 and int32 in torch


def array(tensor: Tensor) -> NDArray[Any]:
    """The memory of a contiguous CPU tensor as a flat array: float32, bytes, or the words that int64 and int32 stand for.

    Unlike `.numpy()` it leaves the storage resizable, which FSDP needs.
    """
    n, kind = tensor.numel(), _TYPES[tensor.dtype]
    where = {"version": 3, "data": (tensor.data_ptr(), False), "shape": (n,), "typestr": kind}
    return np.asarray(SimpleNamespace(__array_interface__=where, owner=tensor)) if n else np.empty(0, kind)


def tensor_of(values: NDArray[Any], device: Device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of its own: one over NumPy's memory could not be resized, which FSDP does."""
    source = shared(values)
    if torch.device(device).type == "meta":
        return torch.empty(values.shape, dtype=dtype or source.dtype, device="meta")
    return source.to(device=device, dtype=dtype, copy=True)


def shared(values: NDArray[Any]) -> Tensor:
    """A tensor over an array's memory: float32, bytes, or the int64 and int32 that stand for words."""
    if values.dtype in _ITSELF:
        return torch.from_numpy(values)
    return torch.from_numpy(np.asarray(values).view(np.int32 if values.dtype == np.uint32 else np.int64))


@torch.no_grad()
def write(tensor: Tensor, values: NDArray[Any]) -> None:
    """Make values a tensor's own, in place, whatever its device, type or sharding; its version rises."""
    write_tensor(tensor, shared(values).view(tensor.shape))


@torch.no_grad()
def write_tensor(tensor: Tensor, source: Tensor) -> None:
    """The same from a tensor of its shape, on any device."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = tensor
        sharded.copy_(distribute_tensor(source.to(tensor.device), sharded.device_mesh, sharded.placements))
    elif tensor.device == source.device and tensor.data_ptr() == source.data_ptr():
        torch.autograd.graph.increment_version(tensor)
    else:
        tensor.copy_(source)


Call = Callable[[], object]
_Base: Any = torch._C.TensorBase  # whose functions are C's
_set_data, _set_grad, _multiply = _Base.data.__set__, _Base.grad.__set__, _Base.mul_


def replacing(tensor: Tensor, source: Tensor, empty: bool = False) -> list[Call]:
    """Calls for `put` that make a tensor another's, of any shape, in place of its own numbers and gradient; its version rises.

    For a moment it is of another type, since torch drops then what else it knows of the gradients of the old shape. A source that
    is `empty` has no numbers, but one for all places, and is not copied.
    """
    new = source.detach().to(tensor.device, tensor.dtype, copy=not empty)
    other = new.new_empty(0, dtype=torch.float64 if tensor.dtype != torch.float64 else torch.float32)
    calls: list[Call] = [functools.partial(_set_data, tensor, other), functools.partial(_set_data, tensor, new)]
    if tensor.is_leaf and tensor.requires_grad:
        calls.insert(0, functools.partial(_set_grad, tensor, None))
    return calls if empty else [*calls, functools.partial(_multiply, tensor, 1)]


@torch.no_grad()
def put(changes: Iterable[tuple[Tensor, Tensor]], calls: Iterable[Call] = ()) -> None:
    """Make tensors what others are, in place, in one call that Python does not interrupt; what is sharded, behind it.

    Args:
        changes: tensors, and what each is to be.
        calls: of functions of C, that belong to it.
    """
    plain, sharded = [], []
    for tensor, source in changes:
        source = source.detach().reshape(tensor.shape)
        if hasattr(tensor, "full_tensor"):
            sharded.append((tensor, source))
        elif tensor.data_ptr() == source.data_ptr() and tensor.device == source.device:
            torch.autograd.graph.increment_version(tensor)
        else:
            plain.append((tensor.detach(), source))
    if plain:
        targets, sources = zip(*plain, strict=True)
        calls = [functools.partial(torch._foreach_copy_, targets, sources), *calls]
    collections.deque(map(operator.call, calls), maxlen=0)
    for tensor, source in sharded:
        write_tensor(tensor, source)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's numbers on the CPU, contiguous, gathered where they are sharded; itself where it is all that."""
    if tensor.device.type == "meta":
        raise RuntimeError(
            "the module is on the meta device and has no numbers: module.to_empty(device=…), then load a state"
        )
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().cpu().contiguous()


def float32(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's numbers as float32, in its shape; over its own memory where that can be."""
    return array(whole(tensor).to(torch.float32)).reshape(tuple(tensor.shape))


def words(tensor: Tensor) -> NDArray[np.uint64]:
    """The 64-bit words of an int64 tensor, flat; over its own memory where that can be."""
    return array(whole(tensor))
