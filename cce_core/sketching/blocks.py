"""The one lookup and the one scatter: ids → addresses → blocks summed → vectors, and the same way back.

    out[n, c·w : (c+1)·w] = Σ_t  weight[n,c,t] · M[ address[n,c,t] : +w  (mod the region) ]

The weights are 1 where none are given. Where ids come in bags, n is the bag, and its ids' vectors are summed, each times its
amount. The gradient of M is the same sum transposed; a thread owns a range of M there and meets the ids in their order, so
that results do not depend on the number of threads. One call serves a whole group of tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._arrays import Addresses, Floats, Ids, Slots
from cce_core._jit import jit
from cce_core._threads import get_num_threads, parallel_for
from cce_core.sketching.addressing import addresses_range, signs_range
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import COUNT, MEMORY_OFFSET, NO_ADDRESSES, SIZE, UNIT, Sketch
from cce_core.sketching.gather import dot_of
from cce_core.sketching.gradient import SparseGradient
from cce_core.sketching.group import TableGroup
from cce_core.sketching.layout import Layout
from cce_core.sketching.scatter import compact_rows, places_for, scatter_range

_IDS_A_THREAD = 1 << 12
_BLOCKS_A_THREAD, _FLOATS_A_THREAD = 1 << 17, 1 << 15
_MANY = 4  # threads from which sifting may pay


def lookup(group: TableGroup, ids: Ids, weights: Floats | None = None) -> Floats:
    """Vectors of flat ids in one table, before any projection: float32 (n, layout.dim).

    Args:
        group: the table by itself.
        ids: uint64 (n,), within its vocabulary.
        weights: float32 (n, columns), or None where they are all 1.
    """
    out = None if group.within else np.empty((len(ids), group.sketch.layout.dim), np.float32)
    left, _ = group.forward(JaggedBatch.alone(ids), False, out, weights)
    vectors = left.inner if out is None else out
    assert vectors is not None
    return vectors[:, : group.sketch.layout.dim]


def lookup_wide(group: TableGroup, ids: Ids, dim: int) -> Floats:
    """The same behind the projection, if there is one: float32 (n, dim)."""
    out = np.empty((len(ids), dim), np.float32)
    group.forward(JaggedBatch.alone(ids), False, out)
    return out


def scatter(
    group: TableGroup, batch: JaggedBatch, vectors: Floats, weights: Floats | None = None, kept: Addresses | None = None
) -> Floats:
    """The whole gradient of one table's memory, float32 (layout.size,), from gradients of the vectors.

    Args:
        group: the table by itself; its memory is not read.
        batch: the ids, each in a row or a bag.
        vectors: float32 (rows, layout.dim).
        weights: as for `lookup`.
        kept: the addresses that its lookup has left, or None.
    """
    out = np.zeros(group.size, np.float32)
    _scatter_into(group, batch, vectors, weights, kept, None, None, out)
    return out


def scatter_sparse(
    group: TableGroup, batch: JaggedBatch, vectors: Floats, weights: Floats | None = None, kept: Addresses | None = None
) -> SparseGradient:
    """The gradient of the touched units alone, which a hash table of the batch's size numbers."""
    layout, place = group.sketch.layout, group.call_args(batch)[0]
    touched, slots = _to_number(layout, len(batch.ids))
    spread = len(slots) < layout.n_units
    kept = NO_ADDRESSES if kept is None else kept
    args = group.parts[0], group.columns, batch.ids, place, kept, slots, touched, spread
    index = touched[: compact_rows(0, layout.size, *args)].copy()
    values = np.zeros((len(index), layout.unit), np.float32)
    _scatter_into(group, batch, vectors, weights, kept, slots, index, values.reshape(-1))
    return SparseGradient(index, values, layout.size)


@jit
def _scatter_parts(
    start: int, stop: int, firsts: Any, parts: Any, columns: Any, ids: Any, call_args: Any, offsets: Any, per_sample_weights: Any,
    kept: Any, stride: int, vectors: Any, units: Any, values: Any, counts: Any,
) -> None:  # fmt: skip
    for p in range(start, stop):
        part, counts[p] = parts[p], 0
        most, unit = firsts[p + 1] - firsts[p], part[UNIT]
        if most == 0:
            continue
        own, n_units, low = units[firsts[p] : firsts[p + 1]], part[SIZE] // unit, part[MEMORY_OFFSET]
        slots = np.full(places_for(most, n_units), -1, np.int32)
        spread = len(slots) < n_units
        count = compact_rows(0, part[SIZE], part, columns, ids, call_args[p], kept, slots, own, spread)
        flat = values[firsts[p] * unit : (firsts[p] + count) * unit]
        flat[:] = np.float32(0.0)
        scatter_range(
            low, low + part[SIZE], parts[p : p + 1], columns, ids, call_args[p : p + 1], offsets, per_sample_weights, None, kept,
            slots, own, spread, stride, vectors, flat,
        )  # fmt: skip
        counts[p] = count


def scatter_apart(
    group: TableGroup, batch: JaggedBatch, vectors: Floats, kept: Addresses | None = None
) -> SparseGradient:
    """The gradient of one memory that all tables of a group have, each with units that no other's ids touch.

    Args:
        group: the tables.
        batch: their ids.
        vectors: float32 (rows, stride), the gradients of all tables' vectors, side by side as the group has them.
        kept: the addresses that their lookup has left, or None.

    Returns:
        The touched units of the first table, of the second, …, each table's in order of first touch.
    """
    layout, places = group.sketch.layout, group.call_args(batch)
    firsts = np.concatenate([[0], np.cumsum([most_touched(layout, int(place[COUNT])) for place in places])])
    units, values = np.empty(firsts[-1], np.int64), np.empty((firsts[-1], layout.unit), np.float32)
    counts, n_parts = np.zeros(len(places), np.int64), len(places)
    offsets = None if batch.offsets is None else batch.offsets.reshape(-1)
    kept = NO_ADDRESSES if kept is None else kept
    parallel_for(
        _scatter_parts, n_parts, max(1, n_parts * _IDS_A_THREAD // max(1, len(batch.ids))), firsts, group.parts, group.columns,
        batch.ids, places, offsets, batch.weights, kept, vectors.shape[1], vectors.reshape(-1), units,
        values.reshape(-1), counts,
    )  # fmt: skip
    held = np.concatenate([np.arange(first, first + n) for first, n in zip(firsts, counts)])
    return SparseGradient(units[held], values[held], layout.size)


def most_touched(layout: Layout, n: int) -> int:
    """The most units that n ids may touch."""
    return min(layout.n_units, n * len(layout.columns) * (layout.width // layout.unit))


def scratch_bytes(layout: Layout, n: int) -> int:
    """Bytes of what numbers the units that n ids touch."""
    most = most_touched(layout, n)
    return 8 * most + (4 if most < 2**31 else 8) * places_for(most, layout.n_units)


def _to_number(layout: Layout, n: int) -> tuple[NDArray[np.int64], Slots]:
    """Scratch for the units that n ids touch: what they are, and an empty hash table of their numbers."""
    most = most_touched(layout, n)
    places = places_for(most, layout.n_units)
    return np.empty(most, np.int64), np.full(places, -1, np.int32 if most < 2**31 else np.int64)


def _scatter_into(
    group: TableGroup, batch: JaggedBatch, vectors: Floats, weights: Floats | None, kept: Addresses | None,
    slots: Slots | None, touched: NDArray[np.int64] | None, out: Floats,
) -> None:  # fmt: skip
    size, unit, layout = group.size, int(group.parts[0, UNIT]), group.sketch.layout
    # A thread whose columns are its own addresses and moves its share. Where columns lie in one region, every thread must
    # address all and sift out its own: with two threads that took 1.1 times as long as one (width 64) to 5 times (robe).
    shares = layout.regions
    if shares == 1 and unit == layout.width and get_num_threads() >= _MANY:
        shares = -(-size // _FLOATS_A_THREAD)
    shares = min(shares, len(batch.ids) * len(layout.columns) // _BLOCKS_A_THREAD)
    min_chunk = max(1, size // max(1, shares))
    offsets = None if batch.offsets is None else batch.offsets.reshape(-1)
    spread = slots is not None and len(slots) < layout.n_units
    kept = NO_ADDRESSES if kept is None else kept
    parallel_for(
        scatter_range, size, min_chunk, group.parts, group.columns, batch.ids, group.call_args(batch), offsets, batch.weights,
        weights, kept, slots, touched, spread, layout.dim, vectors.reshape(-1), out, align=unit,
    )  # fmt: skip


def dot(group: TableGroup, ids: Ids, vectors: Floats, kept: Addresses | None = None) -> Floats:
    """The gradient of the weights: float32 (n, columns), each the product of an id's block and its part of the vector."""
    (layout, keys, pointers), memory = group.sketch, group.memory
    out = np.empty((ids.shape[0], len(layout.columns)), np.float32)
    kept = NO_ADDRESSES if kept is None else kept
    parallel_for(
        dot_of(memory.codec), ids.shape[0], _IDS_A_THREAD, ids, layout.array, keys, pointers, memory.codes,
        memory.scales, kept, layout.terms, layout.width, vectors.reshape(-1), out,
    )  # fmt: skip
    return out


def addresses(sketch: Sketch, ids: Ids) -> NDArray[np.int64]:
    """The address of every column: int64 (n, columns)."""
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], len(layout.columns)), np.int64)
    parallel_for(addresses_range, len(ids), _IDS_A_THREAD, ids, layout.array, keys, pointers, out)
    return out


def signs(sketch: Sketch, ids: Ids) -> Floats:
    """The sign of every column: float32 (n, columns), 1 where a column draws none."""
    out = np.empty((ids.shape[0], len(sketch.layout.columns)), np.float32)
    parallel_for(signs_range, len(ids), _IDS_A_THREAD, ids, sketch.layout.array, sketch.keys, out)
    return out
