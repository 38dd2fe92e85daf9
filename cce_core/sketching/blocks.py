"""The one lookup and the one scatter: ids → addresses → blocks summed → vectors, and the same way back.

    out[n, c·w : (c+1)·w] = Σ_t  weight[n,c,t] · M[ address[n,c,t] : +w  (mod the region) ]

The weights are 1 where none are given. Where ids come in bags, n is the bag, and its ids' vectors are summed, each times its
amount. The gradient of M is the same sum transposed; a thread owns a range of M there and meets the ids in their order, so
that results do not depend on the number of threads. One call serves a whole bundle of tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._threads import get_num_threads, sliced
from cce_core.sketching.addressing import addresses_range, signs_range
from cce_core.sketching.descriptors import COUNT, UNIT, Bundle, Memory, Part, Sketch
from cce_core.sketching.gather import dot_of, gather_of
from cce_core.sketching.gradient import SparseGradient
from cce_core.sketching.layout import Layout
from cce_core.sketching.scatter import scatter_range, touch, untouch
from cce_core.storage.codec import FLOAT32

_IDS_A_THREAD = 1 << 12
_BLOCKS_A_THREAD, _FLOATS_A_THREAD = 1 << 17, 1 << 15
_MANY = 4  # threads from which sifting may pay


def gather(
    bundle: Bundle, ids: NDArray[np.uint64], places: NDArray[np.int64], offsets: Any, amounts: Any, kept: Any, rows: int,
    out: NDArray[np.float32], weights: Any = None,
) -> bool:  # fmt: skip
    """Fill the rows of `out` (rows, width); whether an id was outside its vocabulary (`out` then means nothing).

    Args:
        bundle: the parts.
        ids: words, as `places` says.
        places: int64 (parts, N_PLACES).
        offsets: int64, rows + 1 a part, where the ids come in bags; None where a row is an id.
        amounts: float32, the factor of every word; None where all are 1.
        kept: uint64, filled with the addresses, or None.
        rows: bags, or ids a part.
        out: contiguous.
        weights: float32 (n, columns), for one part.
    """
    return bool(
        sliced(
            gather_of(bundle.codec),
            rows * len(places) + (0 if offsets is None else int(places[:, COUNT].sum())),
            _IDS_A_THREAD,
            bundle.parts,
            bundle.columns,
            ids,
            places,
            rows,
            offsets,
            amounts,
            weights,
            kept,
            out.shape[1],
            out.reshape(-1),
        )
    )


def lookup(
    sketch: Sketch,
    memory: Memory,
    ids: NDArray[np.uint64],
    weights: Any = None,
    kept: Any = None,
    bundle: Bundle | None = None,
) -> NDArray[np.float32]:
    """Vectors of flat, checked ids: float32 (n, layout.dim).

    Args:
        sketch: H.
        memory: M.
        ids: uint64 (n,).
        weights: float32 (n, columns), or None where they are all 1.
        kept: uint64 (columns · n,), filled with the addresses, or None.
        bundle: sketch and memory as a bundle, where the caller has one.
    """
    out = np.empty((ids.shape[0], sketch.layout.dim), np.float32)
    bundle = Bundle([Part(sketch, memory)]) if bundle is None else bundle
    gather(bundle, ids, bundle.places([len(ids)]), None, None, kept, len(ids), out, weights)
    return out


def scatter(
    sketch: Sketch,
    ids: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    weights: Any = None,
    kept: Any = None,
    bundle: Bundle | None = None,
    offsets: Any = None,
    amounts: Any = None,
) -> NDArray[np.float32]:
    """The whole gradient of the memory, float32 (layout.size,), from gradients of the vectors.

    Args:
        sketch, ids, weights, kept, bundle: as for `lookup`.
        vectors: float32 (n, layout.dim), or a row for each bag.
        offsets, amounts: as for `gather`; every id lies in a bag.
    """
    out = np.zeros(sketch.layout.size, np.float32)
    _scatter_into(bundle or _alone(sketch), ids, vectors, weights, kept, None, out, offsets, amounts)
    return out


def scatter_sparse(
    sketch: Sketch,
    ids: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    slots: NDArray[Any],
    weights: Any = None,
    kept: Any = None,
    bundle: Bundle | None = None,
) -> SparseGradient:
    """The gradient of the touched units alone. `slots` (one integer a unit, all −1) is scratch; it is given back as it was."""
    layout, bundle = sketch.layout, bundle or _alone(sketch)
    per_id = len(layout.columns) * (layout.width // layout.unit)
    touched = np.empty(min(layout.n_units, ids.shape[0] * per_id), np.int64)
    place = bundle.places([len(ids)])[0]
    count = touch(0, layout.size, bundle.parts[0], bundle.columns, ids, place, kept, slots, touched)
    index = touched[:count]
    values = np.zeros((count, layout.unit), np.float32)
    _scatter_into(bundle, ids, vectors, weights, kept, slots, values.reshape(-1))
    untouch(slots, index)
    return SparseGradient(index, values, layout.size)


def _alone(sketch: Sketch) -> Bundle:
    """A sketch without a memory, which a gradient does not read."""
    return Bundle([Part(sketch, Memory(FLOAT32, np.empty(0, np.float32)))])


def _scatter_into(
    bundle: Bundle, ids: Any, vectors: Any, weights: Any, kept: Any, slots: Any, out: Any, offsets: Any = None,
    amounts: Any = None,
) -> None:  # fmt: skip
    size, unit, layout = bundle.size, int(bundle.parts[0, UNIT]), bundle.alone[0].layout
    # A thread whose columns are its own addresses and moves its share. Where columns lie in one region, every thread must
    # address all and sift out its own: with two threads that took 1.1 times as long as one (width 64) to 5 times (robe).
    shares = layout.regions
    if shares == 1 and unit == layout.width and get_num_threads() >= _MANY:
        shares = -(-size // _FLOATS_A_THREAD)
    shares = min(shares, ids.shape[0] * len(layout.columns) // _BLOCKS_A_THREAD)
    grain = max(1, size // max(1, shares))
    sliced(
        scatter_range, size, grain, bundle.parts, bundle.columns, ids, bundle.places([len(ids)]), offsets, amounts,
        weights, kept, slots, layout.dim, vectors.reshape(-1), out, align=unit,
    )  # fmt: skip


def dot(
    sketch: Sketch, memory: Memory, ids: NDArray[np.uint64], vectors: NDArray[np.float32], kept: Any = None
) -> NDArray[np.float32]:
    """The gradient of the weights: float32 (n, columns), each the product of an id's block and its part of the vector."""
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], len(layout.columns)), np.float32)
    sliced(
        dot_of(memory.codec), ids.shape[0], _IDS_A_THREAD, ids, layout.array, keys, pointers, memory.codes,
        memory.scales, kept, layout.terms, layout.width, vectors.reshape(-1), out,
    )  # fmt: skip
    return out


def addresses(sketch: Sketch, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The address of every column: int64 (n, columns)."""
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], len(layout.columns)), np.int64)
    sliced(addresses_range, len(ids), _IDS_A_THREAD, ids, layout.array, keys, pointers, out)
    return out


def signs(sketch: Sketch, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The sign of every column: float32 (n, columns), 1 where a column draws none."""
    out = np.empty((ids.shape[0], len(sketch.layout.columns)), np.float32)
    sliced(signs_range, len(ids), _IDS_A_THREAD, ids, sketch.layout.array, sketch.keys, out)
    return out


def new_slots(layout: Layout) -> NDArray[Any]:
    """Scratch for `scatter_sparse`: one integer a unit."""
    return np.full(layout.n_units, -1, np.int32 if layout.n_units < 2**31 else np.int64)
