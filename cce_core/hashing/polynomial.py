"""k-wise independent hashing: a random polynomial over the field of p = 2^61 − 1 elements (Carter and Wegman).

    y(x) = low32(x) + c · high32(x)                          mod p
    h(x) = a₀ + a₁·y + a₂·y² + … + a_{k−1}·y^{k−1}           mod p         bucket(x; n) = floor(h · n / 2^61)

The coefficients c, a₀ … a_{k−1} are uniform in [0, p), drawn from the seed. An id of 64 bits does not fit the field:
were it taken mod p, x and x + p would share a bucket under every seed. So its two halves are folded with the seeded
multiplier c, under which two given ids share a y for at most one c in p.

Version 1 of this family is frozen: (family, version, k, seed) is part of saved files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.mix import derive_key, multiply_high

_PRIME = 2**61 - 1
_STREAM = 0x706F6C79  # "poly": keeps these draws apart from other keys of the same seed
_GRAIN = 1 << 13

_p = np.uint64(_PRIME)
_s3, _s32, _s61 = np.uint64(3), np.uint64(32), np.uint64(61)
_low32 = np.uint64(0xFFFFFFFF)


@jit
def multiply_mod(a: np.uint64, b: np.uint64) -> np.uint64:
    """a·b mod 2^61 − 1, for a and b in [0, 2^61 − 1].

    Since 2^61 is 1 mod p, the product's bits from 61 on are added to those below: a sum below 2p, so that one
    subtraction finishes.
    """
    low = a * b
    total = (low & _p) + ((low >> _s61) | (multiply_high(a, b) << _s3))
    return total - _p if total >= _p else total


@jit
def add_mod(a: np.uint64, b: np.uint64) -> np.uint64:
    """a + b mod 2^61 − 1, for a and b below it."""
    total = a + b
    return total - _p if total >= _p else total


@jit
def polynomial(x: np.uint64, coefficients: Any) -> np.uint64:
    """h(x) for `coefficients` = (c, a₀, …, a_{k−1}), by Horner's rule."""
    y = add_mod(x & _low32, multiply_mod(coefficients[0], x >> _s32))
    h = coefficients[coefficients.shape[0] - 1]
    for j in range(coefficients.shape[0] - 2, 0, -1):
        h = add_mod(multiply_mod(h, y), coefficients[j])
    return h


@jit
def reduce61(h: np.uint64, n_buckets: np.uint64) -> np.uint64:
    """floor(h · n_buckets / 2^61), for h and n_buckets of at most 61 bits."""
    return multiply_high(h << _s3, n_buckets)


@jit
def _polynomial_many(start: int, stop: int, ids: Any, coefficients: Any, n_buckets: np.uint64, out: Any) -> None:
    for n in range(start, stop):
        out[n] = reduce61(polynomial(ids[n], coefficients), n_buckets)


def _draw(seed: int, k: int, index: int) -> int:
    """One number uniform in [0, 2^61 − 1): 61 bits of a key, drawn again where they are the prime itself."""
    attempt = 0
    while True:
        number = derive_key(seed, _STREAM, k, index, attempt) >> 3
        if number < _PRIME:
            return number
        attempt += 1


@dataclass(frozen=True)
class PolynomialHash:
    """A hash drawn at random from a k-wise independent family, `floor((Σ aⱼ·y(id)^j mod p) · n / 2^61)`, p = 2^61 − 1.

    Over the seeds, the values h of any k different ids below 2^32 are independent and uniform in [0, p), exactly. With
    larger ids that holds but for a chance below k²/2^61 that two of the k share a y. A bucket's chance is within 2/2^61
    of 1/n. (The seed has 64 bits and the draws are pseudo-random, so "over the seeds" is as good as those.)

    That is a statement about k ids at a time. With k = 2 and one fixed seed, ids in arithmetic progression go to a
    progression mod p: their buckets are far more even than chance, or for a few seeds far less. Take k = 4 or more
    where the *counts* of buckets must behave, or `mix_hash`, which is faster, well mixed, and proves nothing.

    Args:
        k: 2 to 256; how many ids at a time are independent.
        seed: 0 to 2^64 − 1.

    Raises:
        TypeError: k or seed is not a whole number.
        ValueError: k or seed is out of range.

    Attributes:
        coefficients: the k + 1 Python ints (c, a₀, …, a_{k−1}).
        version: 1.

    Paper:
        Carter and Wegman, Universal classes of hash functions, 1979; Wegman and Carter, New hash functions and their
        use in authentication and set equality, 1981.

    Example:
        >>> import numpy as np
        >>> from cce_core.hashing import PolynomialHash
        >>> h = PolynomialHash(k=4, seed=7)
        >>> buckets = h(np.arange(6).reshape(2, 3), 1000)
        >>> buckets.shape, buckets.dtype, int(buckets.max()) < 1000
        ((2, 3), dtype('uint64'), True)
    """

    k: int = 2
    seed: int = 0
    coefficients: tuple[int, ...] = field(init=False, repr=False, compare=False)
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        k, seed = _check.integer("k", self.k, 2, 256), _check.seed(self.seed)
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "coefficients", tuple(_draw(seed, k, index) for index in range(k + 1)))

    def __call__(self, ids: Any, n_buckets: int) -> NDArray[np.uint64]:
        """Hash ids to buckets.

        Args:
            ids: integers of any type and shape; all 64 bits count, negative ids are taken by their bits.
            n_buckets: 1 to 2^61 − 1.

        Returns:
            uint64 array of the shape of `ids`, values in [0, n_buckets).

        Raises:
            TypeError: ids are not integers.
            ValueError: `n_buckets` is out of range.

        Cost:
            k multiplications mod p an id, each of five 64-bit products: about 4k ns an id and thread.
        """
        words = _check.as_ids(ids)
        count = np.uint64(_check.integer("n_buckets", n_buckets, 1, _PRIME))
        out = np.empty(words.shape, np.uint64)
        coefficients = np.array(self.coefficients, np.uint64)
        parallel_for(_polynomial_many, words.size, _GRAIN, words.reshape(-1), coefficients, count, out.reshape(-1))
        return out
