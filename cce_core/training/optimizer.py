"""What all optimisers share: whose state it is, when it is dropped, and how a gradient reaches a parameter."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._arrays import Floats
from cce_core._guard import Changing, Writer, in_order
from cce_core._threads import parallel_for
from cce_core.method.state import TableState
from cce_core.sketching.gradient import Gradient, SparseGradient
from cce_core.tables.collection import Collection
from cce_core.tables.table import Table
from cce_core.training import rules
from cce_core.training.state import State

FLOATS_A_THREAD = 1 << 15
_NOTHING = np.empty(0, np.float32)


def _scaled(gradient: Gradient, scale: np.float32) -> Gradient:
    if isinstance(gradient, SparseGradient):
        return dataclasses.replace(gradient, values=gradient.values * scale)
    return gradient * scale


@functools.cache
def _fused() -> Any:
    """Loaded where it is needed: it holds compiled loops of all formulas."""
    from cce_core.training import fused

    return fused


class Optimizer(abc.ABC):
    """Updates the parameters of tables in place from their gradients.

    A projection may have a learning rate of its own, `projection_lr`: all ids share it, so its gradient is the sum of theirs.
    With one rate for both, row-wise Adagrad was unstable above 0.2, and narrow rows want large rates.

    With `max_norm` the gradients of a step (of all its tables, in a collection) are scaled so that their common Euclidean norm,
    after the gradients of equal units have been summed, is at most that.

    One optimiser serves any number of tables; its state goes when the table goes. A pickle holds the tables too: `(table,
    optimizer)` in one pickle goes on bit for bit, and of an optimiser that is pickled alone the settings are left. `cluster()`
    changes what the rows of a memory (and its weights) mean, so their state is dropped then (moments and step count, as for a
    new parameter); the state of a projection, whose meaning stays, is kept. Of a `tiered` table, whose settled ids share the mean
    of their rows, rows keep their state, and shared ones have the mean of those that became them.
    """

    kernel_id: int | None = None  # how `fused` knows the formula; None where it does not

    projection_lr: float | None = None

    def __init__(self, lr: float, max_norm: float | None = None, projection_lr: float | None = None) -> None:
        self.lr = _check.number("lr", lr, 0.0, in_float32=True)
        if projection_lr is not None:
            self.projection_lr = _check.number("projection_lr", projection_lr, 0.0, in_float32=True)
        self.max_norm = None if max_norm is None else _check.number("max_norm", max_norm, 0.0, open_at_least=True)
        self._plans: weakref.WeakKeyDictionary[Collection, tuple[Any, list[Any]]] = weakref.WeakKeyDictionary()
        self.last: tuple[Callable[[], Any], list[int], list[Any]] = (lambda: None), [], []
        self._states: weakref.WeakKeyDictionary[TableState, tuple[int, dict[str, State]]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the state with its tables, so that a table pickled along finds its own again.

        What was prepared for compiled loops holds addresses of this one's state and is left out.
        """
        return {**self.__dict__, "_plans": None, "last": None, "_states": list(self._states.items())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._plans, self.last = weakref.WeakKeyDictionary(), ((lambda: None), [], [])
        self._states = weakref.WeakKeyDictionary(dict(state["_states"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """A copy with a state of its own: of the same tables, and of copies of them where those are made along with it."""
        held = self.__getstate__()
        stay = [(table, copy.deepcopy(kept)) for table, kept in held["_states"] if id(table) not in memo]
        along = copy.deepcopy(held["_states"], memo)  # what nobody else copies goes again with the memo
        new = memo[id(self)] = object.__new__(type(self))
        new.__setstate__({**copy.deepcopy({**held, "_states": []}, memo), "_states": [*along, *stay]})
        return new

    def step(self, table: TableState, grads: dict[str, Gradient]) -> None:
        """Update every parameter of the table that has a gradient, in place.

        Args:
            table: whose parameters are updated.
            grads: what `table.backward` gave: dense arrays or `SparseGradient`s by parameter.

        Raises:
            ValueError: an unknown parameter, a wrong shape, NaN or infinity in a gradient, or a table that is mapped
                read-only. No parameter is changed.
        """
        _check.instance("table", table, TableState, "a table")
        _check.instance("grads", grads, Mapping, "a dict of gradients, as table.backward gives it")
        shapes, units = table.shapes(), table.block_sizes()
        for name, gradient in grads.items():
            if name not in shapes:
                raise ValueError(f"the table has no parameter {name!r}; it has {', '.join(shapes)}")
            if isinstance(gradient, SparseGradient):
                grads = {**grads, name: _fitting(name, gradient, math.prod(shapes[name]), units[name])}
            else:
                grads = {**grads, name: _check.as_float32(f"gradient of {name}", gradient, shapes[name])}
        self.apply_gradients([(table, grads)])

    def apply_gradients(self, gradients: Sequence[tuple[TableState, dict[str, Gradient]]]) -> None:
        """`step` of several tables, with gradients that fit: all are checked to be finite, and clipped, before any is used."""
        square = 0.0
        for table, grads in gradients:
            if not table.writeable:
                raise ValueError("the table is mapped read-only; load it with mmap=False to train it")
            for name, gradient in grads.items():
                if table.owners is not None:
                    table.check_step(gradient)
                values = gradient.values if isinstance(gradient, SparseGradient) else gradient
                _check.as_float32(f"gradient of {name}", values, values.shape)
                if self.max_norm is not None:
                    square += float(np.square(values, dtype=np.float64).sum())
        scale = 1.0 if self.max_norm is None or square <= self.max_norm**2 else self.max_norm / math.sqrt(square)
        with Changing(in_order(table.guard for table, _ in gradients)):
            for table, grads in gradients:
                if scale != 1.0:
                    grads = {name: _scaled(gradient, np.float32(scale)) for name, gradient in grads.items()}
                self._step(table, grads)

    def _step(self, table: TableState, grads: dict[str, Gradient]) -> None:
        """`step` with gradients that are known to fit a table that may be written."""
        states, units, coded = self.states_for(table), table.block_sizes(), table.spec.codec != "float32"
        known, parameters = len(states), table.arrays()
        for name, gradient in grads.items():
            state = states.get(name)
            if state is None:
                state = states[name] = State(projection=name == "projection")
            state.step += 1
            whole = self.updates_all() or not isinstance(gradient, SparseGradient)
            if coded and name == "memory":
                if isinstance(gradient, SparseGradient) and not whole:
                    table.update_rows(gradient.index, functools.partial(self._coded_rows, gradient, units[name], state))
                    continue
                parameters = table.parameters()
            flat = parameters[name].reshape(-1)
            if isinstance(gradient, SparseGradient):
                self.update_rows(flat, gradient, units[name], state)
            else:
                self.update_dense(flat, gradient.reshape(-1), units[name], state)
            if coded and name == "memory":
                table.requantize()
        if table.owners is not None:
            table.settle(self.states_of_memory(table))
        if len(states) > known:
            table.training_bytes["optimiser"] = self.state_bytes(table)

    def update(self, table: Table | Collection, ids: Any, grads: Any) -> None:
        """Backward pass and step in one, with the kind of gradient that suits: `step(table, table.backward(ids, grads))`.

        Args:
            table: whose parameters are updated; or a collection, whose tables all are, in one call.
            ids: what was looked up, or the forward pass of it.
            grads: of the vectors, real numbers in their shape, finite.

        Raises:
            IndexError, TypeError, ValueError: as for `backward` and `step`. No parameter is changed.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
            >>> seen = table.forward([1, 2])
            >>> cce.Adam(lr=1e-3).update(table, seen, 2 * seen.vectors)
        """
        if isinstance(table, Collection):
            return _fused().update(self, table, ids, grads)
        _check.instance("table", table, Table, "a table or a Collection")
        with Writer((table.guard,)):
            self.apply_gradients([(table, table.backward(ids, grads, dense=self.updates_all()))])

    def updates_all(self) -> bool:
        """Whether a step moves what a batch did not touch, so that a dense gradient suits it better."""
        return False

    def state_arrays(self, size: int, unit: int, state: State) -> list[NDArray[np.float32]]:
        """The state of a parameter of `size` floats as the formula of `kernel_id` takes it; at most two arrays."""
        return []

    @abc.abstractmethod
    def constants(self, step: int, lr: float | None = None) -> tuple[float, ...]:
        """The constants of that step, as the formula of `kernel_id` takes them, with another learning rate than `lr`, if one is
        given; at most seven."""

    def rate(self, state: State) -> float:
        """The learning rate of a parameter."""
        return self.projection_lr if state.projection and self.projection_lr is not None else self.lr

    def prepare(self, both: Collection, now: list[int], make: Callable[[Optimizer, Collection, Any], Any]) -> list[Any]:
        """What `make` made of each group of a collection, for as long as its tables' generations are `now`."""
        last, then, plans = self.last
        if last() is not both or then != now:
            known = self._plans.get(both)
            if known is None or known[0] != now:
                known = self._plans[both] = now, [make(self, both, group) for group in both.groups]
            plans = known[1]
            self.last = weakref.ref(both), now, plans
        return plans

    def state_of(self, table: TableState, name: str) -> State:
        """The state of one parameter."""
        return self.states_for(table).setdefault(name, State(projection=name == "projection"))

    def apply(
        self, p: Floats, index: NDArray[np.int64] | None, g: Floats, unit: int, state: State,
        size: int | None = None, at: NDArray[np.uint64] | None = None,
    ) -> None:  # fmt: skip
        """The formula of `kernel_id` for a flat parameter, or for the units of it that an index names; the step is counted.

        Of a parameter of `size` floats p may hold some units alone, which begin there where `at` says.
        """
        arrays = [*self.state_arrays(p.size if size is None else size, unit, state), _NOTHING, _NOTHING][:2]
        constants, flat = np.array(self.constants(state.step, self.rate(state))), g.reshape(-1)
        if index is None:
            parallel_for(
                rules.update_dense,
                p.size,
                FLOATS_A_THREAD,
                self.kernel_id,
                unit,
                p,
                flat,
                *arrays,
                constants,
                align=unit,
            )
        else:
            min_chunk = max(1, FLOATS_A_THREAD // unit)
            parallel_for(
                rules.update_rows, len(index), min_chunk, self.kernel_id, unit, index, at, p, flat, *arrays, constants
            )

    def states_of_memory(self, table: TableState) -> list[NDArray[np.float32]]:
        """What is known of the memory's rows."""
        state = self.states_for(table).get("memory")
        return [] if state is None else list(state.arrays.values())

    def _coded_rows(
        self, gradient: SparseGradient, unit: int, state: State, p: Floats, at: NDArray[np.uint64], part: Any
    ) -> None:
        self.apply(p, gradient.index[part], gradient.values[part], unit, state, gradient.size, at)

    def state_bytes(self, table: TableState) -> int:
        """Bytes of state that are held for a table."""
        states = self._states.get(_check.instance("table", table, TableState, "a table"), (0, {}))[1]
        return sum(array.nbytes for state in states.values() for array in state.arrays.values())

    def states_for(self, table: TableState) -> dict[str, State]:
        """The states of a table's parameters, those of an earlier generation of its memory dropped."""
        now = table.generation
        generation, states = self._states.get(table, (-1, {}))
        if generation != now:
            heirs = table.heirs
            for name in [name for name in states if name != "projection"]:
                if heirs is None or heirs.generation != generation or name != "memory":
                    del states[name]
                else:
                    states[name].arrays = {key: heirs.inherit(array) for key, array in states[name].arrays.items()}
            self._states[table] = (now, states)
        return states

    def update_dense(self, p: NDArray[Any], g: NDArray[Any], unit: int, state: State) -> None:
        """Update all of a flat parameter from its whole gradient."""
        self.apply(p, None, g, unit, state)

    def update_rows(self, p: NDArray[Any], gradient: SparseGradient, unit: int, state: State) -> None:
        """Update a flat parameter from the gradient of its touched units; by way of the whole one where all moves."""
        if self.updates_all():
            self.update_dense(p, gradient.dense(), unit, state)
        else:
            self.apply(p, gradient.index, gradient.values, unit, state)


def _fitting(name: str, gradient: SparseGradient, size: int, unit: int) -> SparseGradient:
    """The sparse gradient with float32 values, if it fits the parameter; ValueError, TypeError or IndexError if not."""
    index = np.asarray(gradient.index)
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise TypeError(f"index of the gradient of {name} must be one row of integers, got {index.dtype} {index.shape}")
    values = _check.as_float32(f"gradient of {name}", gradient.values, (len(index), unit))
    if gradient.size != size:
        raise ValueError(f"gradient of {name} must have {size:,} floats, got {gradient.size:,}")
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < size // unit):
        raise IndexError(
            f"index of the gradient of {name} must be in [0, {size // unit}), got {index.min()} to {index.max()}"
        )
    if len(np.unique(index)) != len(index):
        raise ValueError(f"index of the gradient of {name} names a unit twice: add its gradients up first")
    return SparseGradient(np.ascontiguousarray(index, np.int64), values, size, gradient.turn)
