"""What optimisers know of a memory, carried over a clustering, after which its rows mean something else."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cce_core.adapters.torch.operators import blocks
from cce_core.adapters.torch.operators.arrays import Call, Device
from cce_core.adapters.torch.operators.facts import MEMORY, part_of
from cce_core.method.heirs import Heirs
from cce_core.sketching.layout import IDENTITY

HOW = ("remap", "reset")
_BATCH = 1 << 16


class Pointed(NamedTuple):
    """What the addresses of a table follow from, as it was at one time.

    Attributes:
        text: its spec, as operators take it.
        keys, pointers: hash keys and packed pointers.
    """

    text: str
    keys: Tensor | None
    pointers: Tensor | None

    def to(self, device: Device) -> Pointed:
        """The same on a device."""
        return Pointed(self.text, *(None if tensor is None else tensor.to(device) for tensor in self[1:]))

    def gather(self, values: Tensor, ids: Tensor, part: str) -> Tensor:
        """The sums of the blocks of ids."""
        return blocks.gather(values, ids, None, self.keys, self.pointers, self.text, part)

    def scatter(self, vectors: Tensor, ids: Tensor, part: str, weights: Tensor | None = None) -> Tensor:
        """Its adjoint."""
        return blocks.scatter(vectors, ids, weights, self.keys, self.pointers, self.text, part)


def remapped(values: Tensor, old: Pointed, new: Pointed, part: str, vocab: int) -> Tensor:
    """Numbers that belong to the floats of a memory, carried from one sketch to another.

    An id's number is the mean of those of the blocks that it had; a float's new number is the mean of those of the ids that
    have it now, and 0 where none has.

        s'[a] = mean { mean_t s[old address of (i, t)] : i, t with new address a }

    Where ids had rows of their own, it is the sum instead: so is the gradient of a shared row of those of its ids, and moments
    are sums of gradients, or of their squares.

    Args:
        values: float32 (units, unit), on the device of the sketches.
        old, new: before and after, of one vocabulary and width, though perhaps of other sizes.
        part: as operators take it.
        vocab: of the table.
    """
    layout, before = part_of(new.text, part).layout, part_of(old.text, part).layout
    sums, seen = values.new_zeros((2, layout.n_units, layout.unit))
    for low in range(0, vocab, _BATCH):
        ids = torch.arange(low, min(low + _BATCH, vocab), device=values.device)
        means = old.gather(values, ids, part) / before.terms
        sums += new.scatter(means, ids, part)
        seen += new.scatter(torch.ones_like(means), ids, part)
    return sums if before.columns[0].kind == IDENTITY else sums / seen.clamp(min=1)


@torch.no_grad()
def refitted(memory: Tensor, old: Pointed, new: Pointed, vocab: int) -> Tensor:
    """A memory whose vectors, by a new sketch, are near those that another memory has by an old one.

    As in a clustering, the rows of an id's first term are the means of their ids' vectors, and those of each further one (hashed,
    or of another stage) the means of what those before it leave over:

        M'[a] = mean { T[i] − Σ_{s < t} M'[address of (i, s)] : i with address a of (i, t) }

    Args:
        memory: float32 (units, unit), on the device of the sketches.
        old, new, vocab: as for `remapped`.
    """
    layout = part_of(new.text, MEMORY).layout
    out = memory.new_zeros((layout.n_units, layout.unit))
    for term in range(layout.terms):
        kinds = [float(c % layout.terms == term) for c in range(len(layout.columns))]
        sums, seen = out.new_zeros((2, *out.shape))
        for low in range(0, vocab, _BATCH):
            ids = torch.arange(low, min(low + _BATCH, vocab), device=memory.device)
            left = old.gather(memory, ids, MEMORY) - new.gather(out, ids, MEMORY)
            chosen = torch.tensor(kinds, device=memory.device).expand(len(ids), -1).contiguous()
            sums += new.scatter(left, ids, MEMORY, chosen)
            seen += new.scatter(torch.ones_like(left), ids, MEMORY, chosen)
        out = out + sums / seen.clamp(min=1)
    return out


@torch.no_grad()
def carried(
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Mapping[str, Tensor],
    before: Pointed,
    after: Pointed,
    vocab: int,
    remap: bool,
    heirs: Heirs | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], list[Call]]:
    """The state of the parameters `memory` and `weights` that optimisers hold, and what it is after a clustering.

    Remapped is every tensor with a number for each float, or each row, of the parameter; step counts stay. Other tensors are
    0 then. Without `remap` all is as for a new parameter. Nothing is written yet.

    Of a table whose ids earn rows, `heirs` says which rows go on as which others.

    Returns:
        Tensors and what they are to be; and the calls, for `put`, that set tensors of another shape and numbers.
    """
    changes: list[tuple[Tensor, Tensor]] = []
    calls: list[Call] = []
    for state, part, parameter in _states(optimizers, parameters):
        for key, value in state.items():
            if isinstance(value, Tensor) and (value.dim() or not remap):
                new = _moved(value, parameter, before, after, part, vocab, remap, heirs)
                if new.shape == value.shape:
                    changes.append((value, new))
                else:
                    calls.append(functools.partial(operator.setitem, state, key, new.to(value.device, value.dtype)))
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and not remap:
                calls.append(functools.partial(operator.setitem, state, key, type(value)(0)))
    return changes, calls


def _states(
    optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for optimizer in optimizers:
        for part, parameter in parameters.items():
            yield optimizer.state.get(parameter, {}), part, parameter


def _moved(
    value: Tensor, parameter: Tensor, before: Pointed, after: Pointed, part: str, vocab: int, remap: bool, heirs: Heirs | None
) -> Tensor:  # fmt: skip
    rows, unit, new = parameter.shape[0], parameter.shape[1], part_of(after.text, part).layout.n_units
    if value.numel() not in (parameter.numel(), rows):
        return torch.zeros_like(value)
    shape = [new if n == rows else n for n in value.shape] if new != rows else value.shape
    if not remap:
        return value.new_zeros(shape) if new != rows else torch.zeros_like(value)
    device = next(t.device for t in (before.keys, before.pointers, parameter) if t is not None)
    full: Any = getattr(value, "full_tensor", lambda: value)()
    held = full.detach().to_dense().to(device, torch.float32).reshape(rows, -1)
    if heirs is not None:
        return torch.from_numpy(heirs.inherit(held.numpy().reshape(-1))).view(shape)
    if value.numel() == parameter.numel():
        return remapped(held.contiguous(), before, after, part, vocab).view(shape)
    return remapped(held.expand(rows, unit).contiguous(), before, after, part, vocab).mean(1).view(shape)
