"""Forward passes over tables: what they read and leave behind, and when that may be used again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import attrgetter, methodcaller
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._arrays import Floats
from cce_core._guard import Guard, Still
from cce_core._threads import parallel_for
from cce_core.sketching.batch import JaggedBatch, pool_max
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.group import Left, Member, TableGroup
from cce_core.sketching.layout import IDENTITY, Column, Layout
from cce_core.sketching.projection import projection_row, widened
from cce_core.storage.codec import FLOAT32

_NO_WORDS = np.empty(0, np.uint64)
CLOCK, _item, _odd = attrgetter("clock"), methodcaller("item"), (1).__and__
# Vectors, and of `ForwardPass`: clocks, generations, left, alone.
_Read = tuple[Floats, list[int], list[int], list[Left], dict[int, Left]]


@dataclasses.dataclass(eq=False, slots=True)
class ForwardPass:
    """A forward pass: the vectors, and what spares the backward pass of the same ids its work.

    Attributes:
        vectors: float32 (*shape of the ids, dim), or (rows, dim) with the tables' vectors side by side; the caller may
            overwrite them.
        batch: the ids.
        owner: the table or collection whose pass it is.
        clocks: what the guards of the tables showed.
        generations: how often each table had been clustered until then.
        left: of each of the owner's groups what the lookup left.
        alone: the same of every table that was looked up by itself, by its number.
    """

    vectors: NDArray[np.float32]
    batch: JaggedBatch
    owner: Any
    clocks: list[int]
    generations: list[int]
    left: list[Left]
    alone: dict[int, Left]


class Passes:
    """What reads some tables at once: a table itself, or a collection of them.

    Attributes:
        tables: each with `look_up`, the lookup of a table by itself.
        groups: the tables that one compiled call serves.
        guards: of the tables, in the order in which doors are shut.
    """

    _kind: ClassVar[str] = "table"  # what messages call it
    tables: Sequence[Any]
    groups: Sequence[TableGroup]
    guards: Sequence[Guard]
    # Tables whose phase may change, each with the spec that its group was made of.
    phased: Sequence[tuple[Any, Any]] = ()
    _alone: Sequence[int]  # the tables that no group holds
    _ages: Sequence[NDArray[np.int64]]  # of every table its generation
    _slices: list[slice]  # the columns of every table

    def _read(self, batch: JaggedBatch, keep: bool, still: bool = False) -> _Read:
        """Look up; again behind shut doors, if a table changed meanwhile."""
        if self.phased and any(table.spec is not spec for table, spec in self.phased):
            self._regroup()
        guards, alone = self.guards, self._alone
        clocks = list(map(CLOCK, guards))
        ages = list(map(_item, self._ages)) if keep else []
        out = np.empty((batch.rows, self._slices[-1].stop), np.float32)
        lefts, apart = [], {}
        if batch.mode == "max":
            alone = range(len(self._slices))
        else:
            for group in self.groups:
                left, outside = group.forward(batch, keep, out)
                lefts.append(left)
                if outside:
                    for t in group.tables:
                        self._known(t, batch)
        for t in alone:
            out, apart[t] = self._by_itself(t, batch, keep, out)
        if not still and (list(map(CLOCK, guards)) != clocks or any(map(_odd, clocks))):
            with Still(guards):
                return self._read(batch, keep, True)
        if batch.shape is not None and len(batch.shape) != 1:
            out = out.reshape(*batch.shape, out.shape[1])
        return out, clocks, ages, lefts, apart

    def _pass(self, batch: JaggedBatch) -> ForwardPass:
        """Look up, and keep what the backward pass needs."""
        out, clocks, ages, lefts, apart = self._read(batch, True)
        return ForwardPass(out, batch, self, clocks, ages, lefts, apart)

    def _regroup(self) -> None:
        """Group the tables as they are now."""

    def _by_itself(self, t: int, batch: JaggedBatch, keep: bool, out: Floats) -> tuple[Floats, Left]:
        """`out` with the vectors of a table by itself, pooled to rows, and what its lookup leaves."""
        own = self._slices[t]
        self._known(t, batch)
        vectors, left = self.tables[t].look_up(batch.of(t), keep)
        if batch.mode == "max":
            ends = np.arange(batch.rows + 1) if batch.offsets is None else batch.offsets[t]
            shape = batch.rows, vectors.shape[1]
            highest, where = np.empty(shape, np.float32), np.empty(shape, np.int64)
            parallel_for(pool_max, batch.rows, 1 << 10, ends, vectors, highest, where)
            out[:, own], left = highest, left._replace(where=where)
        elif batch.offsets is not None or batch.weights is not None:
            _sum(vectors, batch.alone_of(t), own.start, out)
        elif len(self._slices) == 1:
            out = vectors
        else:
            out[:, own] = vectors
        return out, left

    def _known(self, t: int, batch: JaggedBatch) -> None:
        """IndexError that names the first id of a table that is outside its vocabulary."""
        vocab = self.tables[t].spec.vocab
        if vocab is not None:
            words = batch.as_came(t, batch.of(t))
            if batch.shape is not None:
                return _check.ids_within(words.reshape(batch.shape), vocab)
            try:
                _check.ids_within(words, vocab)
            except IndexError as error:
                raise IndexError(f"table {t}: {error}") from None

    def fresh(self, seen: ForwardPass) -> bool:
        """Whether what a pass has left may still be used: not once a table was trained.

        Raises:
            ValueError: it is another's pass, or a table was clustered since.
        """
        if seen.owner is not self:
            raise ValueError(f"this forward pass is another {self._kind}'s: hand it to the {self._kind} that made it")
        if seen.clocks == list(map(CLOCK, self.guards)):
            return True
        if seen.generations != list(map(_item, self._ages)):
            raise ValueError("a table was clustered since this forward pass: look the ids up again")
        return False


def _sum(vectors: NDArray[np.float32], batch: JaggedBatch, left: int, out: NDArray[np.float32]) -> None:
    """Bags of vectors, summed into the columns of `out` from `left` on: the lookup in a memory whose blocks they are."""
    n, dim = vectors.shape
    layout = Layout((Column(IDENTITY, 0, dim, max(1, n)),), 1, dim, n * dim, dim)
    memory = Memory(FLOAT32, vectors.reshape(-1))
    TableGroup([Member(Sketch(layout, _NO_WORDS, _NO_WORDS), memory, left)]).forward(batch, False, out)


def projected(
    matrix: NDArray[np.float32], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x · W + b of vectors (n, rank): (n, dim), and the vectors with the 1 behind them that the bias is multiplied by."""
    inner, out = (
        np.empty((len(vectors), len(matrix)), np.float32),
        np.empty((len(vectors), matrix.shape[1]), np.float32),
    )
    inner[:, :-1] = vectors
    widened(np.array([projection_row(matrix)], np.int64), None, inner, out)
    return out, inner
