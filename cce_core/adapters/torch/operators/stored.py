"""Memories that lie in their codec while they are trained: which parameter stands for which codes.

Such a parameter has the shape of the memory, and gradients, but no numbers of its own: all its places are one float. The codes
and their scales are buffers of the module that it is of.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from cce_core.adapters.torch.operators.facts import MEMORY

_owners: weakref.WeakSet[Any] = weakref.WeakSet()  # modules


def hollow(units: int, unit: int, like: Tensor) -> Tensor:
    """The data of a parameter of so many blocks, on a device."""
    return torch.zeros(1, dtype=like.dtype, device=like.device).as_strided((units, unit), (0, 0))


def is_hollow(parameter: Tensor) -> bool:
    """Whether it may stand for codes."""
    return parameter.dim() == 2 and parameter.stride() == (0, 0)


def own(module: Any) -> None:
    """Let optimisers find the codes of this module's memory."""
    _owners.add(module)


def owner_of(parameter: Tensor) -> Any:
    """The module whose memory it is.

    Raises:
        RuntimeError: there is none.
    """
    for module in tuple(_owners):
        if module._parameters.get(MEMORY) is parameter:
            return module
    raise RuntimeError("this parameter stands for the codes of a table that is there no more")
