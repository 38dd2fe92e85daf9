"""What becomes of vectors when rows change hands.

    eviction     shared ← shared + w · (own − shared),   w = c / (c + N / n_shared)       what a row has learned is not lost
    admission    own ← shared                                                             no vector jumps
    state        own ← 0                                                                  of an optimiser: the new owner's own

c is the count of the evicted owner and N that of all ids without rows, so that w is about the evicted id's part of what its
shared row will serve; of several tables each has n_shared / n_tables of the rows. Of an id that has settled, the row that it
points to stands in place of the shared one. Rows change hands one after the other, each of them in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core.tiers.owners import Admissions, Owners


@jit
def _move(rows: Any, sources: Any, targets: Any, shares: Any, values: Any) -> None:
    for n in range(rows.shape[0]):
        row, target, source = rows[n], targets[n], sources[n]
        if target >= 0:
            for i in range(values.shape[1]):
                values[target, i] += shares[n] * (values[row, i] - values[target, i])
        for i in range(values.shape[1]):
            values[row, i] = values[source, i]


class Moves(NamedTuple):
    """What a step has to move, one row after the other.

    Attributes:
        rows: those that changed hands, int64 (n,).
        sources: the shared rows of the new owners.
        targets: the shared rows of the owners before; −1 where nothing is folded back.
        shares: w of each, float32.
    """

    rows: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    shares: NDArray[np.float32]

    @classmethod
    def of(cls, owners: Owners, changes: Admissions, n_shared: int, fold: bool = True) -> Moves:
        """The moves of a step.

        Args:
            owners: of the rows.
            changes: what a `step` of theirs gave.
            n_shared: rows that ids of all tables share by hash, which come last.
            fold: False drops what an evicted row has learned.
        """
        per_table = n_shared // owners.map.n_tables
        targets = owners.fallback_rows(changes.evicted, per_table)
        targets[(changes.evicted == 0) | (not fold)] = -1
        counts = changes.evicted_counts.astype(np.float64)
        shares = counts / np.maximum(counts + owners.sketch.mass / n_shared, 1.0)
        sources = owners.fallback_rows(changes.owners, per_table)
        return cls(changes.rows.astype(np.int64), sources, targets, shares.astype(np.float32))

    def compact(self) -> tuple[NDArray[np.int64], Moves]:
        """The rows that are read or changed, in order, and the same moves among these alone."""
        index = np.unique(np.concatenate([self.rows, self.sources, self.targets[self.targets >= 0]]))
        rows, sources = np.searchsorted(index, self.rows), np.searchsorted(index, self.sources)
        targets = np.where(self.targets < 0, -1, np.searchsorted(index, self.targets))
        return index, Moves(rows, sources, targets, self.shares)

    def apply(self, values: NDArray[np.float32]) -> None:
        """Move vectors, float32 (rows, width), in place.

        Example:
            >>> import numpy as np
            >>> from cce_core.tiers import Moves, Owners
            >>> owners, values = Owners(4, 1000), np.zeros((6, 1), np.float32)
            >>> values[4:] = 7
            >>> Moves.of(owners, owners.step(owners.count([1, 2])), 2).apply(values)
            >>> sorted(values[:, 0].tolist())
            [0.0, 0.0, 7.0, 7.0, 7.0, 7.0]
        """
        _move(self.rows, self.sources, self.targets, self.shares, values)

    def reset(self, states: Sequence[NDArray[np.float32]], n_rows: int) -> None:
        """Let new owners begin without what an optimiser knew of the owners before: arrays with as many floats for every row."""
        for state in states:
            state.reshape(n_rows, -1)[self.rows] = 0.0
