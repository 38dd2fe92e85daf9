"""Adagrad, for each number or for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.training.optimizer import Optimizer
from cce_core.training.rules import ADAGRAD, ROWWISE, ROWWISE_HALF
from cce_core.training.state import State


class Adagrad(Optimizer):
    """Adagrad: s ← s + g², p ← p − lr·g / (√s + ε); row-wise, s holds one number a row: the sum of mean(g²).

    What has no gradient does not move, so a sparse gradient gives what the whole one would.

    Args:
        lr: learning rate, at least 0.
        eps: ε, above 0.
        rowwise: one number of state a row (a block of the memory) instead of one a float.
        state_dtype: "float32", or, row-wise, "bfloat16": half the bytes, rounded at random so that small squares still add up.
        max_norm: clip the gradients of a step to this norm.
        projection_lr: the learning rate of projections, whose gradients are sums over all ids; None for the same.

    Raises:
        ValueError: a number is out of range, or bfloat16 is asked for without `rowwise`.

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
        self,
        lr: float = 1e-2,
        eps: float = 1e-10,
        *,
        rowwise: bool = False,
        state_dtype: str = "float32",
        max_norm: float | None = None,
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(lr, max_norm, projection_lr)
        self.eps = _check.number("eps", eps, 0.0, open_at_least=True, in_float32=True)
        self.rowwise = _check.flag("rowwise", rowwise)
        self.state_dtype = _check.choice("state_dtype", state_dtype, ("float32", "bfloat16"))
        half = self.state_dtype == "bfloat16"
        if half and not self.rowwise:
            raise ValueError("state_dtype 'bfloat16' goes with rowwise=True: one number of state a row")
        self.kernel_id = ROWWISE_HALF if half else ROWWISE if self.rowwise else ADAGRAD

    def state_arrays(self, size: int, unit: int, state: State) -> list[NDArray[np.float32]]:
        """The sums of squares."""
        if self.kernel_id == ROWWISE_HALF:
            return [state.halves("squares", size // unit)]
        return [state.array("squares", size // unit if self.rowwise else size)]

    def constants(self, step: int, lr: float | None = None) -> tuple[float, ...]:
        """The learning rate and ε; in bfloat16 the step, which keys the draws."""
        fixed = self.lr if lr is None else lr, self.eps
        return (*fixed, float(step)) if self.kernel_id == ROWWISE_HALF else fixed
