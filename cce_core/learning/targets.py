"""Vectors that a table is to learn where they are not its own: an array's, or another table's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.learning.sampling import as_rows
from cce_core.method.state import TableState


class Source:
    """The rows to be learned, and, for a table with a rank, the projection that keeps most of them.

    With a rank, b is the mean of the rows and W the directions of their largest variance: the rows that the memory is to
    hold are (x − b) · Wᵀ.

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
        _, directions = np.linalg.eigh(squares / vocab - np.outer(mean, mean))
        self.projection = np.vstack([directions[:, ::-1][:, : spec.rank].T, mean]).astype(np.float32)

    def rows(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The rows of ids as the memory is to hold them: float32 (n, spec.inner)."""
        x = self._whole(ids)
        return x if self.projection is None else (x - self.projection[-1]) @ self.projection[:-1].T

    def _whole(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        if self._table is None:
            return self._array[ids].astype(np.float32, copy=False)
        return _check.as_float32("vectors", self._table.lookup(ids), (len(ids), self._table.spec.dim))
