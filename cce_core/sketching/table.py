"""A compressed embedding table: a frozen spec, plain arrays, and pure functions of the two."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Changing, Guard
from cce_core.sketching import blocks
from cce_core.sketching.arrays import array_specs, fitting, fresh
from cce_core.sketching.block_method import BlockMethod
from cce_core.sketching.bundle import Bundle, Part, Sketch
from cce_core.sketching.forward import Forward
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.layout import Layout
from cce_core.sketching.methods import get_method
from cce_core.sketching.spec import TableSpec
from cce_core.sketching.stored import StoredMemory
from cce_core.storage.files import save_arrays
from cce_core.storage.ledger import Ledger

if TYPE_CHECKING:
    import scipy.sparse

    from cce_core.sketching.learning import ClusterReport

_EMPTY, _NEVER = np.empty(0, np.uint64), np.zeros(1, np.int64)


class Table:
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

    sketch: Sketch
    weigher: Sketch | None
    stored: StoredMemory

    def __init__(self, spec: TableSpec, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        self.spec = _check.instance("spec", spec, TableSpec, "a TableSpec")
        self.method = get_method(spec.method)
        self._specs = array_specs(spec)
        arrays = fresh(spec) if arrays is None else fitting(spec, self._specs, arrays)
        self._arrays = {name: arrays[name] for name in self._specs}
        self._projection = self._arrays.get("projection")
        self._units = {name: array.unit for name, array in self._specs.items() if array.unit}
        self._parameters = {name: self._arrays[name] for name in self._units}
        self._first = next(iter(self._parameters.values()))  # a file is mapped as a whole or not at all
        self._end = None if spec.vocab is None else np.uint64(spec.vocab)
        self.guard = Guard()
        self._age = self._arrays.get("generation", _NEVER)
        self._slots: dict[str, NDArray[Any]] = {}
        self.training_bytes: dict[str, int] = {}
        if isinstance(self.method, BlockMethod):
            layout, weighing = self.method.layout(spec), self.method.weighing(spec)
            keys, pointers = self._arrays.get("keys", _EMPTY), self._arrays.get("pointers", _EMPTY)
            self.sketch = Sketch(layout, keys, pointers)
            self.weigher = None if weighing is None else Sketch(weighing, keys, pointers)
            scales = self._arrays.get("scales", np.empty(0, np.float32))
            self.stored = StoredMemory(spec, layout.size, self._arrays["memory"], scales)

    def __repr__(self) -> str:
        spec, ratio = self.spec, self.ledger().ratio
        kept = "" if spec.codec == "float32" else f"{spec.codec}, "
        return (
            f"<{spec.method} table: vocab {'unbounded' if spec.vocab is None else format(spec.vocab, ',')}, dim {spec.dim}, "
            f"rank {spec.rank}, {spec.n_chunks} chunks, sizes {spec.sizes}, {kept}{self.num_params:,} parameters, "
            f"{self.ledger().total:,} bytes{'' if ratio is None else f', {ratio:.1f}x smaller'}>"
        )

    # --- arrays -------------------------------------------------------------------------------------------------------

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

        With a codec, `memory` is the float32 values behind the codes; who changes them calls `settle` afterwards.
        """
        trained = dict(self._parameters)
        if self.spec.codec != "float32":
            with self.guard.door:
                trained["memory"] = self.stored.values()
                self.training_bytes["values"] = self.stored.training_bytes
        return trained

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The arrays that are learned or drawn but not trained: hash `keys`, packed `pointers`, the `generation`.

        With a codec, `scales` too, and the codes as `memory`: together with the other parameters, all that is saved.
        """
        coded = self.spec.codec != "float32"
        return {n: self._arrays[n] for n, array in self._specs.items() if not array.unit or (coded and n == "memory")}

    def settle(self) -> None:
        """Say that trained values were changed: with a codec they are rounded into the codes. Optimisers do it themselves.

        Raises:
            ValueError: the table is mapped read-only.
        """
        if not self._first.flags.writeable:
            raise ValueError("the table is mapped read-only; load it with mmap=False to change it")
        with Changing((self.guard,)):
            if self.spec.codec != "float32":
                self.stored.settle()
                self.training_bytes["values"] = self.stored.training_bytes

    def units(self) -> dict[str, int]:
        """Floats of the blocks that each parameter is made of: what "row" means to sparse gradients and optimisers."""
        return dict(self._units)

    @functools.cached_property
    def bundle(self) -> Bundle:
        """Sketch and memory as the compiled loops read them."""
        return Bundle([Part(self.sketch, self.stored.view, vocab=self.spec.vocab or 0)])

    @functools.cached_property
    def weigher_bundle(self) -> Bundle:
        """The same of the weights."""
        assert self.weigher is not None
        assert isinstance(self.method, BlockMethod)
        return Bundle([Part(self.weigher, self.method.weights_memory(self))])

    def __getstate__(self) -> dict[str, Any]:
        """A copy of one moment, for copies of the table: pickling it may go on while the table is trained."""
        return self._state({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.guard, self._slots = Guard(), {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(self._state(memo))
        return made

    def _state(self, memo: dict[int, Any]) -> dict[str, Any]:
        with self.guard.door:  # bundles hold addresses; guard and scratch are each table's own
            kept = {n: v for n, v in dict(self.__dict__).items() if not n.endswith("bundle")}
            del kept["guard"], kept["_slots"]
            return copy.deepcopy(kept, memo)

    @property
    def writeable(self) -> bool:
        """Whether the arrays may be changed: not where they are mapped from a file."""
        return all(array.flags.writeable for array in self._arrays.values())

    @property
    def num_params(self) -> int:
        """Trained numbers in all."""
        sizes = {name: array.size for name, array in self._parameters.items()}
        if self.spec.codec != "float32":
            sizes["memory"] = self.layout.size
        return sum(sizes.values())

    @property
    def generation(self) -> int:
        """How often `cluster()` has changed this table; optimisers drop what they know of an earlier generation."""
        return self._age.item()

    @contextlib.contextmanager
    def slots(self, name: str, layout: Layout) -> Iterator[NDArray[Any]]:
        """Scratch for the sparse gradient of an array.

        It is taken out while it is used: an interrupt loses it, and two threads never share it.
        """
        slots = self._slots.pop(name, None)
        slots = blocks.new_slots(layout) if slots is None else slots
        yield slots
        self._slots[name] = slots

    # --- the way of an id, and of a gradient --------------------------------------------------------------------------

    def _words(self, ids: Any) -> NDArray[np.uint64]:
        words = _check.as_ids(ids)
        if self._end is not None:
            _check.ids_within(words, self._end)
        return words

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
        words = self._words(ids)
        flat, guard = words.reshape(-1), self.guard
        clock = guard.clock
        vectors = self._vectors(flat)
        if clock & 1 or guard.clock != clock:  # the table changed meanwhile
            with guard.door:
                vectors = self._vectors(flat)
        return vectors.reshape(*words.shape, self.spec.dim)

    def _vectors(self, flat: NDArray[np.uint64]) -> NDArray[np.float32]:
        vectors, _ = self.method.forward(self, flat, keep=False)
        return vectors if self._projection is None else self._widened(vectors)

    def forward(self, ids: Any) -> Forward:
        """`lookup`, with what `backward` of the same ids would otherwise have to work out again.

        Args:
            ids: integers of any type and shape.

        Returns:
            A `Forward`: its `vectors` are those of `lookup`; hand it to `backward` in place of the ids. What it
            keeps is not used after a `settle`, which every step of an optimiser ends with.

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
        words = self._words(ids)
        flat = words.flatten()  # a copy: the caller's array may be another batch's by the time of the backward pass
        shape, guard = (*words.shape, self.spec.dim), self.guard
        clock = guard.clock
        seen = self._pass(flat, shape, clock)
        if clock & 1 or guard.clock != clock:  # the table changed meanwhile
            with guard.door:
                seen = self._pass(flat, shape, guard.clock)
        return seen

    def _pass(self, flat: NDArray[np.uint64], shape: tuple[int, ...], clock: int) -> Forward:
        vectors, saved = self.method.forward(self, flat, keep=True)
        inner = None
        if self._projection is not None:
            inner, vectors = vectors, self._widened(vectors)
        return Forward(vectors.reshape(shape), flat, inner, saved, self, self.generation, clock)

    def _widened(self, inner: NDArray[np.float32]) -> NDArray[np.float32]:
        """inner · W + b."""
        assert self._projection is not None
        vectors = inner @ self._projection[:-1]
        vectors += self._projection[-1]
        return vectors

    def backward(self, ids: Any, grads: Any, *, dense: bool = False) -> dict[str, Gradient]:
        """The gradients of the parameters, given those of the vectors: the adjoint of `lookup`.

            ∂M = Hᵀ · G · Wᵀ            ∂W = (H · M)ᵀ · G            ∂b = Σ_n G_n

        Args:
            ids: the ids that were looked up, or the `Forward` of them; an id that comes twice counts twice.
            grads: real numbers (*ids.shape, dim), finite.
            dense: give the whole gradient of the memory, float32 (size,), instead of the touched units alone. It is the
                quicker one where a batch touches most of the memory.

        Returns:
            For `memory` a `SparseGradient` (or the dense array), for `projection`, if any, float32 (rank + 1, dim), and likewise
            for whatever else `parameters()` names.

        Raises:
            IndexError, TypeError: as for `lookup`.
            ValueError: the gradients have another shape, or hold NaN or infinity, or the table was clustered since the
                `Forward`; nothing is changed.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("full", vocab=10, dim=2)
            >>> gradient = table.backward([3, 3], np.ones((2, 2)))["memory"]
            >>> gradient.index, gradient.values
            (array([3]), array([[2., 2.]], dtype=float32))
        """
        dense, seen = _check.flag("dense", dense), ids if isinstance(ids, Forward) else None
        words = self._words(ids) if seen is None else seen.ids
        shape = (*words.shape, self.spec.dim) if seen is None else seen.vectors.shape
        vectors = _check.as_float32("gradients", grads, shape).reshape(-1, self.spec.dim)
        with self.guard.door:  # its loops read pointers more than once
            return self._backward(seen, words.reshape(-1), vectors, dense)

    def _backward(
        self, seen: Forward | None, flat: NDArray[np.uint64], vectors: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        inner = saved = None
        if seen is not None:
            if seen.table is not self:
                raise ValueError("this forward pass is another table's: hand it to the table that made it")
            if seen.generation != self.generation:
                raise ValueError("the table was clustered since this forward pass: look the ids up again")
            if seen.clock == self.guard.clock:  # else trained since: what was kept may be out of date
                inner, saved = seen.inner, seen.saved
        if self._projection is None:
            out = self.method.backward(self, flat, saved, vectors, dense)
        else:
            inner = self.method.forward(self, flat, keep=False)[0] if inner is None else inner
            out = self.method.backward(self, flat, saved, vectors @ self._projection[:-1].T, dense)
            out["projection"] = slope = np.empty_like(self._projection)
            np.matmul(inner.T, vectors, out=slope[:-1])
            np.matmul(np.ones(len(vectors), np.float32), vectors, out=slope[-1])
        held = [array.nbytes for array in (*out.values(), *self._slots.values())]
        self.training_bytes["gradient"] = sum(held)
        return out

    # --- learning the sketch ------------------------------------------------------------------------------------------

    def cluster(self, **settings: Any) -> ClusterReport:
        """Learn the sketch from the vectors as they are now, or from given `vectors=` (an array, or a trained table).

        All settings stand with `cce_core.sketching.learning.cluster`.

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
        from cce_core.sketching.learning import cluster

        return cluster(self, **settings)

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
        return Ledger(stored, dict(self.training_bytes), full)

    def factors(self) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, NDArray[np.float32]]:
        """H, M and W with `lookup(ids) == (H @ M @ W)[ids]`, for linear methods with a vocabulary.

        Returns:
            H (vocab, n_blocks): ±1 where an id uses a block; M (n_blocks, inner): every distinct block, in the columns
            of its chunk; W (inner, dim), the identity where there is no projection. With one, W ends in the bias, and H and
            M in a block that all ids share, the constant 1.

        Raises:
            ValueError: the method is not linear, or the vocabulary is unbounded.
        """
        from cce_core.sketching.matrix import factors

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
