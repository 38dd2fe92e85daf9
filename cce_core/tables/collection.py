"""Many tables in one call: single ids or bags, forward and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Still, in_order
from cce_core.method.state import TableState
from cce_core.sketching.batch import read, unpool_max
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.group import TableGroup
from cce_core.tables.passes import CLOCK, ForwardPass, Passes
from cce_core.tables.table import Table


class Collection(Passes):
    """Tables that are looked up together: one call, whatever their methods and sizes.

        out[n, left_t : left_t + dim_t] = Σ_{i ∈ bag n of table t}  w_i · T_t[i]

    Args:
        tables: at least one. A table may come more than once: its gradients are then added.

    Attributes:
        tables: the tables.
        trained: what the dicts of `backward` are gradients of, for an optimiser: the tables.
        dim: floats of a row: those of all tables.
        groups: the tables that one compiled call serves.
        counting: whether training passes may have to be counted.
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

    _kind = "collection"

    def __init__(self, tables: Iterable[Table]) -> None:
        self.tables = _check.sequence("tables", tables, "tables, at least one")
        if not self.tables or not all(isinstance(table, Table) for table in self.tables):
            raise TypeError(f"a Collection takes tables, at least one; got {[type(t).__name__ for t in self.tables]}")
        self.trained: Sequence[TableState] = self.tables
        lefts = [0, *np.cumsum([table.spec.dim for table in self.tables]).tolist()]
        self.dim: int = lefts[-1]
        self._slices = [slice(a, b) for a, b in itertools.pairwise(lefts)]
        self._kinds: dict[tuple[str, bool], list[int]] = {}
        for t, table in enumerate(self.tables):
            if table.plain:
                self._kinds.setdefault((table.spec.codec, table.spec.rank > 0), []).append(t)
        self._alone = [t for t, table in enumerate(self.tables) if not table.plain]
        once = len({id(table) for table in self.tables}) == len(self.tables)
        self.is_plain = once and not self._alone and all(codec == "float32" for codec, _ in self._kinds)
        self.counting = any(table.phase is not None or table.owners is not None for table in self.tables)
        self.guards = in_order(table.guard for table in self.tables)
        self._regroup()

    def _regroup(self) -> None:
        """Groups of the tables as they are: those with phases become others when they are clustered or reopened."""
        with Still(self.guards):
            self.groups = [
                TableGroup([self.tables[t].part(self._slices[t].start) for t in numbers], numbers)
                for numbers in self._kinds.values()
            ]
            self._ages = [table.age for table in self.tables]
            changing = [table for table in self.tables if table.phase is not None or table.owners is not None]
            self.phased = [(table, table.spec) for table in changing]

    def __repr__(self) -> str:
        return (
            f"<{len(self.tables)} tables, rows of {self.dim} floats: {', '.join(t.spec.method for t in self.tables)}>"
        )

    def __reduce__(self) -> Any:
        return Collection, (self.tables,)  # groups hold addresses

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
        return self._read(read(ids, offsets, lengths, weights, mode, padding_id, len(self.tables)), False)[0]

    def forward(
        self,
        ids: Any,
        offsets: Any = None,
        weights: Any = None,
        mode: str = "sum",
        *,
        lengths: Any = None,
        padding_id: Any = None,
    ) -> ForwardPass:
        """`lookup`, with what the way back of the same ids needs: hand it to `backward`, or to an optimiser's `update`.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> both = cce.Collection([cce.make_table("full", vocab=5, dim=2, seed=k) for k in range(2)])
            >>> seen = both.forward(np.array([[1, 2], [3, 4]]))
            >>> cce.SGD(lr=0.1).update(both, seen, seen.vectors)
        """
        batch = read(ids, offsets, lengths, weights, mode, padding_id, len(self.tables))
        batch.ids = batch.ids.copy()  # the caller's array may be another batch's by the time of the backward pass
        return self._pass(batch)

    # --- the way back -------------------------------------------------------------------------------------------------

    def checked(self, seen: Any, grads: Any) -> tuple[ForwardPass, NDArray[np.float32]]:
        """A pass that may be used, and gradients of its vectors as contiguous float32; not yet whether they are finite."""
        if not isinstance(seen, ForwardPass):
            seen = self._pass(read(seen, None, None, None, "sum", None, len(self.tables)))
        usual = seen.owner is self and seen.clocks == list(map(CLOCK, self.guards))
        if not usual and not self.fresh(seen):
            seen = self._pass(seen.batch)  # trained since: what was kept may be out of date
        if not isinstance(grads, np.ndarray) or grads.dtype != np.float32 or not grads.flags.c_contiguous:
            grads = _check.as_float32("gradients", grads, seen.vectors.shape)
        if grads.shape != seen.vectors.shape:
            raise ValueError(f"gradients must have shape {seen.vectors.shape}, got {grads.shape}")
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
        dense = _check.flag("dense", dense)
        with Still(self.guards):
            seen, grads = self.checked(seen, grads)
            grads = _check.as_float32("gradients", grads, seen.vectors.shape)
            out = []
            for t, table in enumerate(self.tables):
                of_ids = self._of_ids(seen, t, grads)
                # Per-sample weights may make them infinite.
                of_ids = _check.as_float32("gradients", of_ids, of_ids.shape)
                out.append(table.gradients(seen.batch.of(t), seen.alone.get(t), of_ids, dense))
            return out

    def count(self, seen: ForwardPass) -> None:
        """Tell tables that count their ids that a training pass has met these; `backward` does it itself."""
        for t, table in enumerate(self.tables):
            table.count(seen.batch.of(t))

    def weight_gradients(self, seen: ForwardPass, grads: Any) -> list[NDArray[np.float32]]:
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
                vectors = table.look_up(seen.batch.of(t), False)[0]
                slopes = seen.batch.slopes(t, vectors, grads, self._slices[t].start)
                out.append(seen.batch.as_came(t, slopes))
            return out

    def _of_ids(self, seen: ForwardPass, t: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gradient of each id's vector, from those of the rows."""
        batch, own = seen.batch, self._slices[t]
        if batch.mode == "max":
            out = np.zeros((batch.counts[t], own.stop - own.start), np.float32)
            unpool_max(grads[:, own], seen.alone[t].where, out)
            return out
        if batch.offsets is None and batch.weights is None:
            return grads[:, own]
        out = grads[:, own][batch.row_of(t)]
        if batch.weights is not None:
            out *= batch.weights[batch.part(t), None]
        return out
