"""Many tables in one call: single ids or bags, forward and back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Still, in_order
from cce_core._threads import sliced
from cce_core.method.block import BlockMethod
from cce_core.sketching import blocks
from cce_core.sketching.batch import Batch, pool_max, read, unpool_max
from cce_core.sketching.descriptors import Bundle, Memory, Part, Sketch
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.layout import IDENTITY, Column, Layout
from cce_core.sketching.projection import widened
from cce_core.storage.codec import FLOAT32
from cce_core.tables.table import Table

_KEPT_IDS = 1 << 14  # as for a table alone: addresses of larger batches are found again
_NO_WORDS = np.empty(0, np.uint64)


@dataclasses.dataclass(eq=False)
class Group:
    """Tables whose blocks one compiled call moves: of one codec, and all projected or none.

    Attributes:
        tables: their numbers in the collection.
        bundle: their sketches and memories; rows of `within` floats where they are projected, else of the collection's.
        projections: int64, as `projecting` reads them; None where they are not projected.
        within: floats of a row.
        n_projected: floats of all projections, whose gradients follow those of the memories.
        most_columns: of any table, so that as many addresses a word are enough.
    """

    tables: list[int]
    bundle: Bundle
    projections: NDArray[np.int64] | None
    within: int
    n_projected: int
    most_columns: int

    def places(self, batch: Batch) -> NDArray[np.int64]:
        """Where the words of the group's tables lie."""
        bags = 0 if batch.offsets is None else batch.rows
        if len(self.tables) == len(batch.counts):
            return self.bundle.places(batch.counts, bags, batch.starts, batch.step)
        counts, starts = [batch.counts[t] for t in self.tables], [batch.starts[t] for t in self.tables]
        return self.bundle.places(counts, bags, starts, batch.step, self.tables)


@dataclasses.dataclass(eq=False)
class Seen:
    """A forward pass of a collection: the vectors, and what the backward pass reuses.

    Attributes:
        vectors: float32 (rows, dim), the tables' vectors side by side; the caller may overwrite them.
        batch: the ids.
        kept: the addresses of each group, or None.
        places: where its words lie.
        inner: the vectors before the projection of each group that has one, else None.
        alone: for every table that is looked up by itself: its number, the forward pass of its ids, and (for mode max) which
            id gave each float.
        clocks: what the guard of each table showed.
        generations: how often each table had been clustered until then.
        owner: whose pass it was.
    """

    vectors: NDArray[np.float32]
    batch: Batch
    kept: list[Any]
    inner: list[Any]
    alone: list[tuple[int, Any, Any]]
    places: list[NDArray[np.int64]]
    clocks: list[int]
    generations: list[int]
    owner: Collection


class Collection:
    """Tables that are looked up together: one call, whatever their methods and sizes.

        out[n, left_t : left_t + dim_t] = Σ_{i ∈ bag n of table t}  amount_i · T_t[i]

    Args:
        tables: at least one. A table may come more than once: its gradients are then added.

    Attributes:
        tables: the tables.
        dim: floats of a row: those of all tables.
        groups: the tables that one compiled call serves.
        is_plain: whether it serves all, each is there once, and their memories are float32.
        guards: of the tables, in the order in which doors are shut.

    Raises:
        TypeError: something else than tables was given.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> users = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
        >>> words = cce.make_table("hash", vocab=500, dim=8, num_params=400, seed=1)
        >>> both = cce.Collection([users, words])
        >>> both.lookup(np.array([[3, 7], [4, 9], [3, 0]])).shape
        (3, 24)
        >>> both.lookup([[3, 4], [7, 9, 0]], offsets=[[0, 1, 2], [0, 3, 3]]).shape  # bags: {3}, {4} and {7, 9, 0}, {}
        (2, 24)
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = _check.sequence("tables", tables, "tables, at least one")
        if not self.tables or not all(isinstance(table, Table) for table in self.tables):
            raise TypeError(f"a Collection takes tables, at least one; got {[type(t).__name__ for t in self.tables]}")
        lefts = [0, *np.cumsum([table.spec.dim for table in self.tables]).tolist()]
        self.dim: int = lefts[-1]
        self._slices = [slice(a, b) for a, b in itertools.pairwise(lefts)]
        kinds: dict[tuple[str, bool], list[int]] = {}
        self._alone: list[int] = []
        for t, table in enumerate(self.tables):
            if isinstance(table.method, BlockMethod) and table.method.is_plain(table.spec):
                kinds.setdefault((table.spec.codec, table.spec.rank > 0), []).append(t)
            else:
                self._alone.append(t)
        self.groups = [self._group(numbers) for numbers in kinds.values()]
        once = len({id(table) for table in self.tables}) == len(self.tables)
        self.is_plain = once and not self._alone and all(codec == "float32" for codec, _ in kinds)
        self.guards = in_order(table.guard for table in self.tables)

    def __repr__(self) -> str:
        return (
            f"<{len(self.tables)} tables, rows of {self.dim} floats: {', '.join(t.spec.method for t in self.tables)}>"
        )

    def __reduce__(self) -> Any:
        return Collection, (self.tables,)  # groups hold addresses

    def _group(self, numbers: list[int]) -> Group:
        projected = self.tables[numbers[0]].spec.rank > 0
        parts, rows, left, start = [], [], 0, 0
        sizes = sum(self.tables[t].layout.size for t in numbers)
        for t in numbers:
            table, outer = self.tables[t], self._slices[t].start
            parts.append(Part(table.sketch, table.stored.view, left if projected else outer, table.spec.vocab or 0))
            if projected:
                w = table.arrays()["projection"]
                address = int(w.__array_interface__["data"][0])
                rows.append((address, table.spec.rank, table.spec.dim, left, outer, sizes + start))
                start += w.size
            left += table.layout.dim + 1  # and its mass
        return Group(
            numbers,
            Bundle(parts),
            np.array(rows, np.int64) if rows else None,
            left if projected else self.dim,
            start,
            max(len(part.sketch.layout.columns) for part in parts),
        )

    def split(self, vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The parts of rows that belong to each table: views (rows, dim of the table).

        Example:
            >>> import numpy as np, cce_core as cce
            >>> both = cce.Collection([cce.make_table("full", vocab=5, dim=dim) for dim in (2, 3)])
            >>> [part.shape for part in both.split(both.lookup(np.array([[1, 2], [3, 4]])))]
            [(2, 2), (2, 3)]
        """
        if np.ndim(_check.instance("vectors", vectors, np.ndarray, "an array")) != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors must have shape (rows, {self.dim}), got {vectors.shape}")
        return [vectors[:, part] for part in self._slices]

    # --- forward ------------------------------------------------------------------------------------------------------

    def lookup(
        self,
        ids: Any,
        offsets: Any = None,
        weights: Any = None,
        mode: str = "sum",
        *,
        lengths: Any = None,
        padding_id: Any = None,
    ) -> NDArray[np.float32]:
        """The vectors of all tables side by side.

        Args:
            ids: integers: an array (batch, tables), a column a table; or a list of flat arrays or lists, one a table (a list of
                lists is never a matrix: np.array(ids) is); or, for bags of one size, an array (batch, tables, size). A tensor
                of the CPU, or a frame of pandas, is an array.
            offsets: for bags, where each begins, and the end: (bags + 1,) integers from 0 to the number of ids; one row for
                all tables, or one a table. Without them (and without lengths) every id is a row.
            weights: a factor for every id, real numbers in the shape of ids; with mode "sum".
            mode: "sum", "mean" (over the ids that are not padding) or "max" (float by float; a NaN in a bag is its maximum). An
                empty bag gives zeros.
            lengths: ids of each bag, instead of offsets.
            padding_id: an id that counts for nothing; one for all tables, or one a table.

        Returns:
            float32 (batch or bags, dim), a new array.

        Raises:
            IndexError: an id is outside its table's vocabulary; the message names table, id and position.
            TypeError, ValueError: ids, offsets or weights do not fit together.

        Cost:
            As for the tables one by one, in one pass; in mode "max", and for methods that are more than blocks, a pass a table.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("full", vocab=3, dim=2)
            >>> one = cce.Collection([table])
            >>> bag = one.lookup([[0, 2, 2]], lengths=[[3, 0]], mode="mean")
            >>> bool(np.allclose(bag[0], table.lookup([0, 2, 2]).mean(0))), bag[1]
            (True, array([0., 0.], dtype=float32))
        """
        return self._pass(read(ids, offsets, lengths, weights, mode, padding_id, len(self.tables)), False).vectors

    def forward(
        self,
        ids: Any,
        offsets: Any = None,
        weights: Any = None,
        mode: str = "sum",
        *,
        lengths: Any = None,
        padding_id: Any = None,
    ) -> Seen:
        """`lookup`, with what the way back of the same ids needs: hand it to `backward`, or to an optimiser's `update`.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> both = cce.Collection([cce.make_table("full", vocab=5, dim=2, seed=k) for k in range(2)])
            >>> seen = both.forward(np.array([[1, 2], [3, 4]]))
            >>> cce.SGD(lr=0.1).update(both, seen, seen.vectors)
        """
        batch = read(ids, offsets, lengths, weights, mode, padding_id, len(self.tables))
        batch.words = batch.words.copy()  # the caller's array may be another batch's by the time of the backward pass
        return self._pass(batch, True)

    def _pass(self, batch: Batch, keep: bool) -> Seen:
        clocks = self._clocks()
        seen = self._read(batch, keep, clocks)
        if self._clocks() != clocks or any(clock & 1 for clock in clocks):  # a table changed meanwhile
            with Still(self.guards):
                seen = self._read(batch, keep, self._clocks())
        return seen

    def _read(self, batch: Batch, keep: bool, clocks: list[int]) -> Seen:
        out = np.empty((batch.rows, self.dim), np.float32)
        seen = Seen(out, batch, [], [], [], [], clocks, self._generations(), self)
        alone: Sequence[int] = self._alone
        if batch.mode == "max":
            alone = range(len(self.tables))
        else:
            for group in self.groups:
                self._gather(group, seen, keep)
        for t in alone:
            table, ids = self.tables[t], batch.of(t)
            self._known(t, batch)
            passed = table.forward(ids) if keep else None
            vectors = table.lookup(ids) if passed is None else passed.vectors
            where = None
            if batch.mode == "max":
                ends = np.arange(batch.rows + 1) if batch.offsets is None else batch.offsets[t]
                where = np.empty((batch.rows, table.spec.dim), np.int64)
                into = np.empty((batch.rows, table.spec.dim), np.float32)
                sliced(pool_max, batch.rows, 1 << 10, ends, vectors, into, where)
                out[:, self._slices[t]] = into
            elif batch.offsets is None and batch.amounts is None:
                out[:, self._slices[t]] = vectors
            else:
                pool, places, offsets, amounts, numbers = self._pool(t, batch, vectors, self._slices[t].start)
                blocks.gather(pool, numbers, places, offsets, amounts, None, batch.rows, out)
            seen.alone.append((t, passed, where))
        return seen

    def _gather(self, group: Group, seen: Seen, keep: bool) -> None:
        batch, places, kept = seen.batch, group.places(seen.batch), None
        if keep and len(batch.words) <= _KEPT_IDS * len(batch.counts):
            kept = np.empty(len(batch.words) * group.most_columns, np.uint64)
        inner = None if group.projections is None else np.empty((batch.rows, group.within), np.float32)
        into = seen.vectors if inner is None else inner
        if blocks.gather(group.bundle, batch.words, places, batch.flat_offsets, batch.amounts, kept, batch.rows, into):
            for t in group.tables:
                self._known(t, batch)
        if inner is not None:
            widened(group.projections, batch.masses(group.tables), inner, seen.vectors)
        seen.kept.append(kept)
        seen.inner.append(inner)
        seen.places.append(places)

    def _known(self, t: int, batch: Batch) -> None:
        """IndexError that names the first id of a table that is outside its vocabulary."""
        vocab = self.tables[t].spec.vocab
        if vocab is not None:
            try:
                _check.ids_within(np.ascontiguousarray(batch.as_came(t, batch.of(t))), vocab)
            except IndexError as error:
                raise IndexError(f"table {t}: {error}") from None

    def _pool(self, t: int, batch: Batch, vectors: NDArray[np.float32], left: int) -> tuple[Any, ...]:
        """Vectors as a memory whose blocks are their rows, so that the lookup of it sums bags, and the numbers of the rows."""
        n, dim = len(vectors), self.tables[t].spec.dim
        layout = Layout((Column(IDENTITY, 0, dim, max(1, n)),), 1, dim, n * dim, dim)
        pool = Bundle([Part(Sketch(layout, _NO_WORDS, _NO_WORDS), Memory(FLOAT32, vectors.reshape(-1)), left)])
        offsets = None if batch.offsets is None else batch.offsets[t]
        amounts = None if batch.amounts is None else batch.amounts[batch.part(t)]
        return (
            pool,
            pool.places([n], 0 if offsets is None else batch.rows),
            offsets,
            amounts,
            np.arange(n, dtype=np.uint64),
        )

    def _clocks(self) -> list[int]:
        return [table.guard.clock for table in self.tables]

    def _generations(self) -> list[int]:
        return [table.generation for table in self.tables]

    # --- the way back -------------------------------------------------------------------------------------------------

    def checked(self, seen: Any, grads: Any) -> tuple[Seen, NDArray[np.float32]]:
        """A pass that may be used, and gradients of its vectors as contiguous float32; not yet whether they are finite."""
        if not isinstance(seen, Seen):
            seen = self._pass(read(seen, None, None, None, "sum", None, len(self.tables)), True)
        if seen.owner is not self:
            raise ValueError("this forward pass is another collection's: hand it to the one that made it")
        if not isinstance(grads, np.ndarray) or grads.dtype != np.float32 or not grads.flags.c_contiguous:
            grads = _check.as_float32("gradients", grads, seen.vectors.shape)
        if grads.shape != seen.vectors.shape:
            raise ValueError(f"gradients must have shape {seen.vectors.shape}, got {grads.shape}")
        if seen.generations != self._generations():
            raise ValueError("a table was clustered since this forward pass: look the ids up again")
        if seen.clocks != self._clocks():
            seen = self._pass(seen.batch, True)  # trained since: what was kept may be out of date
        return seen, grads

    def backward(self, seen: Any, grads: Any, *, dense: bool = False) -> list[dict[str, Gradient]]:
        """The gradients of the parameters of every table, given those of the rows: the adjoint of `lookup`.

        Args:
            seen: what `forward` gave (or ids as a matrix, or a list of arrays, without bags).
            grads: real numbers (rows, dim), finite.
            dense: whole gradients of the memories, as for `Table.backward`.

        Returns:
            For every table what `Table.backward` gives; a table that comes twice has its gradients in two parts.

        Raises:
            ValueError: the gradients have another shape, or hold NaN or infinity, or a table was clustered since.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> one = cce.Collection([cce.make_table("full", vocab=3, dim=2)])
            >>> seen = one.forward([[0, 2, 2]], lengths=[[1, 2]])
            >>> one.backward(seen, np.ones((2, 2)))[0]["memory"].dense()
            array([1., 1., 0., 0., 2., 2.], dtype=float32)
        """
        with Still(self.guards):
            seen, grads = self.checked(seen, grads)
            grads = _check.as_float32("gradients", grads, seen.vectors.shape)
            passes = {t: passed for t, passed, _ in seen.alone}
            return [
                table.backward(passes.get(t) or seen.batch.of(t), self._of_ids(seen, t, grads), dense=dense)
                for t, table in enumerate(self.tables)
            ]

    def weight_gradients(self, seen: Seen, grads: Any) -> list[NDArray[np.float32]]:
        """The gradients of the `weights` that were given to `forward`: for every id ⟨its vector, the gradient of its row⟩.

        Returns:
            A flat float32 array a table, as the ids were; 0 where an id is padding.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("full", vocab=3, dim=2)
            >>> one = cce.Collection([table])
            >>> seen = one.forward([[0, 2]], weights=[[0.5, 2.0]], lengths=[[2]])
            >>> slope = one.weight_gradients(seen, np.ones((1, 2)))[0]
            >>> bool(np.allclose(slope, table.lookup([0, 2]).sum(1)))
            True
        """
        with Still(self.guards):
            seen, grads = self.checked(seen, grads)
            grads = _check.as_float32("gradients", grads, seen.vectors.shape)
            if seen.batch.mode != "sum":
                raise ValueError(f"weights go with mode 'sum', and this pass has mode {seen.batch.mode!r}")
            out = []
            for t, table in enumerate(self.tables):
                slopes = seen.batch.slopes(t, table.lookup(seen.batch.of(t)), grads, self._slices[t].start)
                out.append(seen.batch.as_came(t, slopes))
            return out

    def _of_ids(self, seen: Seen, t: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of each id's vector, from those of the rows."""
        batch, own = seen.batch, self._slices[t]
        where = next((where for number, _, where in seen.alone if number == t), None)
        if where is not None:
            out = np.zeros((batch.counts[t], own.stop - own.start), np.float32)
            unpool_max(grads[:, own], where, out)
            return out
        if batch.offsets is None and batch.amounts is None:
            return grads[:, own]
        out = grads[:, own][batch.row_of(t)]
        if batch.amounts is not None:
            out *= batch.amounts[batch.part(t), None]
        return out
