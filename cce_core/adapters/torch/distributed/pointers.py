"""Pointers of a very large vocabulary, a share of the ids on each rank of the default process group.

A lookup asks the owners of its ids for their pointers, a row of whole words an id, and reads those in place of the table's own.
The memory is whole on every rank, so gradients go their usual way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from cce_core.adapters.torch.distributed.ranks import Ranks
from cce_core.adapters.torch.operators.eager import read_bits


def ranks() -> Ranks:
    """The ranks that hold the shares.

    Raises:
        RuntimeError: there is no process group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "shard_pointers=True shares the pointers among the ranks of a process group: call "
            "torch.distributed.init_process_group first"
        )
    return Ranks()


class Shares:
    """Who owns the pointers of which ids.

    Args:
        vocab: ids in all.
        bits: bits of an id's pointers.
    """

    def __init__(self, vocab: int, bits: int) -> None:
        self.vocab, self.bits, self.ranks = vocab, bits, ranks()
        self.each = -(-vocab // (self.ranks.size * 64)) * 64
        self.low = self.ranks.share(vocab, 64)[0]

    def own(self, words: NDArray[Any]) -> NDArray[Any]:
        """This rank's part of the whole stream, padded to the length that all parts have; 64 ids fill whole words."""
        length = self.each * self.bits // 64
        part = words[self.ranks.rank * length : (self.ranks.rank + 1) * length]
        return np.concatenate([part, np.zeros(length - len(part), words.dtype)])

    def whole(self, own: NDArray[Any]) -> NDArray[Any]:
        """The whole stream from everyone's part; every rank must ask for it."""
        everyone = np.concatenate(self.ranks.gather(own.view(np.int64)))
        return everyone[: -(-self.vocab * self.bits // 64)].view(np.uint64)

    def check(self, shard: Tensor) -> None:
        """RuntimeError unless the module's share is this rank's."""
        here, held = [self.ranks.rank, self.ranks.size], shard.tolist()
        if held != here:
            raise RuntimeError(
                f"this module holds the pointers of rank {held[0]} of {held[1]}, but this is rank {here[0]} of {here[1]}: "
                "load this rank's own state, and call leave_out_pointers(model) before DistributedDataParallel wraps it"
            )

    def fetch(self, own: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The pointers of ids from their owners; every rank must call it, each with its own ids.

        Returns:
            Rows of whole words, flat, one row a distinct id; and which row each id's is.
        """
        distinct, rows = torch.unique(ids, return_inverse=True)
        wanted = torch.bincount(distinct // self.each, minlength=self.ranks.size)
        asked = torch.empty_like(wanted)
        distributed.all_to_all_single(asked, wanted)
        here, there = asked.tolist(), wanted.tolist()
        theirs = exchange(distinct, there, here) - self.low
        words = -(-self.bits // 64)
        found = torch.stack([self._word(own, theirs, 64 * w) for w in range(words)], 1).reshape(-1)
        return exchange(found, [n * words for n in here], [n * words for n in there]), rows

    def _word(self, own: Tensor, ids: Tensor, start: int) -> Tensor:
        """Up to 64 bits of the pointers of some of this rank's ids, from bit `start` on."""
        position, left = ids * self.bits + start, min(64, self.bits - start)
        low = read_bits(own, position, min(32, left))
        return low if left <= 32 else low | (read_bits(own, position + 32, left - 32) << 32)


def exchange(values: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Everyone's parts for this rank, in the order of the ranks, for this rank's parts for everyone."""
    out = values.new_empty(sum(receive))
    distributed.all_to_all_single(out, values.contiguous(), list(receive), list(send))
    return out
