"""`torch.ops.cce.count`: how often training meets ids, in a byte per id, on any device with the bits of the core's counters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch.operators.arguments import words_of
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.registry import define_in_place
from cce_core.hashing.mix import derive_key
from cce_core.method.spec import COUNTS
from cce_core.storage import counters


@torch.no_grad()
def _count(counts: Tensor, passes: Tensor, ids: Tensor, seed: Tensor, skip: int | None) -> None:
    words = words_of(ids.cpu(), np.uint64(counts.numel()))
    if skip is not None:
        words = words[words != np.uint64(skip)]
    passes.add_(1)
    key = derive_key(int(seed) & (2**64 - 1), COUNTS, int(passes))
    if counts.device.type == "cpu" and counts.is_contiguous():
        counters.count(array(counts), words, key)
        torch.autograd.graph.increment_version(counts)
    elif len(words):  # of those alone that are met: a draw follows from a place in the batch, and not from the id
        met, where = np.unique(words, return_inverse=True)
        at = torch.from_numpy(met.view(np.int64)).to(counts.device)
        few = counts[at].cpu()
        counters.count(array(few), where.astype(np.uint64), key)
        counts[at] = few.to(counts.device)


# counts: uint8, changed in place; passes: int64 (1,), how often it was called, which the draws depend on; ids: int64 (n,), of
# which `skip` is left out; seed: of the table.
count = define_in_place(
    "count", "(Tensor(a!) counts, Tensor(b!) passes, Tensor ids, Tensor seed, int? skip) -> ()", _count
)
