"""Gradients that are kept for the touched blocks alone."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class SparseGradient:
    """The gradient of a parameter, kept for the touched units alone.

    Attributes:
        index: int64 (touched,), each unit at most once, in order of first touch.
        values: float32 (touched, unit).
        size: floats of the whole parameter.
        turn: of a table that gives rows to ids, how often rows had changed hands when it was made. None elsewhere.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> gradient = cce.SparseGradient(np.array([1]), np.array([[5.0, 6.0]], np.float32), 6)
        >>> gradient.dense()
        array([0., 0., 5., 6., 0., 0.], dtype=float32)
    """

    index: NDArray[np.int64]
    values: NDArray[np.float32]
    size: int
    turn: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of index and values."""
        return self.index.nbytes + self.values.nbytes

    def dense(self) -> NDArray[np.float32]:
        """The whole gradient, zero where nothing was touched: float32 (size,)."""
        out = np.zeros((self.size // self.values.shape[1], self.values.shape[1]), np.float32)
        out[self.index] = self.values
        return out.reshape(-1)

    def __add__(self, other: SparseGradient) -> SparseGradient:
        """The sum of two gradients of one parameter; units in the order of their numbers."""
        index, where = np.unique(np.concatenate([self.index, other.index]), return_inverse=True)
        values = np.zeros((len(index), self.values.shape[1]), np.float32)
        values[where[: len(self.index)]] += self.values
        values[where[len(self.index) :]] += other.values
        turns = [turn for turn in (self.turn, other.turn) if turn is not None]
        return SparseGradient(index, values, self.size, min(turns, default=None))


Gradient = NDArray[np.float32] | SparseGradient
