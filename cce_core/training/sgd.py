"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import sliced
from cce_core.sketching.gradient import SparseGradient
from cce_core.training.optimizer import FLOATS_A_THREAD, Optimizer, State


@jit
def _plain(start: int, stop: int, p: Any, g: Any, lr: Any, decay: Any) -> None:
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        p[i] -= lr * (g[i] + decay * p[i])


@jit
def _momentum(start: int, stop: int, p: Any, g: Any, b: Any, lr: Any, decay: Any, mu: Any) -> None:
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        b[i] = mu * b[i] + g[i] + decay * p[i]
        p[i] -= lr * b[i]


@jit
def _touched(start: int, stop: int, p: Any, index: Any, g: Any, lr: Any) -> None:
    for n in range(start, stop):
        at = index[n] * g.shape[1]
        for i in range(g.shape[1]):
            p[at + i] -= lr * g[n, i]


class SGD(Optimizer):
    """Stochastic gradient descent: b ← μ·b + g + λ·p, p ← p − lr·b.

    Without momentum and weight decay a sparse gradient costs its touched units alone; with either, every step moves the
    whole parameter, as the formula says.

    Args:
        lr: learning rate, at least 0.
        momentum: μ in [0, 1].
        weight_decay: λ, added to the gradient.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.make_table("full", vocab=10, dim=2, seed=0)
        >>> before = table.lookup(3)
        >>> cce.SGD(lr=0.5).step(table, table.backward(3, [1.0, 2.0]))
        >>> (before - table.lookup(3)).round(3)
        array([0.5, 1. ], dtype=float32)
    """

    def __init__(self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(lr)
        self.momentum = _check.number("momentum", momentum, 0.0, 1.0, in_float32=True)
        self.weight_decay = _check.number("weight_decay", weight_decay, 0.0, in_float32=True)

    def _moves_all(self) -> bool:
        return bool(self.momentum or self.weight_decay)

    def _update(self, p: NDArray[Any], g: NDArray[Any], unit: int, state: State) -> None:
        lr, decay = np.float32(self.lr), np.float32(self.weight_decay)
        if self.momentum:
            buffer = state.array("momentum", p.size)
            sliced(_momentum, p.size, FLOATS_A_THREAD, p, g, buffer, lr, decay, np.float32(self.momentum))
        else:
            sliced(_plain, p.size, FLOATS_A_THREAD, p, g, lr, decay)

    def _update_touched(self, p: NDArray[Any], gradient: SparseGradient, unit: int, state: State) -> None:
        if self.momentum or self.weight_decay:
            super()._update_touched(p, gradient, unit, state)
        else:
            n, grain = len(gradient.index), FLOATS_A_THREAD // unit
            sliced(_touched, n, grain, p, gradient.index, gradient.values, np.float32(self.lr))
