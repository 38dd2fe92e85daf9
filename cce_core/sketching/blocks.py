"""The one lookup and the one scatter: ids → addresses → blocks summed → vectors, and the same way back.

    out[n, c·w : (c+1)·w] = Σ_t  weight[n,c,t] · M[ address[n,c,t] : +w  (mod the region) ]

The weights are 1 where none are given. The gradient of M is the same sum transposed; a thread owns a range of M there and
meets the ids in their order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import sliced
from cce_core.hashing.mix import keyed, multiply_high, multiply_high_32, premix
from cce_core.sketching.gradient import SparseGradient
from cce_core.sketching.layout import BASE, HASH, IDENTITY, KIND, PER_ID, POINTER, REGION, ROWS, STRIDE, A, B, Layout
from cce_core.sketching.moves import add_block, copy_block
from cce_core.storage.codec import FLOAT32, fetch
from cce_core.storage.packed import read_bits

_one, _low = np.uint64(1), np.uint64(0xFFFFFFFF)
_TILE = 128
_COMMON_WIDTHS = (1, 2, 4, 8, 16, 32)
_IDS_A_THREAD = 1 << 12
_FLOATS_A_THREAD = 1 << 15
_NOTHING = np.empty(0, np.float32)


class Memory(NamedTuple):
    """The memory as it is kept: the number of its codec, its codes, and their scales."""

    codec: int
    codes: Any
    scales: Any = _NOTHING


class Sketch(NamedTuple):
    """H as arrays: the layout, and the hash keys and packed pointers that it reads."""

    layout: Layout
    keys: Any
    pointers: Any

    def part(self, layout: Layout) -> Sketch:
        """The same keys and pointers through another layout."""
        return self._replace(layout=layout)


@jit
def _find(start: int, stop: int, ids: Any, column: Any, keys: Any, pointers: Any, at: Any) -> None:
    """Addresses of the ids [start, stop) in one column: at[0 : stop − start]."""
    kind, base, stride = column[KIND], np.uint64(column[BASE]), np.uint64(column[STRIDE])
    count, a, b = np.uint64(column[ROWS]), np.uint64(column[A]), np.uint64(column[B])
    first, n_ids = np.uint64(start), np.uint64(stop - start)
    if kind == HASH:
        key = keys[b]
        if count <= _low:  # the usual case: half of the multiplications
            for n in range(n_ids):
                at[n] = base + stride * multiply_high_32(keyed(premix(ids[first + n]), key), count)
        else:
            for n in range(n_ids):
                at[n] = base + stride * multiply_high(keyed(premix(ids[first + n]), key), count)
    elif kind == POINTER:
        per_id, last = np.uint64(column[PER_ID]), count - _one
        for n in range(n_ids):  # `min`: pointers of a damaged file must not lead out of the memory
            at[n] = base + stride * min(read_bits(pointers, ids[first + n] * per_id + a, b), last)
    elif kind == IDENTITY:
        for n in range(n_ids):
            at[n] = base + stride * ids[first + n]
    else:
        for n in range(n_ids):
            at[n] = base + stride * ((ids[first + n] // a) % count)


@jit
def _signs(start: int, stop: int, ids: Any, columns: Any, keys: Any, out: Any) -> None:
    """The sign of each column: the hash's lowest bit, which hardly moves the index; 1 where a column draws none."""
    for j in range(columns.shape[0]):
        if columns[j, KIND] == HASH and columns[j, A] == 1:
            key = keys[columns[j, B]]
            for n in range(start, stop):
                out[n, j] = np.float32(1.0) - np.float32(2.0) * np.float32(keyed(premix(ids[n]), key) & _one)
        else:
            for n in range(start, stop):
                out[n, j] = np.float32(1.0)


# The loops below index flat arrays with unsigned numbers: Numba then leaves out its test for negative indices, and LLVM
# turns a block of known width into a few vector instructions. That alone made them four times faster. `kept` (columns, n)
# holds the addresses of a forward pass for its backward pass; a lookup fills it, the others read it; None finds them anew.


def _make_gather(fixed: int, codec: int) -> Callable[..., None]:
    """The lookup for blocks `fixed` wide (unrolled), or of any width for 0, in a memory of the given codec."""

    @jit
    def gather(
        start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, memory: Any, scales: Any,
        weights: Any, kept: Any, terms: int, width: int, out: Any,
    ) -> None:  # fmt: skip
        w = np.uint64(fixed if fixed > 0 else width)
        dim = np.uint64(columns.shape[0] // terms) * w
        scratch = np.empty(_TILE, np.uint64)
        for low in range(start, stop, _TILE):
            high = min(low + _TILE, stop)
            for j in range(columns.shape[0]):
                if kept is None:
                    at = scratch
                else:
                    at = kept[j][low:high]
                _find(low, high, ids, columns[j], keys, pointers, at)
                region = np.uint64(columns[j, REGION])
                past, left = np.uint64(columns[j, BASE]) + region, np.uint64(j // terms) * w
                first = j % terms == 0
                for n in range(np.uint64(high - low)):
                    a, o = at[n], (np.uint64(low) + n) * dim + left
                    if weights is None and codec == FLOAT32 and fixed > 0 and a + w <= past:
                        if first:
                            copy_block(out, o, memory, a, fixed)
                        else:
                            add_block(out, o, memory, a, fixed)
                    else:
                        for i in range(w):
                            place = a + i
                            if place >= past:
                                place -= region
                            value = fetch(codec, memory, scales, place)
                            if weights is not None:
                                value *= weights[np.uint64(low) + n, np.uint64(j)]
                            out[o + i] = value if first else out[o + i] + value

    return gather


def _make_scatter(fixed: int) -> Callable[..., None]:
    """The transposed lookup: the floats [low, high) of the gradient, tile by tile, in the order of the ids."""

    @jit
    def scatter(
        low: int, high: int, ids: Any, columns: Any, keys: Any, pointers: Any,
        weights: Any, kept: Any, terms: int, width: int, unit: int, slots: Any, vectors: Any, out: Any,
    ) -> None:  # fmt: skip
        w, u = np.uint64(fixed if fixed > 0 else width), np.uint64(unit)
        dim = np.uint64(columns.shape[0] // terms) * w
        mine, over = np.uint64(low), np.uint64(high)
        scratch = np.empty(_TILE, np.uint64)
        for start in range(0, ids.shape[0], _TILE):
            stop = min(start + _TILE, ids.shape[0])
            for j in range(columns.shape[0]):
                if kept is None:
                    at = scratch
                    _find(start, stop, ids, columns[j], keys, pointers, at)
                else:
                    at = kept[j][start:stop]
                region = np.uint64(columns[j, REGION])
                past, left = np.uint64(columns[j, BASE]) + region, np.uint64(j // terms) * w
                for n in range(np.uint64(stop - start)):
                    a, o = at[n], (np.uint64(start) + n) * dim + left
                    if (
                        weights is None
                        and fixed > 0
                        and a >= mine
                        and a + w <= min(over, past)
                        and (slots is None or u == w)
                    ):
                        if slots is None:
                            to = a
                        else:
                            to = np.uint64(slots[a // u]) * u
                        add_block(out, to, vectors, o, fixed)
                    else:
                        for i in range(w):
                            place = a + i
                            if place >= past:
                                place -= region
                            if place >= mine and place < over:
                                if slots is not None:
                                    place = np.uint64(slots[place // u]) * u + place % u
                                if weights is None:
                                    out[place] += vectors[o + i]
                                else:
                                    out[place] += weights[np.uint64(start) + n, np.uint64(j)] * vectors[o + i]

    return scatter


def _make_dot(codec: int) -> Callable[..., None]:
    """The gradient of the weights: out[n, j] = ⟨vectors[n, chunk of j], block of column j⟩."""

    @jit
    def dot(
        start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, memory: Any, scales: Any,
        kept: Any, terms: int, width: int, vectors: Any, out: Any,
    ) -> None:  # fmt: skip
        w = np.uint64(width)
        dim = np.uint64(columns.shape[0] // terms) * w
        scratch = np.empty(_TILE, np.uint64)
        for low in range(start, stop, _TILE):
            high = min(low + _TILE, stop)
            for j in range(columns.shape[0]):
                if kept is None:
                    at = scratch
                    _find(low, high, ids, columns[j], keys, pointers, at)
                else:
                    at = kept[j][low:high]
                region = np.uint64(columns[j, REGION])
                past, left = np.uint64(columns[j, BASE]) + region, np.uint64(j // terms) * w
                for n in range(np.uint64(high - low)):
                    o, total = (np.uint64(low) + n) * dim + left, np.float32(0.0)
                    for i in range(w):
                        place = at[n] + i
                        if place >= past:
                            place -= region
                        total += vectors[o + i] * fetch(codec, memory, scales, place)
                    out[np.uint64(low) + n, np.uint64(j)] = total

    return dot


@jit
def _touch(
    ids: Any,
    columns: Any,
    keys: Any,
    pointers: Any,
    kept: Any,
    width: int,
    unit: int,
    slots: Any,
    touched: Any,
) -> int:
    """Number the units that the ids touch, in order of first touch: slots[unit] = number, touched[number] = unit."""
    u, count = np.uint64(unit), 0
    scratch = np.empty(_TILE, np.uint64)
    for start in range(0, ids.shape[0], _TILE):
        stop = min(start + _TILE, ids.shape[0])
        for j in range(columns.shape[0]):
            if kept is None:
                at = scratch
                _find(start, stop, ids, columns[j], keys, pointers, at)
            else:
                at = kept[j][start:stop]
            region = np.uint64(columns[j, REGION])
            past = np.uint64(columns[j, BASE]) + region
            for n in range(stop - start):
                for i in range(0, width, unit):
                    place = at[n] + np.uint64(i)
                    if place >= past:
                        place -= region
                    place //= u
                    if slots[place] < 0:
                        slots[place] = count
                        touched[count] = place
                        count += 1
    return count


@jit
def _untouch(slots: Any, touched: Any) -> None:
    for i in range(touched.shape[0]):
        slots[touched[i]] = -1


@jit
def _addresses(start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, out: Any) -> None:
    at = np.empty(_TILE, np.uint64)
    for low in range(start, stop, _TILE):
        high = min(low + _TILE, stop)
        for j in range(columns.shape[0]):
            _find(low, high, ids, columns[j], keys, pointers, at)
            for n in range(low, high):
                out[n, j] = at[n - low]


@functools.cache
def _gather(width: int, codec: int) -> Callable[..., None]:
    return _make_gather(width if width in _COMMON_WIDTHS and codec == FLOAT32 else 0, codec)


@functools.cache
def _scatter(width: int) -> Callable[..., None]:
    return _make_scatter(width if width in _COMMON_WIDTHS else 0)


@functools.cache
def _dot(codec: int) -> Callable[..., None]:
    return _make_dot(codec)


def lookup(
    sketch: Sketch, memory: Memory, ids: NDArray[np.uint64], weights: Any = None, kept: Any = None
) -> NDArray[np.float32]:
    """Vectors of flat, checked ids: float32 (n, layout.dim).

    Args:
        sketch: H.
        memory: M.
        ids: uint64 (n,).
        weights: float32 (n, columns), or None where they are all 1.
        kept: uint64 (columns, n), filled with the addresses, or None.
    """
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], layout.dim), np.float32)
    sliced(
        _gather(layout.width, memory.codec), ids.shape[0], _IDS_A_THREAD, ids, layout.array, keys, pointers,
        memory.codes, memory.scales, weights, kept, layout.terms, layout.width, out.reshape(-1),
    )  # fmt: skip
    return out


def scatter(
    sketch: Sketch, ids: NDArray[np.uint64], vectors: NDArray[np.float32], weights: Any = None, kept: Any = None
) -> NDArray[np.float32]:
    """The whole gradient of the memory, float32 (layout.size,), from gradients of the vectors (n, layout.dim)."""
    out = np.zeros(sketch.layout.size, np.float32)
    _scatter_into(sketch, ids, vectors, weights, kept, None, out)
    return out


def scatter_sparse(
    sketch: Sketch,
    ids: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    slots: NDArray[Any],
    weights: Any = None,
    kept: Any = None,
) -> SparseGradient:
    """The gradient of the touched units alone. `slots` (one integer a unit, all −1) is scratch; it is given back as it was."""
    layout, keys, pointers = sketch
    per_id = len(layout.columns) * (layout.width // layout.unit)
    touched = np.empty(min(layout.n_units, ids.shape[0] * per_id), np.int64)
    count = _touch(ids, layout.array, keys, pointers, kept, layout.width, layout.unit, slots, touched)
    index = touched[:count]
    values = np.zeros((count, layout.unit), np.float32)
    _scatter_into(sketch, ids, vectors, weights, kept, slots, values.reshape(-1))
    _untouch(slots, index)
    return SparseGradient(index, values, layout.size)


def _scatter_into(sketch: Sketch, ids: Any, vectors: Any, weights: Any, kept: Any, slots: Any, out: Any) -> None:
    layout, keys, pointers = sketch
    # Each thread reads all ids, so a second one pays only where there is more to add than to address.
    grain = layout.size if ids.shape[0] < _IDS_A_THREAD else min(_FLOATS_A_THREAD, -(-layout.size // 2))
    sliced(
        _scatter(layout.width), layout.size, grain, ids, layout.array, keys, pointers, weights, kept,
        layout.terms, layout.width, layout.unit, slots, vectors.reshape(-1), out, align=layout.unit,
    )  # fmt: skip


def dot(
    sketch: Sketch, memory: Memory, ids: NDArray[np.uint64], vectors: NDArray[np.float32], kept: Any = None
) -> NDArray[np.float32]:
    """The gradient of the weights: float32 (n, columns), each the product of an id's block and its part of the vector."""
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], len(layout.columns)), np.float32)
    sliced(
        _dot(memory.codec), ids.shape[0], _IDS_A_THREAD, ids, layout.array, keys, pointers, memory.codes,
        memory.scales, kept, layout.terms, layout.width, vectors.reshape(-1), out,
    )  # fmt: skip
    return out


def addresses(sketch: Sketch, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The address of every column: int64 (n, columns)."""
    layout, keys, pointers = sketch
    out = np.empty((ids.shape[0], len(layout.columns)), np.int64)
    sliced(_addresses, len(ids), _IDS_A_THREAD, ids, layout.array, keys, pointers, out)
    return out


def signs(sketch: Sketch, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The sign of every column: float32 (n, columns), 1 where a column draws none."""
    out = np.empty((ids.shape[0], len(sketch.layout.columns)), np.float32)
    sliced(_signs, len(ids), _IDS_A_THREAD, ids, sketch.layout.array, sketch.keys, out)
    return out


def new_slots(layout: Layout) -> NDArray[Any]:
    """Scratch for `scatter_sparse`: one integer a unit."""
    return np.full(layout.n_units, -1, np.int32 if layout.n_units < 2**31 else np.int64)
