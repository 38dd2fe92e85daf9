"""What becomes of vectors when rows change hands.

    eviction     shared ← shared + w · (own − shared),   w = c / (c + N / n_shared)       what a row has learned is not lost
    admission    own ← shared                                                             no vector jumps
    state        own ← 0                                                                  of an optimiser: the new owner's own

c is the count of the evicted owner and N that of all ids without rows, so that w is the evicted id's part of what its shared row
will serve. Rows change hands one after the other, each of them in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def transfer(
    owners: Owners,
    changes: Admissions,
    n_shared: int,
    values: NDArray[np.float32],
    states: Sequence[NDArray[np.float32]] = (),
    *,
    fold: bool = True,
) -> None:
    """Move vectors, and what an optimiser knows of them, as rows have changed hands, in place.

    Args:
        owners: of the rows.
        changes: what a `step` of theirs gave.
        n_shared: shared rows, which follow the own ones.
        values: float32 (n_slots + n_shared, width).
        states: arrays of floats, each with as many for every row.
        fold: False drops what an evicted row has learned.

    Example:
        >>> import numpy as np
        >>> from cce_core.tiers import Owners, transfer
        >>> owners, values = Owners(4, 1000), np.zeros((6, 1), np.float32)
        >>> values[4:] = 7
        >>> transfer(owners, owners.step(owners.count([1, 2])), 2, values)
        >>> sorted(values[:, 0].tolist())
        [0.0, 0.0, 7.0, 7.0, 7.0, 7.0]
    """
    sources = owners.map.shared_rows(changes.owners, n_shared)
    targets = owners.map.shared_rows(changes.evicted, n_shared)
    targets[(changes.evicted == 0) | (not fold)] = -1
    counts = changes.evicted_counts.astype(np.float64)
    shares = counts / np.maximum(counts + owners.sketch.mass / n_shared, 1.0)
    _move(changes.rows, sources, targets, shares.astype(np.float32), values)
    for state in states:
        state.reshape(len(values), -1)[changes.rows] = 0.0
