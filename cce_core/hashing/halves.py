"""64-bit words as two arrays of 32 bits, for programs whose arrays have no 64-bit integers: the house's hash, in such halves.

Everything is written in operators and in functions that NumPy's arrays and JAX's have in common; the hash itself
(`premix`, `keyed`) takes whatever has `^`, `>>` and `*` of 64-bit words, so that it stands here once for all of them.
`tests/golden/` holds its values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core.hashing.mix import F1, F2, F3, G1

_LOW16 = np.uint32(0xFFFF)
_16 = np.uint32(16)
MASK32 = 0xFFFFFFFF


def premix(x: Any) -> Any:
    """`hashing.mix.premix` of words of any kind."""
    x = (x ^ (x >> 32)) * G1
    return x ^ (x >> 29)


def keyed(premixed: Any, key: Any) -> Any:
    """`hashing.mix.keyed` of words of any kind."""
    z = (premixed ^ key) * F1
    z = (z ^ (z >> 32)) * F2
    z = (z ^ (z >> 29)) * F3
    return z ^ (z >> 32)


def _multiply_high(a: Any, b: np.uint32) -> Any:
    """⌊a · b / 2^32⌋ of uint32, in products of 16 bits."""
    a_low, a_high, b_low, b_high = a & _LOW16, a >> _16, b & _LOW16, b >> _16
    middle = a_high * b_low + ((a_low * b_low) >> _16)
    other = a_low * b_high + (middle & _LOW16)
    return a_high * b_high + (middle >> _16) + (other >> _16)


class Halves:
    """Unsigned 64-bit words as two arrays of uint32, with the few operators that hashes and packed pointers need.

    Args:
        high, low: uint32 arrays of one shape, or of shapes that broadcast; of one axis at least.

    Example:
        >>> import numpy as np
        >>> from cce_core.hashing.halves import Halves, keyed, premix
        >>> words = Halves.split(np.array([1, 2**40, -1]))
        >>> keyed(premix(words), Halves.constants([7])).high_product(1000).tolist()
        [992, 867, 23]
    """

    __slots__ = ("high", "low")

    def __init__(self, high: Any, low: Any) -> None:
        self.high, self.low = high, low

    @staticmethod
    def split(words: Any) -> Halves:
        """The halves of NumPy's integers of 64 bits; negative ones are the words with their bits."""
        words = np.asarray(words).astype(np.uint64)
        return Halves((words >> np.uint64(32)).astype(np.uint32), words.astype(np.uint32))

    @staticmethod
    def constants(numbers: Any) -> Halves:
        """The same of Python's numbers below 2^64."""
        return Halves.split(np.array(numbers, np.uint64))

    @staticmethod
    def of(low: Any) -> Halves:
        """Words below 2^32."""
        return Halves(low ^ low, low)

    def __getitem__(self, key: Any) -> Halves:
        return Halves(self.high[key], self.low[key])

    def __xor__(self, other: Halves) -> Halves:
        return Halves(self.high ^ other.high, self.low ^ other.low)

    def __add__(self, other: Halves) -> Halves:
        low = self.low + other.low
        return Halves(self.high + other.high + (low < other.low).astype(np.uint32), low)

    def __mul__(self, factor: int) -> Halves:
        """The product with a constant, modulo 2^64."""
        high, low = np.uint32(factor >> 32), np.uint32(factor & MASK32)
        return Halves(_multiply_high(self.low, low) + self.low * high + self.high * low, self.low * low)

    def __rshift__(self, n: int) -> Halves:
        """The logical shift to the right by 0 < n <= 32."""
        if n == 32:
            return Halves.of(self.high)
        right, left = np.uint32(n), np.uint32(32 - n)
        return Halves(self.high >> right, (self.low >> right) | (self.high << left))

    def low_half(self) -> Any:
        """The words modulo 2^32, as indices: uint32."""
        return self.low

    def high_product(self, n: int) -> Any:
        """⌊word · n / 2^64⌋ for 0 < n < 2^32: uint32."""
        count = np.uint32(n)
        rest = _multiply_high(self.low, count)
        total = self.high * count + rest
        return _multiply_high(self.high, count) + (total < rest).astype(np.uint32)

    def within(self, n: int) -> tuple[Halves, Any]:
        """The words, with 0 in place of those that are not below n <= 2^63, and which are below it."""
        high, low = np.uint32(n >> 32), np.uint32(n & MASK32)
        inside = (self.high < high) | ((self.high == high) & (self.low < low))
        kept = inside.astype(np.uint32)
        return Halves(self.high * kept, self.low * kept), inside
