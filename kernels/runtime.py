"""The one door to torch and Triton: what is missing is said here, before a kernel fails in some other way."""

from __future__ import annotations

import contextlib
import os
from typing import Any

try:
    import torch as torch
    import triton as triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        f"the GPU kernels of cce_core need torch and triton, and {error.name} is missing: "
        "pip install 'cce-core[torch,triton]'; on the CPU, cce_core works without either"
    ) from error

tl = tl

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
# Under the interpreter tensors live on the CPU, and a program costs milliseconds: tiles are large there.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def call(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first tensor, which need not be the current one.

    A product and a sum are rounded one by one, as on the CPU: with fusion the same lookup would have other bits.
    """
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*args, **constants, enable_fp_fusion=False)


def on_device(**tensors: torch.Tensor | None) -> torch.device:
    """The one device of the tensors, which must be contiguous and on a GPU (or anywhere under the interpreter).

    Raises:
        TypeError: something is not a tensor.
        ValueError: a tensor is on another device, on no GPU, or not contiguous.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}; use torch.from_numpy")
    first, *_ = given
    device = given[first].device
    if not INTERPRETED and device.type != "cuda":
        raise ValueError(
            f"{first} is on {device}: these kernels run on a GPU; move it with .to('cuda'), or use cce_core on the CPU"
        )
    for name, tensor in given.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and {first} on {device}; move one to the other's device")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}; use {name}.contiguous()")
    return device


def floats(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """`value`, if it is a float32 tensor of that shape; TypeError or ValueError if not."""
    if value.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {value.dtype}; use {name}.float()")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    return value


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def checked_ids(ids: torch.Tensor, vocab: int | None, check: bool) -> torch.Tensor:
    """Flat int64 ids, all below the vocabulary: IndexError names the first that is not, or (`check=False`) they are clamped."""
    if not isinstance(ids, torch.Tensor) or ids.dtype not in INTEGERS:
        raise TypeError(f"ids must be an integer tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    words = ids.reshape(-1).to(torch.int64)
    if vocab is None:
        return words
    if not check:
        return words.clamp(0, vocab - 1)
    bad = (words < 0) | (words >= vocab)
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        raise IndexError(
            f"id {int(words[place])} at place {place} must be between 0 and {vocab - 1}, the table's last id"
        )
    return words
