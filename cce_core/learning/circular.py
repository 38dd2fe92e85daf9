"""One clustering of a table whose pointers are offsets into a circular memory that all chunks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cce_core.clustering import circular_assign, circular_k_means, circular_update
from cce_core.learning.codebooks import OVERHEAD_BYTES, Learner, Means, cost
from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Sketch
from cce_core.sketching.layout import HASH, POINTER


class CircularLearner(Learner):
    """Vectors of all chunks → circular k-means on one memory → every chunk of every id to its nearest window."""

    _side_by_side, _most = False, 1 << 16

    def _point_bytes(self) -> int:
        """Of a sampled id: its chunks, and what `circular_k_means` keeps of each."""
        return 16 + self.layout.n_chunks * (13 * self.layout.width + 84) + self._source_bytes()

    def _id_bytes(self) -> int:
        return 36 * self.layout.width + 96 + self._source_bytes()

    def _flat_bytes(self) -> int:
        """Sums of the memory's cells, in up to 16 blocks, and the windows laid out for a search."""
        return OVERHEAD_BYTES + (1 << 21) + 320 * self.n_clusters + 24 * self.layout.size

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """`warm` makes no difference: the start is always what the table has."""
        m, chunks = self.n_clusters, range(self.layout.n_chunks)
        codebook = self.codebook(0, n_iter, warm, bar)
        pointer, hashed = self.column(0, POINTER), self.column(0, HASH)
        assert pointer is not None
        assert hashed is not None
        self.memory[pointer.base : pointer.base + m] = codebook
        rest = self.means_of(chunks, codebook) if residual else None
        used = sum(self.walk(chunk, codebook, rest, bar) for chunk in chunks)
        self.empty = np.array([m - int((used > 0).sum())])
        region = slice(hashed.base, hashed.base + m)
        self.memory[region] = 0.0 if rest is None else rest.means()[region]

    def label(self, chunk: int, ids: Any, vectors: Any, codebook: Any) -> Any:
        """The offset of the nearest window."""
        labels, _ = circular_assign(vectors, codebook)
        self.write(chunk, int(ids[0]), labels)
        return labels

    def left(self, vectors: Any, codebook: Any, labels: Any) -> Any:
        """Vectors minus windows."""
        around = np.arange(self.layout.width)
        return vectors - codebook[(labels[:, None] + around) % self.n_clusters]

    def means_of(self, chunks: Sequence[int], codebook: Any) -> Any:
        """On one memory for all chunks, where blocks overlap."""
        return Means(self.layout.size, {chunk: self._hashed(chunk) for chunk in chunks})

    def _hashed(self, chunk: int) -> Sketch:
        """The fresh hash of one chunk."""
        column = self.column(chunk, HASH)
        assert column is not None
        return self.new.part(self.layout.part((column,)))

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> Any:
        """Circular k-means on a sample of all chunks, which is let go of here: the memory, float32 (m,)."""
        n_chunks = self.layout.n_chunks
        ids, counts = self.sample(0)
        x = np.empty((n_chunks * len(ids), self.layout.width), np.float32)
        for each in range(n_chunks):
            x[each * len(ids) : (each + 1) * len(ids)] = self.decode(each, ids)
        mass = None if counts is None else np.tile(counts, n_chunks)
        start, at = self.present(ids)
        means = circular_update(x, at, start, mass)
        total = float(len(x) if mass is None else mass.sum(dtype=np.float64)) / n_chunks
        around = np.arange(self.layout.width)
        before = cost(x, lambda rows: means[(at[rows, None] + around) % self.n_clusters], mass) / total
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        start = min((means, start), key=lambda memory: _total(circular_assign(x, memory)[1], mass))
        learned, _, inertia, iterations = circular_k_means(
            x, start, n_iter, mass, on_iteration=lambda *_: self.tick(bar, len(x))
        )
        self.costs, self.iterations = np.array([[before, inertia / total]]), np.array([iterations])
        self.tick(bar, (n_iter - iterations) * len(x))
        return learned

    def present(self, ids: Any) -> tuple[Any, Any]:
        """The memory as it is, and where all chunks of ids point to in it, chunk by chunk."""
        pointers = tuple(c for c in self.layout.columns if c.kind == POINTER)
        base = pointers[0].base
        at = (blocks.addresses(self.old.part(self.layout.part(pointers)), ids) - base).T.reshape(-1)
        return self.old_memory.codes[base : base + self.n_clusters], at


def _total(costs: Any, weights: Any) -> float:
    return float(np.sum(costs if weights is None else costs * weights, dtype=np.float64))
