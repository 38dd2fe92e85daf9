"""What optimisers know of a memory, carried over a clustering, after which its rows mean something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cce_core.adapters.torch import ops
from cce_core.adapters.torch.arrays import write_tensor
from cce_core.adapters.torch.plan import part_of

HOW = ("remap", "reset")
_BATCH = 1 << 16


class Pointed(NamedTuple):
    """What the addresses of a table follow from: hash keys and packed pointers, as they were at one time."""

    keys: Tensor | None
    pointers: Tensor | None


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
        means = ops.gather(values, ids, None, *old, text, part) / terms
        sums += ops.scatter(means, ids, None, *new, text, part)
        seen += ops.scatter(torch.ones_like(means), ids, None, *new, text, part)
    return sums / seen.clamp(min=1)


@torch.no_grad()
def carry(
    optimizers: Iterable[Any],
    parameters: Mapping[str, Tensor],
    before: Pointed,
    after: Pointed,
    text: str,
    vocab: int,
    how: str,
) -> None:
    """Carry the state of the parameters `memory` and `weights` over a clustering, or reset it as for new parameters.

    Remapped is every tensor with a number for each float, or each row, of the parameter; step counts stay. Other tensors are
    set to 0.
    """
    for optimizer in optimizers:
        for part, parameter in parameters.items():
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor):
                    if how == "remap" and value.dim() == 0:
                        continue
                    moved = None
                    if how == "remap":
                        moved = _moved(value, parameter, before, after, text, part, vocab)
                    if moved is None:
                        value.zero_()
                    else:
                        write_tensor(value, moved)
                elif how == "reset" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    state[key] = type(value)(0)


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
