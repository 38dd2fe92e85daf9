"""What a forward pass leaves behind for its backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core.method.state import TableState


class Forward(NamedTuple):
    """A forward pass: the vectors, and what spares the backward pass of the same ids its work.

    Attributes:
        vectors: float32 (*shape of the ids, dim); the caller may overwrite them.
        ids: the ids as flat 64-bit words.
        inner: the vectors before the projection, where there is one.
        saved: the method's own.
        table: whose pass it was.
        generation: how often the table had been clustered until then.
        clock: what the table's guard showed.
    """

    vectors: NDArray[np.float32]
    ids: NDArray[np.uint64]
    inner: NDArray[np.float32] | None
    saved: Any
    table: TableState
    generation: int
    clock: int
