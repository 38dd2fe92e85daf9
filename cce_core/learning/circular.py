"""One clustering of a table whose pointers are offsets into a circular memory that all chunks share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.clustering import circular_assign, circular_k_means, circular_update
from cce_core.learning.codebooks import SUNDRIES, Run, cost
from cce_core.sketching import blocks
from cce_core.sketching.layout import HASH, POINTER, Column, Layout


class WindowsRun(Run):
    """Vectors of all chunks → circular k-means on one memory → every chunk of every id to its nearest window."""

    _side_by_side, _most = False, 1 << 16

    def _point_bytes(self) -> int:
        """Of a sampled id: its chunks, and what `circular_k_means` keeps of each."""
        return 16 + self.layout.n_chunks * (13 * self.layout.width + 84) + self._source_bytes()

    def _id_bytes(self) -> int:
        return 36 * self.layout.width + 96 + self._source_bytes()

    def _flat_bytes(self) -> int:
        """Sums of the memory's cells, in up to 16 blocks, and the windows laid out for a search."""
        return SUNDRIES + (1 << 21) + 320 * self.n_clusters + 24 * self.layout.size

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """`warm` makes no difference: the start is always what the table has."""
        layout, terms, m = self.layout, self.layout.terms, self.n_clusters
        parts = [layout.part(layout.columns[c : c + terms], terms) for c in range(0, len(layout.columns), terms)]
        pointers = tuple(c for c in layout.columns if c.kind == POINTER)
        learned = self._learned(parts, pointers, n_iter, bar)
        self.memory[pointers[0].base : pointers[0].base + m] = learned
        sums, seen = np.zeros((2, layout.size), np.float32)
        used, around = np.zeros(m, bool), np.arange(layout.width)
        for chunk, part in enumerate(parts):
            rest = self.new.part(part.part(tuple(c for c in part.columns if c.kind == HASH)))
            for batch in self.batches():
                vectors = self.decode(part, batch)
                labels, _ = circular_assign(vectors, learned)
                self.write(chunk, int(batch[0]), labels)
                used[labels] = True
                if residual:
                    sums += blocks.scatter(rest, batch, vectors - learned[(labels[:, None] + around) % m])
                    seen += blocks.scatter(rest, batch, np.ones_like(vectors))
                self.tell(bar, len(batch))
        self.empty = np.array([m - used.sum()])
        hashed = next(c for c in layout.columns if c.kind == HASH)
        region = slice(hashed.base, hashed.base + m)
        self.memory[region] = sums[region] / np.maximum(seen[region], 1)

    def _learned(self, parts: list[Layout], pointers: tuple[Column, ...], n_iter: int, bar: Any) -> NDArray[np.float32]:
        """Circular k-means on a sample, which is let go of here."""
        m = self.n_clusters
        ids, counts = self.sample(0)
        x = np.empty((len(parts) * len(ids), self.layout.width), np.float32)
        for chunk, part in enumerate(parts):
            x[chunk * len(ids) : (chunk + 1) * len(ids)] = self.decode(part, ids)
        each = None if counts is None else np.tile(counts, len(parts))
        start = self.old_memory.codes[pointers[0].base : pointers[0].base + m]
        at = (blocks.addresses(self.old.part(self.layout.part(pointers)), ids) - pointers[0].base).T.reshape(-1)
        means = circular_update(x, at, start, each)
        total = float(len(x) if each is None else each.sum(dtype=np.float64)) / len(parts)
        around = np.arange(self.layout.width)
        before = cost(x, lambda rows: means[(at[rows, None] + around) % m], each) / total
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        start = min((means, start), key=lambda memory: _total(circular_assign(x, memory)[1], each))
        learned, _, inertia, iterations = circular_k_means(
            x, start, n_iter, each, on_iteration=lambda *_: self.tell(bar, len(x))
        )
        self.costs, self.iterations = np.array([[before, inertia / total]]), np.array([iterations])
        self.tell(bar, (n_iter - iterations) * len(x))
        return learned


def _total(costs: Any, weights: Any) -> float:
    return float(np.sum(costs if weights is None else costs * weights, dtype=np.float64))
