"""The `weight` of a compressed table: a tensor for all who read it, worked out when that is, and closed to writing.

Torch's users write into the weights of embeddings in a hundred ways. A compressed table has no row of its own for an id, so such
a write would end in a copy that nobody looks at: it raises instead, also where it goes by way of a view.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_any, tree_map_only

from cce_core.adapters.torch import guard
from cce_core.adapters.torch.modules.forward import lookup
from cce_core.adapters.torch.operators import eager
from cce_core.adapters.torch.operators.facts import MEMORY, Facts

PADDING = "padding"
_REMEDY = (
    "assign a whole one, `embedding.weight = tensor`, which the table then learns to come near to, or make a table with "
    "`Embedding.from_pretrained(tensor, …)`; for a tensor of your own to write into, take `embedding.weight.detach().clone()`"
)
_HELD = {"data_ptr", "storage", "untyped_storage", "_typed_storage", "__dlpack__", "share_memory_", "retain_grad",
         "register_hook", "register_post_accumulate_grad_hook"}  # fmt: skip
_SETTERS = {"__set__", "__setitem__", "__delete__"} | {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
                                "lshift", "rshift")
}  # fmt: skip
# What is known of a tensor without its numbers.
_FREE = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "is_cuda", "is_cpu", "is_meta", "is_sparse",
                 "is_sparse_csr", "is_quantized", "is_mkldnn", "is_xpu", "is_mps", "is_nested", "names", "output_nr", "_base")
    if hasattr(Tensor, name)
} | {
    getattr(Tensor, name)
    for name in ("size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "get_device", "is_floating_point",
                 "is_complex", "is_signed", "is_contiguous", "is_inference", "is_conj", "is_neg", "storage_offset",
                 "_is_view", "__len__", "__hash__")
} | {torch.numel, torch.is_floating_point, torch.is_complex, torch.is_conj, torch.is_neg, torch.is_inference}  # fmt: skip


def refuse(what: str) -> RuntimeError:
    """The error of whoever writes."""
    return RuntimeError(
        f"{what} would write into the weight of a compressed table, which has no rows of its own: it is worked out from other "
        f"parameters whenever it is read. {_REMEDY}"
    )


class ReadOnly(Tensor):
    """Numbers that were worked out, or a view of them: what writes into them raises, what copies them gives a plain tensor."""

    def _numbers(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if func in _FREE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is Tensor.__deepcopy__:
            return args[1].setdefault(id(args[0]), args[0].detach().clone().requires_grad_(args[0].requires_grad))
        if _writes(name, args, kwargs):
            raise refuse(f"setting .{getattr(func.__self__, '__name__', 'it')}" if name == "__set__" else name)
        return _read(func, name, args, kwargs)


class Weight(ReadOnly):
    """The weight of a table as a tensor without numbers: shape, type and device cost nothing, everything else works them out.

    Attributes:
        owner: the module.
    """

    owner: Weighted
    detached: bool
    _itself: weakref.ref[Weight]
    _is_param = True  # so that modules take it where they take torch's own; `tied` makes of it what it should be

    @classmethod
    def of(cls, owner: Weighted, detached: bool = False) -> Weight:
        """A new one."""
        like: Any = next(owner.parameters())
        shape = (owner.num_embeddings or 0, owner.embedding_dim)
        made: Weight = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made.owner, made.detached = owner, detached
        made._itself = weakref.ref(made)  # torch.utils.swap_tensors refuses what somebody refers to
        if detached:
            made._is_param = False
        return made

    def _numbers(self) -> Tensor:
        if not self.detached:
            return self.owner._whole()
        with torch.no_grad():
            return self.owner._whole()

    def _rows(self, ids: Tensor) -> Tensor:
        """The vectors of some ids."""
        if not self.detached:
            return self.owner._rows(ids)
        with torch.no_grad():
            return self.owner._rows(ids)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Weight) else None
        if func in _FREE and first is not None:
            like: Any = next(first.owner.parameters())
            with torch._C.DisableTorchFunctionSubclass():
                moved = first.dtype != like.dtype or first.device != like.device
            args = (Weight.of(first.owner, first.detached) if moved else first, *args[1:])
        elif first is not None:
            quick = _QUICK.get(func)
            found = NotImplemented if quick is None else quick(first, *args[1:], **kwargs)
            if found is not NotImplemented:
                return found
            if getattr(func, "__name__", "") in _HELD:
                raise RuntimeError(
                    f"the weight of a compressed table is worked out anew whenever it is read and has no memory for "
                    f"{func.__name__}: take weight = embedding.weight.clone() first"
                )
        elif len(args) > 1 and isinstance(args[1], Weight):
            if func is functional.linear and not args[1].detached:
                return linear(args[1].owner, args[0], *args[2:], **kwargs)
            usual = all(value is None or value is False for key, value in kwargs.items() if key != "norm_type")
            if func is functional.embedding and usual:
                return args[1]._rows(args[0])
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def _dispatched(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What comes by another way than Python's functions: below autograd, which knows where this tensor is from."""
        first, kwargs = args[0] if args else None, kwargs or {}
        if isinstance(first, Weight) and func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Weight.of(first.owner, True)
        if func._schema.is_mutable and _writes("_", args, kwargs):
            raise refuse(func._schema.name)
        with torch.no_grad():
            args, kwargs = tree_map_only(ReadOnly, lambda t: t._numbers(), (args, kwargs))
            return func(*args, **kwargs)

    __torch_dispatch__: Any = _dispatched


def _writes(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function of that name, called so, writes into what is read-only. (`_read` sees what this does not.)"""
    targets = [kwargs.get("out")]
    if name in _SETTERS or kwargs.get("inplace") or (name.endswith("_") and not name.endswith("__")):
        targets += [*args[:1], kwargs.get("tensor"), kwargs.get("input")]
    return bool(tree_any(lambda x: isinstance(x, ReadOnly), targets))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Any) -> Any:
    """What two tensors of the same memory have in common."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse one, or a transform's
        return None


def _read(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """A function of the numbers; what it gives back of the same memory is read-only."""
    numbers: list[tuple[Tensor, int]] = []

    def take(tensor: ReadOnly) -> Tensor:
        found = tensor._numbers()
        numbers.append((found, _version(found)))
        return found

    args, kwargs = tree_map_only(ReadOnly, take, (args, kwargs))
    out = func(*args, **kwargs)
    if any(_version(tensor) != before for tensor, before in numbers):
        raise refuse(name)
    if isinstance(out, np.ndarray):
        out.flags.writeable = False
        return out
    if func is Tensor.__reduce_ex__:
        return out
    shared = {_storage(tensor) for tensor, _ in numbers} - {None}
    return tree_map_only(Tensor, lambda t: t.as_subclass(ReadOnly) if _storage(t) in shared else t, out)


# --- what a weight answers without working all of it out, or in a way of its own ----------------------------------------


def _item(weight: Weight, key: Any) -> Any:
    """Rows by number, range or ids."""
    n, device = weight.shape[0], weight.device
    if isinstance(key, slice) and (key.step is None or key.step > 0):
        return weight._rows(torch.arange(*key.indices(n), device=device)).as_subclass(ReadOnly)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -n <= key < n:
            raise IndexError(f"index {key} is out of bounds for dimension 0 with size {n}")
        return weight._rows(torch.tensor(int(key) % n, device=device)).as_subclass(ReadOnly)
    ids = type(key) is Tensor and key.dtype in (torch.int64, torch.int32) and key.dim() and key.device == device
    if ids and not weight.owner.scale_grad_by_freq:  # a lookup would divide gradients, which reading a weight does not
        return weight._rows(torch.where(key < 0, key + n, key))
    return NotImplemented


def _freeze(weight: Weight, on: bool = True) -> Any:
    """`requires_grad_`: of the parameters that the weight is worked out from."""
    if weight.detached:
        if on:
            raise refuse("requires_grad_(True) of a detached weight, or nn.Parameter(embedding.weight),")
        return weight
    weight.owner.requires_grad_(on)
    return weight


def _clone(weight: Weight, *, memory_format: Any = None) -> Any:
    return weight._numbers()  # nobody else has them


def _type(weight: Weight, *arguments: Any, **options: Any) -> Any:
    """Its name, where no other is asked for."""
    if arguments or options:
        return NotImplemented
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.type(weight)


_T: Any = Tensor
_QUICK: dict[Any, Any] = {
    _T.__getitem__: _item,
    _T.clone: _clone,
    torch.clone: _clone,
    _T.detach: lambda weight: Weight.of(weight.owner, True),
    torch.detach: lambda weight: Weight.of(weight.owner, True),
    _T.data.__get__: lambda weight, *_: Weight.of(weight.owner, True),
    _T.requires_grad.__get__: lambda weight, *_: not weight.detached and weight.owner._trained(),
    _T.is_leaf.__get__: lambda weight, *_: weight.detached or not weight.owner._trained(),
    _T.grad_fn.__get__: lambda weight, *_: None,  # modules refuse parameters that have one
    _T.grad.__get__: lambda weight, *_: None,  # that of the parameters is theirs
    _T.requires_grad_: _freeze,
    _T.requires_grad.__set__: lambda weight, on: (_freeze(weight, on), None)[1],
    _T.type: _type,
}


class _Made(torch.autograd.Function):
    """A weight that autograd can follow where it is handed to what asks no `__torch_function__`, as autograd functions are."""

    @staticmethod
    def forward(ctx: Any, owner: Weighted, *parameters: Tensor) -> Tensor:
        ctx.owner = owner
        return Weight.of(owner)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.enable_grad():
            wanted = [p for p in ctx.owner.parameters() if p.requires_grad]
            found = iter(torch.autograd.grad(ctx.owner._whole(), wanted, grad, allow_unused=True))
        return (None, *(next(found) if p.requires_grad else None for p in ctx.owner.parameters()))


def linear(owner: Weighted, input: Tensor, bias: Tensor | None = None) -> Tensor:
    """input · Tᵀ + bias, with no table of full width where there is a projection: input · Tᵀ = (input · Wᵀ) · (H · M)ᵀ."""
    narrow = owner._narrow() if torch.compiler.is_dynamo_compiling() else guard.reading(owner._narrow)()
    if narrow is None:
        return functional.linear(input, owner._whole(), bias)
    inner, projection = narrow
    return functional.linear(functional.linear(input, projection), inner, bias)


_UNBOUNDED = "an unbounded table has no weight: it has a vector for every 64-bit id"


class NoWeight(AttributeError, RuntimeError):
    """There is no weight: `hasattr` and `getattr` with a default know it as such."""


class Weighted(torch.nn.Module):
    """A module that has a table's `weight`, from its parameters and `_vectors` of a row of ids."""

    num_embeddings: int | None
    embedding_dim: int
    scale_grad_by_freq: bool
    padding_idx: int | None
    sparse: bool
    shard_pointers: bool
    memory: Tensor
    projection: Tensor
    _plain: bool
    _facts: Facts
    _vectors: Callable[..., Tensor]
    _learn: Callable[..., None]
    _row: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> Tensor:
        """The whole table as a tensor (num_embeddings, embedding_dim): the parameter itself where it is full, else worked out.

        What is worked out is so when it is read, and differentiable, so that models which score against all ids train; it costs
        the memory of a full table for as long as it is used, but for `weight[ids]`, a lookup, and `F.linear(h, weight)` of a
        table with a rank. Shape, type and device cost nothing. Writing into it, or into a view of it, raises a RuntimeError;
        `requires_grad_` and `requires_grad = …` are the parameters'.

        `module.weight = tensor` makes the table come near to it, as `from_pretrained` does (a full table has the numbers, or
        takes the parameter for its own). An nn.Linear with `linear.weight = module.weight` becomes a `TiedLinear`.
        """
        if self._plain:
            return self.memory
        if self.num_embeddings is None:
            raise NoWeight(_UNBOUNDED)
        if (
            torch.compiler.is_compiling()
            or eager.transformed()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._get_tracing_state() is not None
        ):
            return self._whole()  # where code is traced or transformed, it is the numbers that are followed
        if torch.is_grad_enabled() and self._trained():
            found: Tensor = _Made.apply(self, *self.parameters())
            return found
        return Weight.of(self)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.num_embeddings is None:  # what the property said is lost on the way here
            raise NoWeight(_UNBOUNDED)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
        elif sys._getframe(1).f_globals.get("__name__") == "torch.nn.utils._named_member_accessor":
            raise TypeError(
                "functional_call can't lend a compressed table another weight, which it would have to learn: hand in its "
                "parameters, such as memory"
            )
        elif isinstance(value, Weight):
            if value.owner is not self:
                raise TypeError(
                    "this is the weight of another compressed table; to share that one, put its module in both places; to learn "
                    "from it, embedding.weight = other.weight.detach().clone()"
                )
        elif not isinstance(value, Tensor):
            raise TypeError(f"weight must be a tensor for the table to learn from, got {type(value).__name__}")
        elif self._plain and isinstance(value, torch.nn.Parameter) and value.shape == self.memory.shape:
            self.register_parameter("memory", value)
        else:
            self._learn(value)

    def _whole(self) -> Tensor:
        """The numbers of the weight."""
        return self._vectors(torch.arange(self.num_embeddings or 0, device=getattr(self, self._facts.arrays[0]).device))

    def _rows(self, input: Tensor) -> Tensor:
        """The vectors of ids of any shape, one by one."""
        return self._vectors(self._row(input)).view(*input.shape, self.embedding_dim)

    def _narrow(self) -> tuple[Tensor, Tensor] | None:
        """(A, W) with the weight A · W where there is a projection: the table before it with a column of ones, and itself."""
        kept = self._buffers.get(PADDING) is not None
        if kept or self.shard_pointers or not (self._facts.plain and self._facts.rank):
            return None
        arrays = {name: getattr(self, name) for name in self._facts.arrays if name != "projection"}
        ids = torch.arange(self.num_embeddings or 0, device=arrays[MEMORY].device)
        inner = lookup(self._facts, arrays, ids, self.sparse).to(self.projection.dtype)
        inner = torch.cat([inner, inner.new_ones(len(ids), 1)], 1)
        if self.padding_idx is not None:
            inner = inner.masked_fill((ids == self.padding_idx)[:, None], 0.0)
        return inner, self.projection

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """As for every module; a state without the padding row is one of a table where it is 0."""
        if self.padding_idx is not None and not self._plain:
            first, kept = getattr(self, self._facts.arrays[0]), prefix + PADDING in state_dict
            self.register_buffer(PADDING, first.new_zeros(self.embedding_dim, requires_grad=False) if kept else None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _trained(self) -> bool:
        return any(p.requires_grad for p in self.parameters())
