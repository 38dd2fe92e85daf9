"""Tables from their definitions, an id at a time, in Python's own integers."""

from __future__ import annotations

import numpy as np

MASK = 2**64 - 1


def mix(x: int, key: int) -> int:
    x &= MASK
    x ^= x >> 32
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 29
    z = (x ^ key) * 0xD6E8FEB86659FD93 & MASK
    z ^= z >> 32
    z = z * 0x9FB21C651E98DF25 & MASK
    z ^= z >> 29
    z = z * 0x243F6A8885A308D3 & MASK
    return z ^ (z >> 32)


def bucket(x: int, key: int, n: int) -> int:
    return mix(x, key) * n >> 64


def pointer(words, i: int, per_id: int, offset: int, bits: int) -> int:
    stream = sum(int(word) << (64 * k) for k, word in enumerate(words))
    return (stream >> (i * per_id + offset)) & ((1 << bits) - 1)


def blocks_of(method, i, *, vocab, inner, n_chunks, sizes, options, keys, words):
    """For each chunk, the (start, sign) of every block that id i sums there, and the width of a block."""
    keys = [int(k) for k in keys]
    w = inner // n_chunks
    if method == "full":
        return [[(i * inner, 1)]], inner
    rows = sizes[0]
    if method == "hash":
        sign = -1 if options["signed"] and mix(i, keys[0]) & 1 else 1
        return [[(bucket(i, keys[0], rows) * inner, sign)]], inner
    if method == "ce":
        return [[((c * rows + bucket(i, keys[c], rows)) * w, 1)] for c in range(n_chunks)], w
    if method == "robe":
        return [[(bucket(i, keys[c], rows), 1)] for c in range(n_chunks)], w
    if method == "qr":
        rest = -(-vocab // rows)
        out, divisor = [], 1
        for c in range(n_chunks):
            out.append([((c * rows + (i // divisor) % rows) * w, 1)])
            if c < n_chunks - 1:
                divisor *= radix(rest, n_chunks - 1)[c]
        return out, w
    if method == "cce":
        bits = (rows - 1).bit_length()
        return [
            [
                ((2 * c * rows + pointer(words, i, n_chunks * bits, c * bits, bits)) * w, 1),
                (((2 * c + 1) * rows + bucket(i, keys[c], rows)) * w, 1),
            ]
            for c in range(n_chunks)
        ], w
    raise AssertionError(method)


def radix(vocab: int, n: int) -> list[int]:
    """The n bases, equal or one apart with the larger first, that reach vocab with the fewest rows."""
    base = next(b for b in range(1, vocab + 1) if b**n >= vocab)
    larger = next(j for j in range(1, n + 1) if base**j * (base - 1) ** (n - j) >= vocab)
    return [base] * larger + [base - 1] * (n - larger)


def lookup(method, ids, memory, projection, **spec):
    """float64 vectors of flat ids."""
    out = np.zeros((len(ids), spec["inner"]))
    for n, i in enumerate(ids):
        chunks, w = blocks_of(method, int(i), **spec)
        for c, chunk in enumerate(chunks):
            for start, sign in chunk:
                for k in range(w):
                    out[n, c * w + k] += sign * float(memory[(start + k) % len(memory)])
    return out if projection is None else out @ projection.astype(np.float64)


def backward(method, ids, grads, memory, projection, **spec):
    """float64 gradients of the memory and of the projection."""
    inner = grads.astype(np.float64)
    vectors = lookup(method, ids, memory, None, **spec)
    by_projection = None
    if projection is not None:
        by_projection = vectors.T @ inner
        inner = inner @ projection.astype(np.float64).T
    out = np.zeros(len(memory))
    for n, i in enumerate(ids):
        chunks, w = blocks_of(method, int(i), **spec)
        for c, chunk in enumerate(chunks):
            for start, sign in chunk:
                for k in range(w):
                    out[(start + k) % len(memory)] += sign * inner[n, c * w + k]
    return out, by_projection
