"""Adagrad, for each number or for each row."""

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
def _rows(start: int, stop: int, p: Any, index: Any, g: Any, sums: Any, lr: Any, eps: Any, rowwise: bool) -> None:
    unit = g.shape[1]
    for n in range(start, stop):
        row = n if index is None else index[n]
        if rowwise:
            mean = np.float32(0.0)
            for i in range(unit):
                mean += g[n, i] * g[n, i]
            sums[row] += mean / np.float32(unit)
            scale = lr / (np.sqrt(sums[row]) + eps)
            for i in range(unit):
                p[row * unit + i] -= scale * g[n, i]
        else:
            for i in range(unit):
                at = row * unit + i
                sums[at] += g[n, i] * g[n, i]
                p[at] -= lr * g[n, i] / (np.sqrt(sums[at]) + eps)


class Adagrad(Optimizer):
    """Adagrad: s ← s + g², p ← p − lr·g / (√s + ε); row-wise, s holds one number a row: the sum of mean(g²).

    What has no gradient does not move, so a sparse gradient gives what the whole one would.

    Args:
        lr: learning rate, at least 0.
        eps: ε, above 0.
        rowwise: one number of state a row (a block of the memory) instead of one a float.

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

    def __init__(self, lr: float = 1e-2, eps: float = 1e-10, *, rowwise: bool = False) -> None:
        super().__init__(lr)
        self.eps = _check.number("eps", eps, 0.0, open_at_least=True, in_float32=True)
        self.rowwise = bool(rowwise)

    def _update(self, p: NDArray[Any], g: NDArray[Any], unit: int, state: State) -> None:
        self._apply(p, None, g.reshape(-1, unit), unit, state)

    def _update_touched(self, p: NDArray[Any], gradient: SparseGradient, unit: int, state: State) -> None:
        self._apply(p, gradient.index, gradient.values, unit, state)

    def _apply(self, p: NDArray[Any], index: Any, g: NDArray[Any], unit: int, state: State) -> None:
        sums = state.array("squares", p.size // unit if self.rowwise else p.size)
        lr, eps = np.float32(self.lr), np.float32(self.eps)
        sliced(_rows, len(g), FLOATS_A_THREAD // unit, p, index, g, sums, lr, eps, self.rowwise)
