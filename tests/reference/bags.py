"""Bags of ids over many tables, row by row in plain NumPy."""

from __future__ import annotations

import numpy as np


def pooled(vectors, ends, weights, mode, padding, ids):
    """One table's rows: `vectors` (n, dim) of `ids` (n,), bags between `ends`; weights (n,) or None; float64."""
    out = np.zeros((len(ends) - 1, vectors.shape[1]))
    for b in range(len(ends) - 1):
        kept = [n for n in range(ends[b], ends[b + 1]) if padding is None or ids[n] != padding]
        if not kept:
            continue
        rows = vectors[kept].astype(np.float64)
        if mode == "max":
            out[b] = rows.max(axis=0)
        elif mode == "mean":
            out[b] = rows.sum(axis=0) / len(kept)
        else:
            out[b] = (rows if weights is None else rows * weights[kept, None].astype(np.float64)).sum(axis=0)
    return out


def unpooled(vectors, ends, weights, mode, padding, ids, grads):
    """The gradient of each id's vector (n, dim), and of its weight (n,), from those of the rows; float64."""
    slopes, of_weights = np.zeros(vectors.shape), np.zeros(len(ids))
    for b in range(len(ends) - 1):
        kept = [n for n in range(ends[b], ends[b + 1]) if padding is None or ids[n] != padding]
        if mode == "max" and kept:
            for i in range(vectors.shape[1]):
                first = kept[int(np.argmax(vectors[kept, i]))]
                slopes[first, i] += grads[b, i]
        for n in kept if mode != "max" else ():
            share = 1 / len(kept) if mode == "mean" else 1.0 if weights is None else float(weights[n])
            slopes[n] += share * grads[b].astype(np.float64)
            of_weights[n] = vectors[n].astype(np.float64) @ grads[b]
    return slopes, of_weights
