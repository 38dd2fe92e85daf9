"""Vector quantisation of ids from its definition: sizes by trying all, pointers by trying all, counters in Python's integers."""

from __future__ import annotations

import numpy as np
from reference.tables import mix, pointer


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


def rows_of(words, vocab: int, rows: int, stages: int):
    """The rows that ids have in the stages' codebooks, laid one after the other: int (vocab, stages); or their own."""
    if words is None:
        return np.arange(vocab)[:, None]
    bits = (rows - 1).bit_length()
    return np.array(
        [[s * rows + pointer(words, i, stages * bits, s * bits, bits) for s in range(stages)] for i in range(vocab)]
    )


def vectors(memory, rows, projection, ids):
    """T[i] = Σ_s M[rows[i, s]] · W + b, in float64, an id at a time."""
    memory, out = memory.astype(np.float64), []
    for i in ids:
        x = sum(memory[r] for r in rows[i])
        out.append(x if projection is None else x @ projection[:-1].astype(np.float64) + projection[-1])
    return np.array(out)


def gradients(memory, rows, projection, ids, grads):
    """Of the memory and of the projection, likewise."""
    memory, grads = memory.astype(np.float64), grads.astype(np.float64)
    to_memory = np.zeros(memory.shape)
    to_projection = None if projection is None else np.zeros(projection.shape)
    for i, g in zip(ids, grads, strict=True):
        if projection is not None:
            x = sum(memory[r] for r in rows[i])
            to_projection[:-1] += np.outer(x, g)
            to_projection[-1] += g
            g = projection[:-1].astype(np.float64) @ g
        for r in rows[i]:
            to_memory[r] += g
    return to_memory, to_projection


def followed(state, old_rows, new_rows, n: int):
    """What belongs to the rows of a memory, for another of n rows with other ids: the mean over its ids of the mean of theirs; or
    the sum, where old rows were of one id each."""
    over = np.sum if old_rows.tolist() == [[i] for i in range(len(old_rows))] else np.mean
    return np.array(
        [
            over([state[old_rows[i]].mean(0) for i in range(len(new_rows)) if a in new_rows[i]] or [0 * state[0]], 0)
            for a in range(n)
        ]
    )
