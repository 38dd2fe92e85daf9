"""Adagrad, for each number or for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.training.optimizer import Optimizer
from cce_core.training.rules import ADAGRAD, ROWWISE
from cce_core.training.state import State


class Adagrad(Optimizer):
    """Adagrad: s ← s + g², p ← p − lr·g / (√s + ε); row-wise, s holds one number a row: the sum of mean(g²).

    What has no gradient does not move, so a sparse gradient gives what the whole one would.

    Args:
        lr: learning rate, at least 0.
        eps: ε, above 0.
        rowwise: one number of state a row (a block of the memory) instead of one a float.
        max_norm: clip the gradients of a step to this norm.

    References:
        Duchi, Hazan, Singer, JMLR 12 (2011).

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.make_table("full", vocab=10, dim=4, seed=0)
        >>> optimizer = cce.Adagrad(lr=0.1, rowwise=True)
        >>> optimizer.step(table, table.backward([3], np.ones((1, 4))))
        >>> optimizer.state_bytes(table)
        40
    """

    def __init__(
        self, lr: float = 1e-2, eps: float = 1e-10, *, rowwise: bool = False, max_norm: float | None = None
    ) -> None:
        super().__init__(lr, max_norm)
        self.eps = _check.number("eps", eps, 0.0, open_at_least=True, in_float32=True)
        self.rowwise = _check.flag("rowwise", rowwise)
        self.kernel_id = ROWWISE if self.rowwise else ADAGRAD

    def state_arrays(self, size: int, unit: int, state: State) -> list[NDArray[np.float32]]:
        """The sums of squares."""
        return [state.array("squares", size // unit if self.rowwise else size)]

    def constants(self, step: int) -> tuple[float, ...]:
        """They do not change."""
        return self.lr, self.eps
