"""Memory codecs: how a float of the memory is kept. float32, bfloat16, or int8 and int4 with a scale a block.

    bfloat16   the upper half of the float32, rounded to nearest even                            2 bytes
    int8       q in [−127, 127] and a float32 scale for each 64 floats in a row: x = q · scale   1 + 4/64 bytes
    int4       the same with q in [−7, 7], two to a byte, the earlier float in the lower half    1/2 + 4/64 bytes

The scale of a block is its largest magnitude over the largest q. Where a `key` is given, rounding is stochastic: up or
down with the probability that makes the mean right, drawn by a hash of the place under that key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.mix import keyed, premix

FLOAT32, BFLOAT16, INT8, INT4 = 0, 1, 2, 3
BLOCK = 64  # floats that share a scale
PARTS = 16  # of a step of int4, that a remainder counts
NOTHING_LEFT = 0x88  # two remainders of none, each in the upper or lower half
_SHIFT, _ONE, _HALF = np.uint64(6), np.uint64(1), np.float32(0.5)
_GRAIN = 1 << 9  # blocks
_LOW = np.uint32(0xFFFF)


@jit
def wide(half: np.uint16) -> np.float32:
    """The float32 of a bfloat16."""
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@jit
def fetch(codec: int, codes: Any, scales: Any, i: np.uint64) -> np.float32:
    """The float at place i. `codec` is a constant of the calling loop, so that one line of this is left of it."""
    if codec == BFLOAT16:
        return wide(codes[i])
    if codec == INT8:
        return np.float32(codes[i]) * scales[i >> _SHIFT]
    if codec == INT4:
        nibble = (np.uint32(codes[i >> _ONE]) >> np.uint32((i & _ONE) << np.uint64(2))) & np.uint32(15)
        return (np.float32(nibble) - np.float32(8.0)) * scales[i >> _SHIFT]
    return np.float32(codes[i])


@jit
def upper_half(bits: np.uint32, more: np.uint32) -> np.uint16:
    """The bfloat16 of a float32's bits, after `more` was added to its lower half; of a finite number never infinity."""
    up = np.uint32(bits + more) >> np.uint32(16)
    if (up & np.uint32(0x7F80)) == np.uint32(0x7F80):
        up = bits >> np.uint32(16)
    return np.uint16(up)


@jit
def _chance(i: int, key: np.uint64) -> np.float32:
    """A number in [0, 1), a pure function of place and key."""
    return np.float32(keyed(premix(np.uint64(i)), key) >> np.uint64(40)) * np.float32(2.0**-24)


@jit
def _range_of(n: int, blocks: Any, apart: bool, size: int) -> Any:
    """The floats of the n-th block to be moved, and how much earlier they lie among its values."""
    block = n if blocks is None else blocks[n]
    return block * BLOCK, min((block + 1) * BLOCK, size), (block - n) * BLOCK if apart else 0


@jit
def _encode_bfloat16(
    start: int, stop: int, blocks: Any, apart: bool, size: int, words: Any, stochastic: bool, key: np.uint64, codes: Any
) -> None:  # fmt: skip
    for n in range(start, stop):
        low, high, back = _range_of(n, blocks, apart, size)
        for i in range(low, high):
            bits = words[i - back]
            if stochastic:
                more = np.uint32(keyed(premix(np.uint64(i)), key) >> np.uint64(48))
            else:
                more = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            codes[i] = upper_half(bits, more)


@jit
def _encode_scaled(
    start: int, stop: int, blocks: Any, apart: bool, size: int, values: Any, most: np.float32, four: bool,
    stochastic: bool, key: np.uint64, codes: Any, scales: Any, remainders: Any,
) -> None:  # fmt: skip
    for n in range(start, stop):
        low, high, back = _range_of(n, blocks, apart, size)
        largest = np.float32(0.0)
        for i in range(low, high):
            largest = max(largest, abs(values[i - back]))
        scale = largest / most
        if not np.isfinite(scale * most):  # the quotient of the largest float was rounded up
            scale *= np.float32(1.0 - 2.0**-23)
        scales[low // BLOCK] = scale if remainders is None else scale * np.float32(PARTS)
        for i in range(low, high):
            exact = values[i - back] / largest * most if scale > np.float32(0.0) else np.float32(0.0)
            q = np.floor(exact + (_chance(i, key) if stochastic else _HALF))
            q = min(max(q, -most), most)
            if four:
                if remainders is not None:
                    part = q
                    q = np.floor((part + np.float32(PARTS // 2)) / np.float32(PARTS))
                    left = np.uint8(part - q * np.float32(PARTS) + np.float32(PARTS // 2))
                    if i & 1:
                        remainders[i >> 1] = np.uint8(remainders[i >> 1] | np.uint8(left << np.uint8(4)))
                    else:
                        remainders[i >> 1] = left
                nibble = np.uint8(q + np.float32(8.0))
                if i & 1:
                    codes[i >> 1] = np.uint8(codes[i >> 1] | np.uint8(nibble << np.uint8(4)))
                else:
                    codes[i >> 1] = nibble
            else:
                codes[i] = np.int8(q)


@jit
def _decode(
    start: int, stop: int, blocks: Any, size: int, codec: int, codes: Any, scales: Any, remainders: Any, out: Any
) -> None:
    for n in range(start, stop):
        low, high, back = _range_of(n, blocks, True, size)
        for i in range(low, high):
            out[i - back] = fetch(codec, codes, scales, np.uint64(i))
            if remainders is not None:
                here, shift = np.uint64(i) >> _ONE, np.uint32((np.uint64(i) & _ONE) << np.uint64(2))
                whole = np.float32((np.uint32(codes[here]) >> shift) & np.uint32(15)) - np.float32(8.0)
                left = np.float32((np.uint32(remainders[here]) >> shift) & np.uint32(15)) - np.float32(PARTS // 2)
                out[i - back] = (whole + left / np.float32(PARTS)) * scales[low // BLOCK]


@dataclasses.dataclass(frozen=True)
class Codec:
    """One way of keeping floats.

    Attributes:
        name: "float32", "bfloat16", "int8" or "int4".
        number: how compiled loops know it.
        dtype: of the codes.
        bits: of a code.
        most: the largest whole number of a scaled codec; 0 for one without scales.

    Example:
        >>> import numpy as np
        >>> int8 = codec("int8")
        >>> codes, scales = int8.encode(np.array([0.5, -1.0, 0.25], np.float32))
        >>> codes, int8.decode(codes, scales, 3).round(2)
        (array([  64, -127,   32], dtype=int8), array([ 0.5 , -1.  ,  0.25], dtype=float32))
        >>> int8.nbytes(640), int8.floats_within(680)
        (680, 640)
    """

    name: str
    number: int
    dtype: Any
    bits: int
    most: int = 0

    def n_codes(self, size: int) -> int:
        """Elements of the array of codes of `size` floats."""
        return -(-size * self.bits // (8 * np.dtype(self.dtype).itemsize))

    def n_scales(self, size: int) -> int:
        """Scales of `size` floats."""
        return -(-size // BLOCK) if self.most else 0

    def nbytes(self, size: int) -> int:
        """Bytes that `size` floats take."""
        return self.n_codes(size) * np.dtype(self.dtype).itemsize + 4 * self.n_scales(size)

    def floats_within(self, nbytes: int) -> int:
        """The most floats that take no more than `nbytes`."""
        if not self.most:
            return max(0, 8 * nbytes // self.bits)
        whole, rest = divmod(max(0, nbytes), self.nbytes(BLOCK))
        return whole * BLOCK + max(0, (rest - 4) * 8 // self.bits)

    def encode(self, values: NDArray[np.float32], key: int | None = None) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Codes and scales of flat float32 values; rounded at random under `key`, to the nearest without one."""
        codes = np.empty(self.n_codes(values.size), self.dtype)
        scales = np.empty(self.n_scales(values.size), np.float32)
        self.encode_into(values, codes, scales, key)
        return codes, scales

    def encode_parts(self, parts: Iterable[NDArray[np.float32]], size: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """`encode` of `size` values that come in parts, of whole blocks of 64 but for the last."""
        codes, scales, first = np.empty(self.n_codes(size), self.dtype), np.empty(self.n_scales(size), np.float32), 0
        for values in parts:
            last = first + values.size
            own = slice(self.n_codes(first), self.n_codes(last)), slice(self.n_scales(first), self.n_scales(last))
            self.encode_into(values, codes[own[0]], scales[own[1]])
            first = last
        return codes, scales

    def encode_into(
        self, values: NDArray[np.float32], codes: Any, scales: Any, key: int | None = None, remainders: Any = None
    ) -> None:
        """The same into arrays that the caller owns; of int4 with the sixteenths of a step that the codes leave over."""
        if self.number == FLOAT32:
            codes[:] = values
        else:
            self._encode(-(-values.size // BLOCK), None, False, values.size, values, codes, scales, key, remainders)

    def encode_blocks(
        self, blocks: NDArray[np.int64], values: NDArray[np.float32], size: int, codes: Any, scales: Any,
        key: int | None = None, remainders: Any = None,
    ) -> None:  # fmt: skip
        """The same of some blocks of 64 floats alone: of a codec other than float32.

        Args:
            blocks: their numbers, each once, in order.
            values: float32, the blocks one after the other, or all `size` floats.
            size: floats in all.
            codes, scales, key, remainders: as for `encode_into`; a float's draw is the same one there.
        """
        self._encode(len(blocks), blocks, values.size != size, size, values, codes, scales, key, remainders)

    def _encode(
        self, n: int, blocks: Any, apart: bool, size: int, values: NDArray[np.float32], codes: Any, scales: Any,
        key: int | None, remainders: Any,
    ) -> None:  # fmt: skip
        draw, word = key is not None, np.uint64(key or 0)
        if self.number == BFLOAT16:
            parallel_for(_encode_bfloat16, n, _GRAIN, blocks, apart, size, values.view(np.uint32), draw, word, codes)
        else:
            most, four = np.float32(self.most * (1 if remainders is None else PARTS)), self.number == INT4
            args = blocks, apart, size, values, most, four, draw, word, codes, scales, remainders
            parallel_for(_encode_scaled, n, _GRAIN, *args)

    def decode(
        self, codes: Any, scales: Any, size: int, blocks: NDArray[np.int64] | None = None, remainders: Any = None
    ) -> NDArray[np.float32]:
        """The `size` floats that codes and scales stand for; or some blocks of 64 of them, one after the other."""
        n = -(-size // BLOCK) if blocks is None else len(blocks)
        out = np.empty(size if blocks is None else n * BLOCK, np.float32)
        parallel_for(_decode, n, _GRAIN, blocks, size, self.number, codes, scales, remainders, out)
        return out


_CODECS = {
    c.name: c
    for c in (
        Codec("float32", FLOAT32, np.float32, 32),
        Codec("bfloat16", BFLOAT16, np.uint16, 16),
        Codec("int8", INT8, np.int8, 8, 127),
        Codec("int4", INT4, np.uint8, 4, 7),
    )
}
CODECS = tuple(_CODECS)


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    return _CODECS[_check.choice("codec", name, CODECS)]
