"""Products of small matrices that lie in flat arrays, from inside compiled loops.

A library's matrix product costs microseconds a call, more than a product of a few thousand multiplications takes. And a loop
in Numba keeps its sums in memory, since two arrays may overlap as far as LLVM knows. Here the sums of a tile, up to 8 rows
of up to 16 columns, stay in vector registers from the first multiplication to the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core import _loops
from cce_core._jit import COMPILED, jit


def _strip_plain(
    out: Any, o: Any, wide: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, apart: Any, rows: Any,
    inner: Any, n: int, adds: bool,
) -> None:  # fmt: skip
    """n columns of the product, a constant of the caller's, added to `out` or written over it."""
    for i in range(int(rows)):
        to, at = int(o) + i * int(wide), int(a) + i * int(down)
        if not adds:
            out[to : to + n] = 0.0
        for q in range(int(inner)):
            place = int(b) + q * int(apart)
            out[to : to + n] += left[at + q * int(along)] * right[place : place + n]


_strip = _loops.product_strip((8, 4, 1)) if COMPILED else _strip_plain


@jit
def add_product(
    out: Any, o: Any, wide: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, apart: Any, rows: Any, inner: Any,
    width: Any,
) -> None:  # fmt: skip
    """out (rows, width) += left (rows, inner) · right (inner, width): out[i, j] at out[o + i·wide + j], left[i, q] at
    left[a + i·down + q·along], right[q, j] at right[b + q·apart + j].

    All float32 and flat; all numbers uint64. `out` overlaps neither of the others.
    """
    end = o + width
    while o + np.uint64(16) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 16, True)
        o, b = o + np.uint64(16), b + np.uint64(16)
    if o + np.uint64(8) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 8, True)
        o, b = o + np.uint64(8), b + np.uint64(8)
    if o + np.uint64(4) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 4, True)
        o, b = o + np.uint64(4), b + np.uint64(4)
    if o + np.uint64(2) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 2, True)
        o, b = o + np.uint64(2), b + np.uint64(2)
    if o < end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 1, True)


@jit
def set_product(
    out: Any, o: Any, wide: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, apart: Any, rows: Any, inner: Any,
    width: Any,
) -> None:  # fmt: skip
    """The same, written over what was there: `add_product` to zeros."""
    end = o + width
    while o + np.uint64(16) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 16, False)
        o, b = o + np.uint64(16), b + np.uint64(16)
    if o + np.uint64(8) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 8, False)
        o, b = o + np.uint64(8), b + np.uint64(8)
    if o + np.uint64(4) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 4, False)
        o, b = o + np.uint64(4), b + np.uint64(4)
    if o + np.uint64(2) <= end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 2, False)
        o, b = o + np.uint64(2), b + np.uint64(2)
    if o < end:
        _strip(out, o, wide, left, a, down, along, right, b, apart, rows, inner, 1, False)
