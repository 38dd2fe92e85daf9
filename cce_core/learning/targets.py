"""Vectors that a table is to learn where they are not its own: an array's, or another table's."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.learning.sampling import as_rows
from cce_core.method import get_method
from cce_core.method.state import TableState


def dealt_out(variances: NDArray[np.float64], n_chunks: int) -> NDArray[np.int64]:
    """The order in which directions stand, chunk after chunk: from the largest variance on, each goes to the chunk with the least
    product so far that has room.

    Args:
        variances: falling, as many as chunks times the width of one.
        n_chunks: chunks of equal width.

    Example:
        >>> dealt_out(np.array([8.0, 4.0, 2.0, 1.0]), 2).tolist()
        [0, 3, 1, 2]
    """
    width = len(variances) // n_chunks
    logs = np.log(np.maximum(variances, 1e-12 * max(float(variances[0]), 1e-300)))
    logs -= logs[-1]
    chunks: list[list[int]] = [[] for _ in range(n_chunks)]
    heap = [(0.0, chunk) for chunk in range(n_chunks)]
    for direction, log in enumerate(logs):
        product, chunk = heapq.heappop(heap)
        chunks[chunk].append(direction)
        if len(chunks[chunk]) < width:
            heapq.heappush(heap, (product + float(log), chunk))
    return np.array([direction for chunk in chunks for direction in chunk], np.int64)


class Source:
    """The rows to be learned, and, for a table with a rank, the projection that keeps most of them.

    With a rank, b is the mean of the rows and W the directions of their largest variance: the rows that the memory is to
    hold are (x − b) · Wᵀ. Where these are split into chunks, directions are dealt out so that each chunk has about the same
    product of variances: that is what pointers of equal size spend best (Ge et al., optimized product quantization, IEEE TPAMI
    36, 2014, section 4).

    Args:
        table: that is to learn them.
        vectors: real numbers (vocab, dim), or a table of that vocabulary and dim.
        batch_size: rows seen at once.

    Raises:
        TypeError: neither an array of real numbers nor a table.
        ValueError: another shape, NaN or infinity.
    """

    projection: NDArray[np.float32] | None = None

    def __init__(self, table: TableState, vectors: Any, batch_size: int) -> None:
        spec = table.spec
        vocab, dim = spec.vocab or 0, spec.dim
        self._table: Any = vectors if isinstance(vectors, TableState) else None
        if self._table is not None:
            shape = (self._table.spec.vocab, self._table.spec.dim)
            if shape != (vocab, dim):
                raise ValueError(
                    f"vectors must be a table of vocab {vocab:,} and dim {dim}, got {shape[0]} and {shape[1]}"
                )
        else:
            self._array = as_rows("vectors", vectors, (vocab, dim))
        if not spec.rank:
            return
        total, squares = np.zeros(dim), np.zeros((dim, dim))
        for low in range(0, vocab, batch_size):
            x = self._whole(np.arange(low, min(low + batch_size, vocab), dtype=np.uint64)).astype(np.float64)
            total += x.sum(0)
            squares += x.T @ x
        mean = total / vocab
        variances, directions = np.linalg.eigh(squares / vocab - np.outer(mean, mean))
        dealt = spec.n_chunks > 1 and get_method(spec.method).splits(dict(spec.options))
        order = dealt_out(variances[::-1][: spec.rank], spec.n_chunks if dealt else 1)
        self.projection = np.vstack([directions[:, ::-1][:, order].T, mean]).astype(np.float32)

    def rows(self, ids: NDArray[np.uint64], part: slice = slice(None)) -> NDArray[np.float32]:
        """The rows of ids as the memory is to hold them, or some of their floats: float32 (n, spec.inner)."""
        x = self._whole(ids)
        return x[:, part] if self.projection is None else (x - self.projection[-1]) @ self.projection[:-1][part].T

    def _whole(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        if self._table is None:
            return self._array[ids].astype(np.float32, copy=False)
        return _check.as_float32("vectors", self._table.lookup(ids), (len(ids), self._table.spec.dim))
