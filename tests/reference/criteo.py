"""Naive twins of the click logs: plain Python, one line and one row at a time."""

from __future__ import annotations

import math

from reference import datasets as base


def parse(text: str, sizes, keys):
    """(label, counts, ids) of every line; None is a missing count, 0 a missing category."""
    rows = []
    for line in text.split("\n")[:-1]:
        label, *fields = line.rstrip("\r").split("\t")
        counts = [int(field) if field else None for field in fields[:13]]
        ids = [
            1 + (base.hashed(int(field, 16), key) * (size - 1) >> 64) if field else 0
            for field, size, key in zip(fields[13:], sizes, keys, strict=True)
        ]
        rows.append((float(label), counts, ids))
    return rows


def logged(count) -> float:
    """log(1 + max(count, 0)), 0 where it is missing."""
    return 0.0 if count is None else math.log(1 + max(count, 0))


def synthetic_row(n: int, keys, slopes, spec):
    """Row n of a stream: (probability, label, counts, ids). `keys` are the stream's, `spec` has its fields."""
    ids = []
    for k, size in enumerate(spec.sizes):
        rank = base.zipf_rank(base.uniform(base.hashed(n, keys[k])), size, spec.zipf)
        ids.append(base.scattered(rank, size, keys[40 + 3 * k : 43 + 3 * k]))
    counts = []
    for j in range(13):
        u = base.uniform(base.hashed(n, keys[26 + j]))
        counts.append(None if u < 1 / 16 else int(2 ** (8 * (u - 1 / 16) / (15 / 16))) - 2)
    pairs, dot = len(spec.carriers) - 1, 0.0
    for p in range(pairs):
        first, second = ids[spec.carriers[p]], ids[spec.carriers[p + 1]]
        at = 40 + 78 + 2 * spec.dim * p
        for d in range(spec.dim):
            x = base.coordinate(first, keys[at + d], spec.center)
            dot += x * base.coordinate(second, keys[at + spec.dim + d], spec.center)
    root = math.sqrt(spec.dim * pairs)
    z = math.log(spec.rate / (1 - spec.rate)) + spec.scale / root * dot - spec.scale * root * spec.center**2
    z += sum(w * (math.log2(1 + max(c, 0)) - 2) for w, c in zip(slopes, counts, strict=True) if c is not None)
    p = 1 / (1 + math.exp(-z)) if z > -700 else math.exp(z)
    return p, float(base.uniform(base.hashed(n, keys[39])) < p), counts, ids
