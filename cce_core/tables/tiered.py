"""Many tables with one memory, one map and one threshold: rows go to the ids that are worth most, whichever table they are of."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Still
from cce_core.method import get_method
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.method.tiered import Tiered, names_of
from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.group import Left, Member, TableGroup
from cce_core.sketching.projection import unwidened
from cce_core.storage.files import save_arrays
from cce_core.storage.ledger import Ledger
from cce_core.tables.collection import Collection
from cce_core.tables.own_rows import OwnRows
from cce_core.tables.passes import ForwardPass, Passes
from cce_core.tables.table import Table, finite, made_of
from cce_core.tiers import Owners


class SharedState(TableState):
    """What the tables of a `TieredCollection` have together: one memory, one map, all counts, and all projections.

    An optimiser's `step` takes it as a table, with the gradients that `TieredCollection.backward` gives.

    Args:
        spec: as `make_collection` resolves it.
        arrays: the arrays to use; None draws fresh ones.
    """

    def __init__(self, spec: TableSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        super().__init__(*made_of(spec, arrays))
        if spec.option("tables") is None:
            raise ValueError("this is the spec of one table: Table(spec, arrays) takes it")

    def prepare(self) -> None:
        """Nothing: its tables are grouped where they are looked up."""

    def member(self, table: int, left: int) -> Member:
        """One of the tables, from column `left` on, as the compiled loops read it."""
        rule, projection = get_method(self.spec.method), self._arrays.get("projection")
        assert isinstance(rule, Tiered)
        if projection is not None:
            rows = self.spec.rank + 1
            projection = projection[table * rows : (table + 1) * rows]
        sketch = self.sketch.part(rule.layout_of(self.spec, table))
        return Member(sketch, self.stored.codes_view, left, 0, projection)


class TableView(Passes):
    """One of the tables of a `TieredCollection`, to look ids up in it alone.

    Attributes:
        name: its name, or its number where there are no names.
        number: its place among the tables.
        spec: that of the collection.
    """

    def __init__(self, shared: SharedState, number: int, name: str | int) -> None:
        self.shared, self.number, self.name = shared, number, name
        self.guards, self.tables, self._alone, self._slices = (shared.guard,), (self,), (), [slice(0, shared.spec.dim)]
        self._regroup()

    def _regroup(self) -> None:
        """Read the memory as it is: `cluster()` makes another."""
        with Still(self.guards):
            shared = self.shared
            self.spec, self.group = shared.spec, TableGroup([shared.member(self.number, 0)])
            self.groups, self._ages, self.phased = (self.group,), [shared.age], [(shared, shared.spec)]

    def __repr__(self) -> str:
        return f"<table {self.name!r} of {self.spec.n_tables} with one memory: dim {self.spec.dim}>"

    def lookup(self, ids: Any) -> NDArray[np.float32]:
        """The vectors of ids, float32 (*ids.shape, dim), as `Table.lookup` gives them."""
        return self._read(JaggedBatch.alone(ids), False)[0]

    def look_up(self, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Left]:
        """The vectors of flat ids, and what that leaves for a backward pass."""
        out = np.empty((len(ids), self.spec.dim), np.float32)
        return out, self.group.forward(JaggedBatch.alone(ids), keep, out)[0]


class TieredTable(OwnRows, Table):
    """A table of method `tiered`, which gives rows to the ids that earn them; `make_table` and `load` make one.

    It is a `Table`, of which can be asked who has rows (`stats`, `explain`, `export`), and what is to be forgotten (`erase`).
    """

    def _whole(self) -> TableState:
        return self

    def _group(self, table: int) -> TableGroup:
        return self.group


class TieredCollection(OwnRows, Collection):
    """Tables of method `tiered` within one budget: one memory of own rows, one map of (table, id), one sketch, one threshold.

        out[n, t·dim : (t+1)·dim] = Σ_{i ∈ bag n of table t}  w_i · (M[row(t, i)] · W_t + b_t)

    A row goes to whichever id of whichever table is met most often; each table has its own shared rows, its own W and its own b.
    It is looked up and trained as any `Collection` is; one sparse gradient serves all its tables.

    `make_collection` makes one, and `load` reads what `save` has written.

    Args:
        shared: the state of all tables.

    Attributes:
        shared: the same.
        names: of the tables, or their numbers.
        tables: a `TableView` of each.
        owners: who has which row.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> both = cce.make_collection("tiered", ["user", "item"], 8, num_bytes=2000)
        >>> optimizer, ids = cce.Adagrad(lr=0.1, rowwise=True), np.array([[3, -7], [3, 2**40]])
        >>> seen = both.forward(ids)
        >>> optimizer.update(both, seen, np.ones((2, 16)))
        >>> both.lookup(ids).shape, both["user"].lookup([3]).shape, int((both.owners.find(ids[:, 0], 0) >= 0).sum())
        ((2, 16), (1, 8), 2)
    """

    def __init__(self, shared: SharedState) -> None:
        self.shared = _check.instance("shared", shared, SharedState, "a SharedState, as make_collection makes it")
        spec, n = shared.spec, shared.spec.n_tables
        self.names: list[Any] = names_of(spec.option("names")) or list(range(n))
        self.trained = [shared]
        self.tables = [TableView(shared, number, name) for number, name in enumerate(self.names)]
        lefts = [spec.dim * table for table in range(n + 1)]
        self.dim, self._slices = lefts[-1], [slice(a, b) for a, b in itertools.pairwise(lefts)]
        self._alone, self.is_plain, self.counting = [], False, True
        self.guards = (shared.guard,)
        self._regroup()

    def _regroup(self) -> None:
        """Read the memory as it is: `cluster()` makes another."""
        with Still(self.guards):
            shared, lefts = self.shared, (own.start for own in self._slices)
            self.groups = [TableGroup([shared.member(table, left) for table, left in enumerate(lefts)])]
            self._ages, self.phased = [shared.age], [(shared, shared.spec)]

    @property
    def spec(self) -> TableSpec:
        """All sizes and seeds."""
        return self.shared.spec

    @property
    def owners(self) -> Owners:
        """Who has which row."""
        assert self.shared.owners is not None
        return self.shared.owners

    def _changed(self) -> None:
        for tables in (self, *self.tables):
            tables._regroup()

    def __repr__(self) -> str:
        spec, settled = self.spec, "" if self.shared.phase is None else ", clustered"
        return (
            f"<{spec.method} collection: {spec.n_tables} tables, dim {spec.dim}, rank {spec.rank}, {spec.sizes[0]:,} own rows"
            f"{settled}, {spec.codec}, "
            f"{self.ledger().total:,} bytes>"
        )

    def __reduce__(self) -> Any:
        return TieredCollection, (self.shared,)

    def __getitem__(self, name: str | int) -> TableView:
        """One of the tables, by its name or number."""
        return self.tables[self.number(name)]

    def _whole(self) -> TableState:
        return self.shared

    def _names(self) -> tuple[Any, ...]:
        return tuple(self.names)

    def _group(self, table: int) -> TableGroup:
        if self.tables[table].spec is not self.spec:
            self.tables[table]._regroup()
        return self.tables[table].group

    # --- the way back -------------------------------------------------------------------------------------------------

    def backward(self, seen: Any, grads: Any, *, dense: bool = False) -> list[dict[str, Gradient]]:
        """The gradients of what the tables share, given those of the rows: one dict, for an optimiser's `step(shared, …)`.

        Args:
            seen: what `forward` gave (or ids as a matrix, or a list of arrays, without bags).
            grads: real numbers (rows, dim), finite.
            dense: the whole gradient of the memory, instead of the touched rows alone.

        Returns:
            A list of one dict: `memory`, and with a rank `projection`, those of all tables below each other.

        Raises:
            ValueError: the gradients have another shape, or hold NaN or infinity.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> both = cce.make_collection("tiered", 2, 8, num_bytes=2000)
            >>> (gradients,) = both.backward(np.array([[3, 7]]), np.ones((1, 16)))
            >>> cce.SGD(lr=0.1).step(both.shared, gradients)
            >>> gradients["memory"].values.shape, gradients["projection"].shape
            ((2, 4), (10, 8))
        """
        dense = _check.flag("dense", dense)
        with Still(self.guards):
            seen, grads = self.checked(seen, grads)
            return [self.gradients(seen, _check.as_float32("gradients", grads, seen.vectors.shape), dense)]

    def gradients(self, seen: ForwardPass, grads: NDArray[np.float32], dense: bool) -> dict[str, Gradient]:
        """`backward` of a pass that is known to be fresh; counts its ids, if all gradients are finite."""
        shared = self.shared
        if seen.batch.mode == "max":  # each table's ids have gradients of their own
            lone = [
                (t, JaggedBatch.alone(seen.batch.of(t)), self._of_ids(seen, t, grads)) for t in range(len(self.tables))
            ]
            found = [_gradients(self.tables[t].group, ids, seen.alone[t], g) for t, ids, g in lone]
        else:
            found = [_gradients(self.groups[0], seen.batch, seen.left[0], grads)]
        memory = found[0][0]
        if len(found) > 1:
            index, values = (np.concatenate([getattr(g, name) for g, _ in found]) for name in ("index", "values"))
            memory = type(memory)(index, values, memory.size)
        out: dict[str, Gradient] = {"memory": memory.dense() if dense else type(memory)(
            memory.index, memory.values, memory.size, shared.turn)}  # fmt: skip
        if shared.spec.rank:
            out["projection"] = np.concatenate([slopes for _, slopes in found]).reshape(-1, shared.spec.dim)
        if all(map(finite, out.values())):
            self.count(seen)
        shared.training_bytes["gradient"] = sum(gradient.nbytes for gradient in out.values())
        counts = seen.batch.counts
        shared.training_bytes["scratch"] = sum(blocks.scratch_bytes(shared.layout, n) for n in counts)
        return out

    def count(self, seen: ForwardPass) -> None:
        """Count the ids of a training pass."""
        for table in range(len(self.tables)):
            self.shared.count(seen.batch.of(table), table)

    # --- bytes, files -------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays themselves, as they are saved."""
        return self.shared.arrays()

    def ledger(self) -> Ledger:
        """Every byte that the tables cost together; see `Ledger`.

        Example:
            >>> import cce_core as cce
            >>> tables = cce.make_collection("tiered", 26, 16, num_bytes=100_000)
            >>> 99_900 < tables.ledger().total <= 100_000, sorted(tables.ledger().stored)[:3]
            (True, ['clock', 'keys', 'memory'])
        """
        stored = {name: array.nbytes for name, array in self.arrays().items()}
        return Ledger(stored, dict(self.shared.training_bytes), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all tables to one safetensors file: whole, or (where anything fails) not at all; `cce_core.load` reads it.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        with self.shared.guard.door:  # the file holds one moment
            save_arrays(path, self.arrays(), self.spec.as_json())


def _gradients(group: TableGroup, batch: JaggedBatch, left: Left, grads: NDArray[np.float32]) -> Any:
    """The gradient of the memory, and those of the projections, flat."""
    source, slopes = grads, np.empty(0, np.float32)
    if left.inner is not None and group.projections is not None:
        source, slopes = unwidened(group.projections, left.inner, grads, group.size, group.n_projected, group.within)
    return blocks.scatter_apart(group, batch, np.ascontiguousarray(source), left.kept), slopes
