"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._threads import parallel_for
from cce_core.training.optimizer import FLOATS_A_THREAD, Optimizer
from cce_core.training.rules import SGD as SGD_RULE
from cce_core.training.rules import sgd, sgd_momentum
from cce_core.training.state import State


class SGD(Optimizer):
    """Stochastic gradient descent: b ← μ·b + g + λ·p, p ← p − lr·b.

    Without momentum and weight decay a sparse gradient costs its touched units alone; with either, every step moves the
    whole parameter, as the formula says.

    Args:
        lr: learning rate, at least 0.
        momentum: μ in [0, 1].
        weight_decay: λ, added to the gradient (after any clipping).
        max_norm: clip the gradients of a step to this norm.
        projection_lr: the learning rate of projections; None for the same.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.make_table("full", vocab=10, dim=2, seed=0)
        >>> before = table.lookup(3)
        >>> cce.SGD(lr=0.5).step(table, table.backward(3, [1.0, 2.0]))
        >>> (before - table.lookup(3)).round(3)
        array([0.5, 1. ], dtype=float32)
    """

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        max_norm: float | None = None,
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(lr, max_norm, projection_lr)
        self.momentum = _check.number("momentum", momentum, 0.0, 1.0, in_float32=True)
        self.weight_decay = _check.number("weight_decay", weight_decay, 0.0, in_float32=True)

    @property
    def kernel_id(self) -> int | None:  # type: ignore[override]
        """Plain descent alone is compiled together with the backward pass."""
        return None if self.momentum or self.weight_decay else SGD_RULE

    def updates_all(self) -> bool:
        return bool(self.momentum or self.weight_decay)

    def constants(self, step: int, lr: float | None = None) -> tuple[float, ...]:
        """The learning rate."""
        return (self.lr if lr is None else lr,)

    def update_dense(self, p: NDArray[Any], g: NDArray[Any], unit: int, state: State) -> None:
        lr, decay = np.float32(self.rate(state)), np.float32(self.weight_decay)
        if self.momentum:
            buffer = state.array("momentum", p.size)
            parallel_for(sgd_momentum, p.size, FLOATS_A_THREAD, p, g, buffer, lr, decay, np.float32(self.momentum))
        else:
            parallel_for(sgd, p.size, FLOATS_A_THREAD, p, g, lr, decay)
