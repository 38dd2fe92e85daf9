"""Products of small matrices that lie in flat arrays, from inside compiled loops.

A library's matrix product costs microseconds a call, more than a product of a few thousand multiplications takes. And a loop
in Numba keeps its sums in memory, since two arrays may overlap as far as LLVM knows. Here the sums of a tile, up to 8 rows
of up to 16 columns, stay in vector registers from the first multiplication to the last.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from cce_core._jit import COMPILED, jit

_HEIGHTS = (8, 4, 1)


def _strip_plain(
    out: Any, o: Any, wide: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, apart: Any, rows: Any,
    inner: Any, n: int, adds: bool,
) -> None:  # fmt: skip
    for i in range(int(rows)):
        to, at = int(o) + i * int(wide), int(a) + i * int(down)
        if not adds:
            out[to : to + n] = 0.0
        for q in range(int(inner)):
            place = int(b) + q * int(apart)
            out[to : to + n] += left[at + q * int(along)] * right[place : place + n]


def _built() -> Any:
    """The same for compiled callers; n must be a constant there. A product and its sum may be rounded once (`contract`)."""
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations

    def typed(
        typing: Any, out: Any, o: Any, wide: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, apart: Any,
        rows: Any, inner: Any, n: Any, adds: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(n, types.IntegerLiteral) or not isinstance(adds, types.BooleanLiteral):
            return None
        lanes, sums = n.literal_value, adds.literal_value

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, o, wide, _, a, down, along, _, b, apart, rows, inner, _, _ = args
            data = {i: context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 7)}
            block, lane = ir.VectorType(ir.FloatType(), lanes), ir.IntType(32)
            nothing, spread = ir.Constant(block, ir.Undefined), ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)

            def past(start: Any, step: Any, times: Any) -> Any:
                return builder.add(start, builder.mul(step, times))

            def columns(i: int, at: Any) -> Any:
                return builder.bitcast(builder.gep(data[i], [at]), block.as_pointer())

            def tile(first: Any, height: int) -> None:
                numbers = [builder.add(first, first.type(i)) for i in range(height)]
                places = [columns(0, past(o, wide, i)) for i in numbers]
                starts = [past(a, down, i) for i in numbers]
                firsts = [builder.load(place, align=4) if sums else ir.Constant(block, None) for place in places]
                totals = [cgutils.alloca_once_value(builder, first) for first in firsts]
                for total, first in zip(totals, firsts, strict=True):
                    builder.store(first, total)
                with cgutils.for_range(builder, inner, intp=inner.type) as loop:
                    row = builder.load(columns(7, past(b, apart, loop.index)), align=4)
                    for start, total in zip(starts, totals, strict=True):
                        x = builder.load(builder.gep(data[3], [past(start, along, loop.index)]), align=4)
                        xs = builder.shuffle_vector(builder.insert_element(nothing, x, lane(0)), nothing, spread)
                        product = builder.fmul(xs, row, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
                for place, total in zip(places, totals, strict=True):
                    builder.store(builder.load(total), place, align=4)

            done = cgutils.alloca_once_value(builder, rows.type(0))
            builder.store(rows.type(0), done)
            for height in _HEIGHTS:
                times = builder.udiv(builder.sub(rows, builder.load(done)), rows.type(height))
                with cgutils.for_range(builder, times, intp=rows.type):
                    tile(builder.load(done), height)
                    builder.store(builder.add(builder.load(done), rows.type(height)), done)
            return context.get_dummy_value()

        u = types.uint64
        return types.void(out, u, u, left, u, u, u, right, u, u, u, u, n, adds), build

    return intrinsic(typed)


_strip = _built() if COMPILED else _strip_plain


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
