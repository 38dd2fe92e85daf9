"""A step of a parameter on a GPU, fused where the Triton kernels are installed."""

from __future__ import annotations

from torch import Tensor

from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.optim import steps
from cce_core.training.optimizer import Optimizer


def update(
    optimizer: Optimizer, p: Tensor, grad: steps.Gradient, unit: int, step: int, arrays: dict[str, Tensor]
) -> None:
    """`steps.update`, by the kernels where they are."""
    own = cuda.kernels()
    if own is None:
        steps.update(optimizer, p, grad, unit, step, arrays)
    else:
        flat = grad if isinstance(grad, tuple) else grad.view(-1)
        own.steps.step(optimizer, p, flat, unit, own.steps.State(step - 1, arrays))
