"""Torch's tensors as NumPy's arrays and back: over the same memory where that can be, or as copies."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Device: TypeAlias = str | int | torch.device
_TYPES = {torch.float32: "<f4", torch.int64: "<u8"}


def array(tensor: Tensor) -> NDArray[Any]:
    """The memory of a contiguous CPU tensor as a flat array: float32, or the 64-bit words that int64 stands for.

    Unlike `.numpy()` it leaves the storage resizable, which FSDP needs.
    """
    n, kind = tensor.numel(), _TYPES[tensor.dtype]
    where = {"version": 3, "data": (tensor.data_ptr(), False), "shape": (n,), "typestr": kind}
    return np.asarray(SimpleNamespace(__array_interface__=where, owner=tensor)) if n else np.empty(0, kind)


def tensor_of(values: NDArray[Any], device: Device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of its own: one over NumPy's memory could not be resized, which FSDP does."""
    if torch.device(device).type == "meta":
        return torch.empty(values.shape, dtype=dtype or torch.int64, device="meta")
    return torch.from_numpy(values).to(device=device, dtype=dtype, copy=True)


@torch.no_grad()
def write(tensor: Tensor, values: NDArray[Any]) -> None:
    """Make values a tensor's own, in place, whatever its device, type or sharding; its version rises."""
    source = torch.from_numpy(values if values.dtype == np.float32 else np.asarray(values).view(np.int64))
    write_tensor(tensor, source.view(tensor.shape))


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


@torch.no_grad()
def put(changes: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make tensors what others are, in place, in one call that Python does not interrupt; what is sharded, behind it."""
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
        torch._foreach_copy_([tensor for tensor, _ in plain], [source for _, source in plain])
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
