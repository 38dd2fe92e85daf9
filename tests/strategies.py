"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cce_core as cce

INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def served(table):
    """The table, or, where it has phases, a fresh one in that which its budget is for."""
    return cce.Table(table.method.served(table.spec)) if table.phase == "rows" else table


def pairwise(*axes):
    """Combinations of one value of each axis, in which every two values of two axes meet: far fewer than all combinations.

    Each combination is the one that brings most pairs which have not met yet, the first of equals.
    """
    sizes = [range(len(axis)) for axis in axes]
    pairs = list(itertools.combinations(range(len(axes)), 2))
    left = {(a, x, b, y) for a, b in pairs for x in sizes[a] for y in sizes[b]}
    every, out = list(itertools.product(*sizes)), []
    while left:
        best = max(every, key=lambda c: sum((a, c[a], b, c[b]) in left for a, b in pairs))
        left -= {(a, best[a], b, best[b]) for a, b in pairs}
        out.append(tuple(axis[k] for axis, k in zip(axes, best)))
    return out


seeds = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]))
words = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]))


def shapes(max_dims: int = 3, max_side: int = 6, min_dims: int = 0):
    """Shapes of small arrays: 0-dimensional and empty ones too."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=0, max_side=max_side) | st.just(
        () if min_dims == 0 else (0,) * min_dims
    )


@st.composite
def ids(draw, vocab: int | None = None, shape=None, types=INTEGER_TYPES):
    """Ids of any integer type (either byte order), shape and memory layout; below `vocab` where it is given.

    A type too narrow for the vocabulary is drawn too: its ids then come from the part that it can hold.
    """
    dtype = np.dtype(draw(st.sampled_from(types)))
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if vocab is not None:
        least, most = 0, min(most, vocab - 1)
    numbers = st.integers(least, most) | st.sampled_from([least, most])
    array = draw(hnp.arrays(dtype, draw(shapes()) if shape is None else shape, elements=numbers))
    if draw(st.booleans()):
        array = array.astype(dtype.newbyteorder("S"))
    if array.ndim and draw(st.booleans()):
        array = np.repeat(array, 2, axis=-1)[..., ::2]  # same values, not contiguous
    return array


def floats32(least: float = -1e3, most: float = 1e3):
    """Finite numbers that float32 holds exactly, without subnormals."""
    low, high = float(np.float32(least)), float(np.float32(most))
    return st.floats(low, high, width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def float32_arrays(shape=None, least: float = -1e3, most: float = 1e3):
    """Finite float32 arrays."""
    return hnp.arrays(np.float32, shapes() if shape is None else shape, elements=floats32(least, most))
