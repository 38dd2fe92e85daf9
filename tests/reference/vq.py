"""Vector quantisation of ids from its definition: sizes by trying all, pointers by trying all, counters in Python's integers."""

from __future__ import annotations

import numpy as np
from reference.tables import mix


def memory_bytes(floats: int, codec: str) -> int:
    scales = 4 * -(-floats // 64)
    return {"float32": 4 * floats, "bfloat16": 2 * floats, "int8": floats + scales, "int4": -(-floats // 2) + scales}[
        codec
    ]


def code_bytes(rows: int, vocab: int, dim: int, rank: int, stages: int, codec: str) -> int:
    """Packed pointers in words of 8 bytes, centroids, the projection with its bias, and the generation."""
    pointers = 8 * -(-vocab * stages * (rows - 1).bit_length() // 64)
    projection = 4 * (rank + 1) * dim if rank else 0
    return pointers + memory_bytes(rows * stages * (rank or dim), codec) + projection + 8


def row_bytes(vocab: int, dim: int, rank: int, codec: str) -> int:
    """A row and a counter an id, the projection, and the generation."""
    return memory_bytes(vocab * (rank or dim), codec) + vocab + (4 * (rank + 1) * dim if rank else 0) + 8


def most_rows(budget: int, vocab: int, dim: int, rank: int, stages: int, codec: str) -> int:
    """The most centroids within a budget of bytes, 0 where not even the fewest fit."""
    least, most = min(2, vocab), min(vocab, 2**16)
    fits = [k for k in range(least, most + 1) if code_bytes(k, vocab, dim, rank, stages, codec) <= budget]
    return max(fits, default=0)


def nearest(vectors, centroids):
    """The nearest centroid of each vector, and its squared distance: float64."""
    apart = np.square(vectors[:, None].astype(np.float64) - centroids[None].astype(np.float64)).sum(2)
    return apart.argmin(1), apart.min(1)


def count(counts, ids, key: int):
    """One occurrence after the other: c → c + 1 with probability (17/16)^−c."""
    counts = [int(c) for c in counts]
    for n, i in enumerate(ids):
        if counts[i] < 255 and (mix(n, key) >> 11) * 2.0**-53 < (17 / 16) ** -counts[i]:
            counts[i] += 1
    return counts


def estimate(c: int) -> float:
    return 16 * ((17 / 16) ** int(c) - 1)
