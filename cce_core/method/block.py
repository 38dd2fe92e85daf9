"""Methods that are made of blocks: addresses into one memory, summed, with weights where the method has them."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cce_core._arrays import Addresses, Floats, Ids
from cce_core.hashing.mix import derive_key, derive_keys, mix_hash
from cce_core.method.base import INITIAL_NORM, Method
from cce_core.method.spec import KEYS, POINTERS, ArraySpec, TableSpec
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.group import TableGroup
from cce_core.sketching.layout import POINTER, Column, Layout
from cce_core.storage.codec import codec
from cce_core.storage.packed import Packing


class BlockMethod(Method):
    """A method that says where the blocks of an id lie, and (where they are not all 1) where their weights lie.

    Attributes:
        weights_in_memory: the weights are read from the memory itself, not from an array of their own.
    """

    weights_in_memory: ClassVar[bool] = False

    @abc.abstractmethod
    def layout(self, spec: TableSpec) -> Layout:
        """The addresses."""

    def appends_weights(self, spec: TableSpec) -> bool:
        """Whether an id's weights follow the sum as further floats of its vector."""
        return False

    def is_plain(self, spec: TableSpec) -> bool:
        """Where no block has a weight or a sign."""
        return self.weight_layout(spec) is None and not self.layout(spec).signed

    def memory(self, spec: TableSpec, layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """The first values of the memory: normal, so that vectors have norm `INITIAL_NORM` whatever the sizes are.

        A projection begins with the variance 1 / rank, so a float of the memory has the same one with it and without.
        """
        return self.drawn(spec, layout.terms, layout.size, rng)

    def drawn(self, spec: TableSpec, terms: int, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """The next n floats of a memory of which a vector sums so many blocks."""
        values = rng.standard_normal(n, np.float32)
        values *= np.float32(INITIAL_NORM * (spec.dim * terms) ** -0.5)
        return values

    def weights(self, spec: TableSpec, weight_layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """The first weights."""
        return np.ones(weight_layout.size, np.float32)

    # --- arrays -------------------------------------------------------------------------------------------------------

    def columns(self, spec: TableSpec) -> tuple[Column, ...]:
        """All columns, those of the weights last."""
        weight_layout = self.weight_layout(spec)
        return self.layout(spec).columns + (() if weight_layout is None else weight_layout.columns)

    def packing(self, spec: TableSpec) -> Packing:
        """How the pointers of all columns lie."""
        return Packing(spec.vocab or 0, tuple(c.b for c in self.columns(spec) if c.kind == POINTER))

    def n_keys(self, spec: TableSpec) -> int:
        """Hash keys of all columns."""
        weight_layout = self.weight_layout(spec)
        return max(self.layout(spec).n_hashes, 0 if weight_layout is None else weight_layout.n_hashes)

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """Memory (and its scales), weights, hash keys, pointers and the generation, where there are any."""
        layout, weight_layout, coder = self.layout(spec), self.weight_layout(spec), codec(spec.codec)
        out = {"memory": ArraySpec(coder.dtype, (coder.n_codes(layout.size),), layout.unit)}
        if coder.most:
            out["scales"] = ArraySpec(np.float32, (coder.n_scales(layout.size),))
        if weight_layout is not None and not self.weights_in_memory:
            out["weights"] = ArraySpec(np.float32, (weight_layout.size,), weight_layout.unit)
        if keys := self.n_keys(spec):
            out["keys"] = ArraySpec(np.uint64, (keys,))
        if (packing := self.packing(spec)).bits:
            out["pointers"] = ArraySpec(np.uint64, (packing.n_words,))
        if self.learns:
            out["generation"] = ArraySpec(np.int64, (1,))
        return out

    def keys(self, spec: TableSpec, generation: int) -> NDArray[np.uint64]:
        """The hash keys of one generation."""
        return derive_keys(spec.seed, self.n_keys(spec), KEYS, generation)

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """First values; pointers are hashed before any clustering, so that the table begins as a hashed one."""
        layout, weight_layout, expected = self.layout(spec), self.weight_layout(spec), self.arrays(spec)
        out: dict[str, NDArray[Any]] = {"memory": self.memory(spec, layout, rng)}
        if "weights" in expected and weight_layout is not None:
            out["weights"] = self.weights(spec, weight_layout, rng)
        if "keys" in expected:
            out["keys"] = self.keys(spec, 0)
        if "pointers" in expected:
            out["pointers"] = self.first_pointers(spec)
        if "generation" in expected:
            out["generation"] = np.zeros(1, np.int64)
        return out

    def first_pointers(self, spec: TableSpec) -> NDArray[np.uint64]:
        """Hashed ones."""
        packing = self.packing(spec)
        words = packing.empty()
        for field, column in enumerate(c for c in self.columns(spec) if c.kind == POINTER):
            if column.b == 0:
                continue  # to a single row: nothing is stored, however many ids there are
            seed = derive_key(spec.seed, POINTERS, field)
            for start in range(0, packing.n, 1 << 20):
                ids = np.arange(start, min(start + (1 << 20), packing.n), dtype=np.uint64)
                packing.write(words, field, start, mix_hash(ids, column.rows, seed=seed))
        return words

    # --- the way of an id, and of a gradient --------------------------------------------------------------------------

    def forward(self, table: TableState, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Any]:
        """Blocks summed; addresses and weights are kept for the way back."""
        weights, found = self.weights_of(table, ids)
        out = None if table.group.within else np.empty((len(ids), table.layout.dim), np.float32)
        left, _ = table.group.forward(JaggedBatch.alone(ids), keep, out, weights)
        vectors = left.inner if out is None else out
        assert vectors is not None
        vectors = vectors[:, : table.layout.dim]
        if found is not None and self.appends_weights(table.spec):
            vectors = np.concatenate([vectors, found], axis=1)
        return vectors, (left.kept, weights) if keep else None

    def backward(
        self, table: TableState, ids: NDArray[np.uint64], saved: Any, grads: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """The adjoint of the sum, for the memory and for the weights."""
        sketch, batch = table.sketch, JaggedBatch.alone(ids)
        kept, weights = saved if saved is not None else (None, self.weights_of(table, ids)[0])
        direct = grads
        if self.appends_weights(table.spec):
            direct = np.ascontiguousarray(grads[:, : sketch.layout.dim])
        out = {"memory": _scattered(table, "memory", table.group, batch, direct, weights, kept, dense)}
        if table.weight_sketch is not None:
            slopes = blocks.dot(table.group, ids, direct, kept)
            if sketch.layout.signed:
                slopes *= blocks.signs(sketch, ids)
            if direct is not grads:
                slopes += grads[:, sketch.layout.dim :]
            name = "memory" if self.weights_in_memory else "weights"
            more = _scattered(table, name, table.weight_group, batch, slopes, None, None, dense)
            out[name] = out[name] + more if name in out else more  # type: ignore[operator]
        return out

    def weights_of(self, table: TableState, ids: Ids) -> tuple[Floats | None, Floats | None]:
        """The factor of every column, float32 (n, columns) or None where all are 1; and that without the drawn signs."""
        drawn = blocks.signs(table.sketch, ids) if table.sketch.layout.signed else None
        if table.weight_sketch is None:
            return drawn, None
        found = blocks.lookup(table.weight_group, ids)
        return found if drawn is None else found * drawn, found


def _scattered(
    table: TableState, name: str, group: TableGroup, batch: JaggedBatch, grads: Floats, weights: Floats | None,
    kept: Addresses | None, dense: bool,
) -> Gradient:  # fmt: skip
    if dense:
        return blocks.scatter(group, batch, grads, weights, kept)
    table.training_bytes["scratch"] = blocks.scratch_bytes(group.sketch.layout, len(batch.ids))
    return blocks.scatter_sparse(group, batch, grads, weights, kept)
