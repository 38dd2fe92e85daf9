"""Which rows of a table go on as which others, once it was clustered: for what optimisers know of them.

state(new row) = Σ_old w · state(old row) / Σ_old w,   over the old rows that became it; 0 of a row that nobody has
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core.storage.codec import codec


class Heirs(NamedTuple):
    """Old rows, the new row that each became part of, and what it counts there.

    Attributes:
        generation: that of the table before.
        n_before: rows that it had.
        n_rows: rows that it has.
        rows: int32 (n,), new ones.
        sources: int32 (n,), old ones.
        weights: float32 (n,), at least 0.
    """

    generation: int
    n_before: int
    n_rows: int
    rows: NDArray[np.int32]
    sources: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.rows.nbytes + self.sources.nbytes + self.weights.nbytes

    def inherit(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of as many numbers for every new row as it has for every old one: float32, or bfloat16 as uint16.

        Example:
            >>> heirs = Heirs(0, 3, 2, np.array([1, 1]), np.array([0, 2]), np.array([1.0, 3.0]))
            >>> heirs.inherit(np.array([1, 9, 5], np.float32))
            array([0., 4.], dtype=float32)
        """
        halves, size = array.dtype == np.uint16, array.size - array.size % self.n_before
        values = array.reshape(-1)[:size]
        if halves:
            values = codec("bfloat16").decode(values, np.empty(0, np.float32), size)
        old = values.reshape(self.n_before, -1)
        weights = self.weights.astype(np.float64) + 1e-30  # where none counts, all count alike
        mass = np.bincount(self.rows, weights, self.n_rows)
        new = np.zeros((self.n_rows, old.shape[1]), np.float32)
        for column in range(old.shape[1]):
            sums = np.bincount(self.rows, weights * old[self.sources, column], self.n_rows)
            np.divide(sums, mass, out=sums, where=mass > 0)
            new[:, column] = sums
        if not halves:
            return new.reshape(-1)
        out = np.zeros(new.size + new.size % 2, np.uint16)
        out[: new.size] = new.reshape(-1).view(np.uint32) >> np.uint32(16)
        return out
