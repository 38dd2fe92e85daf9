"""Adam and AdamW, over the whole parameter or over its touched rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.training.optimizer import Optimizer
from cce_core.training.rules import ADAM, ADAM_HALF
from cce_core.training.state import State


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

        m ← β₁·m + (1−β₁)·g        v ← β₂·v + (1−β₂)·g²
        p ← (1 − lr·λ)·p − lr · m/(1−β₁ᵗ) / ( √(v/(1−β₂ᵗ)) + ε )

    Row-wise, v holds one number a row, of mean(g²), and both moments are bfloat16, rounded at random: at rank 4, 10 bytes an id
    instead of 32. t counts the steps of the parameter, also of a row that a lazy step leaves alone, as SparseAdam of PyTorch and
    the row-wise Adam of FBGEMM count: a counter per row would be bytes per id.

    Args:
        lr: learning rate, at least 0.
        betas: β₁ and β₂ in [0, 1).
        eps: ε, above 0.
        weight_decay: λ.
        lazy: leave what the batch does not touch as it is: its moments are not decayed, its values neither moved nor
            decayed. It then costs the touched units alone, but is another algorithm. A dense gradient touches all.
        rowwise: one second moment a row (a block of the memory), and bfloat16 for both.
        max_norm: clip the gradients of a step to this norm.
        projection_lr: the learning rate of projections, whose gradients are sums over all ids; None for the same.

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
        rowwise: bool = False,
        max_norm: float | None = None,
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(lr, max_norm, projection_lr)
        self.betas = tuple(
            _below_one(f"betas[{i}]", beta) for i, beta in enumerate(_check.sequence("betas", betas, "two numbers"))
        )
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {len(self.betas)}")
        self.eps = _check.number("eps", eps, 0.0, open_at_least=True, in_float32=True)
        self.weight_decay = _check.number("weight_decay", weight_decay, 0.0, in_float32=True)
        self.lazy, self.rowwise = _check.flag("lazy", lazy), _check.flag("rowwise", rowwise)
        self.kernel_id = ADAM_HALF if self.rowwise else ADAM
        most = max(self.lr, self.projection_lr or 0.0)
        if most * self.weight_decay > 1.0:
            raise ValueError(
                f"lr · weight_decay must be at most 1, or values change their sign, got {most:g} · {weight_decay:g}"
            )

    def updates_all(self) -> bool:
        return not self.lazy

    def state_arrays(self, size: int, unit: int, state: State) -> list[NDArray[np.float32]]:
        """Both moments."""
        if self.rowwise:
            return [state.halves("m", size), state.halves("v", size // unit)]
        return [state.array("m", size), state.array("v", size)]

    def constants(self, step: int, lr: float | None = None) -> tuple[float, ...]:
        """β₁, β₂, what the decay leaves, the step size, the correction of v, and ε; row-wise the step, which keys the draws."""
        (b1, b2), lr = self.betas, self.lr if lr is None else lr
        rate, correct = lr / (1.0 - b1**step), (1.0 - b2**step) ** -0.5
        fixed = b1, b2, 1.0 - lr * self.weight_decay, rate, correct, self.eps
        return (*fixed, float(step)) if self.rowwise else fixed


class Adam(AdamW):
    """Adam: AdamW without weight decay.

    Args:
        lr, betas, eps, lazy, rowwise, max_norm, projection_lr: as for `AdamW`.

    References:
        Kingma and Ba, arXiv:1412.6980.

    Example:
        >>> import cce_core as cce
        >>> cce.Adam(lr=1e-3).weight_decay
        0.0
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        lazy: bool = False,
        rowwise: bool = False,
        max_norm: float | None = None,
        projection_lr: float | None = None,
    ) -> None:
        super().__init__(
            lr, betas, eps, 0.0, lazy=lazy, rowwise=rowwise, max_norm=max_norm, projection_lr=projection_lr
        )


def _below_one(name: str, value: Any) -> float:
    beta = _check.number(name, value, 0.0, in_float32=True)
    if beta >= 1.0:
        raise ValueError(f"{name} must be below 1, got {beta:g}")
    return beta
