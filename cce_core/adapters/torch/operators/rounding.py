"""A float32 memory as its codec would give it back: whole, or the blocks alone that some ids read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Sketch
from cce_core.storage.codec import BLOCK, Codec

_WORTH = 4  # with fewer than a block in so many to round, the rest is left out


def rounded(values: NDArray[np.float32], kept: Codec) -> NDArray[np.float32]:
    """All values, encoded and decoded."""
    codes, scales = kept.encode(values)
    return kept.decode(codes, scales, values.size)


def rounded_for(
    values: NDArray[np.float32], kept: Codec, sketch: Sketch, ids: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """The same, but 0 in blocks of the codec that no block of these ids touches, where that saves work.

    Args:
        values: the memory, flat.
        kept: its codec.
        sketch: whose blocks never wrap round (`unit` is `width`).
        ids: checked.
    """
    width, n_blocks = sketch.layout.width, -(-values.size // BLOCK)
    # Places that meet every block of the codec in a block of the memory.
    offsets = sorted({*range(0, width, BLOCK), width - 1})
    if len(ids) * len(sketch.layout.columns) * len(offsets) * _WORTH > n_blocks:
        return rounded(values, kept)
    touched = np.zeros(n_blocks, bool)
    places = blocks.addresses(sketch, ids)
    for offset in offsets:
        touched[(places + offset) // BLOCK] = True
    chosen = np.flatnonzero(touched)
    whole = values.size // BLOCK
    inside = chosen[chosen < whole]
    few = np.zeros((len(chosen), BLOCK), np.float32)
    few[: len(inside)] = values[: whole * BLOCK].reshape(whole, BLOCK)[inside]
    if len(inside) < len(chosen):  # the last block is not full
        few[-1, : values.size - whole * BLOCK] = values[whole * BLOCK :]
    out = np.zeros((n_blocks, BLOCK), np.float32)  # zeros of the system: pages that nobody touches cost nothing
    out[chosen] = rounded(few.reshape(-1), kept).reshape(-1, BLOCK)
    return out.reshape(-1)[: values.size]
