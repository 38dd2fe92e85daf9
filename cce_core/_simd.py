"""Numba's second door: functions built by hand from LLVM's instructions. (The first one is `_jit.py`.)

Numba turns a loop into vector instructions only where LLVM happens to manage, and two arrays may overlap as far as LLVM knows, so
that a loop over a block stays a load, an addition and a store per float: the gain or loss is tenfold. An `Emitter` writes loops
that load whole vectors before they store any and carry their sums in registers; LLVM cuts the vectors to whatever the machine
has. The loops themselves are in `_loops.py`, small functions here.

What each computes, and with which bits, its definition in plain Python says, which takes its place where nothing is compiled.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba import carray
from numba import types as types
from numba.core import cgutils
from numba.extending import intrinsic

from cce_core._jit import jit

FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


def integer(bits: int) -> Any:
    """A type of integers. Called with a number, it gives the constant."""
    return ir.IntType(bits)


def vector(kind: Any, n: int) -> Any:
    """The type of n numbers of a kind, side by side."""
    return ir.VectorType(kind, n)


def constants(kind: Any, values: Sequence[float]) -> Any:
    """A vector of these numbers."""
    return ir.Constant(vector(kind, len(values)), list(values))


BYTE, LANE, WORD = integer(8), integer(32), integer(64)


def _bytes(kind: Any) -> int:
    return int(kind.width) // 8 if isinstance(kind, ir.IntType) else 8 if kind == DOUBLE else 4


class Emitter:
    """Writes the code of one function: LLVM's builder `to`, the function's arguments, and the steps that loops share.

    Attributes:
        args, types: the arguments as LLVM's values, and their types in Numba.
        data, shapes: of the arguments that are arrays, by their places.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.to, self.args, self.types = builder, args, signature.args
        arrays = {
            i: context.make_array(kind)(context, builder, args[i])
            for i, kind in enumerate(self.types)
            if isinstance(kind, types.Array)
        }
        self.data = {i: array.data for i, array in arrays.items()}
        self.shapes = {i: array.shape for i, array in arrays.items()}

    def size(self, array: int, axis: int) -> Any:
        return self.to.extract_value(self.shapes[array], axis)

    def at(self, pointer: Any, place: Any) -> Any:
        return self.to.gep(pointer, [place])

    def item(self, array: int, place: Any) -> Any:
        """One number of an array."""
        return self.to.load(self.at(self.data[array], place))

    def row(self, array: int, i: Any, n: int) -> Any:
        """Row i of an array of n floats a row."""
        return self.vector_at(FLOAT, n, self.at(self.data[array], self.to.mul(i, WORD(n))))

    def vector_at(self, kind: Any, n: int, pointer: Any) -> Any:
        """The n numbers of a kind from a pointer on."""
        return self.to.load(self.to.bitcast(pointer, vector(kind, n).as_pointer()), align=_bytes(kind))

    def put(self, value: Any, pointer: Any) -> None:
        """Store a vector of numbers, or one, from a pointer on."""
        align = _bytes(getattr(value.type, "element", value.type))
        self.to.store(value, self.to.bitcast(pointer, value.type.as_pointer()), align=align)

    def call(self, name: str, returns: Any, *args: Any) -> Any:
        """What a function of C's, or an intrinsic of LLVM's, returns."""
        kind = ir.FunctionType(returns, [value.type for value in args])
        return self.to.call(cgutils.get_or_insert_function(self.to.module, kind, name), args)

    def prefetch(self, pointer: Any) -> None:
        """Have the line of a pointer fetched, since it will be read soon."""
        at = self.to.bitcast(pointer, BYTE.as_pointer())
        self.call("llvm.prefetch.p0i8", ir.VoidType(), at, LANE(0), LANE(3), LANE(1))

    def picked(self, a: Any, b: Any, places: Iterable[int]) -> Any:
        """Numbers of two vectors, those of the second one counted behind those of the first."""
        return self.to.shuffle_vector(a, b, constants(LANE, list(places)))

    def spread(self, scalar: Any, n: int) -> Any:
        """n times the same."""
        nothing = ir.Constant(vector(scalar.type, n), ir.Undefined)
        return self.picked(self.to.insert_element(nothing, scalar, LANE(0)), nothing, [0] * n)

    def chosen(self, order: str, a: Any, b: Any) -> Any:
        """The lesser ("<") or greater (">") of two, or b where one is NaN."""
        return self.to.select(self.to.fcmp_ordered(order, a, b), a, b)

    def loop(
        self, start: Any, end: Any, step: Any, carried: Iterable[Any], body: Callable[..., Iterable[Any] | None]
    ) -> tuple[Any, list[Any]]:
        """`carried = body(i, *carried)` for i = start, start + step, … while i + step <= end; the first i left, and carried."""
        to, starts, before = self.to, [start, *carried], self.to.block
        inside, after = to.append_basic_block("loop"), to.append_basic_block("after")

        def another(i: Any) -> Any:
            to.cbranch(to.icmp_signed("<=", to.add(i, step), end), inside, after)

        another(start)
        to.position_at_end(inside)
        now = [to.phi(value.type) for value in starts]
        later = [to.add(now[0], step), *(body(*now) or ())]
        at_last = to.block
        another(later[0])
        to.position_at_end(after)
        left = [to.phi(value.type) for value in starts]
        for first, again, out, value in zip(now, left, later, starts, strict=True):
            for phi in (first, again):
                phi.add_incoming(value, before)
                phi.add_incoming(out, at_last)
        return left[0], left[1:]

    def each(self, end: Any, body: Callable[[Any], None]) -> None:
        """`body(i)` for each i below the end."""
        self.strips(end, (1,), lambda _, i: body(i))

    def strips(
        self, end: Any, sizes: Sequence[int], body: Callable[..., Iterable[Any] | None], *carried: Any
    ) -> list[Any]:
        """`carried = body(n, i, *carried)` over [0, end) in strips of n = sizes[0] while they fit, then of sizes[1], …"""
        at, now = WORD(0), list(carried)
        for n in sizes:
            at, now = self.loop(at, end, WORD(n), now, functools.partial(body, n))
        return now


def function(name: str, build: Callable[[Emitter], Any], returns: Any, *takes: Any) -> Any:
    """What compiled callers call.

    Args:
        build: writes its code, and returns its value; what it returns is nothing where that is void.
        returns: Numba's type of the value.
        takes: for each argument a type of Numba's to which it is cast, a class of literals that it must be of, or None: as it is.
    """

    def lowered(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = build(Emitter(context, builder, signature, args))
        return context.get_dummy_value() if returns == types.void else value

    def typed(_typing: Any, *given: Any) -> Any:
        kinds = []
        for want, have in zip(takes, given, strict=True):
            if isinstance(want, type) and not isinstance(have, want):
                return None  # Numba asks again, with literals
            kinds.append(have if want is None or isinstance(want, type) else want)
        return returns(*kinds), lowered

    names = ["typing", *(f"argument{i}" for i in range(len(takes)))]
    definition: Any = typed
    definition.__name__ = name
    definition.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    )
    return intrinsic(definition)


# Work that threads share


def _give_way(e: Emitter) -> None:
    if sys.platform != "win32":  # there a waiting thread spins
        e.call("sched_yield", LANE)


def _place(e: Emitter) -> Any:
    return e.at(e.data[0], e.args[1])


fetch_add = function(
    "fetch_add", lambda e: e.to.atomic_rmw("add", _place(e), WORD(1), "acq_rel"), types.int64, None, types.intp
)
load = function("load", lambda e: e.to.load_atomic(_place(e), "acquire", 8), types.int64, None, types.intp)
store = function(
    "store", lambda e: e.to.store_atomic(e.args[2], _place(e), "release", 8), types.void, None, types.intp, types.int64
)
give_way = function("give_way", _give_way, types.void)


# Arrays by their address


def _load_bits(e: Emitter) -> Any:
    place = e.at(e.to.bitcast(e.data[0], cgutils.voidptr_t), e.args[1])
    return e.to.load(e.to.bitcast(place, WORD.as_pointer()), align=1)


load_bits = function("load_bits", _load_bits, types.uint64, None, types.uint64)
_pointer = function("pointer", lambda e: e.to.inttoptr(e.args[0], cgutils.voidptr_t), types.voidptr, types.int64)


@jit
def array_at(address: int, n: int, kind: Any) -> Any:
    """The array of n numbers of a kind at an address."""
    return carray(_pointer(address), (n,), kind)
