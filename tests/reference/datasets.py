"""Naive twins of cce_core.datasets: plain Python, one row at a time."""

from __future__ import annotations

import math

import numpy as np

MASK = 2**64 - 1


def parse(text: str, separator: str):
    """(user, item, stars, time) of every line."""
    lines = text.split("\n")[:-1]
    if separator == ",":
        lines = lines[1:]
    rows = []
    for line in lines:
        user, item, stars, time = line.rstrip("\r").split(separator)
        rows.append((int(user), int(item), float(stars), int(time)))
    return rows


def binary(rows):
    """Rows of (user, item, label, time) with compact ids, ratings of 3 dropped; and the raw ids of users and items."""
    kept = [row for row in rows if row[2] != 3]
    users = sorted({row[0] for row in kept})
    items = sorted({row[1] for row in kept})
    compact = [(users.index(u), items.index(i), 1.0 if stars > 3 else 0.0, time) for u, i, stars, time in kept]
    return compact, users, items


def split(compact, n_last=2):
    """Training and validation rows (user, item, label): each user's last by time, but for one that training keeps."""
    held = set()
    for user in {row[0] for row in compact}:
        mine = [(row[3], place) for place, row in enumerate(compact) if row[0] == user]
        mine.sort()  # by time, then by place in the file
        n = min(n_last, len(mine) - 1)
        held |= {place for _, place in mine[len(mine) - n :]}
    train = [row[:3] for place, row in enumerate(compact) if place not in held]
    valid = [row[:3] for place, row in enumerate(compact) if place in held]
    return train, valid


def compacted(pairs):
    """Pairs of raw ids by their ranks; and the raw ids of users and items."""
    users, items = sorted({u for u, _ in pairs}), sorted({i for _, i in pairs})
    return [(users.index(u), items.index(i)) for u, i in pairs], users, items


def with_negatives(pairs, n_items, seed):
    """Training and validation rows (user, item, label): a tenth held out at random, a negative beside each positive.

    The third result has, per part, whether each negative was drawn a second time.
    """
    rng, met = np.random.default_rng(seed), set(pairs)
    order = rng.permutation(len(pairs)).tolist()
    parts, again = [], []
    for rows in (order[: len(pairs) // 10], order[len(pairs) // 10 :]):
        part = [pairs[row] for row in rows]
        coins, popular = rng.random(len(part)), rng.integers(len(part), size=len(part))
        even = rng.integers(n_items, size=len(part))
        drawn = [part[popular[k]][1] if coins[k] < 0.5 else int(even[k]) for k in range(len(part))]
        known = [(user, item) in met for (user, _), item in zip(part, drawn)]
        fresh = iter(rng.integers(n_items, size=sum(known)).tolist())
        negatives = [next(fresh) if k else item for item, k in zip(drawn, known)]
        parts.append([(u, i, 1.0) for u, i in part] + [(u, i, 0.0) for (u, _), i in zip(part, negatives)])
        again.append(known)
    return parts[1], parts[0], again[::-1]


def hashed(x: int, key: int) -> int:
    """The house's 64-bit mix in Python's integers."""
    x ^= x >> 32
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 29
    z = (x ^ key) * 0xD6E8FEB86659FD93 & MASK
    z ^= z >> 32
    z = z * 0x9FB21C651E98DF25 & MASK
    z ^= z >> 29
    z = z * 0x243F6A8885A308D3 & MASK
    return z ^ (z >> 32)


def uniform(word: int) -> float:
    """The top 53 bits as a number within (0, 1)."""
    return ((word >> 11) + 0.5) / 2**53


def zipf_rank(u: float, n: int, zipf: float) -> int:
    """The rank whose share of the density x^-zipf on [1, n + 1) holds the quantile u."""
    if zipf == 1:
        x = (n + 1) ** u
    else:
        x = (1 + u * ((n + 1) ** (1 - zipf) - 1)) ** (1 / (1 - zipf))
    return min(int(x) - 1, n - 1)


def zipf_share(rank: int, n: int, zipf: float) -> float:
    """P(rank)."""

    def integral(x):
        return math.log(x) if zipf == 1 else (x ** (1 - zipf) - 1) / (1 - zipf)

    return (integral(rank + 2) - integral(rank + 1)) / integral(n + 1)


def scattered(rank: int, n: int, keys) -> int:
    """A Feistel network on the least even number of bits (2 at least) that hold n, walked on until it lands below n."""
    half = 1
    while 4**half < n:
        half += 1
    x = rank
    while True:
        left, right = divmod(x, 2**half)
        for key in keys:
            left, right = right, left ^ (hashed(right, key) % 2**half)
        x = left * 2**half + right
        if x < n:
            return x


def coordinate(id_: int, key: int, center: float) -> float:
    """The four 16-bit numbers of a hash, summed, about `center`, in units of their deviation."""
    word = hashed(id_, key)
    total = sum(word >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    return (total - 2 * 65_535 + round(center * 37_837)) / 37_837


def probability(user: int, item: int, keys, dim: int, scale: float, center: float, bias: float) -> float:
    """sigmoid(scale / sqrt(dim) <x, y> + bias)."""
    dot = sum(coordinate(user, keys[9 + d], center) * coordinate(item, keys[9 + dim + d], center) for d in range(dim))
    z = scale / math.sqrt(dim) * dot + bias
    return 1 / (1 + math.exp(-z)) if z > -700 else math.exp(z)


def synthetic_row(n: int, keys, spec):
    """Row n of a stream: (user, item, label). `keys` are the stream's, `spec` has its fields."""
    user = scattered(zipf_rank(uniform(hashed(n, keys[0])), spec.n_users, spec.user_zipf), spec.n_users, keys[3:6])
    item = scattered(zipf_rank(uniform(hashed(n, keys[1])), spec.n_items, spec.zipf), spec.n_items, keys[6:9])
    p = probability(user, item, keys, spec.dim, spec.scale, spec.center, spec.bias)
    return user, item, 1.0 if uniform(hashed(n, keys[2])) < p else 0.0


def auc(labels, scores) -> float | None:
    """The share of (positive, negative) pairs in the right order, ties half."""
    high = [s for s, y in zip(scores, labels) if y]
    low = [s for s, y in zip(scores, labels) if not y]
    if not high or not low:
        return None
    return sum((a > b) + (a == b) / 2 for a in high for b in low) / (len(high) * len(low))
