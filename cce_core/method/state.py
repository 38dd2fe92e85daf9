"""A table's spec and arrays, with the views of them that compiled loops read: what methods and learners are given."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cce_core._guard import Changing, Guard
from cce_core.hashing.mix import derive_key
from cce_core.method.heirs import Heirs
from cce_core.method.memory import Change, QuantizedMemory
from cce_core.method.spec import CODES, COUNTS, ArraySpec, TableSpec
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.gradient import Gradient, SparseGradient
from cce_core.sketching.group import Member, TableGroup
from cce_core.sketching.layout import Layout
from cce_core.storage.codec import FLOAT32
from cce_core.storage.counters import count
from cce_core.tiers import Moves, Owners

_MOST_NEWCOMERS = 1 << 20
_ROUNDS = 8  # of draws that a step may take at most
_EMPTY, _NOBODY, _NEVER = np.empty(0, np.uint64), np.empty(0, np.uint16), np.zeros(1, np.int64)


class TableState:
    """What a table is made of, without what it does: `Table` adds lookups, gradients, clustering and files.

    Args:
        spec: all sizes and seeds.
        specs: type, shape and unit of each array, by name.
        arrays: the arrays themselves, as `specs` say.
        layout: the addresses, for methods that are made of blocks; None for others.
        weight_layout: the addresses of the weights of the blocks, where they have any.
        plain: whether a vector is a sum of blocks and no more, which the loops for many tables take.
        owners: who owns which row, where training gives rows to ids.

    Attributes:
        counting: whether `count` does anything.
        turn: how often rows have changed hands, of such a table; gradients are marked by it.
        heirs: where `cluster()` gave rows to others, which of them go on as which; optimisers ask it. None before.
        traffic: int64 (4, tables), of owned rows: ids that training has met, those that had rows, rows given, and rows taken,
            since the state was made.
        phase: "rows" before `cluster()` and "codes" after it, for a method (`vq`) that then stores something else; else None. Of
            owned rows "codes" while ids are settled, and None before.
    """

    sketch: Sketch
    weight_sketch: Sketch | None
    stored: QuantizedMemory

    def __init__(
        self,
        spec: TableSpec,
        specs: Mapping[str, ArraySpec],
        arrays: Mapping[str, NDArray[Any]],
        layout: Layout | None,
        weight_layout: Layout | None,
        plain: bool,
        owners: Owners | None = None,
    ) -> None:
        self.spec, self._specs, self.plain = spec, dict(specs), plain
        self._arrays = {name: arrays[name] for name in specs}
        self._units = {name: array.unit for name, array in specs.items() if array.unit}
        self._parameters = {name: self._arrays[name] for name in self._units}
        self._first = next(iter(self._parameters.values()))  # a file is mapped as a whole or not at all
        self.guard = Guard()
        self.age = self._arrays.get("generation", _NEVER if owners is None else _NEVER.copy())
        self._counts, self._passes = self._arrays.get("counts"), 0
        self.owners, self._newcomers, self._whose, self.turn = owners, _EMPTY, _NOBODY, 0
        self.counting = self._counts is not None or owners is not None
        self.traffic = np.zeros((4, 0 if owners is None else owners.map.n_tables), np.int64)
        self.training_bytes: dict[str, int] = {}
        self.heirs: Heirs | None = None
        phase = dict(spec.options).get("phase")
        self.phase = None if phase is None else str(phase)
        if owners is not None and owners.settled is not None:
            self.phase = CODES
        if layout is not None:
            keys, pointers = self._arrays.get("keys", _EMPTY), self._arrays.get("pointers", _EMPTY)
            self.sketch = Sketch(layout, keys, pointers)
            self.weight_sketch = None if weight_layout is None else Sketch(weight_layout, keys, pointers)
            scales = self._arrays.get("scales", np.empty(0, np.float32))
            self.stored = QuantizedMemory(spec, layout.size, self._arrays["memory"], scales)
            if owners is not None:
                self.stored.rounds = _ROUNDS * owners.now

    @property
    def layout(self) -> Layout:
        """The addresses, for methods that are made of blocks."""
        return self.sketch.layout

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays themselves as they are saved: with a codec, codes and scales."""
        return dict(self._arrays)

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """The trained arrays themselves, not copies, by name: `memory` (size,), with a rank `projection` (rank + 1, dim), …

        The last row of the projection is its bias b.

        With a codec, `memory` is the float32 values behind the codes; who changes them calls `requantize` afterwards.
        """
        trained = dict(self._parameters)
        if self.spec.codec != "float32":
            with self.guard.door:
                trained["memory"] = self.stored.master()
                self.training_bytes |= self.stored.held
        return trained

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `parameters()`, for which nothing is decoded."""
        shapes = {name: array.shape for name, array in self._parameters.items()}
        if self.spec.codec != "float32":
            shapes["memory"] = (self.layout.size,)
        return shapes

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The arrays that are learned or drawn but not trained: hash `keys`, packed `pointers`, the `generation`.

        With a codec, `scales` too, and the codes as `memory`: together with the other parameters, all that is saved.
        """
        coded = self.spec.codec != "float32"
        return {n: self._arrays[n] for n, array in self._specs.items() if not array.unit or (coded and n == "memory")}

    def requantize(self) -> None:
        """Say that trained values were changed: with a codec they are rounded into the codes. Optimisers do it themselves.

        Raises:
            ValueError: the table is mapped read-only.
        """
        if not self._first.flags.writeable:
            raise ValueError("the table is mapped read-only; load it with mmap=False to change it")
        with Changing((self.guard,)):
            if self.spec.codec != "float32":
                self.stored.requantize()
                self.training_bytes |= self.stored.held

    def update_rows(self, index: NDArray[np.int64], change: Change) -> None:
        """Change some units of a memory with a codec, at the cost of those alone: see `QuantizedMemory.update_rows`."""
        with Changing((self.guard,)):
            made = self.stored.update_rows(index, self._units["memory"], change)
            made = max(made, self.training_bytes.get("scratch", 0))  # another time: of the gradient
            self.training_bytes |= {**self.stored.held, "scratch": made}

    def block_sizes(self) -> dict[str, int]:
        """Floats of the blocks that each parameter is made of: what "row" means to sparse gradients and optimisers."""
        return dict(self._units)

    def part(self, left: int = 0) -> Member:
        """The table as one of a group, from column `left` on; the loops project it too if a vector is no more than its blocks."""
        projection = self._arrays.get("projection") if self.plain else None
        return Member(self.sketch, self.stored.codes_view, left, self.spec.vocab or 0, projection)

    @functools.cached_property
    def group(self) -> TableGroup:
        """Sketch and memory as the compiled loops read them."""
        return TableGroup([self.part()])

    @functools.cached_property
    def weight_group(self) -> TableGroup:
        """The same of the weights."""
        assert self.weight_sketch is not None
        own = self._arrays.get("weights")  # else they lie in the memory
        memory = self.stored.codes_view if own is None else Memory(FLOAT32, own)
        return TableGroup([Member(self.weight_sketch, memory, vocab=self.spec.vocab or 0)])

    def prepare(self) -> None:
        """Make what is made once: where phases change, before two threads can find it missing, one of them from before."""
        _ = self.group

    def __getstate__(self) -> dict[str, Any]:
        """A copy of one moment, for copies of the table: pickling it may go on while the table is trained."""
        return self._state({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.guard = Guard()
        if self.phase is not None or self.owners is not None:
            self.prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(self._state(memo))
        return made

    def _state(self, memo: dict[int, Any]) -> dict[str, Any]:
        with self.guard.door:  # groups hold addresses; the guard is each table's own
            kept = {n: v for n, v in dict(self.__dict__).items() if not n.endswith(("group", "groups", "guards"))}
            del kept["guard"]
            return copy.deepcopy(kept, memo)

    @property
    def writeable(self) -> bool:
        """Whether the arrays may be changed: not where they are mapped from a file."""
        return all(array.flags.writeable for array in self._arrays.values())

    @property
    def num_params(self) -> int:
        """Trained numbers in all."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def generation(self) -> int:
        """How often `cluster()` has changed this table; optimisers drop what they know of an earlier generation."""
        return self.age.item()

    def count(self, ids: NDArray[np.uint64], table: int = 0) -> None:
        """Note that a training pass has met flat ids, where the method counts them; `table` of those that share one map."""
        if self.owners is not None and self.writeable:
            before = self.owners.sketch.mass
            found = self.owners.count(ids, table)
            self.traffic[:2, table] += len(ids), len(ids) - (self.owners.sketch.mass - before)
            # Many backward passes without a step must not fill the memory.
            self._newcomers = np.concatenate([self._newcomers, found])[-_MOST_NEWCOMERS:]
            whose = np.full(len(found), table, np.uint16)
            self._whose = np.concatenate([self._whose, whose])[-_MOST_NEWCOMERS:]
            self.training_bytes["newcomers"] = self._newcomers.nbytes + self._whose.nbytes
        if self._counts is not None and self._counts.flags.writeable:
            self._passes += 1
            count(self._counts, ids, derive_key(self.spec.seed, COUNTS, self._passes))

    @property
    def n_shared(self) -> int:
        """Rows that ids without own ones share by hash, of all tables; they come last."""
        assert self.owners is not None
        (column,) = self.layout.columns
        return column.rows - self.owners.first_shared

    def settle(self, states: Sequence[NDArray[np.float32]] = ()) -> NDArray[np.int64]:
        """Between two steps: give rows to the ids that have earned them; an optimiser's `states` of the memory move along.

        Optimisers call it for tables with `owners` as they end a step, before trained values are rounded.

        Returns:
            The rows that have changed hands.
        """
        assert self.owners is not None
        step = self.owners.now
        with Changing((self.guard,)):
            changes = self.owners.step(self._newcomers, self._whose)
            self._newcomers, self._whose = _EMPTY, _NOBODY
            if len(changes.rows):
                for kind, whose in ((2, changes.owners), (3, changes.evicted[changes.evicted > 0])):
                    tables = self.owners.map.tables_of(whose)
                    self.traffic[kind] += np.bincount(tables, minlength=self.owners.map.n_tables)
                self._move(Moves.of(self.owners, changes, self.n_shared, self.spec.option("fold")), states)
                self.turn += 1
            self.stored.rounds = _ROUNDS * (step + 1)  # so that a loaded table goes on with the same draws
        return changes.rows.astype(np.int64)

    def _move(self, moves: Moves, states: Sequence[NDArray[np.float32]]) -> None:
        """Move vectors and states; with a codec, in a copy of the rows that are read or changed, which is then rounded."""
        moves.reset(states, self.layout.n_units)
        if self.spec.codec == "float32":
            return moves.apply(self.stored.master().reshape(-1, self.layout.unit))
        index, moves = moves.compact()
        values = self.stored.read_rows(index, self.layout.unit)
        moves.apply(values)

        def change(p: NDArray[np.float32], at: NDArray[np.uint64], part: Any) -> None:
            p[at[:, None] + np.arange(self.layout.unit, dtype=np.uint64)] = values[part]

        self.update_rows(index, change)

    def erase_rows(self, ids: NDArray[np.uint64], table: int) -> NDArray[np.bool_]:
        """Take the rows of ids away, and let these hold what their shared rows do: see `OwnRows.erase`."""
        assert self.owners is not None
        if not self.writeable:
            raise ValueError("the table is mapped read-only; load it with mmap=False to erase ids")
        with Changing((self.guard,)):
            found = self.owners.find(ids, table)
            rows = np.unique(found[found >= 0]).astype(np.int64)
            names = self.owners.map.identities(rows)
            erased = self.owners.forget(ids, table)
            if len(rows):
                sources = self.owners.fallback_rows(names, self.n_shared // self.owners.map.n_tables)
                self._move(Moves(rows, sources, np.full(len(rows), -1), np.zeros(len(rows), np.float32)), ())
                self.turn += 1
                self.stored.rounds = _ROUNDS * self.owners.now  # as of a table that is loaded now
        return erased

    def reloaded(self) -> None:
        """Note that arrays were written over, by those of another moment: nothing that was made of them before holds."""
        if "memory" in self._arrays:
            self.stored.reload()
        if self.owners is not None:
            self.stored.rounds = _ROUNDS * self.owners.now
            self._newcomers, self._whose, self.turn = _EMPTY, _NOBODY, self.turn + 1

    def check_step(self, gradient: Gradient) -> None:
        """ValueError for a gradient of rows that may have other owners by now."""
        turn = gradient.turn if isinstance(gradient, SparseGradient) else None
        if turn is not None and turn != self.turn:
            raise ValueError(
                "this gradient names rows that the table may have given to other ids since it was made: call backward again, or "
                "hand the forward pass to optimizer.update"
            )

    def become(self, other: TableState) -> None:
        """Be what `other` is, which must not be used again: its spec, arrays and views, all at once.

        Who reads without a lock has the old views or the new ones: they are exchanged in one call that Python does not
        interrupt, and the groups, which are all that a lookup reads, are among them.
        """
        other.prepare()
        own = ("guard", "guards", "training_bytes")
        held, new = dict(self.__dict__), {name: v for name, v in other.__dict__.items() if name not in own}
        with Changing((self.guard,)):
            self.__dict__.update(new, training_bytes={})
        del held  # what the old ones were made of goes here, not while they are exchanged
