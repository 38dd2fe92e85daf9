"""The two inner loops of the nearest-centroid search, written in vector instructions.

Numba turns a loop into vector instructions only where LLVM happens to manage, and the gain or loss is tenfold. So these
two are built by hand: the `LANES` points of a tile side by side in a register, a few centroids at a time, what is
least so far kept in registers. LLVM cuts the vectors to whatever the machine has.

`scan` is the definition: the sum over coordinates in order, each step rounded to float32 (no fused multiply-add), so
that a distance has the same bits here, in NumPy and in plain Python. `sift` takes a third of the work by the expanded
square, rounded as it comes; it also says how near the runner-up is, so that its caller can tell when that decides.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from cce_core._jit import COMPILED

LANES = 16  # points of a tile: one register of AVX-512, two of AVX2
TURN = 8  # centroids a turn of `sift`, and what lists are padded to; `scan`, whose lists are short, takes half as many


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
    d = tile.shape[0]
    scores = np.repeat(centroids[d, :count, None], LANES, axis=1)
    for j in range(d):
        scores += centroids[j, :count, None] * tile[j]
    which[:] = scores.argmin(0)
    best[:] = scores.min(0)
    scores[which, np.arange(LANES)] = np.inf
    second[:] = scores.min(0)


def _built(sifting: bool) -> Any:
    """The same for compiled callers."""
    from numba.core import types
    from numba.core.cgutils import get_or_insert_function
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations
    word, index = ir.IntType(32), ir.IntType(64)
    floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)
    infinite = ir.Constant(floats, [float("inf")] * LANES)
    size = TURN if sifting else TURN // 2

    def all_words(value: int) -> Any:
        return ir.Constant(words, [value] * LANES)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i])

        def at(pointer: Any, offset: Any) -> Any:
            return builder.gep(pointer, [offset])

        def times(a: Any, b: int) -> Any:
            return builder.mul(a, ir.Constant(index, b))

        def spread(scalar: Any) -> Any:
            nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
            one = builder.insert_element(nothing, scalar, ir.Constant(word, 0))
            return builder.shuffle_vector(one, nothing, all_words(0))

        def turn_of(row: Any) -> list[Any]:
            places = (at(row, ir.Constant(index, i)) for i in range(size))
            return [spread(builder.load(place, align=4)) for place in places]

        def least_of(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def most_of(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        tile, centroids = array(0), array(1)
        d, room = builder.extract_value(tile.shape, 0), builder.extract_value(centroids.shape, 1)
        turns = builder.udiv(builder.add(args[2], ir.Constant(index, size - 1)), ir.Constant(index, size))
        fused = get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        before = builder.block
        turn, step = builder.append_basic_block("turn"), builder.append_basic_block("coordinate")
        compare, done = builder.append_basic_block("compare"), builder.append_basic_block("done")
        builder.branch(turn)

        builder.position_at_end(turn)
        g, least, first, other = builder.phi(index), builder.phi(floats), builder.phi(words), builder.phi(floats)
        g.add_incoming(ir.Constant(index, 0), before)
        least.add_incoming(infinite, before)
        first.add_incoming(all_words(0), before)
        other.add_incoming(infinite, before)
        group = at(centroids.data, times(g, size))
        zeros = [ir.Constant(floats, [0.0] * LANES)] * size
        starts = turn_of(at(group, builder.mul(d, room))) if sifting else zeros
        builder.branch(step)

        builder.position_at_end(step)
        j = builder.phi(index)
        j.add_incoming(ir.Constant(index, 0), turn)
        sums = [builder.phi(floats) for _ in range(size)]
        x = builder.load(builder.bitcast(at(tile.data, times(j, LANES)), floats.as_pointer()), align=4)
        grown = []
        for start, total, centroid in zip(starts, sums, turn_of(at(group, builder.mul(j, room)))):
            if sifting:
                grown.append(builder.call(fused, [centroid, x, total]))
            else:
                apart = builder.fsub(centroid, x)
                grown.append(builder.fadd(total, builder.fmul(apart, apart)))
            total.add_incoming(start, turn)
            total.add_incoming(grown[-1], step)
        following = builder.add(j, ir.Constant(index, 1))
        j.add_incoming(following, step)
        builder.cbranch(builder.icmp_signed("<", following, d), step, compare)

        builder.position_at_end(compare)
        now_least, now_first, now_other = least, first, other
        place = spread(builder.trunc(times(g, size), word))
        for i, total in enumerate(grown):
            near = builder.fcmp_ordered("<", total, now_least)
            if sifting:
                now_other = least_of(now_other, most_of(total, now_least))
            now_least = builder.select(near, total, now_least)
            now_first = builder.select(near, builder.add(place, all_words(i)), now_first)
        after = builder.add(g, ir.Constant(index, 1))
        g.add_incoming(after, compare)
        least.add_incoming(now_least, compare)
        first.add_incoming(now_first, compare)
        other.add_incoming(now_other, compare)
        builder.cbranch(builder.icmp_signed("<", after, turns), turn, done)

        builder.position_at_end(done)
        for i, value, kind in [(3, now_least, floats), (4, now_first, words), (5, now_other, floats)][: 2 + sifting]:
            builder.store(value, builder.bitcast(array(i).data, kind.as_pointer()), align=4)
        return context.get_dummy_value()

    if sifting:

        def sift(typing: Any, tile: Any, centroids: Any, count: Any, best: Any, which: Any, second: Any) -> Any:
            return types.void(tile, centroids, types.intp, best, which, second), build

        return intrinsic(sift)

    def scan(typing: Any, tile: Any, centroids: Any, count: Any, best: Any, which: Any) -> Any:
        return types.void(tile, centroids, types.intp, best, which), build

    return intrinsic(scan)


scan = _built(sifting=False) if COMPILED else _scan_plain
sift = _built(sifting=True) if COMPILED else _sift_plain
