"""How operators of `torch.ops.cce` are registered, and what goes from a forward pass to its backward pass beside its outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.operators.openmp import used

_LIBRARY = torch.library.Library("cce", "DEF")


class Context(Protocol):
    """What autograd keeps of a call between its two passes, and what these operators keep there beside it."""

    saved_tensors: tuple[Any, ...]
    needs_input_grad: tuple[bool, ...]
    kind: torch.dtype
    spec: str
    part: str
    sparse: bool
    n_inputs: int
    addresses: NDArray[np.uint64] | None
    inner: Tensor | None

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


Inputs: TypeAlias = tuple[Any, ...]
Operator: TypeAlias = Callable[..., Any]


class Handover(threading.local):
    """What is on its way from a forward pass to its backward pass without being an output; tracing never sees it.

    Attributes:
        wanted: whether a forward pass is to leave anything here.
        addresses: uint64 (columns, n), what it left; or what the running scatter or dot may use.
        inner: what it left of the vectors before their projection.
    """

    wanted = False
    addresses: NDArray[np.uint64] | None = None
    inner: Tensor | None = None


handover = Handover()


def using(addresses: NDArray[np.uint64] | None, operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operator that may use these addresses."""
    handover.addresses = addresses
    try:
        return operator(*arguments)
    finally:
        handover.addresses = None


_ANYWHERE: dict[str, Any] = {}
ON_GPU: dict[str, Operator] = {}


def _first(kernel: Operator, anywhere: Operator) -> Operator:
    def run(*arguments: Any) -> Any:
        found = kernel(*arguments)
        return anywhere(*arguments) if found is None else found

    return run


def define(name: str, schema: str, core: Operator, anywhere: Operator | None, like: Operator) -> Any:
    """Register an operator: how it runs in the core's loops, on other devices (if it does), and what shape it gives.

    On a GPU the kernel of that name among `cuda.OPERATORS` takes it, or leaves it to how it runs anywhere.

    Returns:
        The operator.
    """
    _LIBRARY.define(name + schema)
    _ANYWHERE[name] = anywhere
    _LIBRARY.impl(name, used(core), "CPU")
    if anywhere is not None:
        _LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, anywhere, "FuncTorchBatched")
        if name in cuda.OPERATORS:
            ON_GPU[name] = _first(cuda.OPERATORS[name], anywhere)
            _LIBRARY.impl(name, ON_GPU[name], "CUDA")
    torch.library.register_fake(f"cce::{name}", like, lib=_LIBRARY)
    return getattr(torch.ops.cce, name).default


def decompositions() -> dict[Any, Operator]:
    """The operators of the adapter in torch's own operations, for exported programs that are to run without this library.

    An exported program calls `torch.ops.cce`, which is there once `cce_core.adapters.torch` is imported: the compiled loops. What
    is run elsewhere, in C++ or in a process without this package, is made of torch's operations alone. `torch.onnx.export` takes
    them unasked. Ids outside the vocabulary are not refused then.

    Returns:
        A table for `ExportedProgram.run_decompositions`.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding, decompositions
        >>> emb = Embedding(1000, 16, method="hash", num_params=2048, seed=0)
        >>> program = torch.export.export(emb, (torch.arange(5),)).run_decompositions(decompositions())
        >>> any("cce" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
        False
    """
    return {getattr(torch.ops.cce, name).default: anywhere for name, anywhere in _ANYWHERE.items() if anywhere}


def known_to_onnx() -> None:
    """Let `torch.onnx.export`, which looks into torch's own table of decompositions, take the operators apart."""
    for operator, anywhere in decompositions().items():
        if operator not in torch._decomp.decomposition_table:
            torch._decomp.register_decomposition(operator)(anywhere)


def define_in_place(name: str, schema: str, kernel: Operator) -> Any:
    """Register an operator that changes its arguments and returns nothing, of one kernel for every device.

    Returns:
        The operator.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cce::{name}", lambda *arguments: None, lib=_LIBRARY)
    return getattr(torch.ops.cce, name).default


_ORDINARY = torch._C._dispatch_keys(torch.empty(0, device="cpu")).raw_repr()  # of the CPU, no subclass and no transform


def differentiable(
    operator: Any, save: Callable[[Context, Inputs], None], back: Operator, keeps: bool = False,
    kernel: Operator | None = None, transformed: Operator | None = None,
) -> Any:  # fmt: skip
    """Give an operator its gradient. `register_autograd` would do so too, but drops forward-mode tangents without a word.

    `torch.func` gets what the operator is made of anywhere, or `transformed` where the gradient is not that of these operations.

    Returns:
        The operator; or, where its kernel on the CPU is given, a function that does the same and leaves the dispatcher out for
        ordinary tensors, which is a third of the cost of a small call.
    """

    direct, back = operator if kernel is None else used(kernel), guard.reading(back)
    transformed = transformed or _ANYWHERE[operator._opname]

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Context, keys: Any, *inputs: Any) -> Any:
            handover.wanted = keeps and any(ctx.needs_input_grad)
            try:
                if keys is None:
                    out = direct(*inputs)
                else:
                    with torch._C._AutoDispatchBelowAutograd():
                        out = operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)
            finally:
                if keeps:
                    ctx.addresses, ctx.inner = handover.addresses, handover.inner
                    handover.addresses, handover.inner, handover.wanted = None, None, False
            save(ctx, inputs)
            return out

        @staticmethod
        def backward(ctx: Context, *grads: Any) -> Any:
            return (None, *back(ctx, *grads))

    def run(keys: Any, *inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return transformed(*inputs)
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return Gradient.apply(keys, *inputs)
        with torch._C._AutoDispatchBelowAutograd():  # nobody asks for a gradient: half the cost of a call
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    def call(*inputs: Any) -> Any:  # in one piece: functions and generators would cost a call each
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
        ):
            return operator(*inputs)
        for x in inputs:
            if isinstance(x, Tensor) and torch._C._dispatch_keys(x).raw_repr() != _ORDINARY:
                return operator(*inputs)
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return Gradient.apply(None, *inputs)
        return direct(*inputs)

    Gradient.__name__ = f"cce_{operator._opname}"
    _LIBRARY.impl(operator._opname, run, "Autograd", with_keyset=True)
    return operator if kernel is None else call
