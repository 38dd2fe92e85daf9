"""What optimisers know of a memory, carried over a clustering, after which its rows mean something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cce_core.adapters.torch.arrays import float32, write
from cce_core.sketching import blocks
from cce_core.sketching.bundle import Memory, Sketch
from cce_core.sketching.table import Table
from cce_core.storage.codec import FLOAT32

HOW = ("remap", "reset")
_BATCH = 1 << 16


class Sketches(NamedTuple):
    """The sketches of the memory and of the weights (None where there are none), as they were at one time."""

    memory: Sketch
    weights: Sketch | None


def sketches(table: Table) -> Sketches:
    """A copy of the table's present ones."""

    def copy(sketch: Sketch) -> Sketch:
        return Sketch(sketch.layout, sketch.keys.copy(), sketch.pointers.copy())

    return Sketches(copy(table.sketch), None if table.weigher is None else copy(table.weigher))


def remapped(values: NDArray[np.float32], old: Sketch, new: Sketch, vocab: int) -> NDArray[np.float32]:
    """Numbers that belong to the floats of a memory, carried from one sketch to another.

    An id's number is the mean of those of the blocks that it had; a float's new number is the mean of those of the ids that
    have it now, and 0 where none has.

        s'[a] = mean { mean_t s[old address of (i, t)] : i, t with new address a }
    """
    sums, seen = np.zeros((2, values.size), np.float32)
    memory, terms = Memory(FLOAT32, np.ascontiguousarray(values.reshape(-1))), np.float32(old.layout.terms)
    for low in range(0, vocab, _BATCH):
        ids = np.arange(low, min(low + _BATCH, vocab), dtype=np.uint64)
        means = blocks.lookup(old, memory, ids)
        means /= terms
        sums += blocks.scatter(new, ids, means)
        seen += blocks.scatter(new, ids, np.ones_like(means))
    return np.divide(sums, np.maximum(seen, 1), dtype=np.float32).reshape(values.shape)


@torch.no_grad()
def carry(
    optimizers: Iterable[Any], parameters: Mapping[str, Tensor], before: Sketches, after: Sketches, vocab: int, how: str
) -> None:
    """Carry the state of the parameters `memory` and `weights` over a clustering, or reset it as for new parameters.

    Remapped is every tensor with a number for each float, or each row, of the parameter; step counts stay. Other tensors are
    set to 0.
    """
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            old, new = getattr(before, name), getattr(after, name)
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor):
                    if how == "remap" and value.dim() == 0:
                        continue
                    moved = None if how == "reset" or old is None else _moved(value, parameter, old, new, vocab)
                    if moved is None:
                        value.zero_()
                    else:
                        write(value, moved)
                elif how == "reset" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    state[key] = type(value)(0)


def _moved(value: Tensor, parameter: Tensor, old: Sketch, new: Sketch, vocab: int) -> NDArray[np.float32] | None:
    rows = parameter.shape[0]
    if value.numel() == parameter.numel():
        return remapped(float32(value), old, new, vocab)
    if value.numel() != rows:
        return None
    spread = np.repeat(float32(value).reshape(rows, 1), parameter.shape[1], 1)
    return remapped(spread, old, new, vocab).mean(1).reshape(value.shape)
