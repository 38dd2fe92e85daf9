"""The inner loop of the nearest-centroid search, written in vector instructions.

Numba turns a loop into vector instructions only where LLVM happens to manage, and the gain or loss is tenfold. So this
one loop is built by hand: `LANES` points side by side in a register each, `TURN` centroids at a time, the running least
distance and its centroid kept in registers. LLVM cuts the vectors to whatever the machine has.

The sum over coordinates runs in order, each step rounded to float32 (no fused multiply-add), so a distance has the same
bits here, in NumPy and in plain Python.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from cce_core._jit import COMPILED

LANES = 16  # points in one vector: one register of AVX-512, two of AVX2
TURN = 4  # centroids a turn: their sums, twice two registers each, fit the sixteen of AVX2
TILE = 64  # points turned column-wise at once


def _scan_plain(tile: Any, lane: int, centroids: Any, best: Any, which: Any) -> None:
    """Least squared distance from each of `LANES` points to all centroids, and the first centroid that has it.

        best[l] = min_c Σ_j (centroid[c, j] − tile[j, l])²        which[l] = the least such c

    Args:
        tile: float32 (d, TILE), a point a column.
        lane: the first of the `LANES` columns.
        centroids: float32 (turns, d, TURN); centroid c is [c // TURN, :, c % TURN], missing ones are infinite.
        best: float32 (TILE,), written at [lane : lane + LANES].
        which: int32 (TILE,), written likewise.
    """
    points = tile[:, lane : lane + LANES]
    least = np.full(LANES, np.inf, np.float32)
    first = np.zeros(LANES, np.int32)
    for g in range(centroids.shape[0]):
        sums = np.zeros((TURN, LANES), np.float32)
        for j in range(points.shape[0]):
            apart = centroids[g, j, :, None] - points[None, j]
            sums += apart * apart
        for i in range(TURN):
            near = sums[i] < least
            least[near] = sums[i, near]
            first[near] = TURN * g + i
    best[lane : lane + LANES] = least
    which[lane : lane + LANES] = first


def _scan_built() -> Any:
    """The same for compiled callers."""
    from numba.core import types
    from numba.extending import intrinsic

    ir: Any = importlib.import_module("llvmlite.ir")  # numba's own dependency; it has no annotations
    word, index = ir.IntType(32), ir.IntType(64)
    floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)

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

        lane, centroids = args[1], array(2)
        turns, d, _ = (builder.extract_value(centroids.shape, i) for i in range(3))
        points = at(array(0).data, lane)

        before = builder.block
        turn, step = builder.append_basic_block("turn"), builder.append_basic_block("coordinate")
        compare, done = builder.append_basic_block("compare"), builder.append_basic_block("done")
        builder.branch(turn)

        builder.position_at_end(turn)
        g, least, first = builder.phi(index), builder.phi(floats), builder.phi(words)
        g.add_incoming(ir.Constant(index, 0), before)
        least.add_incoming(ir.Constant(floats, [float("inf")] * LANES), before)
        first.add_incoming(all_words(0), before)
        group = at(centroids.data, builder.mul(g, times(d, TURN)))
        builder.branch(step)

        builder.position_at_end(step)
        j = builder.phi(index)
        j.add_incoming(ir.Constant(index, 0), turn)
        sums = [builder.phi(floats) for _ in range(TURN)]
        x = builder.load(builder.bitcast(at(points, times(j, TILE)), floats.as_pointer()), align=4)
        row, grown = at(group, times(j, TURN)), []
        for i, total in enumerate(sums):
            apart = builder.fsub(spread(builder.load(at(row, ir.Constant(index, i)), align=4)), x)
            grown.append(builder.fadd(total, builder.fmul(apart, apart)))
            total.add_incoming(ir.Constant(floats, [0.0] * LANES), turn)
            total.add_incoming(grown[-1], step)
        following = builder.add(j, ir.Constant(index, 1))
        j.add_incoming(following, step)
        builder.cbranch(builder.icmp_signed("<", following, d), step, compare)

        builder.position_at_end(compare)
        now_least, now_first = least, first
        place = spread(builder.trunc(times(g, TURN), word))
        for i, total in enumerate(grown):
            near = builder.fcmp_ordered("<", total, now_least)
            now_least = builder.select(near, total, now_least)
            now_first = builder.select(near, builder.add(place, all_words(i)), now_first)
        after = builder.add(g, ir.Constant(index, 1))
        g.add_incoming(after, compare)
        least.add_incoming(now_least, compare)
        first.add_incoming(now_first, compare)
        builder.cbranch(builder.icmp_signed("<", after, turns), turn, done)

        builder.position_at_end(done)
        builder.store(now_least, builder.bitcast(at(array(3).data, lane), floats.as_pointer()), align=4)
        builder.store(now_first, builder.bitcast(at(array(4).data, lane), words.as_pointer()), align=4)
        return context.get_dummy_value()

    def typed(typing: Any, tile: Any, lane: Any, centroids: Any, best: Any, which: Any) -> Any:
        return types.void(tile, types.intp, centroids, best, which), build

    return intrinsic(typed)


scan = _scan_built() if COMPILED else _scan_plain
