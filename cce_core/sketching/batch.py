"""What is looked up for many tables at once: an id a row and table, or a bag of ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.sketching.small_matmul import set_product

MODES = ("sum", "mean", "max")
_IDS_A_THREAD = 1 << 13
_FIRST, _INT64, _UINT64 = range(1), np.dtype(np.int64), np.dtype(np.uint64)


@dataclasses.dataclass(eq=False, slots=True)
class JaggedBatch:
    """The ids of a call, checked but for their vocabularies, as flat words.

    Attributes:
        ids: uint64. The ids of table t begin at `starts[t]`, `step` apart.
        starts: of each table.
        step: 1, or the number of tables where the ids came as a matrix.
        counts: ids of each table.
        rows: bags, or ids a table.
        offsets: int64 (tables, rows + 1): where the bags of a table begin within its words; None where a row is an id.
        weights: float32, a per-sample weight: a factor for every word; None where all are 1.
        mask: bool (ids), of each table, whether an id that came is among the words; None where all are.
        mode: "sum", "mean" or "max".
        shape: of the ids of a table that is looked up by itself; None for a collection's.
    """

    ids: NDArray[np.uint64]
    starts: Sequence[int]
    step: int
    counts: Sequence[int]
    rows: int
    offsets: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    mask: list[NDArray[np.bool_]] | None = None
    mode: str = "sum"
    shape: tuple[int, ...] | None = None

    @classmethod
    def alone(cls, ids: Any) -> JaggedBatch:
        """One table's ids, of any shape and integer type."""
        usual = type(ids) is np.ndarray and (ids.dtype == _INT64 or ids.dtype == _UINT64) and ids.flags.c_contiguous
        words = ids.view(_UINT64) if usual else _check.as_ids(ids)
        shape, n = words.shape, words.size
        return cls(words if len(shape) == 1 else words.reshape(-1), _FIRST, 1, [n], n, shape=shape)

    def of(self, table: int) -> NDArray[np.uint64]:
        """The ids of one table."""
        start = self.starts[table]
        return np.ascontiguousarray(self.ids[start : start + self.step * self.counts[table] : self.step])

    def alone_of(self, table: int) -> JaggedBatch:
        """The rows of one table by itself: its ids in their order, instead of what they are, with their bags and weights."""
        n = self.counts[table]
        offsets = None if self.offsets is None else self.offsets[table : table + 1]
        per_sample_weights = None if self.weights is None else self.weights[self.part(table)]
        return JaggedBatch(np.arange(n, dtype=np.uint64), _FIRST, 1, [n], self.rows, offsets, per_sample_weights)

    def part(self, table: int) -> slice:
        """Where the words of one table lie, where they came table by table."""
        return slice(self.starts[table], self.starts[table] + self.counts[table])

    def row_of(self, table: int) -> NDArray[np.int64]:
        """The row of every word of one table."""
        if self.offsets is None:
            return np.arange(self.rows)
        return np.repeat(np.arange(self.rows), np.diff(self.offsets[table]))

    def leave_out(self, padding: NDArray[np.bool_]) -> None:
        """Take words out that came table by table; 0 times a row would be NaN where the row holds NaN."""
        if not padding.any():
            return
        keep, n_tables = ~padding, len(self.counts)
        self.mask = [keep[self.part(table)] for table in range(n_tables)]
        if self.offsets is None:
            self.offsets = np.tile(np.arange(self.rows + 1), (n_tables, 1))
        within = [np.concatenate([[0], np.cumsum(mask)]) for mask in self.mask]  # words that are left before each
        self.offsets = np.stack([left[ends] for left, ends in zip(within, self.offsets)])
        self.counts = [int(left[-1]) for left in within]
        self.starts = [0, *np.cumsum(self.counts[:-1]).tolist()]
        self.ids = self.ids[keep]
        self.weights = None if self.weights is None else self.weights[keep]

    def as_came(self, table: int, values: NDArray[Any]) -> NDArray[Any]:
        """What is known of each word of a table, for its ids as they came; 0 for those left out."""
        if self.mask is None:
            return values
        out = np.zeros(len(self.mask[table]), values.dtype)
        out[self.mask[table]] = values
        return out

    def slopes(
        self, table: int, vectors: NDArray[np.float32], grads: NDArray[np.float32], left: int
    ) -> NDArray[np.float32]:
        """The gradient of the weights: every id's vector times that of its row, whose columns from `left` on are meant."""
        if self.offsets is None:
            return np.einsum("nd,nd->n", vectors, grads[:, left : left + vectors.shape[1]])
        out = np.empty(len(vectors), np.float32)
        min_chunk = max(1, _IDS_A_THREAD * self.rows // max(1, len(out)))
        parallel_for(
            weigh, self.rows, min_chunk, self.offsets[table], vectors, grads.reshape(-1), grads.shape[1], left, out
        )
        return out

    def weight_sums(self, tables: Sequence[int]) -> NDArray[np.float32] | None:
        """What the ids of each row weigh together, float32 (tables, rows); None where every row is one id that weighs 1."""
        if self.offsets is None and self.weights is None:
            return None
        out = np.empty((len(tables), self.rows), np.float32)
        for row, table in zip(out, tables):
            if self.weights is None:
                assert self.offsets is not None
                row[:] = np.diff(self.offsets[table])
            else:
                row[:] = np.bincount(self.row_of(table), self.weights[self.part(table)], minlength=self.rows)
        return out


def read(ids: Any, offsets: Any, lengths: Any, weights: Any, mode: str, padding_id: Any, n_tables: int) -> JaggedBatch:
    """A `JaggedBatch` of what a caller hands in; the errors say what came and what was expected."""
    plain = offsets is None and lengths is None and weights is None and padding_id is None and mode == "sum"
    if plain and isinstance(ids, np.ndarray) and ids.ndim == 2:  # the usual case
        usual = ids.dtype == _INT64 and ids.flags.c_contiguous
        words = ids.view(_UINT64) if usual else _check.as_ids(ids)
        if words.shape[1] != n_tables:
            _as_many(words.shape[1], n_tables)
        return JaggedBatch(words.reshape(-1), range(n_tables), n_tables, [len(words)] * n_tables, len(words))
    _check.choice("mode", mode, MODES)
    ids = ids if isinstance(ids, (list, tuple, np.ndarray)) else _check.as_ids(ids)  # a tensor, a frame, …
    offsets, lengths, weights = _own(offsets), _own(lengths), _own(weights)
    arrays, offsets = _per_table(ids, offsets, lengths, n_tables)
    counts = [len(array) for array in arrays]
    words = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    starts = [0, *np.cumsum(counts[:-1]).tolist()]
    if offsets is None and len(set(counts)) > 1:
        raise ValueError(f"without offsets every table needs as many ids as the others, got {counts}")
    rows = counts[0] if offsets is None else offsets.shape[1] - 1
    batch = JaggedBatch(words, starts, 1, counts, rows, offsets, mode=mode)
    if weights is not None:
        batch.weights = _weights(weights, arrays, mode)
    if padding_id is not None:
        batch.leave_out(words == np.repeat(_paddings(padding_id, n_tables), counts))
    offsets, words = batch.offsets, batch.ids
    if mode == "mean" and offsets is not None:
        ones = np.ones(len(words), np.float32) if batch.weights is None else batch.weights
        batch.weights = np.empty(len(words), np.float32)
        for table in range(n_tables):
            own, row = batch.part(table), batch.row_of(table)
            sums = np.bincount(row, ones[own], minlength=rows)
            batch.weights[own] = ones[own] / np.maximum(sums, 1.0)[row]
    return batch


def _own(values: Any) -> Any:
    """NumPy's array of what gives itself as one; all else as it came."""
    known = isinstance(values, (list, tuple, np.ndarray)) or not hasattr(values, "__array__")
    return values if known else np.asarray(values)


def _as_many(got: int, n_tables: int) -> None:
    if got != n_tables:
        raise ValueError(f"ids must be a matrix (batch, {n_tables}) or {n_tables} arrays, one a table; got {got}")


def _per_table(ids: Any, offsets: Any, lengths: Any, n_tables: int) -> tuple[list[NDArray[np.uint64]], Any]:
    """Flat ids of every table, and the offsets of all."""
    if offsets is not None and lengths is not None:
        raise ValueError("give offsets or lengths, not both")
    if isinstance(ids, np.ndarray) and ids.ndim in (2, 3):
        if offsets is not None or lengths is not None:
            raise ValueError(
                f"with offsets or lengths, ids are a list of flat arrays, one a table; got shape {ids.shape}"
            )
        words = _check.as_ids(ids)
        _as_many(words.shape[1], n_tables)
        arrays = [np.ascontiguousarray(words[:, t]).reshape(-1) for t in range(n_tables)]
        if ids.ndim == 3:
            ends = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[2]
            return arrays, np.broadcast_to(ends, (n_tables, len(ends))).copy()
        return arrays, None
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and n_tables == 1 and ids.dtype != object:
        ids = [ids]
        offsets = offsets if offsets is None or _check.array("offsets", offsets).ndim > 1 else [offsets]
        lengths = lengths if lengths is None or _check.array("lengths", lengths).ndim > 1 else [lengths]
    if not isinstance(ids, (list, tuple)):
        raise TypeError(
            f"ids must be a matrix (batch, {n_tables}) or a list of arrays, one a table; got {type(ids).__name__}"
        )
    _as_many(len(ids), n_tables)
    arrays = [_check.as_ids(array) for array in ids]
    for t, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(f"ids of table {t} must be flat, got shape {array.shape}")
    if offsets is None and lengths is None:
        return arrays, None
    name, given = ("offsets", offsets) if lengths is None else ("lengths", lengths)
    if not isinstance(given, (list, tuple, np.ndarray)) or (isinstance(given, np.ndarray) and given.ndim == 0):
        raise TypeError(f"{name} must be one row of integers, or one a table ({n_tables}); got {given!r}")
    if not isinstance(given, np.ndarray) and len(given) and _check.array(name, given[0]).ndim == 0:
        given = [given] * n_tables  # one row of numbers: the bags of every table are alike
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype != object:
        given = [given] * n_tables
    if len(given) != n_tables:
        raise ValueError(f"{name} must be one row of numbers, or one a table ({n_tables}); got {len(given)}")
    ends = [_ends(name, array, len(words), t) for t, (array, words) in enumerate(zip(given, arrays))]
    if len({len(row) for row in ends}) > 1:
        raise ValueError(f"every table needs as many bags as the others, got {[len(row) - 1 for row in ends]}")
    return arrays, np.stack(ends)


def _ends(name: str, given: Any, count: int, table: int) -> NDArray[np.int64]:
    """Offsets of one table, with the end."""
    array = _check.array(name, given, "one row of integers a table")
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise TypeError(f"{name} of table {table} must be one row of integers, got {array.dtype} {array.shape}")
    if name == "lengths":
        if array.size and int(array.min()) < 0:
            raise ValueError(f"lengths of table {table} must not be negative, got {array.min()}")
        wide = array.size and int(array.max()) > count  # a sum of these might wrap round
        whole = sum(array.tolist()) if wide else int(array.sum())
        if whole != count:
            raise ValueError(f"lengths of table {table} add up to {whole}, but it has {count} ids")
        return np.concatenate([[0], np.cumsum(array.astype(np.int64))])
    if not len(array) or array[0] != 0 or (array[1:] < array[:-1]).any():
        raise ValueError(f"offsets of table {table} must begin with 0 and never fall, got {array[:8].tolist()}")
    if array[-1] != count:
        raise ValueError(
            f"offsets of table {table} must end with the number of its ids, {count}, got {array[-1]}; where they are the "
            f"starts of the bags alone: np.append(offsets, {count})"
        )
    return array.astype(np.int64)


def _weights(weights: Any, arrays: Sequence[NDArray[np.uint64]], mode: str) -> NDArray[np.float32]:
    if mode != "sum":
        raise ValueError(f"weights go with mode 'sum', got mode {mode!r}")
    if isinstance(weights, np.ndarray) and weights.ndim in (2, 3):
        weights = [weights[:, t].reshape(-1) for t in range(weights.shape[1])]
    if isinstance(weights, np.ndarray) and weights.ndim == 1 and len(arrays) == 1:
        weights = [weights]
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights must come as ids do, a list of arrays, one a table; got {type(weights).__name__}")
    if len(weights) != len(arrays):
        raise ValueError(f"weights must be given for each of the {len(arrays)} tables, as ids are; got {len(weights)}")
    parts = [_check.as_float32(f"weights of table {t}", w, a.shape) for t, (w, a) in enumerate(zip(weights, arrays))]
    return np.concatenate(parts)


def _paddings(padding_id: Any, n_tables: int) -> NDArray[np.uint64]:
    """The padding id of every table, as words; a table without one has an id that is counted apart."""
    alone = not isinstance(padding_id, (list, tuple)) and np.ndim(padding_id) == 0
    given = [padding_id] * n_tables if alone else list(padding_id)
    if len(given) != n_tables:
        raise ValueError(f"padding_id must be one id, or one a table ({n_tables}); got {len(given)}")
    return np.array([_check.integer("padding_id", one, 0, 2**64 - 1) for one in given], np.uint64)


@jit
def weigh(start: int, stop: int, offsets: Any, vectors: Any, grads: Any, stride: int, left: int, out: Any) -> None:
    """out[n] = ⟨vectors[n], the gradient of the n-th id's bag⟩ for the ids of the bags [start, stop).

    Args:
        vectors: float32 (n, dim).
        grads: flat, in rows of `stride` floats, of which those from `left` on are meant.
    """
    dim, flat, one = np.uint64(vectors.shape[1]), vectors.reshape(-1), np.uint64(1)
    for b in range(start, stop):
        first, count = np.uint64(offsets[b]), np.uint64(offsets[b + 1] - offsets[b])
        at = np.uint64(b * stride + left)
        set_product(out, first, one, flat, first * dim, dim, one, grads, at, one, count, dim, one)


@jit
def pool_max(start: int, stop: int, offsets: Any, vectors: Any, out: Any, where: Any) -> None:
    """out[b] = the largest of the bag's vectors, float by float; where[b] = which id it is (the first), −1 in an empty bag.

    NaN is above all numbers: one in a bag is its result.
    """
    for b in range(start, stop):
        for i in range(out.shape[1]):
            out[b, i], where[b, i] = np.float32(0.0), -1
        for n in range(offsets[b], offsets[b + 1]):
            for i in range(out.shape[1]):
                # A comparison with NaN is false: what comes is more, or NaN, and what is there is no NaN.
                if where[b, i] < 0 or (not vectors[n, i] <= out[b, i] and out[b, i] == out[b, i]):
                    out[b, i], where[b, i] = vectors[n, i], n


@jit
def unpool_max(grads: Any, where: Any, out: Any) -> None:
    """The adjoint: the gradient of each largest float goes to the id that it came from."""
    for b in range(grads.shape[0]):
        for i in range(grads.shape[1]):
            if where[b, i] >= 0:
                out[where[b, i], i] += grads[b, i]
