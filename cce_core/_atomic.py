"""What compiled threads share work by: whole numbers that change at once, and a core given up while there is nothing to do.

Without the compiler these are plain functions, for one thread alone.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from cce_core._jit import COMPILED


def _fetch_add_plain(numbers: Any, place: int) -> int:
    """Add 1 to `numbers[place]`, int64, at once; what stood there before."""
    before = int(numbers[place])
    numbers[place] += 1
    return before


def _load_plain(numbers: Any, place: int) -> int:
    """`numbers[place]`; all that its writer wrote before it can be read from now on."""
    return int(numbers[place])


def _store_plain(numbers: Any, place: int, value: int) -> None:
    """`numbers[place] = value`, after all that was written before."""
    numbers[place] = value


def _give_way_plain() -> None:
    """Let whoever waits for this core have it; a fraction of a microsecond where nobody does."""


def _built(kind: str) -> Any:
    """The same for compiled callers."""
    from numba.core import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")
    index, nothing = ir.IntType(64), ir.FunctionType(ir.IntType(32), [])

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if kind == "give_way":
            if sys.platform != "win32":  # there a waiting thread spins
                builder.call(get_or_insert_function(builder.module, nothing, "sched_yield"), [])
            return context.get_dummy_value()
        where = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        if kind == "fetch_add":
            return builder.atomic_rmw("add", where, ir.Constant(index, 1), "acq_rel")
        if kind == "load":
            return builder.load_atomic(where, "acquire", 8)
        builder.store_atomic(args[2], where, "release", 8)
        return context.get_dummy_value()

    def fetch_add(typing: Any, numbers: Any, place: Any) -> Any:
        return types.int64(numbers, types.intp), build

    def load(typing: Any, numbers: Any, place: Any) -> Any:
        return types.int64(numbers, types.intp), build

    def store(typing: Any, numbers: Any, place: Any, value: Any) -> Any:
        return types.void(numbers, types.intp, types.int64), build

    def give_way(typing: Any) -> Any:
        return types.void(), build

    makers = {f.__name__: f for f in (fetch_add, load, store, give_way)}
    return intrinsic(makers[kind])


fetch_add = _built("fetch_add") if COMPILED else _fetch_add_plain
load = _built("load") if COMPILED else _load_plain
store = _built("store") if COMPILED else _store_plain
give_way = _built("give_way") if COMPILED else _give_way_plain
