"""Optimisers on the device, fused: one pass over a gradient reads and writes parameter and state together.

    SGD       b ← μ·b + g + λ·p,          p ← p − lr·b
    Adagrad   s ← s + g²,                 p ← p − lr·g / (√s + ε);       row-wise, s ← s + mean(g²), one number a row
    Adam(W)   m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²,  p ← (1−lr·λ)·p − lr·m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)

They are `cce_core`'s own optimisers, whose numbers are read from the object; its formulas, its rules for what a sparse gradient
moves, its rounding step by step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cce_core import _check
from cce_core.hashing.mix import derive_key
from cce_core.method.spec import ROUNDING, ROUNDINGS
from cce_core.storage.codec import BLOCK, PARTS
from cce_core.storage.codec import codec as get_codec
from cce_core.training import SGD, Adagrad, AdamW
from cce_core.training.optimizer import Optimizer
from cce_kernels import codecs
from cce_kernels.runtime import INTERPRETED, call, power_of_two, tl, torch, triton
from cce_kernels.tables import Tables

PLAIN, MOMENTUM, EACH, ROWWISE, MOMENTS = range(5)
_PLAIN, _MOMENTUM, _EACH = tl.constexpr(PLAIN), tl.constexpr(MOMENTUM), tl.constexpr(EACH)
_ROWWISE = tl.constexpr(ROWWISE)
_TILE = 1 << 13 if INTERPRETED else 1 << 11  # floats
_PARTS_OF_INT4 = dataclasses.replace(get_codec("int8"), most=PARTS * get_codec("int4").most)
_DENSE = 4  # a whole gradient is no more than so many times what a batch adds to it: then it is the quicker one


@triton.jit
def _step(
    p, index, g, one, two, n_rows, unit, lr, decay, a, b, more_a, more_b, correct, eps,
    N: tl.constexpr, U: tl.constexpr, RULE: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """Rows of `unit` floats; with INDEXED, row n of `g` is row index[n] of the parameter. `one` and `two` are the state."""
    n = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    i = tl.arange(0, U)[None, :]
    inside = n < n_rows
    row = n
    if INDEXED:
        row = tl.load(index + n, mask=inside, other=0)
    live = inside[:, None] & (i < unit)
    at = row[:, None] * unit + i
    value = tl.load(p + at, mask=live, other=0.0)
    grad = tl.load(g + n[:, None] * unit + i, mask=live, other=0.0)
    if RULE == _PLAIN:
        value -= lr * (grad + decay * value)
    elif RULE == _MOMENTUM:
        moved = a * tl.load(one + at, mask=live, other=0.0) + grad + decay * value
        tl.store(one + at, moved, mask=live)
        value -= lr * moved
    elif RULE == _EACH:
        total = tl.load(one + at, mask=live, other=1.0) + grad * grad
        tl.store(one + at, total, mask=live)
        value -= tl.div_rn(lr * grad, tl.sqrt_rn(total) + eps)
    elif RULE == _ROWWISE:
        mean = tl.div_rn(tl.sum(grad * grad, 1), unit.to(tl.float32) + tl.zeros([N], tl.float32))
        total = tl.load(one + row, mask=inside, other=1.0) + mean
        tl.store(one + row, total, mask=inside)
        value -= tl.div_rn(lr + tl.zeros_like(total), tl.sqrt_rn(total) + eps)[:, None] * grad
    else:
        mean = a * tl.load(one + at, mask=live, other=0.0) + more_a * grad
        square = b * tl.load(two + at, mask=live, other=0.0) + more_b * grad * grad
        tl.store(one + at, mean, mask=live)
        tl.store(two + at, square, mask=live)
        value = decay * value - tl.div_rn(lr * mean, tl.sqrt_rn(square) * correct + eps)
    tl.store(p + at, value, mask=live)


@dataclasses.dataclass
class State:
    """What is known of one parameter: steps taken, and the arrays of the rule."""

    step: int = 0
    arrays: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def array(self, name: str, size: int, like: torch.Tensor) -> torch.Tensor:
        """The array of that name, zeros when it is first asked for."""
        if name not in self.arrays:
            self.arrays[name] = torch.zeros(size, dtype=torch.float32, device=like.device)
        return self.arrays[name]


def _unclipped(optimizer: Optimizer) -> None:
    """Refuse what the kernels do not do, rather than not do it silently."""
    if optimizer.max_norm is not None:
        raise ValueError("max_norm is for the CPU: on the device, clip the gradients of the vectors before the step")
    if optimizer.projection_lr is not None:
        raise ValueError("projection_lr is for the CPU: on the device a projection has the rate of the memory")
    if getattr(optimizer, "state_dtype", "float32") != "float32" or (
        isinstance(optimizer, AdamW) and optimizer.rowwise
    ):
        raise ValueError(
            "states in bfloat16 are for the CPU: on the device take state_dtype='float32', or Adam without rowwise"
        )


def step(optimizer: Optimizer, p: torch.Tensor, gradient: Any, unit: int, state: State) -> None:
    """One step of a flat float32 parameter, in place.

    Args:
        optimizer: a `cce_core.SGD`, `Adagrad`, `Adam` or `AdamW`; only its numbers are read.
        p: the parameter, contiguous.
        gradient: float32 of its size, or `(index, values)`: distinct rows of `unit` floats, and their gradients.
        unit: floats of a row.
        state: changed in place.

    Raises:
        TypeError: another optimiser.
        ValueError: one that clips (`max_norm`).

    Cost:
        Gradient, and the touched part of parameter and state, once each way. Momentum, weight decay, and Adam without `lazy`
        touch all.
    """
    _unclipped(optimizer)
    state.step += 1
    index: torch.Tensor | None = None
    if isinstance(gradient, tuple):
        index, gradient = gradient
        if optimizer.updates_all():
            whole = torch.zeros_like(p).view(-1, unit)
            whole[index] = gradient
            index, gradient = None, whole
    lr, decay, numbers, arrays = optimizer.lr, 0.0, (0.0,) * 6, []
    if isinstance(optimizer, SGD):
        kernel_id, decay = (MOMENTUM if optimizer.momentum else PLAIN), optimizer.weight_decay
        numbers = (optimizer.momentum, 0.0, 0.0, 0.0, 1.0, 0.0)
        arrays = [state.array("momentum", p.numel(), p)] if optimizer.momentum else []
    elif isinstance(optimizer, Adagrad):
        kernel_id = ROWWISE if optimizer.rowwise else EACH
        arrays = [state.array("squares", p.numel() // unit if optimizer.rowwise else p.numel(), p)]
        numbers = (0.0, 0.0, 0.0, 0.0, 1.0, optimizer.eps)
    elif isinstance(optimizer, AdamW):
        kernel_id, (b1, b2) = MOMENTS, optimizer.betas
        lr, decay = optimizer.lr / (1.0 - b1**state.step), 1.0 - optimizer.lr * optimizer.weight_decay
        rest = [float(np.float32(1) - np.float32(beta)) for beta in (b1, b2)]
        numbers = (b1, b2, *rest, (1.0 - b2**state.step) ** -0.5, optimizer.eps)
        arrays = [state.array("m", p.numel(), p), state.array("v", p.numel(), p)]
    else:
        raise TypeError(f"optimizer must be an SGD, Adagrad, Adam or AdamW of cce_core, got {type(optimizer).__name__}")
    rows = gradient.numel() // unit
    wide = power_of_two(unit)
    block = max(1, min(_TILE // wide, power_of_two(max(1, rows))))
    one, two = ([*arrays, p, p])[:2]
    if rows:
        call(_step, (triton.cdiv(rows, block),),
            p, p if index is None else index, gradient, one, two, rows, unit, lr, decay, *numbers, N=block, U=wide,
            RULE=kernel_id, INDEXED=index is not None,
        )  # fmt: skip


class Trainer:
    """Trains tables in place with one of `cce_core`'s optimisers.

    Behind a codec float32 values are kept, rounded into the codes at each step; with stochastic rounding they exist during a
    step alone, and of int4 the sixteenths that codes leave over are kept. `tables.cluster` (a new generation) drops the state of
    what it changed, as in `cce_core`.

    Args:
        tables: whose parameters are trained.
        optimizer: `cce_core.SGD`, `Adagrad`, `Adam` or `AdamW`: its numbers; it may be changed between steps (`lr`).

    Example:
        >>> import cce_core as cce
        >>> trainer = Trainer(tables, cce.Adagrad(lr=0.1, rowwise=True))  # doctest: +SKIP
        >>> vectors = tables.lookup(ids)  # doctest: +SKIP
        >>> trainer.update(ids, 2 * vectors)  # doctest: +SKIP
    """

    def __init__(self, tables: Tables, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, (SGD, Adagrad, AdamW)):
            raise TypeError(
                f"optimizer must be an SGD, Adagrad, Adam or AdamW of cce_core, got {type(optimizer).__name__}"
            )
        _unclipped(optimizer)
        self.tables, self.optimizer = tables, optimizer
        self._states: list[tuple[int, dict[str, State]]] = [(g, {}) for g in tables.generations]
        self._values: list[tuple[int, torch.Tensor | None]] = [(g, None) for g in tables.generations]
        self._settled = [0] * len(tables.specs)
        self._left: list[tuple[int, torch.Tensor | None]] = [(g, None) for g in tables.generations]

    def state_bytes(self) -> int:
        """Bytes of state, and of the values behind codecs, that are held."""
        held = [array for _, states in self._states for state in states.values() for array in state.arrays.values()]
        return sum(
            t.numel() * t.element_size() for t in [*held, *(v for _, v in self._values + self._left if v is not None)]
        )

    def update(self, ids: Any, grads: torch.Tensor, offsets: Any = None, **settings: Any) -> None:
        """Backward pass and step in one, for the same arguments as `Tables.backward`.

        Plain SGD on float32 memories without weights or projections adds −lr times the gradient straight into the memory: one
        kernel and no gradient at all. What moves all of a parameter, and what a batch mostly touches, takes whole gradients by
        atomic additions; Adagrad on a large memory, and lazy Adam always, the touched units in a fixed order.

        Raises:
            TypeError, ValueError, IndexError: as for `Tables.backward`; nothing is changed.
        """
        deterministic = settings.get("deterministic")
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        plain = isinstance(self.optimizer, SGD) and not self.optimizer.updates_all()
        if plain and not deterministic and not settings.get("slopes") and self.tables.direct:
            self.tables.add_into_memory(ids, grads, offsets, scale=-self.optimizer.lr, **_without(settings))
            return
        lazy = isinstance(self.optimizer, AdamW) and self.optimizer.lazy
        count = ids.numel() if isinstance(ids, torch.Tensor) else sum(one.numel() for one in ids)
        blocks = sum(member.layout.dim * member.layout.terms for member in self.tables.members)
        added = count // len(self.tables.specs) * blocks
        size = sum(member.layout.size for member in self.tables.members)
        touched = lazy or (not self.optimizer.updates_all() and (deterministic or size > _DENSE * added))
        found, _ = self.tables.backward(ids, grads, offsets, **{**settings, "touched": touched})
        self.step(found)

    def step(self, grads: list[dict[str, Any]]) -> None:
        """Update every parameter that has a gradient; `grads` are those of `Tables.backward`."""
        if len(grads) != len(self.tables.specs):
            raise ValueError(f"grads must be one dict for each of {len(self.tables.specs)} tables, got {len(grads)}")
        for k, (spec, arrays) in enumerate(zip(self.tables.specs, self.tables.arrays)):
            units, states = self.tables.units(k), self._of(k)
            for name, gradient in grads[k].items():
                _check.choice("parameter", name, tuple(units))
                coded = name == "memory" and spec.codec != "float32"
                p = self.values(k) if coded else arrays[name]
                step(self.optimizer, p.view(-1), gradient, units[name], states.setdefault(name, State()))
                if coded:
                    self._settle(k, p)

    def values(self, k: int) -> torch.Tensor:
        """The trained floats behind the codec of table `k`."""
        generation, values = self._values[k]
        if values is None or generation != self.tables.generations[k]:
            arrays, size = self.tables.arrays[k], self.tables.size_of(k)
            since, left = self._left[k]
            if left is not None and since == self.tables.generations[k]:
                parts = PARTS * _nibbles(arrays["memory"], size) + _nibbles(left, size)
                return parts.float() / PARTS * arrays["scales"].repeat_interleave(BLOCK)[:size]
            values = codecs.decode(get_codec(self.tables.specs[k].codec), arrays["memory"], arrays.get("scales"), size)
        return values

    def _settle(self, k: int, values: torch.Tensor) -> None:
        spec, arrays = self.tables.specs[k], self.tables.arrays[k]
        random = spec.rounding == ROUNDINGS[1]
        self._settled[k] += 1
        key = derive_key(spec.seed, ROUNDING, self._settled[k]) if random else None
        if random and spec.codec == "int4":
            parts = torch.empty(values.numel(), dtype=torch.int8, device=values.device)
            codecs.encode_into(_PARTS_OF_INT4, values, parts, arrays["scales"], key)
            arrays["scales"].mul_(PARTS)
            whole = torch.div(parts.int() + PARTS // 2, PARTS, rounding_mode="floor")
            arrays["memory"].copy_(_packed(whole))
            self._left[k] = self.tables.generations[k], _packed(parts.int() - PARTS * whole)
        else:
            codecs.encode_into(get_codec(spec.codec), values, arrays["memory"], arrays.get("scales"), key)
        self._values[k] = self.tables.generations[k], None if random else values

    def _of(self, k: int) -> dict[str, State]:
        """The states of table `k`, those of an earlier generation of its memory dropped."""
        generation, states = self._states[k]
        now = self.tables.generations[k]
        if generation != now:
            states = {name: state for name, state in states.items() if name == "projection"}
            self._states[k] = now, states
        return states


def _nibbles(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Numbers from −8 to 7, two to a byte, the earlier one in the lower half."""
    return torch.stack([packed & 15, packed >> 4], 1).view(-1)[:size].int() - 8


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    up = torch.nn.functional.pad(numbers + 8, (0, numbers.numel() % 2)).view(-1, 2)
    return (up[:, 0] | (up[:, 1] << 4)).to(torch.uint8)


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """What `add_into_memory` takes of the settings of a backward pass."""
    taken = ("weights", "mode", "lengths", "padding_id", "check")
    return {name: value for name, value in settings.items() if name in taken}
