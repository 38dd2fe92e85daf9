"""The house's hash: a seeded 64-bit mix, and multiply-high range reduction.

    hash(x; key) = F(G(x) ^ key)            bucket(x; key, n) = floor(hash · n / 2^64)

G and F are bijections of 64-bit words built from odd multiplications and xor-shifts (as in MurmurHash3's finaliser).
G has no key, so it is computed once an id however many hashes follow. For a fixed key two different ids never share a
hash, and whether they share a *bucket* depends on the key, for every pair: id 0 and ids a fixed distance apart too.

F has three rounds because two are not enough for *every* pair. Two ids whose G differs in the top bit alone differ in
two bits after F's first round, and a second and last product would leave one of four differences between their hashes,
whatever the key: such a pair shared one of 8 buckets four times too often, and one of 64 never. After a third product,
pairs that differ in any single bit of G share buckets as chance has it.

Version 1 of this family is frozen: (family, version, seed) is part of saved files. It is fast and well mixed, not
cryptographic. `tests/golden/` holds values made with Python's integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for

_MASK64 = 2**64 - 1
G1 = 0xBF58476D1CE4E5B9
F1, F2, F3 = 0xD6E8FEB86659FD93, 0x9FB21C651E98DF25, 0x243F6A8885A308D3  # F3: the fraction of pi in binary
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads seeds and streams

_g1, _f1, _f2, _f3 = np.uint64(G1), np.uint64(F1), np.uint64(F2), np.uint64(F3)
_s29, _s32 = np.uint64(29), np.uint64(32)
_low = np.uint64(0xFFFFFFFF)


@jit
def premix(x: np.uint64) -> np.uint64:
    """G: the keyless half, once an id."""
    x = x ^ (x >> _s32)
    x = x * _g1
    return x ^ (x >> _s29)


@jit
def keyed(premixed: np.uint64, key: np.uint64) -> np.uint64:
    """F(G(x) ^ key): the keyed half, once a hash."""
    z = (premixed ^ key) * _f1
    z = z ^ (z >> _s32)
    z = z * _f2
    z = z ^ (z >> _s29)
    z = z * _f3
    return z ^ (z >> _s32)


@jit
def multiply_high(a: np.uint64, b: np.uint64) -> np.uint64:
    """floor(a·b / 2^64): `a` of 64 uniform bits falls on [0, b) with a bias below b/2^64."""
    a_low, a_high = a & _low, a >> _s32
    b_low, b_high = b & _low, b >> _s32
    middle = a_high * b_low + ((a_low * b_low) >> _s32)
    other = a_low * b_high + (middle & _low)
    return a_high * b_high + (middle >> _s32) + (other >> _s32)


@jit
def multiply_high_32(a: np.uint64, b: np.uint64) -> np.uint64:
    """The same as `multiply_high`, for b below 2^32."""
    return ((a >> _s32) * b + (((a & _low) * b) >> _s32)) >> _s32


@jit
def _mix_many(start: int, stop: int, ids: Any, key: np.uint64, n_buckets: np.uint64, out: Any) -> None:
    whole = n_buckets == np.uint64(0)
    for n in range(start, stop):
        h = keyed(premix(ids[n]), key)
        out[n] = h if whole else multiply_high(h, n_buckets)


def derive_key(seed: int, *stream: int) -> int:
    """A 64-bit key for one hash of many: a pure function of a seed and of the numbers that name the hash.

    Args:
        seed: 0 to 2^64 − 1.
        stream: whole numbers, such as (generation, column); (0,) and (0, 0) name different streams.

    Returns:
        A Python int of 64 bits, well mixed in each argument.

    Example:
        >>> from cce_core.hashing import derive_key
        >>> derive_key(0, 1) != derive_key(1, 0)
        True
    """
    state = _python_hash((_check.seed(seed) + _GOLDEN) & _MASK64, len(stream))
    for number in stream:
        state = _python_hash((state + _GOLDEN) & _MASK64, _check.integer("stream", number, 0, _MASK64))
    return state


def derive_keys(seed: int, n: int, *stream: int) -> NDArray[np.uint64]:
    """`derive_key(seed, *stream, j)` for each j below n: uint64 (n,)."""
    return np.array([derive_key(seed, *stream, j) for j in range(n)], np.uint64)


def _python_hash(x: int, key: int) -> int:
    """hash(x; key) in Python's own integers."""
    x ^= x >> 32
    x = x * G1 & _MASK64
    x ^= x >> 29
    z = (x ^ key) * F1 & _MASK64
    z ^= z >> 32
    z = z * F2 & _MASK64
    z ^= z >> 29
    z = z * F3 & _MASK64
    return z ^ (z >> 32)


def mix_hash(ids: Any, n_buckets: int | None = None, *, seed: int = 0, stream: int = 0) -> NDArray[np.uint64]:
    """Hash ids to buckets with the 64-bit mix, `floor(F(G(id) ^ key) · n_buckets / 2^64)`.

    Args:
        ids: integers of any type and shape; all 64 bits count, negative ids are taken by their bits.
        n_buckets: 1 to 2^63; None gives the whole 64-bit hash.
        seed: 0 to 2^64 − 1.
        stream: which of many independent hashes under the same seed.

    Returns:
        uint64 array of the shape of `ids`, values in [0, n_buckets).

    Raises:
        TypeError: ids are not integers.
        ValueError: `n_buckets` or `seed` is out of range.

    Cost:
        Four multiplications an id and four for the range; about 2 ns an id and thread.

    Example:
        >>> import numpy as np
        >>> from cce_core.hashing import mix_hash
        >>> h = mix_hash(np.arange(1000), 10, seed=1)
        >>> int(h.max()) < 10
        True
    """
    words = _check.as_ids(ids)
    count = 0 if n_buckets is None else _check.integer("n_buckets", n_buckets, 1, 2**63)
    out = np.empty(words.shape, np.uint64)
    key = np.uint64(derive_key(seed, stream))
    parallel_for(_mix_many, words.size, 1 << 15, words.reshape(-1), key, np.uint64(count), out.reshape(-1))
    return out
