"""A process group as NumPy's arrays see it: sums, shares of work, and proof that all ranks hold the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed


class Ranks:
    """The processes of a group.

    Args:
        group: a process group; None is the default one.

    Attributes:
        rank: which of them this is.
        size: how many there are.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.device = torch.device("cpu" if "gloo" in str(distributed.get_backend(group)) else "cuda")

    def share(self, n: int, align: int = 1) -> tuple[int, int]:
        """This rank's [low, high) of n items; every share but the last is a multiple of `align`."""
        step = -(-n // (self.size * align)) * align
        return min(self.rank * step, n), min((self.rank + 1) * step, n)

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks, of float64 or int64."""
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(self.device, copy=True)
        distributed.all_reduce(tensor, group=self.group)
        return np.asarray(tensor.cpu())

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Everyone's array, all of one shape, by rank."""
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        all_of = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(all_of, tensor, group=self.group)
        return [np.asarray(one.cpu()) for one in all_of]

    def gather_uneven(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Everyone's row of int64 or uint64, of whatever length, by rank."""
        lengths = [int(one[0]) for one in self.gather(np.array([len(values)]))]
        padded = np.zeros(max(lengths), np.int64)
        padded[: len(values)] = values.view(np.int64)
        return [one[:n].view(values.dtype) for one, n in zip(self.gather(padded), lengths, strict=True)]

    def most(self, value: float) -> float:
        """The largest of everyone's numbers."""
        return float(max(one[0] for one in self.gather(np.array([value]))))

    def agree(self, things: Mapping[str, Any], when: str) -> None:
        """RuntimeError on every rank, with the names, unless all ranks hold the same bits under every name."""
        names = list(things)
        mine = np.array([digest(things[name]) for name in names], np.int64)
        everyone = self.gather(mine)
        wrong = [names[k] for k in range(len(names)) if any(one[k] != everyone[0][k] for one in everyone)]
        if wrong:
            ranks = [r for r, one in enumerate(everyone) if not np.array_equal(one, everyone[0])]
            raise RuntimeError(
                f"{when}, rank {', '.join(map(str, ranks))} and rank 0 hold different {', '.join(wrong)}. Give every rank the "
                "same seed and state, and call cluster() on every rank; a parameter that was replaced after "
                "DistributedDataParallel wrapped the model is no longer kept in step"
            )


def ranks_of(group: distributed.ProcessGroup | None = None) -> Ranks | None:
    """The ranks of a group; None where there is but this process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    ranks = Ranks(group)
    return ranks if ranks.size > 1 else None


def digest(thing: object) -> int:
    """64 bits that stand for an array, or for the text of anything else."""
    data = np.ascontiguousarray(thing).tobytes() if isinstance(thing, np.ndarray) else repr(thing).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
