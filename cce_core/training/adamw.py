"""Adam and AdamW, over the whole parameter or over its touched rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import sliced
from cce_core.sketching.gradient import SparseGradient
from cce_core.training.optimizer import FLOATS_A_THREAD, Optimizer, State

_1 = np.float32(1.0)


@jit
def _dense(
    start: int, stop: int, p: Any, g: Any, m: Any, v: Any,
    beta1: float, beta2: float, keep: float, rate: float, correct: float, eps: float,
) -> None:  # fmt: skip
    b1, b2, k, r = np.float32(beta1), np.float32(beta2), np.float32(keep), np.float32(rate)
    c, e, a1, a2 = np.float32(correct), np.float32(eps), _1 - b1, _1 - b2
    for i in range(np.uint64(start), np.uint64(stop)):  # unsigned, so that the loop becomes vector instructions
        mean = b1 * m[i] + a1 * g[i]
        square = b2 * v[i] + a2 * g[i] * g[i]
        m[i] = mean
        v[i] = square
        p[i] = k * p[i] - r * mean / (np.sqrt(square) * c + e)


@jit
def _touched(
    start: int, stop: int, p: Any, index: Any, g: Any, m: Any, v: Any,
    beta1: float, beta2: float, keep: float, rate: float, correct: float, eps: float,
) -> None:  # fmt: skip
    unit = g.shape[1]
    for n in range(start, stop):
        at = index[n] * unit
        own = slice(at, at + unit)
        _dense(0, unit, p[own], g[n], m[own], v[own], beta1, beta2, keep, rate, correct, eps)


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

        m ← β₁·m + (1−β₁)·g        v ← β₂·v + (1−β₂)·g²
        p ← (1 − lr·λ)·p − lr · m/(1−β₁ᵗ) / ( √(v/(1−β₂ᵗ)) + ε )

    Args:
        lr: learning rate, at least 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε, above 0.
        weight_decay: λ.
        lazy: leave what the batch does not touch as it is: its moments are not decayed, its values neither moved nor
            decayed. It then costs the touched units alone, but is another algorithm. A dense gradient touches all.

    References:
        Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
        >>> optimizer = cce.AdamW(lr=1e-3)
        >>> optimizer.step(table, table.backward([1, 2], np.ones((2, 16))))
        >>> optimizer.state_bytes(table) == 2 * 4 * table.num_params
        True
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__(lr)
        self.betas = tuple(_below_one(f"betas[{i}]", beta) for i, beta in enumerate(betas))
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {len(self.betas)}")
        self.eps = _check.number("eps", eps, 0.0, open_at_least=True, in_float32=True)
        self.weight_decay = _check.number("weight_decay", weight_decay, 0.0, in_float32=True)
        self.lazy = bool(lazy)
        if self.lr * self.weight_decay > 1.0:
            raise ValueError(
                f"lr · weight_decay must be at most 1, or values change their sign, got {lr:g} · {weight_decay:g}"
            )

    def _update(self, p: NDArray[Any], g: NDArray[Any], unit: int, state: State) -> None:
        sliced(_dense, p.size, FLOATS_A_THREAD, p, g, *self._numbers(p, state))

    def _update_touched(self, p: NDArray[Any], gradient: SparseGradient, unit: int, state: State) -> None:
        if not self.lazy:
            super()._update_touched(p, gradient, unit, state)
        else:
            n, grain = len(gradient.index), FLOATS_A_THREAD // unit
            sliced(_touched, n, grain, p, gradient.index, gradient.values, *self._numbers(p, state))

    def _moves_all(self) -> bool:
        return not self.lazy

    def _numbers(self, p: NDArray[Any], state: State) -> tuple[Any, ...]:
        """The moments, and the step's constants."""
        b1, b2 = self.betas
        rate, correct = self.lr / (1.0 - b1**state.step), (1.0 - b2**state.step) ** -0.5
        keep = 1.0 - self.lr * self.weight_decay
        return state.array("m", p.size), state.array("v", p.size), b1, b2, keep, rate, correct, self.eps


class Adam(AdamW):
    """Adam: AdamW without weight decay.

    Args:
        lr, betas, eps, lazy: as for `AdamW`.

    References:
        Kingma and Ba, arXiv:1412.6980.

    Example:
        >>> import cce_core as cce
        >>> cce.Adam(lr=1e-3).weight_decay
        0.0
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, *, lazy: bool = False
    ) -> None:
        super().__init__(lr, betas, eps, 0.0, lazy=lazy)


def _below_one(name: str, value: Any) -> float:
    beta = _check.number(name, value, 0.0, in_float32=True)
    if beta >= 1.0:
        raise ValueError(f"{name} must be below 1, got {beta:g}")
    return beta
