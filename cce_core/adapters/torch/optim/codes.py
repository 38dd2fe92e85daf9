"""Steps of memories that lie in their codec: decoded, moved, and rounded at random, a block of the codec at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cce_core.adapters.torch.operators import rounding, stored
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.optim.steps import Gradient
from cce_core.hashing.mix import derive_key
from cce_core.method.spec import ROUNDING
from cce_core.storage.codec import BLOCK, codec
from cce_core.training.optimizer import Optimizer


def update(
    take: Callable[..., None], optimizer: Optimizer, parameter: Tensor, grad: Gradient, unit: int, step: int,
    arrays: dict[str, Tensor],
) -> None:  # fmt: skip
    """`steps.update`, as `take` does it, of the codes that a parameter stands for.

    Of a sparse gradient, where the formula moves nothing else, only the blocks of the codec that it touches are decoded and
    rounded anew. Draws follow from the table's seed and the step, so that equal ranks stay equal. Off the CPU, codes go there and
    back.

    Raises:
        RuntimeError: the gradient is not finite, or the table is there no more.
    """
    module, size = stored.owner_of(parameter), parameter.numel()
    if not bool((grad[1] if isinstance(grad, tuple) else grad).isfinite().all()):
        raise RuntimeError("a gradient holds NaN or infinity, which codes cannot: nothing of this table was changed")
    spec, chosen = module.spec, None
    coder, codes, scales = codec(spec.codec), module.codes.cpu(), module.scales.cpu()
    if isinstance(grad, tuple) and not optimizer.updates_all():
        first = array(grad[0].cpu()).view(np.int64) * unit
        places = first[:, None] + np.array(sorted({*range(0, unit, BLOCK), unit - 1}))
        chosen = np.unique(places // BLOCK)
    values = rounding.decoded(array(codes), array(scales), coder, size, chosen)
    moved = torch.from_numpy(values).to(parameter.device)
    take(optimizer, moved, grad, unit, step, arrays)
    key = derive_key(spec.seed, ROUNDING, step)
    rounding.encode(np.asarray(moved.cpu()), array(codes), array(scales), coder, chosen, key)
    for held, new in ((module.codes, codes), (module.scales, scales)):
        if held.device.type == "cpu":
            torch.autograd.graph.increment_version(held)
        else:
            held.copy_(new)


@functools.cache
def refuse_others() -> None:
    """From now on, optimisers that write into parameters refuse those that have no numbers."""
    register_optimizer_step_pre_hook(_refuse)


def _refuse(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    if not getattr(optimizer, "takes_codes", False):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if stored.is_hollow(parameter):
                    raise RuntimeError(
                        f"{type(optimizer).__name__} trains floats, which a table with rounding='stochastic' does not keep: "
                        "take FusedSGD, FusedAdagrad or FusedAdam for it, or rounding='straight-through'"
                    )
