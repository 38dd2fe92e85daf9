"""An id as digits in mixed radix: the quotient-remainder trick.

    id = d₀ + b₀·(d₁ + b₁·(d₂ + …)),       0 ≤ dⱼ < bⱼ

Ids below the product of the bases have different digits, so a row put together from one small table a digit is unique
to its id. Version 1 is frozen: the order of the digits (least significant first) and of `balanced_bases` is part of
saved files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.mix import multiply_high

_MOST = 2**63  # of a base
_GRAIN = 1 << 14
_none = np.uint64(0)


@jit
def _digits_many(start: int, stop: int, ids: Any, bases: Any, out: Any) -> None:
    for n in range(start, stop):
        rest = ids[n]
        for j in range(bases.shape[0]):
            quotient = rest // bases[j]
            out[n, j] = rest - quotient * bases[j]
            rest = quotient


@jit
def _undigits_many(digits: Any, bases: Any, out: Any) -> tuple[int, int]:
    """Fill `out`; (−1, −1), or the first (row, column) with a digit too large, or (row, −1) for a value too large."""
    for n in range(digits.shape[0]):
        for j in range(bases.shape[0]):
            if digits[n, j] >= bases[j]:
                return n, j
        value = _none
        for j in range(bases.shape[0] - 1, -1, -1):
            product = value * bases[j]
            total = product + digits[n, j]
            if multiply_high(value, bases[j]) != _none or total < product:
                return n, -1
            value = total
        out[n] = value
    return -1, -1


def _bases(bases: Sequence[int]) -> tuple[int, ...]:
    found = _check.sequence("bases", bases, "a sequence of whole numbers")
    if not found:
        raise ValueError("bases must hold at least one base, got none")
    return tuple(_check.integer(f"bases[{j}]", base, 1, _MOST) for j, base in enumerate(found))


def digits(ids: Any, bases: Sequence[int]) -> NDArray[np.uint64]:
    """Split ids into digits of the given bases, least significant first, `d₀ = id mod b₀, d₁ = (id // b₀) mod b₁, …`.

    Args:
        ids: integers of any type and shape, 0 ≤ id < the product of the bases. A negative id is the 64-bit word with
            the same bits, so it is refused unless the bases reach that far.
        bases: at least one whole number of 1 to 2^63; (b₀, b₁) gives the remainder and the quotient by b₀. The product
            may pass 2^64.

    Returns:
        uint64 array (*ids.shape, len(bases)); entry j in [0, bases[j]).

    Raises:
        TypeError: ids or bases are not integers.
        ValueError: no bases, or a base below 1 or above 2^63.
        IndexError: an id is not below the product of the bases; names the first and its position.

    Cost:
        One 64-bit division a digit.

    Paper:
        Shi et al., Compositional embeddings using complementary partitions, arXiv 1909.02107.

    Example:
        >>> from cce_core.hashing import digits
        >>> digits([0, 7, 59], (3, 4, 5)).tolist()
        [[0, 0, 0], [1, 2, 0], [2, 3, 4]]
    """
    words, radix = _check.as_ids(ids), _bases(bases)
    product = math.prod(radix)
    if product < 2**64:
        _check.ids_within(words, product)
    out = np.empty((*words.shape, len(radix)), np.uint64)
    flat = out.reshape(words.size, len(radix))
    parallel_for(_digits_many, words.size, _GRAIN, words.reshape(-1), np.array(radix, np.uint64), flat)
    return out


def undigits(digits: Any, bases: Sequence[int]) -> NDArray[np.uint64]:
    """Put digits together again, `id = d₀ + b₀·(d₁ + b₁·(d₂ + …))`: the inverse of `digits`.

    Args:
        digits: integers (*shape, len(bases)), least significant first, 0 ≤ digits[..., j] < bases[j].
        bases: as for `digits`.

    Returns:
        uint64 array of `shape`.

    Raises:
        TypeError: digits or bases are not integers.
        ValueError: no bases, a base out of range, or the last axis is not len(bases) long.
        IndexError: a digit is not below its base, or the id would pass 2^64 − 1; names the first and its position.

    Cost:
        Five 64-bit products a digit; one thread.

    Example:
        >>> from cce_core.hashing import undigits
        >>> undigits([[0, 0, 0], [1, 2, 0], [2, 3, 4]], (3, 4, 5)).tolist()
        [0, 7, 59]
    """
    words, radix = _check.as_ids(digits, "digits"), _bases(bases)
    if words.ndim == 0 or words.shape[-1] != len(radix):
        raise ValueError(f"the last axis of digits must be {len(radix)} long, one a base; got shape {words.shape}")
    shape = words.shape[:-1]
    out = np.empty(shape, np.uint64)
    flat = words.reshape(out.size, len(radix))
    n, j = _undigits_many(flat, np.array(radix, np.uint64), out.reshape(-1))
    if n >= 0:
        place = tuple(int(i) for i in np.unravel_index(n, shape)) if shape else ()
        if j < 0:
            shown = [int(digit) for digit in flat[n]]
            raise IndexError(f"digits {shown} at position {place} make an id above 2^64 - 1 in bases {radix}")
        word = int(flat[n, j])
        shown_digit = word - 2**64 if word >= 2**63 else word
        at = (*place, j)
        raise IndexError(f"digit {shown_digit} at position {at} must be below its base {radix[j]}")
    return out


def balanced_bases(vocab: int, n: int) -> tuple[int, ...]:
    """The n bases that reach `vocab` with the fewest rows in all: equal, or one apart with the larger first.

    With b = ⌈vocab^(1/n)⌉, the fewest j for which b^j · (b − 1)^(n−j) ≥ vocab; found in whole numbers, no floats.

    Args:
        vocab: 1 to 2^64; how many ids must differ.
        n: 1 to 64; how many digits.

    Returns:
        A tuple of n ints, their product at least `vocab`.

    Raises:
        TypeError: not whole numbers.
        ValueError: out of range.

    Example:
        >>> from cce_core.hashing import balanced_bases
        >>> balanced_bases(1_000_000, 2), balanced_bases(1_000_001, 2), balanced_bases(3, 4)
        ((1000, 1000), (1001, 1000), (2, 2, 1, 1))
    """
    vocab, n = _check.integer("vocab", vocab, 1, 2**64), _check.integer("n", n, 1, 64)
    below, base = 0, vocab  # below^n < vocab <= base^n
    while base - below > 1:
        middle = (below + base) // 2
        below, base = (middle, base) if middle**n < vocab else (below, middle)
    if base > _MOST:
        raise ValueError(f"one base of {base:,} is above 2^63; take n of at least 2")
    larger = next(j for j in range(1, n + 1) if base**j * below ** (n - j) >= vocab)
    return (base,) * larger + (below,) * (n - larger)
