"""A step of a parameter on a GPU, fused where the Triton kernels are installed."""

from __future__ import annotations

from torch import Tensor

from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.optim import steps
from cce_core.training.optimizer import Optimizer


def update(
    optimizer: Optimizer, p: Tensor, grad: Tensor | tuple[Tensor, Tensor], step: int, arrays: dict[str, Tensor]
) -> None:
    """One step of a parameter in place, by one of the core's optimisers.

    Args:
        optimizer: of the core, without clipping.
        p: float32 (rows, unit), contiguous.
        grad: of that shape, or (rows' numbers, their gradients), distinct.
        step: how many there have been, with this one.
        arrays: the state by the core's names, flat; grows at the first step.
    """
    own, unit = cuda.kernels(), p.shape[1]
    if own is None:
        steps.update(optimizer, p, grad, step, arrays)
        return
    state = own.steps.State(step - 1, arrays)
    own.steps.step(optimizer, p.view(-1), grad if isinstance(grad, tuple) else grad.reshape(-1), unit, state)
