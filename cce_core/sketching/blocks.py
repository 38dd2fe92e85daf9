"""The one lookup and the one scatter: ids → addresses → blocks summed → vectors, and the same way back.

    out[n, c·w : (c+1)·w] = Σ_t  sign[n,c,t] · M[ address[n,c,t] : +w  (mod len M) ]

A *column* says where one address comes from: the id itself, a hash of it, a digit of it, or a packed pointer. A layout
has `terms` columns a chunk, and an address is `base + stride · index`. The gradient of M is the same sum transposed; a
thread owns a range of M there and meets the ids in their order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import sliced
from cce_core.hashing.mix import keyed, multiply_high, multiply_high_32, premix
from cce_core.storage.packed import read_bits

IDENTITY, HASH, POINTER, DIGIT = 0, 1, 2, 3
_KIND, _BASE, _STRIDE, _ROWS, _A, _B = 0, 1, 2, 3, 4, 5
_one, _low = np.uint64(1), np.uint64(0xFFFFFFFF)
_TILE = 128
_COMMON_WIDTHS = (1, 2, 4, 8, 16, 32)
_IDS_A_THREAD = 1 << 12
_FLOATS_A_THREAD = 1 << 15


class Column(NamedTuple):
    """Where one address of an id comes from: `base + stride · index`, with the index in [0, rows).

    Attributes:
        kind: IDENTITY (the id), HASH (of the id, under this column's key), POINTER (packed), DIGIT ((id // a) mod rows).
        base: the first float of the region that the column addresses.
        stride: floats from one index to the next.
        rows: how many indices there are.
        a: for HASH, 1 where a sign is drawn as well; for POINTER, the bit offset within an id; for DIGIT, the divisor.
        b: for HASH, which key is its own; for POINTER, its bits.
    """

    kind: int
    base: int
    stride: int
    rows: int
    a: int = 0
    b: int = 0


@dataclasses.dataclass(frozen=True)
class Layout:
    """All addresses of a table: `columns` chunk by chunk, `terms` of them a chunk, into a memory of `size` floats.

    Attributes:
        columns: chunk-major; `len(columns) // terms` chunks.
        terms: blocks summed in each chunk.
        width: floats a block.
        size: floats of the memory; addresses wrap round at its end.
        unit: the largest block that divides every address and the width: the grain of a sparse gradient.
        bits_per_id: bits of all packed pointers of an id, those of columns that a part leaves out included.
    """

    columns: tuple[Column, ...]
    terms: int
    width: int
    size: int
    unit: int
    bits_per_id: int = 0

    @functools.cached_property
    def n_chunks(self) -> int:
        """Chunks of a vector."""
        return len(self.columns) // self.terms

    @functools.cached_property
    def dim(self) -> int:
        """Floats of a vector that the memory gives (before any projection)."""
        return self.n_chunks * self.width

    @functools.cached_property
    def n_units(self) -> int:
        """Units in the memory."""
        return self.size // self.unit

    @functools.cached_property
    def bits(self) -> tuple[int, ...]:
        """Bits of every packed pointer of an id, in order."""
        return tuple(c.b for c in self.columns if c.kind == POINTER)

    @functools.cached_property
    def n_hashes(self) -> int:
        """Keys that the hash columns need."""
        return 1 + max((c.b for c in self.columns if c.kind == HASH), default=-1)

    @functools.cached_property
    def array(self) -> NDArray[np.int64]:
        """The columns as the compiled loops read them."""
        return np.array(self.columns, np.int64).reshape(len(self.columns), len(Column._fields))

    @functools.cached_property
    def per_id(self) -> np.uint64:
        """`bits_per_id` as the compiled loops read it."""
        return np.uint64(self.bits_per_id)

    def part(self, columns: tuple[Column, ...], terms: int = 1) -> Layout:
        """The same memory and pointers through some of the columns alone."""
        return dataclasses.replace(self, columns=columns, terms=terms)


@jit
def _find(start: int, stop: int, ids: Any, column: Any, keys: Any, pointers: Any, per_id: Any, at: Any) -> None:
    """Addresses of the ids [start, stop) in one column: at[0 : stop − start]."""
    kind, base, stride = column[_KIND], np.uint64(column[_BASE]), np.uint64(column[_STRIDE])
    count, a, b = np.uint64(column[_ROWS]), np.uint64(column[_A]), np.uint64(column[_B])
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
        for n in range(n_ids):
            at[n] = base + stride * read_bits(pointers, ids[first + n] * per_id + a, b)
    elif kind == IDENTITY:
        for n in range(n_ids):
            at[n] = base + stride * ids[first + n]
    else:
        for n in range(n_ids):
            at[n] = base + stride * ((ids[first + n] // a) % count)


@jit
def _signs(start: int, stop: int, ids: Any, column: Any, keys: Any, sign: Any) -> bool:
    """Signs of the ids [start, stop) in one column, where it draws any: the hash's lowest bit, which hardly moves the index."""
    if column[_KIND] != HASH or column[_A] != 1:
        return False
    key = keys[column[_B]]
    for n in range(start, stop):
        sign[n - start] = np.float32(1.0) - np.float32(2.0) * np.float32(keyed(premix(ids[n]), key) & _one)
    return True


# The loops below index flat arrays with unsigned numbers: Numba then leaves out its test for negative indices, and LLVM
# turns a block of known width into a few vector instructions. That alone made them four times faster.


def _make_gather(fixed: int) -> Callable[..., None]:
    """The lookup for blocks `fixed` wide (unrolled), or of any width for 0."""

    @jit
    def gather(
        start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, per_id: Any, memory: Any,
        terms: int, width: int, out: Any,
    ) -> None:  # fmt: skip
        w, size = np.uint64(fixed if fixed > 0 else width), np.uint64(memory.shape[0])
        dim = np.uint64(columns.shape[0] // terms) * w
        at, sign = np.empty(_TILE, np.uint64), np.empty(_TILE, np.float32)
        for low in range(start, stop, _TILE):
            high = min(low + _TILE, stop)
            for j in range(columns.shape[0]):
                _find(low, high, ids, columns[j], keys, pointers, per_id, at)
                signed = _signs(low, high, ids, columns[j], keys, sign)
                left = np.uint64(j // terms) * w
                first = j % terms == 0
                for n in range(low, high):
                    a, o = at[n - low], np.uint64(n) * dim + left
                    if signed or a + w > size:
                        s = sign[n - low] if signed else np.float32(1.0)
                        for i in range(w):
                            old = np.float32(0.0) if first else out[o + np.uint64(i)]
                            out[o + np.uint64(i)] = old + s * memory[(a + np.uint64(i)) % size]
                    elif first:
                        for i in range(w):
                            out[o + np.uint64(i)] = memory[a + np.uint64(i)]
                    else:
                        for i in range(w):
                            out[o + np.uint64(i)] += memory[a + np.uint64(i)]

    return gather


def _make_scatter(fixed: int) -> Callable[..., None]:
    """The transposed lookup: the floats [low, high) of the gradient, tile by tile, in the order of the ids."""

    @jit
    def scatter(
        low: int, high: int, ids: Any, columns: Any, keys: Any, pointers: Any, per_id: Any, size: int,
        terms: int, width: int, unit: int, slots: Any, vectors: Any, out: Any,
    ) -> None:  # fmt: skip
        w, u, end = np.uint64(fixed if fixed > 0 else width), np.uint64(unit), np.uint64(size)
        dim = np.uint64(columns.shape[0] // terms) * w
        mine, past = np.uint64(low), np.uint64(high)
        at, sign = np.empty(_TILE, np.uint64), np.empty(_TILE, np.float32)
        for start in range(0, ids.shape[0], _TILE):
            stop = min(start + _TILE, ids.shape[0])
            for j in range(columns.shape[0]):
                _find(start, stop, ids, columns[j], keys, pointers, per_id, at)
                signed = _signs(start, stop, ids, columns[j], keys, sign)
                left = np.uint64(j // terms) * w
                for n in range(start, stop):
                    a, o = at[n - start], np.uint64(n) * dim + left
                    if slots is None and not signed and a >= mine and a + w <= past:
                        for i in range(w):
                            out[a + np.uint64(i)] += vectors[o + np.uint64(i)]
                    else:
                        s = sign[n - start] if signed else np.float32(1.0)
                        for i in range(w):
                            to = (a + np.uint64(i)) % end if a + w > end else a + np.uint64(i)
                            if to >= mine and to < past:
                                if slots is not None:
                                    to = np.uint64(slots[to // u]) * u + to % u
                                out[to] += s * vectors[o + np.uint64(i)]

    return scatter


@jit
def _touch(
    ids: Any, columns: Any, keys: Any, pointers: Any, per_id: Any, size: int, width: int, unit: int,
    slots: Any, touched: Any,
) -> int:  # fmt: skip
    """Number the units that the ids touch, in order of first touch: slots[unit] = number, touched[number] = unit."""
    end, u, count = np.uint64(size), np.uint64(unit), 0
    at = np.empty(_TILE, np.uint64)
    for start in range(0, ids.shape[0], _TILE):
        stop = min(start + _TILE, ids.shape[0])
        for j in range(columns.shape[0]):
            _find(start, stop, ids, columns[j], keys, pointers, per_id, at)
            for n in range(stop - start):
                for i in range(0, width, unit):
                    to = ((at[n] + np.uint64(i)) % end) // u
                    if slots[to] < 0:
                        slots[to] = count
                        touched[count] = to
                        count += 1
    return count


@jit
def _untouch(slots: Any, touched: Any) -> None:
    for i in range(touched.shape[0]):
        slots[touched[i]] = -1


@jit
def _addresses(
    start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, per_id: Any, out: Any, signs: Any
) -> None:
    at, sign = np.empty(_TILE, np.uint64), np.empty(_TILE, np.float32)
    for low in range(start, stop, _TILE):
        high = min(low + _TILE, stop)
        for j in range(columns.shape[0]):
            _find(low, high, ids, columns[j], keys, pointers, per_id, at)
            signed = _signs(low, high, ids, columns[j], keys, sign)
            for n in range(low, high):
                out[n, j] = at[n - low]
                signs[n, j] = sign[n - low] if signed else np.float32(1.0)


@functools.cache
def _gather(width: int) -> Callable[..., None]:
    return _make_gather(width if width in _COMMON_WIDTHS else 0)


@functools.cache
def _scatter(width: int) -> Callable[..., None]:
    return _make_scatter(width if width in _COMMON_WIDTHS else 0)


@dataclasses.dataclass(frozen=True, eq=False)
class SparseGradient:
    """The gradient of a parameter, kept for the touched units alone.

    Attributes:
        index: int64 (touched,), each unit at most once, in order of first touch.
        values: float32 (touched, unit).
        size: floats of the whole parameter.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> gradient = cce.SparseGradient(np.array([1]), np.array([[5.0, 6.0]], np.float32), 6)
        >>> gradient.dense()
        array([0., 0., 5., 6., 0., 0.], dtype=float32)
    """

    index: NDArray[np.int64]
    values: NDArray[np.float32]
    size: int

    def dense(self) -> NDArray[np.float32]:
        """The whole gradient, zero where nothing was touched: float32 (size,)."""
        out = np.zeros((self.size // self.values.shape[1], self.values.shape[1]), np.float32)
        out[self.index] = self.values
        return out.reshape(-1)


def lookup(layout: Layout, memory: Any, keys: Any, pointers: Any, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Vectors of flat, checked ids: float32 (n, layout.dim)."""
    out = np.empty((ids.shape[0], layout.dim), np.float32)
    sliced(
        _gather(layout.width), ids.shape[0], _IDS_A_THREAD, ids, layout.array, keys, pointers, layout.per_id,
        memory, layout.terms, layout.width, out.reshape(-1),
    )  # fmt: skip
    return out


def scatter(
    layout: Layout, keys: Any, pointers: Any, ids: NDArray[np.uint64], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The whole gradient of the memory, float32 (layout.size,), from gradients of the vectors (n, layout.dim)."""
    out = np.zeros(layout.size, np.float32)
    _scatter_into(layout, keys, pointers, ids, vectors, None, out)
    return out


def scatter_sparse(
    layout: Layout, keys: Any, pointers: Any, ids: NDArray[np.uint64], vectors: NDArray[np.float32], slots: NDArray[Any]
) -> SparseGradient:
    """The gradient of the touched units alone. `slots` (one integer a unit, all −1) is scratch; it is given back as it was."""
    per_id = len(layout.columns) * (layout.width // layout.unit)
    touched = np.empty(min(layout.n_units, ids.shape[0] * per_id), np.int64)
    count = _touch(
        ids, layout.array, keys, pointers, layout.per_id, layout.size, layout.width, layout.unit, slots, touched
    )
    index = touched[:count]
    values = np.zeros((count, layout.unit), np.float32)
    _scatter_into(layout, keys, pointers, ids, vectors, slots, values.reshape(-1))
    _untouch(slots, index)
    return SparseGradient(index, values, layout.size)


def _scatter_into(layout: Layout, keys: Any, pointers: Any, ids: Any, vectors: Any, slots: Any, out: Any) -> None:
    # Each thread reads all ids, so a second one pays only where there is more to add than to address.
    grain = layout.size if ids.shape[0] < _IDS_A_THREAD else min(_FLOATS_A_THREAD, -(-layout.size // 2))
    sliced(
        _scatter(layout.width), layout.size, grain, ids, layout.array, keys, pointers, layout.per_id, layout.size,
        layout.terms, layout.width, layout.unit, slots, vectors.reshape(-1), out, align=layout.unit,
    )  # fmt: skip


def addresses(
    layout: Layout, keys: Any, pointers: Any, ids: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Address and sign of every column: int64 and float32 (n, len(columns))."""
    out = np.empty((ids.shape[0], len(layout.columns)), np.int64)
    signs = np.empty(out.shape, np.float32)
    sliced(_addresses, len(ids), _IDS_A_THREAD, ids, layout.array, keys, pointers, layout.per_id, out, signs)
    return out, signs


def new_slots(layout: Layout) -> NDArray[Any]:
    """Scratch for `scatter_sparse`: one integer a unit."""
    return np.full(layout.n_units, -1, np.int32 if layout.n_units < 2**31 else np.int64)
