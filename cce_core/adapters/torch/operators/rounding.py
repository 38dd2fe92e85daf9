"""A memory as its codec gives it back, and codes that are trained: whole, or those blocks of the codec that somebody needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Sketch
from cce_core.storage.codec import BLOCK, Codec

_WORTH = 4  # with fewer than a block in so many to round, the rest is left out
Blocks = NDArray[np.int64] | None  # numbers of blocks of the codec, ascending; None for all of them


def rounded(values: NDArray[np.float32], coder: Codec) -> NDArray[np.float32]:
    """All values, encoded and decoded."""
    codes, scales = coder.encode(values)
    return coder.decode(codes, scales, values.size)


def touched(sketch: Sketch, ids: NDArray[np.uint64], size: int) -> Blocks:
    """The blocks of the codec that blocks of ids touch; None where leaving out the rest saves no work.

    Args:
        sketch: whose blocks never wrap round (`unit` is `width`).
        ids: checked.
        size: floats of the memory.
    """
    width, n_blocks = sketch.layout.width, -(-size // BLOCK)
    # Places that meet every block of the codec in a block of the memory.
    offsets = sorted({*range(0, width, BLOCK), width - 1})
    if len(ids) * len(sketch.layout.columns) * len(offsets) * _WORTH > n_blocks:
        return None
    found = np.zeros(n_blocks, bool)
    places = blocks.addresses(sketch, ids)
    for offset in offsets:
        found[(places + offset) // BLOCK] = True
    return np.flatnonzero(found)


def rounded_for(
    values: NDArray[np.float32], coder: Codec, sketch: Sketch, ids: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """`rounded`, but 0 in blocks of the codec that no block of these ids touches, where that saves work; as for `touched`."""
    chosen = touched(sketch, ids, values.size)
    if chosen is None:
        return rounded(values, coder)
    return _spread(rounded(_taken(values, BLOCK, chosen), coder), chosen, values.size)


def decoded(codes: NDArray[np.uint8], scales: Any, coder: Codec, size: int, chosen: Blocks) -> NDArray[np.float32]:
    """The floats that codes, as bytes, and scales stand for, in some blocks; 0 in the others, which cost nothing."""
    if chosen is None:
        return coder.decode(codes.view(coder.dtype), scales, size)
    few = _taken(codes, _bytes(coder), chosen).view(coder.dtype)
    return _spread(coder.decode(few, scales[chosen] if coder.most else scales, len(chosen) * BLOCK), chosen, size)


def encode(
    values: NDArray[np.float32], codes: NDArray[np.uint8], scales: Any, coder: Codec, chosen: Blocks, key: int
) -> None:
    """Round floats at random into codes and scales, in some blocks; the others keep theirs."""
    if chosen is None:
        return coder.encode_into(values, codes.view(coder.dtype), scales, key)
    few, of_few = coder.encode(_taken(values, BLOCK, chosen), key)
    each = _bytes(coder)
    rows = few.view(np.uint8).reshape(len(chosen), each)
    whole = values.size // BLOCK
    inside = chosen[chosen < whole]
    codes[: whole * each].reshape(whole, each)[inside] = rows[: len(inside)]
    if len(inside) < len(chosen):  # the last block is not full
        codes[whole * each :] = rows[-1, : codes.size - whole * each]
    if coder.most:
        scales[chosen] = of_few
    return None


def _bytes(coder: Codec) -> int:
    """Of a block's codes."""
    return coder.n_codes(BLOCK) * np.dtype(coder.dtype).itemsize


def _taken(flat: NDArray[Any], each: int, chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of `each` numbers, one after the other; the last of all may lack some, which are 0."""
    whole = flat.size // each
    inside, out = chosen[chosen < whole], np.zeros((len(chosen), each), flat.dtype)
    out[: len(inside)] = flat[: whole * each].reshape(whole, each)[inside]
    if len(inside) < len(chosen):
        out[-1, : flat.size - whole * each] = flat[whole * each :]
    return out.reshape(-1)


def _spread(few: NDArray[np.float32], chosen: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """Blocks of floats in their places; zeros of the system between them: pages that nobody touches cost nothing."""
    out = np.zeros((-(-size // BLOCK), BLOCK), np.float32)
    out[chosen] = few.reshape(-1, BLOCK)
    return out.reshape(-1)[:size]
