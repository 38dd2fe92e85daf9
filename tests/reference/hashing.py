"""Hashing in Python's own integers: slow, plain, and written from the formulas and the XXH3 specification alone."""

from __future__ import annotations

import math

M = 2**64 - 1
P = 2**61 - 1


# The 64-bit mix.

G1, F1, F2, F3 = 0xBF58476D1CE4E5B9, 0xD6E8FEB86659FD93, 0x9FB21C651E98DF25, 0x243F6A8885A308D3
GOLDEN = 0x9E3779B97F4A7C15


def premix(x):
    x = (x ^ x >> 32) * G1 % 2**64
    return x ^ x >> 29


def unpremix(g):
    """The id whose G is g."""
    g ^= g >> 29 ^ g >> 58
    g = g * pow(G1, -1, 2**64) % 2**64
    return g ^ g >> 32


def keyed(premixed, key):
    z = (premixed ^ key) * F1 % 2**64
    z = (z ^ z >> 32) * F2 % 2**64
    z = (z ^ z >> 29) * F3 % 2**64
    return z ^ z >> 32


def derive_key(seed, *stream):
    state = keyed(premix((seed + GOLDEN) % 2**64), len(stream))
    for number in stream:
        state = keyed(premix((state + GOLDEN) % 2**64), number)
    return state


def mix_hash(x, n_buckets=None, seed=0, stream=0):
    h = keyed(premix(x % 2**64), derive_key(seed, stream))
    return h if n_buckets is None else h * n_buckets // 2**64


# The polynomial.


def coefficients(k, seed):
    """(c, a_0, ..., a_{k-1})"""
    found = []
    for index in range(k + 1):
        attempt = 0
        while derive_key(seed, 0x706F6C79, k, index, attempt) >> 3 == P:
            attempt += 1
        found.append(derive_key(seed, 0x706F6C79, k, index, attempt) >> 3)
    return found


def polynomial(x, k, seed):
    c, *a = coefficients(k, seed)
    return polynomial_of(x, c, a)


def polynomial_of(x, c, a):
    high, low = divmod(x % 2**64, 2**32)
    y = low + c * high
    return sum(a_j * pow(y, j, P) for j, a_j in enumerate(a)) % P


def polynomial_hash(x, n_buckets, k=2, seed=0):
    return polynomial(x, k, seed) * n_buckets // 2**61


# Digits.


def digits(x, bases):
    assert 0 <= x < math.prod(bases)
    found = []
    for base in bases:
        x, digit = divmod(x, base)
        found.append(digit)
    return found


def undigits(found, bases):
    return sum(digit * math.prod(bases[:j]) for j, digit in enumerate(found))


def balanced_bases(vocab, n):
    """Add one to the smallest of n ones, from the left, until they reach the vocabulary."""
    bases = [1] * n
    while math.prod(bases) < vocab:
        bases[bases.index(min(bases))] += 1
    return tuple(bases)


# XXH3, 64 bits, from https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
MX1, MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25


def word(data, at, size=8):
    return int.from_bytes(data[at : at + size], "little")


def turned(x, size=8):
    return int.from_bytes(x.to_bytes(size, "little"), "big")


def rotated(x, by):
    return (x << by | x >> 64 - by) & M


def folded(a, b):
    return a * b & M ^ a * b >> 64


def avalanche(x):
    x = (x ^ x >> 37) * MX1 & M
    return x ^ x >> 32


def avalanche_xxh64(x):
    x = (x ^ x >> 33) * P64_2 & M
    x = (x ^ x >> 29) * P64_3 & M
    return x ^ x >> 32


def xxh3(data, seed=0):
    n = len(data)
    if n == 0:
        return avalanche_xxh64(seed ^ word(SECRET, 56) ^ word(SECRET, 64))
    if n <= 3:
        combined = data[-1] | n << 8 | data[0] << 16 | data[n >> 1] << 24
        return avalanche_xxh64(((word(SECRET, 0, 4) ^ word(SECRET, 4, 4)) + seed & M) ^ combined)
    if n <= 8:
        seed ^= turned(seed & 0xFFFFFFFF, 4) << 32
        value = ((word(SECRET, 8) ^ word(SECRET, 16)) - seed & M) ^ (word(data, n - 4, 4) | word(data, 0, 4) << 32)
        value = (value ^ rotated(value, 49) ^ rotated(value, 24)) * MX2 & M
        value = (value ^ (value >> 35) + n) * MX2 & M
        return value ^ value >> 28
    if n <= 16:
        low = ((word(SECRET, 24) ^ word(SECRET, 32)) + seed & M) ^ word(data, 0)
        high = ((word(SECRET, 40) ^ word(SECRET, 48)) - seed & M) ^ word(data, n - 8)
        return avalanche(n + turned(low) + high + folded(low, high) & M)
    if n <= 240:
        return xxh3_medium(data, seed)
    return xxh3_long(data, seed)


def xxh3_medium(data, seed):
    def step(at, secret_at):
        left = word(data, at) ^ (word(SECRET, secret_at) + seed & M)
        return folded(left, word(data, at + 8) ^ (word(SECRET, secret_at + 8) - seed & M))

    n = len(data)
    total = n * P64_1
    if n <= 128:
        for i in range((n - 1 >> 5) + 1):
            total += step(16 * i, 32 * i) + step(n - 16 * i - 16, 32 * i + 16)
        return avalanche(total & M)
    total = avalanche(total + sum(step(16 * i, 16 * i) for i in range(8)) & M)
    total += sum(step(16 * i, 16 * (i - 8) + 3) for i in range(8, n >> 4)) + step(n - 16, 119)
    return avalanche(total & M)


def xxh3_long(data, seed):
    secret = b"".join(((word(SECRET, 8 * i) + (-seed if i % 2 else seed)) & M).to_bytes(8, "little") for i in range(24))
    sums = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def accumulate(at, secret_at):
        for i in range(8):
            lane = word(data, at + 8 * i)
            value = lane ^ word(secret, secret_at + 8 * i)
            sums[i ^ 1] = sums[i ^ 1] + lane & M
            sums[i] = sums[i] + (value & 0xFFFFFFFF) * (value >> 32) & M

    n = len(data)
    blocks = (n - 1) // 1024
    for block in range(blocks):
        for stripe in range(16):
            accumulate(1024 * block + 64 * stripe, 8 * stripe)
        for i in range(8):
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ word(secret, 128 + 8 * i)) * P32_1 & M
    for stripe in range((n - 1024 * blocks - 1) // 64):
        accumulate(1024 * blocks + 64 * stripe, 8 * stripe)
    accumulate(n - 64, 121)
    total = n * P64_1
    for i in range(4):
        total += folded(sums[2 * i] ^ word(secret, 11 + 16 * i), sums[2 * i + 1] ^ word(secret, 19 + 16 * i))
    return avalanche(total & M)


def hash_string(value, seed=0):
    return xxh3(value.encode("utf-8") if isinstance(value, str) else value, seed)
