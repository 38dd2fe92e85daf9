"""Deep Hash Embedding from its definition: an id at a time, in Python's own integers and float64."""

from __future__ import annotations

import math

import numpy as np
from reference.tables import MASK, bucket, mix

GOLDEN = 0x9E3779B97F4A7C15
M = 1_000_000


def derived_key(seed: int, stream: tuple[int, ...]) -> int:
    state = mix((seed + GOLDEN) & MASK, len(stream))
    for number in stream:
        state = mix((state + GOLDEN) & MASK, number)
    return state


def encoding(i: int, seed: int, hashes: int, transform: str) -> list[float]:
    h = [bucket(i, derived_key(seed, (1, 0, j)), M) for j in range(hashes)]
    if transform == "uniform":
        return [2 * x / (M - 1) - 1 for x in h]
    out = []
    for j in range(0, hashes, 2):
        radius, angle = math.sqrt(-2 * math.log((h[j] + 1) / M)), 2 * math.pi * h[j + 1] / M
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return out


def mish(z: float) -> float:
    return z * math.tanh(math.log1p(math.exp(-abs(z))) + max(z, 0.0))


def vector(i: int, arrays, seed: int, depth: int, transform: str) -> list[float]:
    """`arrays` are those of the table by name, in any precision."""
    a = encoding(i, seed, len(arrays["w0"]), transform)
    for layer in range(depth + 1):
        w, b = arrays[f"w{layer}"], arrays[f"b{layer}"]
        a = [
            sum(x * float(w[r][c]) for r, x in enumerate(a)) + float(b[c]) for c in range(len(b))
        ]  # a row in, a column out
        if layer < depth:
            a = [mish(z) for z in a]
    return a


def lookup(ids, arrays, seed: int, depth: int, transform: str):
    """float64 vectors of flat ids."""
    dim = len(arrays[f"b{depth}"])
    return np.array([vector(int(i), arrays, seed, depth, transform) for i in ids]).reshape(len(ids), dim)
