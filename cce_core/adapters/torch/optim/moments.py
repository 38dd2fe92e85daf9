"""What optimisers know of a memory, carried over a clustering, after which its rows mean something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cce_core.adapters.torch.operators import blocks
from cce_core.adapters.torch.operators.arrays import Device
from cce_core.adapters.torch.operators.plan import MEMORY, part_of
from cce_core.sketching.layout import POINTER

HOW = ("remap", "reset")
_BATCH = 1 << 16


class Pointed(NamedTuple):
    """What the addresses of a table follow from: hash keys and packed pointers, as they were at one time."""

    keys: Tensor | None
    pointers: Tensor | None

    def to(self, device: Device) -> Pointed:
        """The same on a device."""
        return Pointed(*(None if tensor is None else tensor.to(device) for tensor in self))


def remapped(values: Tensor, old: Pointed, new: Pointed, text: str, part: str, vocab: int) -> Tensor:
    """Numbers that belong to the floats of a memory, carried from one sketch to another.

    An id's number is the mean of those of the blocks that it had; a float's new number is the mean of those of the ids that
    have it now, and 0 where none has.

        s'[a] = mean { mean_t s[old address of (i, t)] : i, t with new address a }

    Args:
        values: float32 (units, unit), on the device of the sketches.
        old, new: before and after.
        text, part: as operators take them.
        vocab: of the table.
    """
    sums, seen = torch.zeros_like(values), torch.zeros_like(values)
    terms = part_of(text, part).layout.terms
    for low in range(0, vocab, _BATCH):
        ids = torch.arange(low, min(low + _BATCH, vocab), device=values.device)
        means = blocks.gather(values, ids, None, *old, text, part) / terms
        sums += blocks.scatter(means, ids, None, *new, text, part)
        seen += blocks.scatter(torch.ones_like(means), ids, None, *new, text, part)
    return sums / seen.clamp(min=1)


@torch.no_grad()
def refitted(memory: Tensor, old: Pointed, new: Pointed, text: str, vocab: int) -> Tensor:
    """A memory whose vectors, by a new sketch, are near those that another memory has by an old one.

    As in a clustering, rows that pointers lead to are the means of their ids' vectors, and hashed ones the means of what those
    leave over:

        M'[a] = mean { T[i] : pointer of i = a }        M'[b] = mean { T[i] − M'[pointer of i] : hash of i = b }

    Args:
        memory: float32 (units, unit), on the device of the sketches.
        old, new, text, vocab: as for `remapped`.
    """
    columns = part_of(text, MEMORY).layout.columns
    out = torch.zeros_like(memory)
    for pointed in (True, False):
        kinds = [float((column.kind == POINTER) == pointed) for column in columns]
        if not any(kinds):
            continue
        sums, seen = torch.zeros_like(memory), torch.zeros_like(memory)
        for low in range(0, vocab, _BATCH):
            ids = torch.arange(low, min(low + _BATCH, vocab), device=memory.device)
            left = blocks.gather(memory, ids, None, *old, text, MEMORY) - blocks.gather(
                out, ids, None, *new, text, MEMORY
            )
            chosen = torch.tensor(kinds, device=memory.device).expand(len(ids), -1).contiguous()
            sums += blocks.scatter(left, ids, chosen, *new, text, MEMORY)
            seen += blocks.scatter(torch.ones_like(left), ids, chosen, *new, text, MEMORY)
        out = out + sums / seen.clamp(min=1)
    return out


@torch.no_grad()
def carried(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Mapping[str, Tensor],
    before: Pointed,
    after: Pointed,
    text: str,
    vocab: int,
) -> list[tuple[Tensor, Tensor]]:
    """The state of the parameters `memory` and `weights` that optimisers hold, and what it is after a clustering.

    Remapped is every tensor with a number for each float, or each row, of the parameter; step counts stay. Other tensors are
    0 then. Nothing is written yet.
    """
    out = []
    for state, part, parameter in _states(optimizers, parameters):
        for value in state.values():
            if isinstance(value, Tensor) and value.dim():
                moved = _moved(value, parameter, before, after, text, part, vocab)
                out.append((value, torch.zeros_like(value) if moved is None else moved))
    return out


@torch.no_grad()
def forget(optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, Tensor]) -> None:
    """Make the state of parameters that of new ones."""
    for state, _, _ in _states(optimizers, parameters):
        for key, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                state[key] = type(value)(0)


def _states(
    optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for optimizer in optimizers:
        for part, parameter in parameters.items():
            yield optimizer.state.get(parameter, {}), part, parameter


def _moved(
    value: Tensor, parameter: Tensor, before: Pointed, after: Pointed, text: str, part: str, vocab: int
) -> Tensor | None:
    rows, device = parameter.shape[0], next(t.device for t in (*before, parameter) if t is not None)
    if value.numel() not in (parameter.numel(), rows):
        return None
    full: Any = getattr(value, "full_tensor", lambda: value)()
    held = full.detach().to(device, torch.float32).reshape(rows, -1)
    if value.numel() == parameter.numel():
        return remapped(held.contiguous(), before, after, text, part, vocab).view(value.shape)
    spread = held.expand(rows, parameter.shape[1]).contiguous()
    return remapped(spread, before, after, text, part, vocab).mean(1).view(value.shape)
