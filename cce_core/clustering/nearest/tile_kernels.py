"""The inner loops of the nearest-centroid search, written in vector instructions.

Numba turns a loop into vector instructions only where LLVM happens to manage, and the gain or loss is tenfold. So these
are built by hand: the `LANES` points of a tile side by side in a register, a few centroids at a time, what is least so
far kept in registers. LLVM cuts the vectors to whatever the machine has.

`scan` is the definition: the sum over coordinates in order, each step rounded to float32 (no fused multiply-add), so
that a distance has the same bits here, in NumPy and in plain Python. `sift` takes a third of the work by the expanded
square, rounded as it comes; it also says how near the runner-up is, so that its caller can tell when that decides.
`scan_named` looks only at centroids on a list, and `within` makes such lists; `lower` is for one centre alone, and `turn`
readies a tile for `sift` and `within`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from cce_core._jit import COMPILED

LANES = 16  # points of a tile: one register of AVX-512, two of AVX2
TURN = 8  # centroids a turn, and what lists are padded to; `scan`, whose lists are short, takes half as many


def _scan_plain(tile: Any, centroids: Any, count: int, best: Any, which: Any) -> None:
    """Least squared distance from each point of a tile to `count` centroids, and the first centroid that has it.

        best[l] = min_c Σ_j (centroids[j, c] − tile[j, l])²        which[l] = the least such c

    Args:
        tile: float32 (d, LANES), a point a column.
        centroids: float32 (d, room), a centroid a column; those from `count` to the next multiple of TURN are infinite.
        count: how many there are.
        best: float32 (LANES,), written.
        which: int32 (LANES,), written.
    """
    least = np.full(LANES, np.inf, np.float32)
    first = np.zeros(LANES, np.int32)
    for c in range(count):
        total = np.zeros(LANES, np.float32)
        for j in range(tile.shape[0]):
            apart = centroids[j, c] - tile[j]
            total += apart * apart
        near = total < least
        least[near] = total[near]
        first[near] = c
    best[:] = least
    which[:] = first


def _scores(tile: Any, centroids: Any, count: int) -> Any:
    """score[c, l] = centroids[d, c] + Σ_j centroids[j, c] · tile[j, l], float32 (count, LANES)."""
    d = tile.shape[0]
    scores = np.repeat(centroids[d, :count, None], LANES, axis=1)
    for j in range(d):
        scores += centroids[j, :count, None] * tile[j]
    return scores


def _sift_plain(tile: Any, centroids: Any, count: int, best: Any, which: Any, second: Any) -> None:
    """Least score of each point of a tile over `count` centroids, a centroid that has it, and the least of the others.

        score[c, l] = centroids[d, c] + Σ_j centroids[j, c] · tile[j, l]

    With −x in the tile and |c|²/2 in the last row, that is (|x − c|² − |x|²)/2 but for rounding, which is the compiler's
    affair.

    Args:
        tile: float32 (d, LANES).
        centroids: float32 (d + 1, room); the last row of those from `count` to the next multiple of TURN is infinite,
            and what stands above it finite.
        count: how many there are.
        best: float32 (LANES,), written.
        which: int32 (LANES,), written.
        second: float32 (LANES,), written; infinite for a single centroid.
    """
    scores = _scores(tile, centroids, count)
    which[:] = scores.argmin(0)
    best[:] = scores.min(0)
    scores[which, np.arange(LANES)] = np.inf
    second[:] = scores.min(0)


def _scan_named_plain(tile: Any, rows: Any, names: Any, count: int, best: Any, which: Any) -> None:
    """`scan` of the centroids `rows[names[i]]`, i < count; `which` gets the name.

    Args:
        rows: float32 (k + 1, d), a centroid a row, the last one infinite.
        names: int32, padded with k to the next multiple of TURN.
    """
    _scan_plain(tile, rows[names[:count]].T, count, best, which)
    which[:] = names[which]


def _within_plain(tile: Any, centroids: Any, count: int, limits: Any, out: Any) -> int:
    """Which centroids' scores (see `sift`) are at most the limit for one point of the tile at least; how many.

    Args:
        limits: float32 (LANES,).
        out: int32, the places of those centroids, in their order, written from its start; room for `count` and a TURN.
    """
    found = np.flatnonzero((_scores(tile, centroids, count) <= limits).any(axis=1))
    out[: len(found)] = found
    return len(found)


def _lower_plain(tile: Any, centre: Any, known: Any, now: Any) -> None:
    """The squared distance from each point of a tile to one centre, as in `scan`, or what is known where that is less.

    Args:
        tile: float32 (d, LANES).
        centre: float32 (d, 1).
        known: float32 (LANES,).
        now: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(tile.shape[0]):
        apart = centre[j, 0] - tile[j]
        total += apart * apart
    now[:] = np.minimum(known, total)


def _turn_plain(tile: Any, mid: Any, turned: Any, lengths: Any) -> None:
    """The way from each point of a tile to `mid`, and its squared length as in `scan`.

    Args:
        tile: float32 (d, LANES).
        mid: float32 (d,).
        turned: float32, its first d rows written.
        lengths: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(mid.shape[0]):
        turned[j] = mid[j] - tile[j]
        total += turned[j] * turned[j]
    lengths[:] = total


def _built(kind: str) -> Any:
    """The same for compiled callers."""
    from numba.core import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations
    word, index = ir.IntType(32), ir.IntType(64)
    floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)
    infinite, zero = ir.Constant(floats, [float("inf")] * LANES), ir.Constant(floats, [0.0] * LANES)
    named, listing, lowering, turning = (
        kind.endswith("named"),
        kind == "within",
        kind in ("lower", "turn"),
        kind == "turn",
    )
    exact = kind.startswith("scan") or lowering
    size = 1 if lowering else TURN // 2 if exact else TURN

    def all_words(value: int) -> Any:
        return ir.Constant(words, [value] * LANES)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i])

        def at(pointer: Any, offset: Any) -> Any:
            return builder.gep(pointer, [offset])

        def number(value: int) -> Any:
            return ir.Constant(index, value)

        def spread(scalar: Any) -> Any:
            nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
            one = builder.insert_element(nothing, scalar, ir.Constant(word, 0))
            return builder.shuffle_vector(one, nothing, all_words(0))

        def least_of(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def most_of(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def vector(pointer: Any, of: Any) -> Any:
            return builder.bitcast(pointer, of.as_pointer())

        tile, centroids = array(0), array(1)
        d = builder.extract_value(tile.shape, 0)
        room = number(1) if turning else builder.extract_value(centroids.shape, 1)
        count = number(1) if lowering else args[2 + named]
        turns = builder.udiv(builder.add(count, number(size - 1)), number(size))
        fused = get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        given = infinite
        if listing or kind == "lower":
            given = builder.load(vector(array(2 if lowering else 3).data, floats), align=4)

        before = builder.block
        turn, step = builder.append_basic_block("turn"), builder.append_basic_block("coordinate")
        compare, done = builder.append_basic_block("compare"), builder.append_basic_block("done")
        builder.branch(turn)

        # What is carried from turn to turn: the place in `out`, or the least, its centroid and the least of the others.
        builder.position_at_end(turn)
        g = builder.phi(index)
        g.add_incoming(number(0), before)
        starts = [number(0)] if listing else [given if lowering else infinite, all_words(0), infinite]
        carried = [builder.phi(start.type) for start in starts]
        for value, start in zip(carried, starts):
            value.add_incoming(start, before)
        first = builder.mul(g, number(size))
        if named:
            list_ = [builder.load(at(array(2).data, builder.add(first, number(i))), align=4) for i in range(size)]
            bases = [at(centroids.data, builder.mul(builder.sext(name, index), room)) for name in list_]
        else:
            list_ = [builder.add(builder.trunc(first, word), ir.Constant(word, i)) for i in range(size)]
            bases = [at(centroids.data, builder.add(first, number(i))) for i in range(size)]

        def coordinate(j: Any) -> list[Any]:
            offset = j if named else builder.mul(j, room)
            return [spread(builder.load(at(base, offset), align=4)) for base in bases]

        begin = [zero] * size if exact else coordinate(d)
        builder.branch(step)

        builder.position_at_end(step)
        j = builder.phi(index)
        j.add_incoming(number(0), turn)
        sums = [builder.phi(floats) for _ in range(size)]
        x = builder.load(vector(at(tile.data, builder.mul(j, number(LANES))), floats), align=4)
        grown = []
        for start, total, centroid in zip(begin, sums, coordinate(j)):
            if exact:
                apart = builder.fsub(centroid, x)
                grown.append(builder.fadd(total, builder.fmul(apart, apart)))
                if turning:
                    place = at(array(2).data, builder.mul(j, number(LANES)))
                    builder.store(apart, vector(place, floats), align=4)
            else:
                grown.append(builder.call(fused, [centroid, x, total]))
            total.add_incoming(start, turn)
            total.add_incoming(grown[-1], step)
        following = builder.add(j, number(1))
        j.add_incoming(following, step)
        builder.cbranch(builder.icmp_signed("<", following, d), step, compare)

        builder.position_at_end(compare)
        now = list(carried)
        for total, name in zip(grown, list_):
            if listing:  # written in any case, kept where the next goes behind it
                builder.store(name, at(array(4).data, now[0]), align=4)
                near = builder.bitcast(builder.fcmp_ordered("<=", total, given), ir.IntType(LANES))
                near = builder.icmp_unsigned("!=", near, ir.Constant(ir.IntType(LANES), 0))
                now[0] = builder.add(now[0], builder.zext(near, index))
                continue
            near = builder.fcmp_ordered("<", total, now[0])
            now[2] = least_of(now[2], most_of(total, now[0]))
            now[0] = builder.select(near, total, now[0])
            now[1] = builder.select(near, spread(name), now[1])
        after = builder.add(g, number(1))
        g.add_incoming(after, compare)
        for value, new in zip(carried, now):
            value.add_incoming(new, compare)
        builder.cbranch(builder.icmp_signed("<", after, turns), turn, done)

        builder.position_at_end(done)
        if listing:
            return now[0]
        for i, value in enumerate(now[: 1 if lowering else 2 if exact else 3]):
            builder.store(value, vector(array(3 + named + i).data, value.type), align=4)
        return context.get_dummy_value()

    def scan(typing: Any, tile: Any, centroids: Any, count: Any, best: Any, which: Any) -> Any:
        return types.void(tile, centroids, types.intp, best, which), build

    def sift(typing: Any, tile: Any, centroids: Any, count: Any, best: Any, which: Any, second: Any) -> Any:
        return types.void(tile, centroids, types.intp, best, which, second), build

    def scan_named(typing: Any, tile: Any, rows: Any, names: Any, count: Any, best: Any, which: Any) -> Any:
        return types.void(tile, rows, names, types.intp, best, which), build

    def within(typing: Any, tile: Any, centroids: Any, count: Any, limits: Any, out: Any) -> Any:
        return types.intp(tile, centroids, types.intp, limits, out), build

    def lower(typing: Any, tile: Any, centre: Any, known: Any, now: Any) -> Any:
        return types.void(tile, centre, known, now), build

    def turn(typing: Any, tile: Any, mid: Any, turned: Any, lengths: Any) -> Any:
        return types.void(tile, mid, turned, lengths), build

    makers = {f.__name__: f for f in (scan, sift, scan_named, within, lower, turn)}
    return intrinsic(makers[kind])


scan = _built("scan") if COMPILED else _scan_plain
sift = _built("sift") if COMPILED else _sift_plain
scan_named = _built("scan_named") if COMPILED else _scan_named_plain
within = _built("within") if COMPILED else _within_plain
lower = _built("lower") if COMPILED else _lower_plain
turn = _built("turn") if COMPILED else _turn_plain
