"""One clustering of a table whose chunks have codebooks: the new arrays as they are made, beside the old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering import KMeans, assign, least_entropies, update
from cce_core.hashing.mix import derive_key
from cce_core.sketching import blocks
from cce_core.sketching.block_method import BlockMethod
from cce_core.sketching.bundle import Memory, Sketch
from cce_core.sketching.layout import HASH, POINTER, Layout
from cce_core.sketching.source import Source
from cce_core.sketching.spec import SAMPLES
from cce_core.storage.codec import FLOAT32

if TYPE_CHECKING:
    from cce_core.sketching.table import Table

_ENTROPY_IDS = 1 << 20


class Run:
    """One `cluster()`: the new arrays as they are made, beside the table, which is only read."""

    def __init__(
        self, table: Table, weights: Any, points_per_centroid: int, batch_size: int, source: Source | None
    ) -> None:
        self.table, self.layout, self.batch, self.source = table, table.layout, batch_size, source
        self.vocab = table.spec.vocab or 0
        self.n_clusters = next(c.rows for c in self.layout.columns if c.kind == POINTER)
        self.old, old_memory = table.sketch, table.stored.decoded()
        _check.as_float32("the memory", old_memory, old_memory.shape)
        self.old_memory, self.memory = Memory(FLOAT32, old_memory), old_memory.copy()
        # The fresh hash is drawn once, before anything is decoded, and decoding goes on with the old one to the end.
        assert isinstance(table.method, BlockMethod)
        self.packing = table.method.packing(table.spec)
        keys = table.method.keys(table.spec, table.generation + 1)
        self.new = Sketch(self.layout, keys, self.packing.empty())
        self.weights = weights
        self.factors: NDArray[np.float32] | None = None  # new weights of a table that has some
        self.points = min(self.vocab, points_per_centroid * self.n_clusters)
        self.before = self.after = 0.0
        self.empty, self.iterations = 0, list[int]()
        self.scratch = self.fixed = 3 * self.memory.nbytes + self.new.pointers.nbytes + self.new.keys.nbytes

    def sample(self, chunk: int) -> tuple[NDArray[np.uint64], NDArray[np.float32] | None]:
        """Ids for k-means, and what each counts: all of them, or a sample without and (weighted) with replacement."""
        if self.points == self.vocab:
            return np.arange(self.vocab, dtype=np.uint64), self.weights
        rng = np.random.Generator(
            np.random.PCG64(derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk))
        )
        if self.weights is None:
            ids = rng.choice(self.vocab, self.points, replace=False, shuffle=False)
            return np.sort(ids).astype(np.uint64), None
        ends = np.cumsum(self.weights, dtype=np.float64)
        drawn = np.searchsorted(ends, rng.random(self.points) * ends[-1], side="right")
        ids, counts = np.unique(np.minimum(drawn, self.vocab - 1), return_counts=True)
        return ids.astype(np.uint64), counts.astype(np.float32)

    def decode(self, part: Layout, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The chunk's vectors as the table or the source has them."""
        if self.source is not None:
            chunk = self.layout.columns.index(part.columns[0]) // self.layout.terms
            return np.ascontiguousarray(self.source.rows(ids)[:, chunk * part.width : (chunk + 1) * part.width])
        return blocks.lookup(self.old.part(part), self.old_memory, ids)

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """New memory and pointers: here, a codebook for each chunk."""
        terms = self.layout.terms
        for chunk in range(self.layout.n_chunks):
            part = self.layout.part(self.layout.columns[chunk * terms : (chunk + 1) * terms], terms)
            self.chunk(chunk, part, n_iter, residual, warm, bar)

    def chunk(self, chunk: int, part: Layout, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """Cluster one chunk: k-means on a sample, then every id to its nearest centroid."""
        k, pointer = self.n_clusters, next(c for c in part.columns if c.kind == POINTER)
        ids, counts = self.sample(chunk)
        x = self.decode(part, ids)
        means, before = self._present(part, pointer, ids, x, counts)
        seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk, 1)
        found = KMeans(k, init=means if warm else "k-means++", n_iter=n_iter, seed=seed).fit(x, sample_weight=counts)
        total = float(len(ids) if counts is None else counts.sum(dtype=np.float64))
        self.before += before / total
        self.after += float(found.inertia_) / total
        self.iterations.append(int(found.n_iter_))
        self._note(x.nbytes * 6 + 32 * len(x) + ids.nbytes)
        centroids = found.cluster_centers_
        region = slice(pointer.base, pointer.base + k * part.width)
        self.memory[region] = centroids.reshape(-1)
        hashed = next((c for c in part.columns if c.kind == HASH), None)
        rest = None if hashed is None else self.new.part(part.part((hashed,)))
        sums, seen = np.zeros((2, part.size), np.float32) if rest is not None and residual else (None, None)
        used = np.zeros(k, bool)
        for low in range(0, self.vocab, self.batch):
            batch = np.arange(low, min(low + self.batch, self.vocab), dtype=np.uint64)
            vectors = self.decode(part, batch)
            labels, _ = assign(vectors, centroids)
            self.packing.write(self.new.pointers, chunk, low, labels)
            used[labels] = True
            if rest is not None and sums is not None and seen is not None:
                sums += blocks.scatter(rest, batch, vectors - centroids[labels])
                seen += blocks.scatter(rest, batch, np.ones_like(vectors))
            bar.update(len(batch))
        self.empty += int(k - used.sum())
        if hashed is not None:
            region = slice(hashed.base, hashed.base + hashed.rows * part.width)
            self.memory[region] = 0.0 if sums is None or seen is None else sums[region] / np.maximum(seen[region], 1)

    def _present(self, part: Layout, pointer: Any, ids: Any, x: Any, counts: Any) -> tuple[Any, float]:
        """The means of the present clusters, and what they cost."""
        column = part.part((pointer,))
        at = blocks.addresses(self.old.part(column), ids)
        labels = ((at[:, 0] - pointer.base) // pointer.stride).astype(np.int32)
        means, _ = update(x, labels, self.n_clusters, counts)
        costs = np.square(x - means[labels]).sum(1, dtype=np.float64)
        return means, float(costs.sum() if counts is None else (costs * counts).sum())

    def _note(self, extra: int) -> None:
        batch = self.batch * self.layout.width * 4 * 4
        self.scratch = max(self.scratch, self.fixed + max(extra, batch))

    def entropies(self) -> tuple[float, float]:
        """The two least entropies of the new pointers, over at most a million ids."""
        ids = np.unique(np.linspace(0, self.vocab - 1, min(self.vocab, _ENTROPY_IDS)).astype(np.uint64))
        pointers = tuple(c for c in self.layout.columns if c.kind == POINTER)
        column = self.layout.part(pointers)
        at = blocks.addresses(self.new.part(column), ids)
        labels = [((at[:, j] - c.base) // c.stride).astype(np.int32) for j, c in enumerate(pointers)]
        return least_entropies(labels, self.n_clusters)
