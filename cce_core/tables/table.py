"""A compressed embedding table: a frozen spec, plain arrays, and pure functions of the two."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Guard
from cce_core.learning.cluster import ClusterReport, cluster, reopen
from cce_core.method import get_method
from cce_core.method.arrays import array_specs, fitting, fresh
from cce_core.method.checked import checked
from cce_core.method.spec import ROWS, TableSpec
from cce_core.method.state import TableState
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.gradient import Gradient, SparseGradient
from cce_core.sketching.group import Left, TableGroup
from cce_core.storage.files import save_arrays
from cce_core.storage.ledger import Ledger
from cce_core.tables.deltas import Followed
from cce_core.tables.factors import factors
from cce_core.tables.passes import ForwardPass, Passes, projected

if TYPE_CHECKING:
    import scipy.sparse


class Table(TableState, Passes, Followed):
    """A compressed embedding table; `make_table` and `load` make one.

    For linear methods `T = H · M`, or, where the spec has a rank, `T = H · M · W + b`: the sketch H (hashes and pointers), the
    memory M, and the projection, W and its bias b.

    Args:
        spec: all sizes and seeds.
        arrays: the arrays to use, which stay the caller's own; None draws fresh ones from the spec's seed.

    Raises:
        ValueError: an array is missing, foreign, or of another shape or type than the spec says.

    Example:
        >>> import cce_core as cce
        >>> table = cce.make_table("ce", vocab=1000, dim=16, num_params=1024, seed=0)
        >>> table.lookup([[1, 2, 3], [4, 5, 6]]).shape
        (2, 3, 16)
    """

    def __init__(self, spec: TableSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        super().__init__(*made_of(spec, arrays))
        if dict(spec.options).get("tables") is not None:
            raise ValueError("this is the spec of several tables with one memory: make_collection and load make them")
        self.method = get_method(spec.method)
        if self.phase is not None or self.owners is not None:
            self.prepare()
        self._projection = self._arrays.get("projection")
        self._alone, self._slices, self._ages = () if self.plain else (0,), [slice(0, spec.dim)], [self.age]

    def __repr__(self) -> str:
        spec, ledger = self.spec, self.ledger()
        ratio, then = ledger.ratio, ledger.clustered
        later = "" if then is None or ledger.full is None else f"; after cluster() {then:,}, {ledger.full / then:.1f}x"
        kept = "" if spec.codec == "float32" else f"{spec.codec}, "
        return (
            f"<{spec.method} table: vocab {'unbounded' if spec.vocab is None else format(spec.vocab, ',')}, dim {spec.dim}, "
            f"rank {spec.rank}, {spec.n_chunks} chunks, sizes {self.method.shape(spec)}, {kept}{self.num_params:,} parameters, "
            f"{'' if self.phase is None else f'{self.phase}: '}{ledger.total:,} bytes"
            f"{'' if ratio is None else f', {ratio:.1f}x smaller'}{later}>"
        )

    # --- the way of an id, and of a gradient --------------------------------------------------------------------------

    @property
    def tables(self) -> Sequence[Table]:  # type: ignore[override]  # a list would be a circle that keeps the arrays
        """The table itself."""
        return (self,)

    @functools.cached_property
    def groups(self) -> Sequence[TableGroup]:  # type: ignore[override]  # addresses, which copies must find anew
        """The table itself, if the loops for many tables take it."""
        return (self.group,) if self.plain else ()

    @functools.cached_property
    def guards(self) -> Sequence[Guard]:  # type: ignore[override]  # likewise
        """The table's own."""
        return (self.guard,)

    def prepare(self) -> None:
        """Make groups and guards now."""
        _ = self.groups, self.guards

    def lookup(self, ids: Any) -> NDArray[np.float32]:
        """The vectors of ids, `T[ids]`.

        Args:
            ids: integers of any type and shape: an array, a list, a tensor of the CPU, a column of pandas or Arrow.

        Returns:
            float32 (*ids.shape, dim), a new array.

        Raises:
            IndexError: an id is negative or not below the vocabulary; the message names it and its position.
            TypeError: ids are not integers.

        Cost:
            A hash or a packed pointer a column, a block of memory each, and rank · dim multiplications with a rank.

        Example:
            >>> import cce_core as cce
            >>> table = cce.make_table("hash", vocab=100, dim=8, num_params=80, seed=0)
            >>> table.lookup(7).shape
            (8,)
        """
        return self._read(JaggedBatch.alone(ids), False)[0]

    def forward(self, ids: Any) -> ForwardPass:
        """`lookup`, with what `backward` of the same ids would otherwise have to work out again.

        Args:
            ids: integers of any type and shape.

        Returns:
            A `ForwardPass`: its `vectors` are those of `lookup`; hand it to `backward` in place of the ids. What it
            keeps is not used after a `requantize`, which every step of an optimiser ends with.

        Raises:
            IndexError, TypeError: as for `lookup`.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("cce", vocab=100, dim=8, num_params=256, seed=0)
            >>> seen = table.forward([7, 8])
            >>> bool(np.array_equal(seen.vectors, table.lookup([7, 8])))
            True
            >>> gradients = table.backward(seen, np.ones((2, 8)))
        """
        # A copy: the caller's array may be another batch's by the time of the backward pass.
        return self._pass(JaggedBatch.alone(_check.as_ids(ids).copy()))

    def look_up(self, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Left]:
        """The vectors of flat ids that are known to be in the vocabulary, and what that leaves for a backward pass."""
        if self.plain:
            out = np.empty((len(ids), self.spec.dim), np.float32)
            return out, self.group.forward(JaggedBatch.alone(ids), keep, out)[0]
        vectors, saved = self.method.forward(self, ids, keep)
        if self._projection is None:
            return vectors, Left(saved, None)
        vectors, inner = projected(self._projection, vectors)
        return vectors, Left(saved, inner)

    def backward(self, ids: Any, grads: Any, *, dense: bool = False) -> dict[str, Gradient]:
        """The gradients of the parameters, given those of the vectors: the adjoint of `lookup`.

            ∂M = Hᵀ · G · Wᵀ            ∂W = (H · M)ᵀ · G            ∂b = Σ_n G_n

        Args:
            ids: the ids that were looked up, or the `ForwardPass` of them; an id that comes twice counts twice.
            grads: real numbers (*ids.shape, dim), finite.
            dense: give the whole gradient of the memory, float32 (size,), instead of the touched units alone. It is the
                quicker one where a batch touches most of the memory.

        Returns:
            For `memory` a `SparseGradient` (or the dense array), for `projection`, if any, float32 (rank + 1, dim), and likewise
            for whatever else `parameters()` names.

        Raises:
            IndexError, TypeError: as for `lookup`.
            ValueError: the gradients have another shape, or hold NaN or infinity, or the table was clustered since the
                `ForwardPass`; nothing is changed.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("full", vocab=10, dim=2)
            >>> gradient = table.backward([3, 3], np.ones((2, 2)))["memory"]
            >>> gradient.index, gradient.values
            (array([3]), array([[2., 2.]], dtype=float32))
        """
        dense, seen = _check.flag("dense", dense), ids if isinstance(ids, ForwardPass) else None
        batch = JaggedBatch.alone(ids) if seen is None else seen.batch
        shape = (*(batch.shape or ()), self.spec.dim) if seen is None else seen.vectors.shape
        if seen is None:
            self._known(0, batch)
        vectors = _check.as_float32("gradients", grads, shape).reshape(-1, self.spec.dim)
        with self.guard.door:  # its loops read pointers more than once
            left = None
            if seen is not None and self.fresh(seen):
                left = seen.left[0] if self.plain else seen.alone[0]
            return self.gradients(batch.ids, left, vectors, dense)

    def gradients(
        self, ids: NDArray[np.uint64], left: Left | None, vectors: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """`backward` of flat ids that are known to be in the vocabulary, with what their lookup has left."""
        saved = None if left is None else (left.kept, None) if self.plain else left.kept
        self.training_bytes["scratch"] = 0
        if self._projection is None:
            out = self.method.backward(self, ids, saved, vectors, dense)
        else:
            inner = self.look_up(ids, True)[1].inner if left is None or left.inner is None else left.inner
            assert inner is not None
            # `np.dot`: `@` warns of flags that BLAS leaves of lanes that it does not use.
            out = self.method.backward(self, ids, saved, np.dot(vectors, self._projection[:-1].T), dense)
            out["projection"] = slope = np.empty_like(self._projection)
            np.dot(inner[:, :-1].T, vectors, out=slope[:-1])
            np.dot(np.ones(len(vectors), np.float32), vectors, out=slope[-1])
        if self.counting and all(map(finite, out.values())):  # else no step is taken
            self.count(ids)
        if self.owners is not None:
            turn = self.turn
            out = {n: dataclasses.replace(g, turn=turn) if isinstance(g, SparseGradient) else g for n, g in out.items()}
        self.training_bytes["gradient"] = sum(gradient.nbytes for gradient in out.values())
        return out

    # --- learning the sketch ------------------------------------------------------------------------------------------

    def cluster(self, **settings: Any) -> ClusterReport:
        """Learn the sketch from the vectors as they are now, or from given `vectors=` (an array, or a trained table).

        All settings stand with `cce_core.learning.cluster.cluster`.

        Returns:
            A `ClusterReport`.

        Raises:
            ValueError: the method does not learn its sketch, or the memory holds NaN or infinity. The table is as before.

        Example:
            >>> import cce_core as cce
            >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
            >>> report = table.cluster()
            >>> report.inertia_after <= report.inertia_before
            True
        """
        return cluster(self, **settings)

    def reopen(self) -> None:
        """Go back to rows, for new data: after `cluster()` of a `vq` table, each id gets a row again, that of its centroid.

        Lookups stay the same but for the rounding of the codec; so do the projection and what optimisers know of it. Counters
        begin at 0.

        Raises:
            ValueError: the table has rows, or its method no phases, or it is mapped read-only; it stays as it was.

        Example:
            >>> import cce_core as cce
            >>> table = cce.make_table("vq", vocab=1000, dim=16, num_bytes=1500, seed=0)
            >>> _ = table.cluster()
            >>> table.reopen()
            >>> table.phase
            'rows'
        """
        reopen(self)

    # --- bytes, matrices, files ---------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Every byte that this table costs; see `Ledger`.

        Example:
            >>> import cce_core as cce
            >>> table = cce.make_table("cce", vocab=1_000_000, dim=32, num_params=65_536, n_chunks=4, rank=0)
            >>> table.ledger().stored["pointers"], table.ledger().stored["memory"]
            (5000000, 262144)
        """
        stored = {name: array.nbytes for name, array in self._arrays.items()}
        full = None if self.spec.vocab is None else 4 * self.spec.vocab * self.spec.dim
        then = self.method.nbytes(self.method.served(self.spec)) if self.phase == ROWS else None
        return Ledger(stored, dict(self.training_bytes), full, then)

    def factors(self) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, NDArray[np.float32]]:
        """H, M and W with `lookup(ids) == (H @ M @ W)[ids]`, for linear methods with a vocabulary.

        Returns:
            H (vocab, n_blocks): ±1 where an id uses a block; M (n_blocks, inner): every distinct block, in the columns
            of its chunk; W (inner, dim), the identity where there is no projection. With one, W ends in the bias, and H and
            M in a block that all ids share, the constant 1.

        Raises:
            ValueError: the method is not linear, or the vocabulary is unbounded.
        """
        with self.guard.door:
            return factors(self)

    def sketch_matrix(self) -> scipy.sparse.csr_array:
        """H of `factors()`: which blocks of the memory are summed for each id, with what weight, in which chunk.

        Example:
            >>> import cce_core as cce
            >>> table = cce.make_table("cce", vocab=50, dim=8, num_params=128, n_chunks=2, rank=0)
            >>> H = table.sketch_matrix()
            >>> H.shape[0], H.nnz
            (50, 200)
        """
        return self.factors()[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one safetensors file: whole, or (where anything fails) not at all.

        Lookups go on meanwhile; steps and clusterings in other threads wait.

        Raises:
            OSError: the folder does not exist or cannot be written.

        Example:
            >>> import os, tempfile, numpy as np, cce_core as cce
            >>> table = cce.make_table("robe", vocab=100, dim=8, num_params=64)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = os.path.join(folder, "user.safetensors")
            ...     table.save(path)
            ...     again = cce.load(path)
            >>> bool(np.array_equal(again.lookup([1, 2]), table.lookup([1, 2])))
            True
        """
        with self.guard.door:  # the file holds one moment
            save_arrays(path, self.arrays(), self.spec.as_json())


def made_of(spec: TableSpec, arrays: Mapping[str, NDArray[Any]] | None) -> tuple[Any, ...]:
    """What a `TableState` is made of: checked, and with fresh arrays if there are none."""
    spec = checked(_check.instance("spec", spec, TableSpec, "a TableSpec"))
    method, specs = get_method(spec.method), array_specs(spec)
    arrays = fresh(spec) if arrays is None else fitting(spec, specs, arrays)
    layouts = method.layout(spec), method.weight_layout(spec)
    return spec, specs, arrays, *layouts, method.is_plain(spec), method.owners(spec, arrays)


def finite(gradient: Gradient) -> bool:
    """Whether all numbers of a gradient are."""
    return bool(np.isfinite(gradient.values if isinstance(gradient, SparseGradient) else gradient).all())
