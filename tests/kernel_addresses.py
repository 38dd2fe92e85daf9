"""A kernel for tests alone: the addresses that other kernels find and never write."""

from __future__ import annotations

import numpy as np
from kernel_tables import DEVICE, torch

from cce_kernels.lookup import term
from cce_kernels.runtime import tl, triton


@triton.jit
def _addresses(rows, columns, ids, out, n, N: tl.constexpr, C: tl.constexpr, KINDS: tl.constexpr):
    i = tl.arange(0, N)
    c = tl.arange(0, C)[None, :]
    live = i < n
    word = tl.load(ids + i, mask=live, other=0).to(tl.uint64)
    _, here, at, _, _, _, _ = term(rows, columns, c, 0, word, i, live, 0, 0, 0, KINDS, 6, 0, False, False, 1)
    tl.store(out + i[:, None] * C + c, at.to(tl.int64), mask=live[:, None] & here)


def found(launch, ids: np.ndarray) -> np.ndarray:
    """int64 (n, chunks) of the launch's only part, whose chunks are a power of two in number."""
    chunks = launch.meta["C"]
    out = torch.zeros((len(ids), chunks), dtype=torch.int64, device=DEVICE)
    block = 1 << len(ids).bit_length()
    words = torch.from_numpy(ids).to(DEVICE)
    _addresses[(1,)](launch.rows, launch.columns, words, out, len(ids), N=block, C=chunks, KINDS=launch.meta["KINDS"])
    return out.cpu().numpy()
