"""Blocks of floats moved and added as the vector instructions that they should be, and arrays found by their address.

Two arrays may overlap as far as LLVM knows, so a loop over a block stays a load, an addition and a store a float. A move here
loads a whole block before it stores it: one or two instructions for the common widths, strips of them for any other.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cce_core._jit import COMPILED
from cce_core.storage.codec import BFLOAT16, BLOCK, CODECS, FLOAT32, INT8, codec

COPY, ADD, SCALED, PAIR, BOTH = range(5)
_COMMON, _LANES = (1, 2, 4, 8, 16, 32), (16, 8, 4, 2, 1)


def _plain(how: int) -> Callable[..., None]:
    def move(
        to: Any, tos: Any, shift: Any, codes: Any, scales: Any, froms: Any, back: Any, count: Any, width: Any, more: Any,
        number: int,
    ) -> None:  # fmt: skip
        width = int(width)

        def fetched(a: int) -> Any:
            if number == FLOAT32:
                return codes[a : a + width]
            kept, first = codec(CODECS[number]), a // BLOCK * BLOCK
            whole = slice(first * kept.bits // 8 // codes.itemsize, kept.n_codes(a + width))
            return kept.decode(codes[whole], scales[first // BLOCK :], a + width - first)[a - first :]

        for n in range(int(count)):
            o, block = int(tos[n]) + int(shift), fetched(int(froms[n]) + int(back))
            if how == COPY:
                to[o : o + width] = block
            elif how == PAIR:
                to[o : o + width] = block + fetched(int(more[n]) + int(back))
            else:
                to[o : o + width] += block * more[n] if how == SCALED else block
            if how == BOTH:
                other = int(more[n]) + int(shift)
                to[other : other + width] += block

    return move


def _built(how: int) -> Any:
    """The same for compiled callers; `number` must be a constant there."""
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations
    byte, lane, real = ir.IntType(8), ir.IntType(32), ir.FloatType()

    def typed(
        typing: Any, to: Any, tos: Any, shift: Any, codes: Any, scales: Any, froms: Any, back: Any, count: Any, width: Any,
        more: Any, number: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(number, types.IntegerLiteral):
            return None
        kept = number.literal_value

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = [i for i in (0, 1, 3, 4, 5, 9) if isinstance(signature.args[i], types.Array)]
            data = {i: context.make_array(signature.args[i])(context, builder, args[i]).data for i in arrays}
            shift, back, count, width = (args[i] for i in (2, 6, 7, 8))
            word = count.type

            def item(i: int, n: Any) -> Any:
                return builder.load(builder.gep(data[i], [n]))

            def spread(x: Any, n: int) -> Any:
                one = builder.insert_element(ir.Constant(ir.VectorType(real, n), ir.Undefined), x, lane(0))
                return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(lane, n), [0] * n))

            def loaded(kind: Any, n: int, at: Any) -> Any:
                place = builder.bitcast(builder.gep(data[3], [at]), ir.VectorType(kind, n).as_pointer())
                return builder.load(place, align=kind.width // 8 if hasattr(kind, "width") else 4)

            def nibbles(n: int, at: Any) -> Any:
                """n numbers of 4 bits from place `at`, even where n is not 1."""
                wholes, half = ir.VectorType(lane, n), ir.VectorType(lane, max(1, n // 2))
                pairs = builder.zext(loaded(byte, max(1, n // 2), builder.lshr(at, word(1))), half)
                fifteen, four = (ir.Constant(half, [k] * max(1, n // 2)) for k in (15, 4))
                low, high = builder.and_(pairs, fifteen), builder.lshr(pairs, four)
                if n == 1:
                    return builder.select(builder.trunc(at, ir.IntType(1)), high, low)
                order = [i // 2 + (n // 2) * (i % 2) for i in range(n)]
                return builder.shuffle_vector(low, high, ir.Constant(wholes, order))

            def fetched(n: int, at: Any) -> Any:
                """n floats from place `at`; those of a scaled codec share a scale."""
                reals, wholes = ir.VectorType(real, n), ir.VectorType(lane, n)
                if kept == FLOAT32:
                    return loaded(real, n, at)
                if kept == BFLOAT16:
                    high = builder.zext(loaded(ir.IntType(16), n, at), wholes)
                    return builder.bitcast(builder.shl(high, ir.Constant(wholes, [16] * n)), reals)
                if kept == INT8:
                    value = builder.sitofp(loaded(byte, n, at), reals)
                else:
                    value = builder.fsub(builder.uitofp(nibbles(n, at), reals), ir.Constant(reals, [8.0] * n))
                return builder.fmul(value, spread(item(4, builder.lshr(at, word(6))), n))

            def strip(n: int, o: Any, a: Any, extra: Any) -> None:
                value = fetched(n, a)
                if how == PAIR:
                    value = builder.fadd(value, fetched(n, extra))
                if how == SCALED:
                    value = builder.fmul(value, spread(extra, n))
                for target in (o, extra) if how == BOTH else (o,):
                    place = builder.bitcast(builder.gep(data[0], [target]), ir.VectorType(real, n).as_pointer())
                    total = value
                    if how in (ADD, SCALED, BOTH):
                        total = builder.fadd(builder.load(place, align=4), value)
                    builder.store(total, place, align=4)

            def moved(n: int, o: Any, a: Any, extra: Any, at: Any) -> None:
                also = builder.add(extra, at) if how in (PAIR, BOTH) else extra
                strip(n, builder.add(o, at), builder.add(a, at), also)

            def every(block: Callable[[Any, Any, Any], None]) -> None:
                with cgutils.for_range(builder, count, intp=word) as loop:
                    o, a = builder.add(item(1, loop.index), shift), builder.add(item(5, loop.index), back)
                    extra = None if how in (COPY, ADD) else item(9, loop.index)
                    if how in (PAIR, BOTH):
                        extra = builder.add(extra, back if how == PAIR else shift)
                    block(o, a, extra)

            def known(width: int) -> Callable[[Any, Any, Any], None]:
                def block(o: Any, a: Any, extra: Any) -> None:
                    for done in range(0, width, _LANES[0]):
                        moved(min(width, _LANES[0]), o, a, extra, word(done))

                return block

            def unknown(o: Any, a: Any, extra: Any) -> None:
                done = cgutils.alloca_once_value(builder, word(0))
                builder.store(word(0), done)
                for n in _LANES:
                    times = builder.udiv(builder.sub(width, builder.load(done)), word(n))
                    with cgutils.for_range(builder, times, intp=word):
                        at = builder.load(done)
                        moved(n, o, a, extra, at)
                        builder.store(builder.add(at, word(n)), done)

            end, other = builder.append_basic_block("moved"), builder.append_basic_block("strips")
            choose = builder.switch(width, other)
            for n in _COMMON:
                here = builder.append_basic_block(f"width{n}")
                choose.add_case(word(n), here)
                builder.position_at_end(here)
                every(known(n))
                builder.branch(end)
            builder.position_at_end(other)
            every(unknown)
            builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        u = types.uint64
        return types.void(to, tos, u, codes, scales, froms, u, u, u, more, number), build

    return intrinsic(typed)


def _ask(builder: Any, place: Any) -> None:
    """Ask for the cache line of a place, which need not exist."""
    from numba.core import cgutils

    ir: Any = importlib.import_module("llvmlite.ir")
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] + [ir.IntType(32)] * 3)
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [builder.bitcast(place, cgutils.voidptr_t)] + [ir.IntType(32)(k) for k in (0, 3, 1)])


# (to, tos, shift, codes, scales, froms, back, count, width, more, codec): for n < count in order, the floats
# [tos[n] + shift : + width] of `to` become (copy), or are increased by (add), the floats [froms[n] + back : + width] of a
# memory in that codec; times more[n] (add_scaled); plus those at more[n] + back (copy_pairs); or those at more[n] + shift are
# increased as well (add_both). All numbers and places are uint64, factors float32.
# A move is of up to 16 floats of int8 or int4 with one scale; one of int4 of more than one float begins at an even place.
_make = _built if COMPILED else _plain
copy_blocks, add_blocks, add_scaled, copy_pairs, add_both = (_make(how) for how in (COPY, ADD, SCALED, PAIR, BOTH))


def _array_plain(address: Any, n: Any, kind: Any) -> Any:
    """The array of n numbers that lies at an address; whoever gives the address keeps the array alive."""
    if not int(n):
        return np.empty(0, kind)
    like = np.dtype(kind)
    return np.frombuffer((ctypes.c_byte * (int(n) * like.itemsize)).from_address(int(address)), like)


def _prefetch_plain(array: Any, i: Any) -> None:
    """Ask for the cache line of array[i], which need not exist."""


def _compiled_access() -> tuple[Any, Any]:

    from numba import carray
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    from cce_core._jit import jit

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(types.int64), build

    @intrinsic
    def prefetch(typing: Any, array: Any, i: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            _ask(builder, builder.gep(data, [args[1]]))
            return context.get_dummy_value()

        return types.void(array, types.uint64), build

    @jit
    def array_at(address: int, n: int, kind: Any) -> Any:
        return carray(pointer(address), (n,), kind)

    return array_at, prefetch


array_at, prefetch = _compiled_access() if COMPILED else (_array_plain, _prefetch_plain)
