"""Blocks of floats moved and added as the vector instructions that they should be, and arrays found by their address.

Two arrays may overlap as far as LLVM knows, so a loop over a block stays a load, an addition and a store a float. A move here
loads a whole block before it stores it: one or two instructions for the common widths, strips of them for any other.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cce_core import _loops, _simd
from cce_core._jit import COMPILED
from cce_core.storage.codec import BLOCK, CODECS, FLOAT32, codec


def _plain(name: str) -> Callable[..., None]:
    def move(
        to: Any, tos: Any, shift: Any, codes: Any, scales: Any, froms: Any, back: Any, count: Any, width: Any, more: Any,
        number: int,
    ) -> None:  # fmt: skip
        width = int(width)

        def fetched(a: int) -> Any:
            if number == FLOAT32:
                return codes[a : a + width]
            coder, first = codec(CODECS[number]), a // BLOCK * BLOCK
            whole = slice(first * coder.bits // 8 // codes.itemsize, coder.n_codes(a + width))
            return coder.decode(codes[whole], scales[first // BLOCK :], a + width - first)[a - first :]

        for n in range(int(count)):
            if name == "sum_blocks":
                o = int(tos[n]) + int(shift)
                for i in range(int(back[n]), int(back[n + 1])):
                    block = fetched(int(froms[i]))
                    if more is not None:
                        block = block * more[i] if more.dtype == np.float32 else block + fetched(int(more[i]))
                    to[o : o + width] += block
                continue
            if name == "copy_rows":
                chunks, terms = (int(number) for number in more)
                for c in range(chunks):
                    o = int(tos[n]) + int(shift) + c * width
                    spots = [int(froms[(c * terms + t) * int(back) + n]) for t in range(terms)]
                    to[o : o + width] = functools.reduce(np.add, [fetched(spot) for spot in spots])
                continue
            o, block = int(tos[n]) + int(shift), fetched(int(froms[n]) + int(back))
            if name == "copy_blocks":
                to[o : o + width] = block
            else:
                to[o : o + width] += block * more[n] if name == "add_scaled" else block
            if name == "add_both":
                other = int(more[n]) + int(shift)
                to[other : other + width] += block

    return move


# (to, tos, shift, codes, scales, froms, back, count, width, more, codec): for n < count in order, the floats
# [tos[n] + shift : + width] of `to` become (copy), or are increased by (add), the floats [froms[n] + back : + width] of a
# memory in that codec; times more[n] (add_scaled); or those at more[n] + shift are increased as well (add_both). All numbers and
# places are uint64, factors float32.
# A move is of up to 16 floats of int8 or int4 with one scale; one of int4 of more than one float begins at an even place.
# copy_rows takes more = (chunks, terms): the row at tos[n] + shift is so many blocks side by side, block c of them the sum over t
# of those at froms[(c · terms + t) · back + n].
# sum_blocks takes heads in place of `back`: for n < count the floats [tos[n] + shift : + width] of `to` are increased by the
# blocks at froms[heads[n] : heads[n + 1]], one after another; each with the one at `more` (addresses), or times it (factors).
def _block_loop(name: str) -> Any:
    return _loops.block_loop(name, CODECS) if COMPILED else _plain(name)


copy_blocks, add_blocks, add_scaled = _block_loop("copy_blocks"), _block_loop("add_blocks"), _block_loop("add_scaled")
copy_rows, add_both, sum_blocks = _block_loop("copy_rows"), _block_loop("add_both"), _block_loop("sum_blocks")


def _array_plain(address: Any, n: Any, kind: Any) -> Any:
    """The array of n numbers that lies at an address; whoever gives the address keeps the array alive."""
    if not int(n):
        return np.empty(0, kind)
    like = np.dtype(kind)
    return np.frombuffer((ctypes.c_byte * (int(n) * like.itemsize)).from_address(int(address)), like)


def _load_plain(words: Any, byte: Any) -> Any:
    """The 64 bits from a byte of `words` on, least significant first."""
    return words.view(np.uint8)[int(byte) : int(byte) + 8].view(np.uint64)[0]


array_at = _simd.array_at if COMPILED else _array_plain
load_bits = _simd.load_bits if COMPILED else _load_plain
