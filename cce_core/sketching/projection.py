"""The projections of a group's tables, all in one compiled call: T = inner · W + b, and the same way back.

`inner` holds the vectors of all projected tables side by side, a row an id or bag; so do `out` and the gradients. Behind each
stands its mass, by which the bias is multiplied: 1, or, where a row is a bag, what its ids weigh together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._arrays import Floats, Rows
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.sketching.block_ops import array_at
from cce_core.sketching.descriptors import address_of
from cce_core.sketching.small_matmul import set_product

# Of a projection's row: its address, its rows without the bias, its columns, where its vectors begin in a row of `inner` and of
# `out`, and where its gradient begins.
MATRIX, RANK, DIM, INNER, OUTER, START = range(6)

PRODUCTS_A_THREAD, ROWS_A_SUM, _TILE = 1 << 20, 1 << 12, 1 << 7
_0, _1, _MASS = np.uint64(0), np.uint64(1), np.float32(1.0)


def projection_row(matrix: Floats, inner: int = 0, outer: int = 0, start: int = 0) -> tuple[int, ...]:
    """The row of a projection (rank + 1, dim)."""
    return address_of(matrix), matrix.shape[0] - 1, matrix.shape[1], inner, outer, start


@jit
def widen_rows(
    start: int, stop: int, projections: Any, weight_sums: Any, inner: Any, within: int, out: Any, stride: int
) -> None:
    """out[n] = inner[n] · W + mass[n] · b for the rows [start, stop); the masses are written into `inner`."""
    for p in range(projections.shape[0]):
        rank, dim, left = projections[p, RANK], projections[p, DIM], projections[p, OUTER]
        w = array_at(projections[p, MATRIX], (rank + 1) * dim, np.float32)
        for low in range(
            start, stop, _TILE
        ):  # of a product of all rows the second strip of columns would find none in the cache
            high = min(low + _TILE, stop)
            for n in range(low, high):
                inner[np.uint64(n * within + projections[p, INNER] + rank)] = (
                    _MASS if weight_sums is None else weight_sums[p, n]
                )
            set_product(
                out, np.uint64(low * stride + left), np.uint64(stride),
                inner, np.uint64(low * within + projections[p, INNER]), np.uint64(within), _1,
                w, _0, np.uint64(dim), np.uint64(high - low), np.uint64(rank + 1), np.uint64(dim),
            )  # fmt: skip


@jit
def narrow_rows(start: int, stop: int, projections: Any, grads: Any, stride: int, out: Any, within: int) -> None:
    """The gradient of `inner`: out[n] = grads[n] · Wᵀ for the rows [start, stop)."""
    for p in range(projections.shape[0]):
        rank, dim, left = projections[p, RANK], projections[p, DIM], projections[p, INNER]
        w = array_at(projections[p, MATRIX], (rank + 1) * dim, np.float32)
        turned = np.empty(rank * dim, np.float32)
        for k in range(rank):
            for i in range(dim):
                turned[i * rank + k] = w[k * dim + i]
        set_product(
            out, np.uint64(start * within + left), np.uint64(within),
            grads, np.uint64(start * stride + projections[p, OUTER]), np.uint64(stride), _1,
            turned, _0, np.uint64(rank), np.uint64(stop - start), np.uint64(dim), np.uint64(rank),
        )  # fmt: skip


@jit
def slope_rows(
    start: int, stop: int, rows: int, projections: Any, inner: Any, within: int, grads: Any, stride: int, origin: int,
    sums: Any,
) -> None:  # fmt: skip
    """The gradients of W and b, summed over the rows of the parts [start, stop), ROWS_A_SUM rows each: a row of `sums` a part.

    Gradients begin at START − origin.
    """
    for part in range(start, stop):
        first = part * ROWS_A_SUM
        count = min(rows - first, ROWS_A_SUM)
        for p in range(projections.shape[0]):
            rank, dim = projections[p, RANK], np.uint64(projections[p, DIM])
            set_product(
                sums[part], np.uint64(projections[p, START] - origin), dim,
                inner, np.uint64(first * within + projections[p, INNER]), _1, np.uint64(within),
                grads, np.uint64(first * stride + projections[p, OUTER]), np.uint64(stride),
                np.uint64(rank + 1), np.uint64(count), dim,
            )  # fmt: skip


@jit
def _unwiden_rows(
    start: int, stop: int, rows: int, projections: Any, inner: Any, within: int, grads: Any, stride: int, origin: int,
    sums: Any, out: Any, outside: int,
) -> None:  # fmt: skip
    """Both for the parts [start, stop), each while its gradients are in the cache."""
    for part in range(start, stop):
        slope_rows(part, part + 1, rows, projections, inner, within, grads, stride, origin, sums)
        first = part * ROWS_A_SUM
        narrow_rows(first, min(first + ROWS_A_SUM, rows), projections, grads, stride, out, outside)


def widened(projections: Rows, weight_sums: Floats | None, inner: Floats, out: Floats) -> None:
    """Fill in `out` the vectors of projected tables."""
    (rows, within), wide = inner.shape, out.shape[1]
    min_chunk = PRODUCTS_A_THREAD // (within * wide)
    parallel_for(
        widen_rows, rows, min_chunk, projections, weight_sums, inner.reshape(-1), within, out.reshape(-1), wide
    )


def unwidened(
    projections: Rows, inner: Floats, grads: Floats, origin: int, size: int, within: int
) -> tuple[Floats, Floats]:
    """The gradient of `inner` in rows of `within` floats, 0 for the masses; and those of all W and b, flat (size,).

    Sums of ROWS_A_SUM rows are added in their order, so that the result does not depend on the number of threads.
    """
    rows = len(grads)
    parts = max(1, -(-rows // ROWS_A_SUM))
    out, sums = np.zeros((rows, within), np.float32), np.zeros((parts, size), np.float32)
    parallel_for(
        _unwiden_rows, parts, 1, rows, projections, inner.reshape(-1), inner.shape[1], grads.reshape(-1),
        grads.shape[1], origin, sums, out.reshape(-1), within,
    )  # fmt: skip
    return out, sums.sum(0) if parts > 1 else sums[0]
