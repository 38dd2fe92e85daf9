"""Tables from their definitions, an id at a time, in Python's own integers."""

from __future__ import annotations

import math

import numpy as np
from reference.id_map import IdMap

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


def marked(words, i: int) -> bool:
    """Whether an id has a mark: 480 of them in 8 words, behind the low half of the first."""
    return bool(int(words[8 * (i // 480) + (32 + i % 480) // 64]) >> ((32 + i % 480) % 64) & 1)


def blocks_of(method, i, *, vocab, inner, n_chunks, sizes, options, keys, words):
    """The blocks of id i, chunk by chunk, as (start, first float of the region, floats of the region, sign); their width; and
    where the weight of each block lies, as (array, place), or None where all are 1."""
    keys = [int(k) for k in keys]
    rows = sizes[0] if sizes else vocab
    combine = options.get("combine", "concat")
    w = inner // n_chunks if combine == "concat" else inner

    def sign(j):
        return -1 if options["signed"] and mix(i, keys[j]) & 1 else 1

    def whole(start, width, sign=1):  # a block of a codebook: it never wraps
        return start, start, width, sign

    if method in ("full", "ldim", "int8", "int4"):
        return [[whole(i * inner, inner)]], inner, None
    if method == "tiered":
        known = IdMap(rows, options["bits"])
        known.key = keys[0]
        fingerprint, *buckets = known.buckets(i)
        found = [slot for b in buckets for slot in range(4 * b, 4 * b + 4)
                 if pointer(words, slot, known.bits, 0, known.bits) == fingerprint]  # fmt: skip
        row = found[0] if found else rows + known.shared(known.identity(known.name(i)), min(8, max(1, rows // 16)))
        return [[whole(row * inner, inner)]], inner, None
    if method == "hash":
        return [[whole(bucket(i, keys[0], rows) * inner, inner, sign(0))]], inner, None
    if method == "bloom":
        terms = range(options["n_hashes"])
        return [[whole(bucket(i, keys[t], rows) * inner, inner, sign(t)) for t in terms]], inner, None
    if method in ("ce", "qr"):
        if method == "ce":
            digits = [bucket(i, keys[c], rows) for c in range(n_chunks)]
        else:
            steps = radix(-(-vocab // rows), n_chunks - 1) if n_chunks > 1 else []
            digits = [(i // math.prod(steps[:c])) % rows for c in range(n_chunks)]
        chunks = [[whole((c * rows + d) * w, w)] for c, d in enumerate(digits)]
        return [[block for chunk in chunks for block in chunk]] if combine == "add" else chunks, w, None
    if method == "robe":
        w = options["chunk_size"] or w
        return [[(bucket(i, keys[c], rows), 0, rows, sign(c))] for c in range(inner // w)], w, None
    if method == "hnet":
        return [[whole(bucket(i, keys[j], rows), 1, sign(j))] for j in range(inner)], 1, None
    if method == "hemb":
        k, kind = options["n_hashes"], options["weights"]
        w = inner - k if kind == "concat" else inner
        n = rows * max(1, 3 * inner // (2 * k))
        if kind in ("shared", "concat"):
            places = [bucket(i, keys[k], n) * k + t for t in range(k)]
        elif kind == "independent":
            places = [t * n + bucket(i, keys[k + t], n) for t in range(k)]
        else:
            places = [bucket(i, keys[k + t], n * k) for t in range(k)]
        blocks = [[whole(bucket(i, keys[t], rows) * w, w) for t in range(k)]]
        return blocks, w, [("weights", place) for place in places]
    if method == "rhemb":
        k = options["n_hashes"]
        blocks = [[(bucket(i, keys[t], rows), 0, rows, 1) for t in range(k)]]
        return blocks, inner, [("memory", bucket(i, keys[k + t], rows)) for t in range(k)]
    if method == "pq":
        bits = (rows - 1).bit_length()
        found = [pointer(words, i, n_chunks * bits, c * bits, bits) for c in range(n_chunks)]
        return [[whole((c * rows + p) * w, w)] for c, p in enumerate(found)], w, None
    if method == "cce_robe":
        bits = (rows - 1).bit_length()
        found = [pointer(words, i, n_chunks * bits, c * bits, bits) for c in range(n_chunks)]
        return (
            [[(found[c], 0, rows, 1), (rows + bucket(i, keys[c], rows), rows, rows, 1)] for c in range(n_chunks)],
            w,
            None,
        )
    if method == "vq":
        if options["phase"] == "rows":
            return [[whole(i * inner, inner)]], inner, None
        stages, bits = options["stages"], (rows - 1).bit_length()
        if options.get("bits"):
            bits, rows, marks = options["bits"], 2 ** options["bits"], 8 * -(-vocab // 480)
            entry, here = sum(marked(words, other) for other in range(i)), marked(words, i)
            words, i = (words[marks:], entry) if here else ([0], 0)
        found = [pointer(words, i, stages * bits, s * bits, bits) for s in range(stages)]
        return [[whole((s * rows + p) * inner, inner) for s, p in enumerate(found)]], inner, None
    if method in ("sparse", "sparse2"):
        k, bits, more = options["n_atoms"], (rows - 1).bit_length(), options.get("weight_bits", 0)
        per_id = k * (bits + more)
        blocks = [[whole(pointer(words, i, per_id, t * bits, bits) * inner, inner) for t in range(k)]]
        if more:
            places = [pointer(words, i, per_id, k * bits + t * more, more) for t in range(k)]
        else:
            places = [bucket(i, keys[t], rows * inner) for t in range(k)]
        return blocks, inner, [("weights", place) for place in places]
    if method == "cce":
        bits, both = (rows - 1).bit_length(), rows + sizes[-1]
        return (
            [
                [
                    whole((c * both + pointer(words, i, n_chunks * bits, c * bits, bits)) * w, w),
                    whole((c * both + rows + bucket(i, keys[c], sizes[-1])) * w, w),
                ]
                for c in range(n_chunks)
            ],
            w,
            None,
        )
    raise AssertionError(method)


def radix(vocab: int, n: int) -> list[int]:
    """The n bases, equal or one apart with the larger first, that reach vocab with the fewest rows."""
    base = next(b for b in range(1, vocab + 1) if b**n >= vocab)
    larger = next(j for j in range(1, n + 1) if base**j * (base - 1) ** (n - j) >= vocab)
    return [base] * larger + [base - 1] * (n - larger)


def _blocks(method, i, arrays, spec):
    """(chunk, weight, array and place of the weight, places of the block's floats) for every block of id i; the width."""
    chunks, w, weights = blocks_of(method, int(i), **spec)
    out, j = [], 0
    for c, chunk in enumerate(chunks):
        for start, base, region, sign in chunk:
            place = weights[j] if weights else None
            weight = sign * (float(arrays[place[0]][place[1]]) if place else 1.0)
            out.append((c, weight, sign, place, [base + (start - base + k) % region for k in range(w)]))
            j += 1
    return out, w, len(chunks)


def _inner(method, i, arrays, spec):
    blocks, w, n_chunks = _blocks(method, i, arrays, spec)
    out = np.zeros((n_chunks, w))
    for c, weight, _, _, places in blocks:
        out[c] += weight * arrays["memory"][places].astype(np.float64)
    if spec["options"].get("combine") == "mul":
        return out.prod(0)
    extra = [weight for _, weight, *_ in blocks] if spec["options"].get("weights") == "concat" else []
    return np.concatenate([out.reshape(-1), extra])


def lookup(method, ids, arrays, **spec):
    """float64 vectors of flat ids."""
    out = np.array([_inner(method, i, arrays, spec) for i in ids]).reshape(len(ids), spec["inner"])
    if "projection" not in arrays:
        return out
    w = arrays["projection"].astype(np.float64)
    return out @ w[:-1] + w[-1]


def backward(method, ids, grads, arrays, **spec):
    """float64 gradients of all trained arrays."""
    out = {name: np.zeros(np.shape(array)) for name, array in arrays.items()}
    inner = grads.astype(np.float64)
    if "projection" in arrays:
        without = {name: array for name, array in arrays.items() if name != "projection"}
        out["projection"] = np.vstack([lookup(method, ids, without, **spec).T @ inner, inner.sum(0)])
        inner = inner @ arrays["projection"][:-1].astype(np.float64).T
    for i, g in zip(ids, inner, strict=True):
        blocks, w, n_chunks = _blocks(method, i, arrays, spec)
        for j, (c, weight, sign, place, places) in enumerate(blocks):
            block = arrays["memory"][places].astype(np.float64)
            slope = g if spec["options"].get("combine") == "mul" else g[c * w : (c + 1) * w]
            if spec["options"].get("combine") == "mul":
                for other in range(n_chunks):
                    if other != c:
                        slope = slope * arrays["memory"][blocks[other][4]].astype(np.float64)
            for k, at in enumerate(places):
                out["memory"][at] += weight * slope[k]
            if place:
                appended = g[n_chunks * w + j] if spec["options"].get("weights") == "concat" else 0.0
                out[place[0]][place[1]] += sign * (slope @ block) + appended
    return out
