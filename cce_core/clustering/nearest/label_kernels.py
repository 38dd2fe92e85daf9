"""What follows a search, in vector instructions: how far each point of a tile is from its centroid, and sums by label.

A tile holds coordinates side by side, a centroid and a sum hold those of one point; so four coordinates of `LANES` points are
turned in registers, and each point's are moved at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cce_core._jit import COMPILED
from cce_core.clustering.nearest.tile_kernels import LANES

_FOUR = 4  # coordinates at a time; eight were slower


def _apart_plain(tile: Any, rows: Any, labels: Any, now: Any) -> None:
    """The squared distance from each point of a tile to the centroid of its label, summed as in `lanes.scan`.

    Args:
        tile: float32 (d, LANES).
        rows: float32 (k or more, d), a centroid a row.
        labels: int32 (LANES,).
        now: float32 (LANES,), written.
    """
    total = np.zeros(LANES, np.float32)
    for j in range(tile.shape[0]):
        apart = rows[labels, j] - tile[j]
        total += apart * apart
    now[:] = total


def _add_tile_plain(tile: Any, labels: Any, weights: Any, sums: Any) -> None:
    """Add the points of a whole tile, each times its weight, to the sums of their labels, one point after the other.

    Args:
        tile: float32 (d, LANES).
        labels: int32 (LANES,).
        weights: float32 (LANES,).
        sums: float64 (k, d + 1), added to; the last column gets the weights.
    """
    for i in range(LANES):
        weight = np.float64(weights[i])
        sums[labels[i], :-1] += weight * tile[:, i].astype(np.float64)
        sums[labels[i], -1] += weight


class _Builder:
    """The steps that both compiled loops are made of."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.ir: Any = importlib.import_module("llvmlite.ir")
        self.to, self.word, self.index = builder, self.ir.IntType(32), self.ir.IntType(64)
        self.single, self.double = self.ir.FloatType(), self.ir.DoubleType()
        self.arrays = [context.make_array(kind)(context, builder, arg) for kind, arg in zip(signature.args, args)]
        self.d = builder.extract_value(self.arrays[0].shape, 0)

    def number(self, value: int) -> Any:
        return self.ir.Constant(self.index, value)

    def at(self, pointer: Any, place: Any) -> Any:
        return self.to.gep(pointer, [place])

    def several(self, kind: Any, n: int, pointer: Any) -> Any:
        """The n numbers from a pointer on."""
        return self.to.load(self.to.bitcast(pointer, self.ir.VectorType(kind, n).as_pointer()), align=4)

    def each(self, array: Any) -> list[Any]:
        """The LANES numbers of an array, one by one."""
        return [self.to.load(self.at(array.data, self.number(i)), align=4) for i in range(LANES)]

    def rows(self, array: Any, labels: Any, stride: Any) -> list[Any]:
        """Where the rows of these labels begin."""
        return [
            self.at(array.data, self.to.mul(self.to.zext(label, self.index), stride)) for label in self.each(labels)
        ]

    def column(self, j: Any) -> Any:
        """Coordinate j of the tile."""
        return self.several(self.single, LANES, self.at(self.arrays[0].data, self.to.mul(j, self.number(LANES))))

    def picked(self, a: Any, b: Any, places: list[int]) -> Any:
        """Numbers of two vectors, those of the second one counted behind those of the first."""
        return self.to.shuffle_vector(a, b, self.ir.Constant(self.ir.VectorType(self.word, len(places)), places))

    def turned(self, four: list[Any]) -> list[Any]:
        """out[i][4q + j] = four[j][4q + i]: it undoes itself."""

        def pairs(a: Any, b: Any, order: tuple[int, ...]) -> Any:
            return self.picked(a, b, [q + p % 4 + LANES * (p // 4) for q in range(0, LANES, 4) for p in order])

        low, high, first, second = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
        a, b = pairs(four[0], four[1], low), pairs(four[2], four[3], low)
        c, d = pairs(four[0], four[1], high), pairs(four[2], four[3], high)
        return [pairs(a, b, first), pairs(a, b, second), pairs(c, d, first), pairs(c, d, second)]

    def spread(self, scalar: Any, n: int) -> Any:
        """n times the same."""
        nothing = self.ir.Constant(self.ir.VectorType(scalar.type, n), self.ir.Undefined)
        one = self.to.insert_element(nothing, scalar, self.ir.Constant(self.word, 0))
        return self.picked(one, nothing, [0] * n)

    def loop(self, start: Any, size: int, carried: Any, body: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
        """`carried = body(j, carried)` for j from start on, while `size` coordinates are left; where it ends, and with what."""
        to, before = self.to, self.to.block
        inside, after = to.append_basic_block("some"), to.append_basic_block("rest")
        to.cbranch(to.icmp_signed("<=", to.add(start, self.number(size)), self.d), inside, after)
        to.position_at_end(inside)
        j, value = to.phi(self.index), to.phi(carried.type)
        j.add_incoming(start, before)
        value.add_incoming(carried, before)
        grown, following = body(j, value), to.add(j, self.number(size))
        j.add_incoming(following, inside)
        value.add_incoming(grown, inside)
        to.cbranch(to.icmp_signed("<=", to.add(following, self.number(size)), self.d), inside, after)
        to.position_at_end(after)
        ended, found = to.phi(self.index), to.phi(carried.type)
        for phi, at_first, later in ((ended, start, following), (found, carried, grown)):
            phi.add_incoming(at_first, before)
            phi.add_incoming(later, inside)
        return ended, found


def _apart(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    b = _Builder(context, builder, signature, args)
    _, rows, labels, now = b.arrays
    bases = b.rows(rows, labels, b.d)

    def grown(total: Any, centroids: Any, j: Any) -> Any:
        apart = builder.fsub(centroids, b.column(j))
        return builder.fadd(total, builder.fmul(apart, apart))

    def four(j: Any, total: Any) -> Any:
        parts = [b.several(b.single, _FOUR, b.at(base, j)) for base in bases]
        points = []
        for i in range(_FOUR):  # points i, i + 4, i + 8 … beside each other
            mine = parts[i::_FOUR]
            while len(mine) > 1:
                n = mine[0].type.count
                mine = [b.picked(a, c, list(range(2 * n))) for a, c in zip(mine[::2], mine[1::2])]
            points.append(mine[0])
        for i, centroids in enumerate(b.turned(points)):
            total = grown(total, centroids, builder.add(j, b.number(i)))
        return total

    def one(j: Any, total: Any) -> Any:
        values = b.ir.Constant(total.type, b.ir.Undefined)
        for i, base in enumerate(bases):
            value = builder.load(b.at(base, j), align=4)
            values = builder.insert_element(values, value, b.ir.Constant(b.word, i))
        return grown(total, values, j)

    j, total = b.loop(b.number(0), _FOUR, b.ir.Constant(b.ir.VectorType(b.single, LANES), [0.0] * LANES), four)
    _, total = b.loop(j, 1, total, one)
    builder.store(total, builder.bitcast(now.data, total.type.as_pointer()), align=4)
    return context.get_dummy_value()


def _add_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    b = _Builder(context, builder, signature, args)
    _, labels, weights, sums = b.arrays
    factors = [builder.fpext(value, b.double) for value in b.each(weights)]
    rows = b.rows(sums, labels, builder.add(b.d, b.number(1)))

    def add(place: Any, value: Any) -> None:
        builder.store(builder.fadd(builder.load(place, align=8), value), place, align=8)

    def four(j: Any, nothing: Any) -> Any:
        turned, wide = (
            b.turned([b.column(builder.add(j, b.number(i))) for i in range(_FOUR)]),
            b.ir.VectorType(b.double, _FOUR),
        )
        for i, (row, factor) in enumerate(zip(rows, factors)):
            first = i - i % _FOUR
            own = builder.fpext(b.picked(turned[i % _FOUR], turned[0], list(range(first, first + _FOUR))), wide)
            place = builder.bitcast(b.at(row, j), wide.as_pointer())
            add(place, builder.fmul(b.spread(factor, _FOUR), own))
        return nothing

    def one(j: Any, nothing: Any) -> Any:
        column = b.column(j)
        for i, (row, factor) in enumerate(zip(rows, factors)):
            own = builder.fpext(builder.extract_element(column, b.ir.Constant(b.word, i)), b.double)
            add(b.at(row, j), builder.fmul(factor, own))
        return nothing

    for row, factor in zip(rows, factors):
        add(b.at(row, b.d), factor)
    j, nothing = b.loop(b.number(0), _FOUR, b.number(0), four)
    b.loop(j, 1, nothing, one)
    return context.get_dummy_value()


def _built(build: Callable[..., Any]) -> Any:
    """An intrinsic of four arrays that gives nothing."""
    from numba.core import types
    from numba.extending import intrinsic

    def of(typing: Any, tile: Any, other: Any, third: Any, last: Any) -> Any:
        return types.void(tile, other, third, last), build

    return intrinsic(of)


apart = _built(_apart) if COMPILED else _apart_plain
add_tile = _built(_add_tile) if COMPILED else _add_tile_plain
