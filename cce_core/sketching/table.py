"""A compressed embedding table: a frozen spec, plain arrays, and pure functions of the two."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.hashing.mix import derive_key, mix_hash
from cce_core.sketching import blocks
from cce_core.sketching.blocks import POINTER, SparseGradient
from cce_core.sketching.methods import get_method
from cce_core.sketching.spec import KEYS, POINTERS, VALUES, TableSpec
from cce_core.storage.files import FileFormatError, load_arrays, save_arrays
from cce_core.storage.ledger import Ledger
from cce_core.storage.packed import Packing

if TYPE_CHECKING:
    import scipy.sparse

    from cce_core.sketching.learning import ClusterReport

Gradient = NDArray[np.float32] | SparseGradient


class Table:
    """A compressed embedding table; `make_table` and `load` make one.

    `T = H · M · W`: the sketch H (hashes and pointers), the memory M, and, where the spec has a rank, the projection W.

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
        self.spec = spec
        self.method = get_method(spec.method)
        self.layout = self.method.layout(spec)
        self.packing = Packing(spec.vocab or 0, self.layout.bits)
        arrays = self._fresh() if arrays is None else self._checked(arrays)
        self._parameters = {name: arrays[name] for name in ("memory", "projection") if name in arrays}
        self._buffers = {name: arrays[name] for name in ("keys", "pointers", "generation") if name in arrays}
        empty = np.empty(0, np.uint64)
        self._memory, self._projection = arrays["memory"], arrays.get("projection")
        self._keys, self._pointers = self._buffers.get("keys", empty), self._buffers.get("pointers", empty)
        self._slots: NDArray[Any] | None = None
        self.training_bytes: dict[str, int] = {}

    def __repr__(self) -> str:
        spec, ratio = self.spec, self.ledger().ratio
        return (
            f"<{spec.method} table: vocab {'unbounded' if spec.vocab is None else format(spec.vocab, ',')}, dim {spec.dim}, "
            f"rank {spec.rank}, {spec.n_chunks} chunks, sizes {spec.sizes}, {self.num_params:,} parameters, "
            f"{self.ledger().total:,} bytes{'' if ratio is None else f', {ratio:.1f}x smaller'}>"
        )

    # --- arrays -------------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """The trained arrays themselves, not copies: `memory` (size,) and, with a rank, `projection` (rank, dim)."""
        return dict(self._parameters)

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The arrays that are learned or drawn but not trained: hash `keys`, packed `pointers`, the `generation`."""
        return dict(self._buffers)

    def units(self) -> dict[str, int]:
        """Floats of the blocks that each parameter is made of: what "row" means to sparse gradients and optimisers."""
        return {"memory": self.layout.unit, **({"projection": self.spec.dim} if self.spec.rank else {})}

    @property
    def num_params(self) -> int:
        """Trained numbers in all."""
        return sum(array.size for array in self._parameters.values())

    @property
    def generation(self) -> int:
        """How often `cluster()` has changed this table; optimisers drop what they know of an earlier generation."""
        return int(self._buffers["generation"][0]) if "generation" in self._buffers else 0

    def fresh_keys(self, generation: int) -> NDArray[np.uint64]:
        """The hash keys of one generation."""
        keys = [derive_key(self.spec.seed, KEYS, generation, j) for j in range(self.layout.n_hashes)]
        return np.array(keys, np.uint64)

    def _fresh(self) -> dict[str, NDArray[Any]]:
        spec, layout = self.spec, self.layout
        rng = np.random.Generator(np.random.PCG64(derive_key(spec.seed, VALUES)))
        arrays: dict[str, NDArray[Any]] = {"memory": self.method.memory(spec, layout, rng)}
        if spec.rank:
            # Variance 1 / rank: each float of a vector is as large as a float of the memory. A W three times smaller and a
            # memory as much larger give the same first vectors and train worse (AUC 0.81 against 0.84, MovieLens 100K).
            w = rng.standard_normal((spec.rank, spec.dim), np.float32)
            arrays["projection"] = w * np.float32(spec.rank**-0.5)
        if layout.n_hashes:
            arrays["keys"] = self.fresh_keys(0)
        if layout.bits:
            arrays["pointers"] = self._first_pointers()
        if self.method.learns:
            arrays["generation"] = np.zeros(1, np.int64)
        return arrays

    def _first_pointers(self) -> NDArray[np.uint64]:
        """Pointers before any clustering: hashed, so that the table begins as a hashed one."""
        words, n = self.packing.empty(), self.packing.n
        columns = [column for column in self.layout.columns if column.kind == POINTER]
        for field, column in enumerate(columns):
            seed = derive_key(self.spec.seed, POINTERS, field)
            for start in range(0, n, 1 << 20):
                ids = np.arange(start, min(start + (1 << 20), n), dtype=np.uint64)
                self.packing.write(words, field, start, mix_hash(ids, column.rows, seed=seed))
        return words

    def _shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        spec, layout = self.spec, self.layout
        shapes: dict[str, tuple[type, tuple[int, ...]]] = {"memory": (np.float32, (layout.size,))}
        if spec.rank:
            shapes["projection"] = (np.float32, (spec.rank, spec.dim))
        if layout.n_hashes:
            shapes["keys"] = (np.uint64, (layout.n_hashes,))
        if layout.bits:
            shapes["pointers"] = (np.uint64, (self.packing.n_words,))
        if self.method.learns:
            shapes["generation"] = (np.int64, (1,))
        return shapes

    def _checked(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        expected = self._shapes()
        if set(arrays) != set(expected):
            raise ValueError(f"a {self.spec.method!r} table has the arrays {sorted(expected)}, got {sorted(arrays)}")
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be a contiguous {np.dtype(dtype)} array of shape {shape}, got {array.dtype} {array.shape}"
                )
        return arrays

    # --- the way of an id, and of a gradient --------------------------------------------------------------------------

    def _words(self, ids: Any) -> NDArray[np.uint64]:
        words = _check.as_ids(ids)
        if self.spec.vocab is not None:
            _check.ids_within(words, self.spec.vocab)
        return words

    def lookup(self, ids: Any) -> NDArray[np.float32]:
        """The vectors of ids, `T[ids]`.

        Args:
            ids: integers of any type and shape.

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
        vectors = self._inner(words.reshape(-1))
        if self._projection is not None:
            vectors = vectors @ self._projection
        return vectors.reshape(*words.shape, self.spec.dim)

    def _inner(self, flat: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Vectors before the projection."""
        return blocks.lookup(self.layout, self._memory, self._keys, self._pointers, flat)

    def backward(self, ids: Any, grads: Any, *, dense: bool = False) -> dict[str, Gradient]:
        """The gradients of the parameters, given those of the vectors: the adjoint of `lookup`.

            ∂M = Hᵀ · G · Wᵀ            ∂W = (H · M)ᵀ · G

        Args:
            ids: the ids that were looked up; an id that comes twice counts twice.
            grads: real numbers (*ids.shape, dim), finite.
            dense: give the whole gradient of the memory, float32 (size,), instead of the touched units alone. It is the
                quicker one where a batch touches most of the memory.

        Returns:
            For `memory` a `SparseGradient` (or the dense array), and for `projection`, if any, float32 (rank, dim).

        Raises:
            IndexError, TypeError: as for `lookup`.
            ValueError: the gradients have another shape, or hold NaN or infinity; nothing is changed.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("full", vocab=10, dim=2)
            >>> gradient = table.backward([3, 3], np.ones((2, 2)))["memory"]
            >>> gradient.index, gradient.values
            (array([3]), array([[2., 2.]], dtype=float32))
        """
        words = self._words(ids)
        vectors = _check.as_float32("gradients", grads, (*words.shape, self.spec.dim)).reshape(-1, self.spec.dim)
        flat = words.reshape(-1)
        out: dict[str, Gradient] = {}
        inner = vectors
        if self._projection is not None:
            inner = vectors @ self._projection.T
            out["projection"] = self._inner(flat).T @ vectors
        if dense:
            whole = blocks.scatter(self.layout, self._keys, self._pointers, flat, inner)
            self.training_bytes["gradient"], out["memory"] = whole.nbytes, whole
        else:
            # The scratch is taken out while it is used: an interrupt loses it, and two threads never share it.
            slots, self._slots = self._slots, None
            slots = blocks.new_slots(self.layout) if slots is None else slots
            sparse = blocks.scatter_sparse(self.layout, self._keys, self._pointers, flat, inner, slots)
            self._slots, out["memory"] = slots, sparse
            self.training_bytes["gradient"] = sparse.index.nbytes + sparse.values.nbytes + slots.nbytes
        return out

    # --- learning the sketch ------------------------------------------------------------------------------------------

    def cluster(self, **settings: Any) -> ClusterReport:
        """Learn the sketch from the vectors as they are now; see `cce_core.sketching.learning.cluster` for the settings.

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
        stored = {name: array.nbytes for name, array in (*self._parameters.items(), *self._buffers.items())}
        full = None if self.spec.vocab is None else 4 * self.spec.vocab * self.spec.dim
        return Ledger(stored, dict(self.training_bytes), full)

    def factors(self) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, NDArray[np.float32]]:
        """H, M and W with `lookup(ids) == (H @ M @ W)[ids]`, for linear methods with a vocabulary.

        Returns:
            H (vocab, n_blocks): ±1 where an id uses a block; M (n_blocks, inner): every distinct block, in the columns
            of its chunk; W (inner, dim), the identity where there is no projection.

        Raises:
            ValueError: the method is not linear, or the vocabulary is unbounded.
        """
        from cce_core.sketching.matrix import factors

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
        save_arrays(path, {**self._parameters, **self._buffers}, self.spec.as_json())


def load(path: str | os.PathLike[str], *, mmap: bool = False) -> Table:
    """Read a table that `Table.save` wrote: the same bits.

    Args:
        path: the file.
        mmap: map the file instead of reading it; the table is then read-only, and its pages come in as they are used.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is torn, truncated, foreign, or of a version that this library does not read.

    Example:
        >>> import os, tempfile, cce_core as cce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "item.safetensors")
        ...     cce.make_table("hash", vocab=100, dim=8, num_params=80, seed=3).save(path)
        ...     cce.load(path).spec.seed
        3
    """
    arrays, spec = load_arrays(path, mmap=mmap)
    try:
        return Table(TableSpec.from_json(spec), arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{os.fspath(path)} does not fit together: {error}") from error
