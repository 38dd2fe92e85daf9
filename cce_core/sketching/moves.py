"""Copying and adding a block of known width, as the vector instructions that it should be.

Two arrays may overlap as far as LLVM knows, so a loop over a block stays a load, an addition and a store a float. These two
load a whole block before they store it. Where the width is 0 (not known at compile time) they do nothing: the caller
loops.
"""

from __future__ import annotations

import importlib
from typing import Any

from cce_core._jit import COMPILED


def _copy_plain(to: Any, o: Any, source: Any, a: Any, width: int) -> None:
    to[int(o) : int(o) + width] = source[int(a) : int(a) + width]


def _add_plain(to: Any, o: Any, source: Any, a: Any, width: int) -> None:
    to[int(o) : int(o) + width] += source[int(a) : int(a) + width]


def _built(add: bool) -> Any:
    """The same for compiled callers; `width` must be a constant there."""
    from numba.core import types
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations

    def typed(typing: Any, to: Any, o: Any, source: Any, a: Any, width: Any) -> Any:
        if not isinstance(width, types.IntegerLiteral):
            return None
        n = width.literal_value

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if n > 0:
                block = ir.VectorType(ir.FloatType(), n).as_pointer()

                def at(i: int) -> Any:
                    array = context.make_array(signature.args[i])(context, builder, args[i])
                    return builder.bitcast(builder.gep(array.data, [args[i + 1]]), block)

                value = builder.load(at(2), align=4)
                if add:
                    value = builder.fadd(builder.load(at(0), align=4), value)
                builder.store(value, at(0), align=4)
            return context.get_dummy_value()

        return types.void(to, types.uint64, source, types.uint64, width), build

    return intrinsic(typed)


copy_block = _built(add=False) if COMPILED else _copy_plain
add_block = _built(add=True) if COMPILED else _add_plain
