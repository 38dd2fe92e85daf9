"""The core's optimisers as torch's: one pass over a parameter where torch takes several."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.operators import cuda, stored
from cce_core.adapters.torch.operators.arrays import array
from cce_core.adapters.torch.operators.openmp import used
from cce_core.adapters.torch.optim import codes, device, steps
from cce_core.adapters.torch.optim.steps import Gradient
from cce_core.sketching.gradient import SparseGradient
from cce_core.training import SGD, Adagrad, AdamW
from cce_core.training.optimizer import Optimizer
from cce_core.training.state import State

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@functools.lru_cache(maxsize=64, typed=True)  # True is no momentum, though it equals 1.0
def _known(kind: Callable[..., Optimizer], *numbers: Any, **flags: Any) -> Optimizer:
    return kind(*numbers, **flags)


def _made(kind: Callable[..., Optimizer], *numbers: Any, **flags: Any) -> Optimizer:
    """An optimiser of the core: of its numbers alone, so that it need not be made anew, and checked, at every step."""
    try:
        return _known(kind, *numbers, **flags)
    except TypeError:  # a list of betas has no hash
        return kind(*numbers, **flags)


class Fused(torch.optim.Optimizer):
    """What the fused optimisers share: parameters of any module in float32, gradients dense or sparse.

    They are fused on the CPU, and on a GPU where the Triton kernels are installed; elsewhere torch's operations do the same.

    State lies in torch's own `state`, one tensor a moment, so that schedulers, `state_dict` and `cluster(optimizer=…)` work as
    with any optimiser. The rows of a sparse gradient are those of the parameter.
    """

    takes_codes = True

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._core(defaults)  # refuses what is out of range
        super().__init__(params, defaults)

    @abc.abstractmethod
    def _core(self, group: dict[str, Any]) -> Optimizer:
        """The core's optimiser of a group."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place.

        Args:
            closure: computes the loss anew and returns it.

        Raises:
            RuntimeError: a parameter is not float32, not contiguous, or sharded.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @guard.reading  # not in the midst of a clustering's change of memory and moments
    @used
    def _step(self) -> None:
        for group in self.param_groups:
            core = self._core(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(core, parameter, parameter.grad)

    def _update(self, core: Optimizer, parameter: Tensor, grad: Tensor) -> None:
        if hasattr(parameter, "full_tensor"):
            raise RuntimeError(
                f"{type(self).__name__} takes whole parameters, got one that is sharded over processes: take torch.optim's own "
                "optimiser for them"
            )
        in_codes = stored.is_hollow(parameter)
        if parameter.dtype != torch.float32 or not (in_codes or parameter.is_contiguous()):
            raise RuntimeError(
                f"{type(self).__name__} takes contiguous float32 parameters, got {parameter.dtype} with strides "
                f"{parameter.stride()}: take torch.optim's own optimiser for them"
            )
        own = self.state[parameter]
        step, arrays = own.get("step", 0) + 1, {name: t.view(-1) for name, t in own.items() if isinstance(t, Tensor)}
        unit = parameter.numel() // max(1, parameter.shape[0]) if parameter.dim() > 1 else 1
        for name, moment in arrays.items():
            if moment.numel() not in (parameter.numel(), parameter.numel() // unit):
                raise RuntimeError(
                    f"the state {name!r} has {moment.numel():,} numbers for a parameter of shape {tuple(parameter.shape)}: a "
                    "table that changes its phase must be given its optimiser, cluster_(model, optimizer)"
                )
        gradient: Gradient = grad
        if grad.is_sparse:
            grad = grad.coalesce()
            gradient = grad.indices()[0].contiguous(), grad.values().contiguous().view(-1, unit)
        else:
            gradient = grad.contiguous()
        if cuda.here(parameter):
            take = device.update
        else:
            take = in_core if parameter.device.type == "cpu" else steps.update
        if in_codes:
            codes.update(take, core, parameter, gradient, unit, step, arrays)
        else:
            take(core, parameter.detach().view(-1), gradient, unit, step, arrays)
            torch.autograd.graph.increment_version(parameter)
        own["step"] = step
        for name, moment in arrays.items():
            if name not in own:
                own[name] = moment.view(parameter.shape) if moment.numel() == parameter.numel() else moment


def in_core(optimizer: Optimizer, p: Tensor, grad: Gradient, unit: int, step: int, arrays: dict[str, Tensor]) -> None:
    """`steps.update` in the core's loops, on the CPU."""
    flat, state = array(p), State(step, {name: array(tensor) for name, tensor in arrays.items()})
    if isinstance(grad, tuple):
        index, values = grad
        touched = SparseGradient(array(index).view(np.int64), array(values).reshape(-1, unit), flat.size)
        optimizer.update_rows(flat, touched, unit, state)
    else:
        optimizer.update_dense(flat, array(grad), unit, state)
    for name, moment in state.arrays.items():
        if name not in arrays:
            arrays[name] = torch.from_numpy(moment).clone()


class FusedSGD(Fused):
    """Stochastic gradient descent: b ← μ·b + g + λ·p, p ← p − lr·b; see `cce_core.SGD`.

    Args:
        params: parameters, or groups of them, as for any torch optimiser.
        lr, momentum, weight_decay: as for `cce_core.SGD`.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, FusedSGD
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048, sparse=True, rank=0, seed=0)
        >>> optimizer = FusedSGD(emb.parameters(), lr=0.1)
        >>> emb(torch.tensor([1, 2])).sum().backward()
        >>> optimizer.step()
    """

    def __init__(self, params: Params, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _core(self, group: dict[str, Any]) -> Optimizer:
        return _made(SGD, float(group["lr"]), group["momentum"], group["weight_decay"])


class FusedAdagrad(Fused):
    """Adagrad: s ← s + g², p ← p − lr·g / (√s + ε); see `cce_core.Adagrad`.

    Args:
        params: parameters, or groups of them, as for any torch optimiser.
        lr, eps, rowwise: as for `cce_core.Adagrad`.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, FusedAdagrad
        >>> emb = Embedding(1000, 16, method="full", sparse=True)
        >>> optimizer = FusedAdagrad(emb.parameters(), lr=0.1, rowwise=True)
        >>> emb(torch.tensor([1, 2])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[emb.memory]["squares"].shape
        torch.Size([1000])
    """

    def __init__(self, params: Params, lr: float = 1e-2, eps: float = 1e-10, *, rowwise: bool = False) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "rowwise": rowwise})

    def _core(self, group: dict[str, Any]) -> Optimizer:
        return _made(Adagrad, float(group["lr"]), group["eps"], rowwise=group["rowwise"])


class FusedAdam(Fused):
    """Adam with decoupled weight decay, 0 unless given; see `cce_core.AdamW`.

    Args:
        params: parameters, or groups of them, as for any torch optimiser.
        lr, betas, eps, weight_decay, lazy: as for `cce_core.AdamW`. With `lazy` a sparse gradient costs its rows alone, as with
            torch's SparseAdam; without, all moments decay at every step.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, FusedAdam
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048, seed=0)
        >>> optimizer = FusedAdam(emb.parameters(), lr=1e-3)
        >>> emb(torch.tensor([1, 2])).sum().backward()
        >>> optimizer.step()
        >>> report = emb.cluster(optimizer=optimizer)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "lazy": lazy})

    def _core(self, group: dict[str, Any]) -> Optimizer:
        return _made(AdamW, float(group["lr"]), group["betas"], group["eps"], group["weight_decay"], lazy=group["lazy"])
