"""Products of small matrices that lie in flat arrays, from inside compiled loops.

A library's matrix product costs microseconds a call, more than a product of a few thousand multiplications takes. And a loop
in Numba keeps its sums in memory, since two arrays may overlap as far as LLVM knows. Here the sums of a tile, up to 4 rows
of up to 16 columns, stay in vector registers from the first multiplication to the last.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from cce_core._jit import COMPILED, jit

_TALL = 4


def _strip_plain(
    out: Any, o: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, rows: Any, inner: Any, width: Any, n: int
) -> None:  # fmt: skip
    for i in range(int(rows)):
        to, at = int(o) + i * int(width), int(a) + i * int(down)
        for q in range(int(inner)):
            place = int(b) + q * int(width)
            out[to : to + n] += left[at + q * int(along)] * right[place : place + n]


def _built() -> Any:
    """The same for compiled callers; n must be a constant there. A product and its sum may be rounded once (`contract`)."""
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations

    def typed(
        typing: Any, out: Any, o: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, rows: Any,
        inner: Any, width: Any, n: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(n, types.IntegerLiteral):
            return None
        lanes = n.literal_value

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, o, _, a, down, along, _, b, rows, inner, width, _ = args
            data = {i: context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 6)}
            block, lane, tall = ir.VectorType(ir.FloatType(), lanes), ir.IntType(32), o.type(_TALL)
            nothing, spread = ir.Constant(block, ir.Undefined), ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)

            def past(start: Any, step: Any, times: Any) -> Any:
                return builder.add(start, builder.mul(step, times))

            def columns(i: int, at: Any) -> Any:
                return builder.bitcast(builder.gep(data[i], [at]), block.as_pointer())

            def tile(first: Any, height: int) -> None:
                numbers = [builder.add(first, first.type(i)) for i in range(height)]
                places = [columns(0, past(o, width, i)) for i in numbers]
                starts = [past(a, down, i) for i in numbers]
                totals = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
                with cgutils.for_range(builder, inner, intp=inner.type) as loop:
                    row = builder.load(columns(6, past(b, width, loop.index)), align=4)
                    for start, total in zip(starts, totals, strict=True):
                        x = builder.load(builder.gep(data[2], [past(start, along, loop.index)]), align=4)
                        xs = builder.shuffle_vector(builder.insert_element(nothing, x, lane(0)), nothing, spread)
                        product = builder.fmul(xs, row, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
                for place, total in zip(places, totals, strict=True):
                    builder.store(builder.load(total), place, align=4)

            whole = builder.udiv(rows, tall)
            with cgutils.for_range(builder, whole, intp=rows.type) as loop:
                tile(builder.mul(loop.index, tall), _TALL)
            with cgutils.for_range(builder, builder.urem(rows, tall), intp=rows.type) as loop:
                tile(past(loop.index, whole, tall), 1)
            return context.get_dummy_value()

        u = types.uint64
        return types.void(out, u, left, u, u, u, right, u, u, u, u, n), build

    return intrinsic(typed)


_strip = _built() if COMPILED else _strip_plain


@jit
def add_product(
    out: Any, o: Any, left: Any, a: Any, down: Any, along: Any, right: Any, b: Any, rows: Any, inner: Any, width: Any
) -> None:
    """out[o:] (rows, width) += left (rows, inner) · right[b:] (inner, width), with left[i, q] at left[a + i·down + q·along].

    All float32 and flat; all numbers uint64. `out` overlaps neither of the others.
    """
    end = o + width
    while o + np.uint64(16) <= end:
        _strip(out, o, left, a, down, along, right, b, rows, inner, width, 16)
        o, b = o + np.uint64(16), b + np.uint64(16)
    if o + np.uint64(8) <= end:
        _strip(out, o, left, a, down, along, right, b, rows, inner, width, 8)
        o, b = o + np.uint64(8), b + np.uint64(8)
    if o + np.uint64(4) <= end:
        _strip(out, o, left, a, down, along, right, b, rows, inner, width, 4)
        o, b = o + np.uint64(4), b + np.uint64(4)
    if o + np.uint64(2) <= end:
        _strip(out, o, left, a, down, along, right, b, rows, inner, width, 2)
        o, b = o + np.uint64(2), b + np.uint64(2)
    if o < end:
        _strip(out, o, left, a, down, along, right, b, rows, inner, width, 1)
