"""The inner loops in vector instructions: tiles against centroids, points by their labels, blocks of floats, small products.

Their definitions are beside their uses: `clustering/nearest/tile_kernels.py` and `label_kernels.py`, `sketching/block_ops.py` and
`small_matmul.py`. Here is how they are written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from cce_core._simd import BYTE, DOUBLE, FLOAT, LANE, WORD, Emitter, constants, function, integer, types, vector

# The nearest centroids of a tile


def tile_loop(name: str, lanes: int, turn: int) -> Any:
    """`argmin_exact`, `argmin_expanded`, `argmin_named`, `below`, `minimum` or `recentre_tile` of `tile_kernels.py`.

    Args:
        lanes: points of a tile, side by side in a register.
        turn: centroids that are looked at together, and what lists are padded to.
    """
    if name not in ("argmin_exact", "argmin_expanded", "argmin_named", "below", "minimum", "recentre_tile"):
        raise ValueError(f"no loop over tiles is called {name!r}")
    named, listing, turning = name == "argmin_named", name == "below", name == "recentre_tile"
    lowering = turning or name == "minimum"
    exact = lowering or name in ("argmin_exact", "argmin_named")
    size = 1 if lowering else turn // 2 if exact else turn
    infinite, zero = (constants(FLOAT, [value] * lanes) for value in (float("inf"), 0.0))

    def build(e: Emitter) -> Any:
        to, d = e.to, e.size(0, 0)
        room = WORD(1) if turning else e.size(1, 1)
        count = WORD(1) if lowering else e.args[2 + named]
        turns = to.udiv(to.add(count, WORD(size - 1)), WORD(size))
        given = infinite
        if listing or name == "minimum":
            given = e.vector_at(FLOAT, lanes, e.data[2 if lowering else 3])

        def following(first: Any, *carried: Any) -> list[Any]:
            """The next centroids against what was found: the place in `out`, or the least, whose, and the least of the others."""
            if named:
                names = [e.item(2, to.add(first, WORD(i))) for i in range(size)]
                bases = [e.at(e.data[1], to.mul(to.sext(name, WORD), room)) for name in names]
            else:
                names = [to.add(to.trunc(first, LANE), LANE(i)) for i in range(size)]
                bases = [e.at(e.data[1], to.add(first, WORD(i))) for i in range(size)]

            def coordinates(j: Any) -> list[Any]:
                offset = j if named else to.mul(j, room)
                return [e.spread(to.load(e.at(base, offset)), lanes) for base in bases]

            def grown(j: Any, *totals: Any) -> list[Any]:
                x, out = e.row(0, j, lanes), []
                for total, centroid in zip(totals, coordinates(j), strict=True):
                    if not exact:
                        out.append(e.call(f"llvm.fmuladd.v{lanes}f32", x.type, centroid, x, total))
                        continue
                    apart = to.fsub(centroid, x)
                    out.append(to.fadd(total, to.fmul(apart, apart)))
                    if turning:
                        e.put(apart, e.at(e.data[2], to.mul(j, WORD(lanes))))
                return out

            _, totals = e.loop(WORD(0), d, WORD(1), [zero] * size if exact else coordinates(d), grown)
            now = list(carried)
            for total, whose in zip(totals, names, strict=True):
                if listing:  # written in any case, kept where the next goes behind it
                    e.put(whose, e.at(e.data[4], now[0]))
                    near = to.bitcast(to.fcmp_ordered("<=", total, given), integer(lanes))
                    near = to.icmp_unsigned("!=", near, integer(lanes)(0))
                    now[0] = to.add(now[0], to.zext(near, WORD))
                    continue
                near = to.fcmp_ordered("<", total, now[0])
                now[2] = e.chosen("<", now[2], e.chosen(">", total, now[0]))
                now[0] = to.select(near, total, now[0])
                now[1] = to.select(near, e.spread(whose, lanes), now[1])
            return now

        starts = [WORD(0)] if listing else [given, constants(LANE, [0] * lanes), infinite]
        _, found = e.loop(WORD(0), to.mul(turns, WORD(size)), WORD(size), starts, following)
        if listing:
            return found[0]
        for i, value in enumerate(found[: 1 if lowering else 2 if exact else 3]):
            e.put(value, e.data[3 + named + i])
        return None

    counts, others = [] if lowering else [types.intp], 3 if name == "argmin_expanded" else 2
    takes = [None] * (2 + named) + counts + [None] * others
    return function(name, build, types.intp if listing else types.void, *takes)


# What follows a search, by label


def label_loop(name: str, lanes: int) -> Any:
    """`apart` or `add_tile` of `label_kernels.py`, for tiles of so many points.

    A tile holds coordinates side by side, a centroid and a sum hold those of one point; so four coordinates of all points are
    turned in registers, and each point's are moved at once. Eight were slower.
    """

    def rows(e: Emitter, array: int, labels: int, stride: Any) -> list[Any]:
        """Where the rows of the points' labels begin."""
        places = [e.to.mul(e.to.zext(e.item(labels, WORD(i)), WORD), stride) for i in range(lanes)]
        return [e.at(e.data[array], place) for place in places]

    def turned(e: Emitter, parts: Sequence[Any]) -> Sequence[Any]:
        """out[i][4q + j] = parts[j][4q + i]: it undoes itself. A single coordinate stays as it is."""

        def pairs(a: Any, b: Any, order: tuple[int, ...]) -> Any:
            return e.picked(a, b, [q + p % 4 + lanes * (p // 4) for q in range(0, lanes, 4) for p in order])

        if len(parts) == 1:
            return parts
        low, high, first, second = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
        a, b = pairs(parts[0], parts[1], low), pairs(parts[2], parts[3], low)
        c, d = pairs(parts[0], parts[1], high), pairs(parts[2], parts[3], high)
        return [pairs(a, b, first), pairs(a, b, second), pairs(c, d, first), pairs(c, d, second)]

    def joined(e: Emitter, parts: Sequence[Any]) -> Any:
        """Vectors of one length, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        a, b = (joined(e, half) for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]))
        return e.picked(a, b, range(2 * a.type.count))

    def apart(e: Emitter) -> None:
        to, d = e.to, e.size(0, 0)
        bases = rows(e, 1, 2, d)

        def grown(n: int, j: Any, total: Any) -> list[Any]:
            parts = [e.vector_at(FLOAT, n, e.at(base, j)) for base in bases]
            for i, centroids in enumerate(turned(e, [joined(e, parts[i::n]) for i in range(n)])):
                away = to.fsub(centroids, e.row(0, to.add(j, WORD(i)), lanes))
                total = to.fadd(total, to.fmul(away, away))
            return [total]

        (total,) = e.strips(d, (4, 1), grown, constants(FLOAT, [0.0] * lanes))
        e.put(total, e.data[3])

    def add_tile(e: Emitter) -> None:
        to, d = e.to, e.size(0, 0)
        factors = [to.fpext(e.item(2, WORD(i)), DOUBLE) for i in range(lanes)]
        sums = rows(e, 3, 1, to.add(d, WORD(1)))

        def add(place: Any, value: Any) -> None:
            e.put(to.fadd(e.vector_at(DOUBLE, value.type.count, place), value), place)

        def added(n: int, j: Any) -> None:
            parts = turned(e, [e.row(0, to.add(j, WORD(i)), lanes) for i in range(n)])
            for i, (row, factor) in enumerate(zip(sums, factors, strict=True)):
                own = e.picked(parts[i % n], parts[0], range(i - i % n, i - i % n + n))
                add(e.at(row, j), to.fmul(e.spread(factor, n), to.fpext(own, vector(DOUBLE, n))))

        for row, factor in zip(sums, factors, strict=True):
            add(e.at(row, d), e.spread(factor, 1))
        e.strips(d, (4, 1), added)

    return function(name, apart if name == "apart" else add_tile, types.void, None, None, None, None)


# Blocks of floats

_AHEAD = 16  # blocks to be copied between asking for one and copying it
_COMMON, _STRIPS = (1, 2, 4, 8, 16, 32), (16, 8, 4, 2, 1)  # widths with code of their own; the others go in strips


def block_loop(name: str, codecs: Sequence[str]) -> Any:
    """`copy_blocks`, `add_blocks`, `add_scaled`, `copy_rows`, `add_both` or `sum_blocks` of `block_ops.py`.

    Args:
        codecs: the codec that each number, the last argument and a constant of its caller's, stands for.
    """
    summing, rows, both, adding = name == "sum_blocks", name == "copy_rows", name == "add_both", name.startswith("add")

    def build(e: Emitter) -> None:
        to, shift, back, count, width = (e.to, *(e.args[i] for i in (2, 6, 7, 8)))
        codec, more = codecs[e.types[10].literal_value], 9 in e.data
        pairs = rows or (summing and more and e.types[9].dtype == types.uint64)
        scaled = name == "add_scaled" or (summing and more and not pairs)

        def decoded(n: int, a: Any) -> Any:
            """n floats from place a on, which is even for int4 where n is not 1; those of a scaled codec share a scale."""

            def loaded(kind: Any, n: int, a: Any) -> Any:
                return e.vector_at(kind, n, e.at(e.data[3], a))

            reals, half = vector(FLOAT, n), max(1, n // 2)
            if codec == "float32":
                return loaded(FLOAT, n, a)
            if codec == "bfloat16":
                high = to.zext(loaded(integer(16), n, a), vector(LANE, n))
                return to.bitcast(to.shl(high, constants(LANE, [16] * n)), reals)
            if codec == "int8":
                value = to.sitofp(loaded(BYTE, n, a), reals)
            else:
                bits = to.zext(loaded(BYTE, half, to.lshr(a, WORD(1))), vector(LANE, half))
                low, high = to.and_(bits, constants(LANE, [15] * half)), to.lshr(bits, constants(LANE, [4] * half))
                if n == 1:
                    nibbles = to.select(to.trunc(a, integer(1)), high, low)
                else:
                    nibbles = e.picked(low, high, [i // 2 + half * (i % 2) for i in range(n)])
                value = to.fsub(to.uitofp(nibbles, reals), constants(FLOAT, [8.0] * n))
            return to.fmul(value, e.spread(e.item(4, to.lshr(a, WORD(6))), n))

        def valued(n: int, done: Any, a: Any, extra: Any) -> Any:
            """n floats of the block at a, those before `done` left out, with what comes beside it."""
            value = decoded(n, to.add(a, done))
            if pairs and extra is not None:
                value = to.fadd(value, decoded(n, to.add(extra, done)))
            return to.fmul(value, e.spread(extra, n)) if scaled else value

        def every(known: list[tuple[int, Any]] | None) -> None:
            """All blocks, in parts of so many floats behind so many; None: in strips."""

            def over(call: Callable[[list[tuple[int, Any]]], None]) -> None:
                if known:
                    call(known)
                else:
                    e.strips(width, _STRIPS, lambda n, done: call([(n, done)]))

            def moved(o: Any, a: Any, extra: Any) -> None:
                def call(parts: list[tuple[int, Any]]) -> None:
                    for n, done in parts:
                        value = valued(n, done, a, extra)
                        for target in (o, extra) if both else (o,):
                            place = e.at(e.data[0], to.add(target, done))
                            e.put(to.fadd(e.vector_at(FLOAT, n, place), value) if adding else value, place)

                over(call)

            def summed(o: Any, start: Any, end: Any, step: Any) -> None:
                """Blocks start, start + step, … below the end, onto what is there; those of a row onto nothing."""

                def call(parts: list[tuple[int, Any]]) -> None:
                    places = [e.at(e.data[0], to.add(o, done)) for _, done in parts]

                    def grown(i: Any, *totals: Any) -> list[Any]:
                        a, extra = e.item(5, i), e.item(9, i) if more else None
                        values = [valued(n, done, a, extra) for n, done in parts]
                        return [to.fadd(total, value) for total, value in zip(totals, values, strict=True)]

                    if rows:
                        a, first = e.item(5, start), to.add(start, step)
                        totals = [valued(n, done, a, None) for n, done in parts]
                    else:
                        first = start
                        totals = [e.vector_at(FLOAT, n, at) for (n, _), at in zip(parts, places, strict=True)]
                    for place, total in zip(places, e.loop(first, end, step, totals, grown)[1], strict=True):
                        e.put(total, place)

                over(call)

            def ahead(i: Any) -> None:
                """Ask for the block that will be copied in a while: its line is far away in a large memory."""
                later, last = to.add(i, WORD(_AHEAD)), to.sub(count, WORD(1))
                later = e.item(5, to.select(to.icmp_unsigned("<", later, last), later, last))
                e.prefetch(e.at(e.data[3], to.lshr(later, WORD(1)) if codec == "int4" else later))

            def block(i: Any) -> None:
                if name == "copy_blocks":
                    ahead(i)
                o, extra = to.add(e.item(1, i), shift), e.item(9, i) if more else None
                if summing:
                    summed(o, e.item(6, i), e.item(6, to.add(i, WORD(1))), WORD(1))
                else:
                    moved(o, to.add(e.item(5, i), back), to.add(extra, shift) if both else extra)

            def row(two: bool, i: Any) -> None:
                begin = to.add(e.item(1, i), shift)

                def chunk(c: Any) -> None:
                    o, at = to.add(begin, to.mul(c, width)), to.add(to.mul(to.mul(c, terms), back), i)
                    if two:
                        moved(o, e.item(5, at), e.item(5, to.add(at, back)))
                    else:
                        summed(o, at, to.add(at, to.mul(terms, back)), back)

                e.each(chunks, chunk)

            if not rows:
                return e.each(count, block)
            chunks, terms = (to.extract_value(e.args[9], k) for k in (0, 1))
            with to.if_else(to.icmp_unsigned("==", terms, WORD(2))) as branches:
                for branch, two in zip(branches, (True, False), strict=True):  # the two of most sketches at once
                    with branch:
                        e.each(count, functools.partial(row, two))

        end, other = to.append_basic_block("moved"), to.append_basic_block("strips")
        choose = to.switch(width, other)
        for n in _COMMON:
            here = to.append_basic_block(f"width{n}")
            choose.add_case(WORD(n), here)
            to.position_at_end(here)
            every([(min(n, _STRIPS[0]), WORD(done)) for done in range(0, n, _STRIPS[0])])
            to.branch(end)
        to.position_at_end(other)
        every(None)
        to.branch(end)
        to.position_at_end(end)

    u = types.uint64
    takes = (None, None, u, None, None, None, None if summing else u, u, u, None, types.IntegerLiteral)
    return function(name, build, types.void, *takes)


# Products of small matrices

_FEW = (2, 3, 5, 9)  # products a sum that have code of their own: rank + 1 of the usual projections


def product_strip(heights: Sequence[int]) -> Any:
    """The n columns of a product of `small_matmul.py`, so many rows at a time; a product and its sum may be rounded once."""

    def build(e: Emitter) -> None:
        to, contract = e.to, ("contract",)
        _, o, wide, _, a, down, along, _, b, apart, rows, inner, _, _ = e.args
        n, adds = e.types[12].literal_value, e.types[13].literal_value

        def past(start: Any, step: Any, times: Any) -> Any:
            return to.add(start, to.mul(step, times))

        def tile(height: int, first: Any) -> None:
            numbers = [to.add(first, WORD(i)) for i in range(height)]
            places, starts = ([past(x, step, i) for i in numbers] for x, step in ((o, wide), (a, down)))
            places = [e.at(e.data[0], place) for place in places]

            def grown(q: Any, *totals: Any) -> list[Any]:
                row, out = e.vector_at(FLOAT, n, e.at(e.data[7], past(b, apart, q))), []
                for start, total in zip(starts, totals, strict=True):
                    x = e.spread(e.item(3, past(start, along, q)), n)
                    out.append(to.fadd(total, to.fmul(x, row, flags=contract), flags=contract))
                return out

            zero = constants(FLOAT, [0.0] * n)
            found = [e.vector_at(FLOAT, n, place) if adds else zero for place in places]
            for total, place in zip(e.loop(WORD(0), inner, WORD(1), found, grown)[1], places, strict=True):
                e.put(total, place)

        def narrow(depth: int) -> None:
            """Of so few products a sum that their right sides stay in registers for all rows."""
            held = [e.vector_at(FLOAT, n, e.at(e.data[7], past(b, apart, WORD(q)))) for q in range(depth)]

            def one(i: Any) -> None:
                start, total = past(a, down, i), constants(FLOAT, [0.0] * n)
                for q, row in enumerate(held):
                    x = e.spread(e.item(3, past(start, along, WORD(q))), n)
                    total = to.fadd(total, to.fmul(x, row, flags=contract), flags=contract)
                e.put(total, e.at(e.data[0], past(o, wide, i)))

            e.each(rows, one)

        if adds or n < _STRIPS[0]:
            e.strips(rows, heights, tile)
            return
        end, other = to.append_basic_block("multiplied"), to.append_basic_block("deep")
        choose = to.switch(inner, other)
        for depth in _FEW:
            here = to.append_basic_block(f"depth{depth}")
            choose.add_case(WORD(depth), here)
            to.position_at_end(here)
            narrow(depth)
            to.branch(end)
        to.position_at_end(other)
        e.strips(rows, heights, tile)
        to.branch(end)
        to.position_at_end(end)

    u = types.uint64
    takes = (None, u, u, None, u, u, u, None, u, u, u, u, types.IntegerLiteral, types.BooleanLiteral)
    return function("product_strip", build, types.void, *takes)
