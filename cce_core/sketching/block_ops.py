"""Blocks of floats moved and added as the vector instructions that they should be, and arrays found by their address.

Two arrays may overlap as far as LLVM knows, so a loop over a block stays a load, an addition and a store a float. A move here
loads a whole block before it stores it: one or two instructions for the common widths, strips of them for any other.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cce_core._jit import COMPILED
from cce_core.storage.codec import BFLOAT16, BLOCK, CODECS, FLOAT32, INT8, codec

COPY, ADD, SCALED, ROWS, BOTH, SUM = range(6)
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
            if how == SUM:
                o = int(tos[n]) + int(shift)
                for i in range(int(back[n]), int(back[n + 1])):
                    block = fetched(int(froms[i]))
                    if more is not None:
                        block = block * more[i] if more.dtype == np.float32 else block + fetched(int(more[i]))
                    to[o : o + width] += block
                continue
            if how == ROWS:
                chunks, terms = (int(number) for number in more)
                for c in range(chunks):
                    o = int(tos[n]) + int(shift) + c * width
                    spots = [int(froms[(c * terms + t) * int(back) + n]) for t in range(terms)]
                    to[o : o + width] = functools.reduce(np.add, [fetched(spot) for spot in spots])
                continue
            o, block = int(tos[n]) + int(shift), fetched(int(froms[n]) + int(back))
            if how == COPY:
                to[o : o + width] = block
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
            arrays = [i for i, given in enumerate(signature.args) if isinstance(given, types.Array)]
            data = {i: context.make_array(signature.args[i])(context, builder, args[i]).data for i in arrays}
            shift, back, count, width = (args[i] for i in (2, 6, 7, 8))
            word = count.type
            addresses = 9 in arrays and signature.args[9].dtype == types.uint64
            doubles = how == ROWS or (how == SUM and addresses)
            scales_it = how in (SCALED, SUM) and 9 in arrays and not addresses

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

            def valued(n: int, a: Any, extra: Any) -> Any:
                value = fetched(n, a)
                if doubles:
                    value = builder.fadd(value, fetched(n, extra))
                return builder.fmul(value, spread(extra, n)) if scales_it else value

            def strip(n: int, o: Any, a: Any, extra: Any) -> None:
                value = valued(n, a, extra)
                for target in (o, extra) if how == BOTH else (o,):
                    place = builder.bitcast(builder.gep(data[0], [target]), ir.VectorType(real, n).as_pointer())
                    total = value
                    if how in (ADD, SCALED, BOTH):
                        total = builder.fadd(builder.load(place, align=4), value)
                    builder.store(total, place, align=4)

            def moved(n: int, o: Any, a: Any, extra: Any, at: Any) -> None:
                also = builder.add(extra, at) if how in (ROWS, BOTH) else extra
                strip(n, builder.add(o, at), builder.add(a, at), also)

            def summed(o: Any, begin: Any, end: Any, at: Any, lanes: Sequence[int]) -> None:
                """The strips from `at` on of the blocks [begin, end), in registers."""
                places, totals = [], []
                for k, n in enumerate(lanes):
                    kind, shifted = ir.VectorType(real, n), builder.add(at, word(sum(lanes[:k])))
                    place = builder.bitcast(builder.gep(data[0], [builder.add(o, shifted)]), kind.as_pointer())
                    places.append((place, shifted))
                    totals.append(cgutils.alloca_once(builder, kind))
                    builder.store(builder.load(place, align=4), totals[k])
                with cgutils.for_range_slice(builder, begin, end, word(1), intp=word) as (i, _):
                    a, extra = item(5, i), item(9, i) if 9 in arrays else None
                    for (_place, shifted), total, n in zip(places, totals, lanes):
                        value = valued(n, builder.add(a, shifted), builder.add(extra, shifted) if doubles else extra)
                        builder.store(builder.fadd(builder.load(total), value), total)
                for (place, _shifted), total in zip(places, totals):
                    builder.store(builder.load(total), place, align=4)

            def every_sum(lanes: Sequence[int] | None) -> None:
                with cgutils.for_range(builder, count, intp=word) as loop:
                    o = builder.add(item(1, loop.index), shift)
                    begin, end = item(6, loop.index), item(6, builder.add(loop.index, word(1)))
                    if lanes is not None:
                        return summed(o, begin, end, word(0), lanes)
                    in_strips(lambda n, at: summed(o, begin, end, at, (n,)))

            def in_strips(call: Callable[[int, Any], None]) -> None:
                done = cgutils.alloca_once_value(builder, word(0))
                builder.store(word(0), done)
                for n in _LANES:
                    times = builder.udiv(builder.sub(width, builder.load(done)), word(n))
                    with cgutils.for_range(builder, times, intp=word):
                        at = builder.load(done)
                        call(n, at)
                        builder.store(builder.add(at, word(n)), done)

            def every(block: Callable[[Any, Any, Any], None]) -> None:
                with cgutils.for_range(builder, count, intp=word) as loop:
                    o, a = builder.add(item(1, loop.index), shift), builder.add(item(5, loop.index), back)
                    extra = None if how in (COPY, ADD) else item(9, loop.index)
                    block(o, a, builder.add(extra, shift) if how == BOTH else extra)

            def every_row(block: Callable[[Any, Any, Any], None], lanes: Sequence[int] | None) -> None:
                """Row after row, chunk after chunk: the two terms of most sketches at once, more (or one) in turn."""
                chunks, terms = (builder.extract_value(args[9], k) for k in (0, 1))
                two = builder.icmp_unsigned("==", terms, word(2))
                with builder.if_else(two) as (then, otherwise):
                    for branch, both in ((then, True), (otherwise, False)):
                        with branch, cgutils.for_range(builder, count, intp=word) as row:
                            begin = builder.add(item(1, row.index), shift)
                            with cgutils.for_range(builder, chunks, intp=word) as chunk:
                                o = builder.add(begin, builder.mul(chunk.index, width))
                                at = builder.add(builder.mul(builder.mul(chunk.index, terms), back), row.index)
                                if both:
                                    block(o, item(5, at), item(5, builder.add(at, back)))
                                else:
                                    in_turn(o, at, terms, lanes)

            def in_turn(o: Any, at: Any, terms: Any, lanes: Sequence[int] | None) -> None:
                def strips(n: int, done: Any) -> None:
                    total = cgutils.alloca_once(builder, ir.VectorType(real, n))
                    builder.store(fetched(n, builder.add(item(5, at), done)), total)
                    with cgutils.for_range_slice(builder, word(1), terms, word(1), intp=word) as (t, _):
                        a = item(5, builder.add(at, builder.mul(t, back)))
                        builder.store(builder.fadd(builder.load(total), fetched(n, builder.add(a, done))), total)
                    place = builder.gep(data[0], [builder.add(o, done)])
                    builder.store(
                        builder.load(total), builder.bitcast(place, ir.VectorType(real, n).as_pointer()), align=4
                    )

                if lanes is None:
                    return in_strips(strips)
                for k, n in enumerate(lanes):
                    strips(n, word(sum(lanes[:k])))

            def known(width: int) -> Callable[[Any, Any, Any], None]:
                def block(o: Any, a: Any, extra: Any) -> None:
                    for done in range(0, width, _LANES[0]):
                        moved(min(width, _LANES[0]), o, a, extra, word(done))

                return block

            def unknown(o: Any, a: Any, extra: Any) -> None:
                in_strips(lambda n, at: moved(n, o, a, extra, at))

            def moves(block: Callable[[Any, Any, Any], None], lanes: Sequence[int] | None) -> None:
                if how == SUM:
                    every_sum(lanes)
                elif how == ROWS:
                    every_row(block, lanes)
                else:
                    every(block)

            end, other = builder.append_basic_block("moved"), builder.append_basic_block("strips")
            choose = builder.switch(width, other)
            for n in _COMMON:
                here = builder.append_basic_block(f"width{n}")
                choose.add_case(word(n), here)
                builder.position_at_end(here)
                moves(known(n), (_LANES[0],) * (n // _LANES[0]) or (n,))
                builder.branch(end)
            builder.position_at_end(other)
            moves(unknown, None)
            builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        u = types.uint64
        between = back if how == SUM else u
        return types.void(to, tos, u, codes, scales, froms, between, u, u, more, number), build

    return intrinsic(typed)


# (to, tos, shift, codes, scales, froms, back, count, width, more, codec): for n < count in order, the floats
# [tos[n] + shift : + width] of `to` become (copy), or are increased by (add), the floats [froms[n] + back : + width] of a
# memory in that codec; times more[n] (add_scaled); or those at more[n] + shift are increased as well (add_both). All numbers and
# places are uint64, factors float32.
# A move is of up to 16 floats of int8 or int4 with one scale; one of int4 of more than one float begins at an even place.
# copy_rows takes more = (chunks, terms): the row at tos[n] + shift is so many blocks side by side, block c of them the sum over t
# of those at froms[(c · terms + t) · back + n].
# sum_blocks takes heads in place of `back`: for n < count the floats [tos[n] + shift : + width] of `to` are increased by the
# blocks at froms[heads[n] : heads[n + 1]], one after another; each with the one at `more` (addresses), or times it (factors).
_make = _built if COMPILED else _plain
copy_blocks, add_blocks, add_scaled, copy_rows, add_both, sum_blocks = (_make(how) for how in range(6))


def _array_plain(address: Any, n: Any, kind: Any) -> Any:
    """The array of n numbers that lies at an address; whoever gives the address keeps the array alive."""
    if not int(n):
        return np.empty(0, kind)
    like = np.dtype(kind)
    return np.frombuffer((ctypes.c_byte * (int(n) * like.itemsize)).from_address(int(address)), like)


def _load_plain(words: Any, byte: Any) -> Any:
    """The 64 bits from a byte of `words` on, least significant first."""
    return words.view(np.uint8)[int(byte) : int(byte) + 8].view(np.uint64)[0]


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
    def load_bits(typing: Any, words: Any, byte: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ir: Any = importlib.import_module("llvmlite.ir")
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            place = builder.gep(builder.bitcast(data, cgutils.voidptr_t), [args[1]])
            return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

        return types.uint64(words, types.uint64), build

    @jit
    def array_at(address: int, n: int, kind: Any) -> Any:
        return carray(pointer(address), (n,), kind)

    return array_at, load_bits


array_at, load_bits = _compiled_access() if COMPILED else (_array_plain, _load_plain)
