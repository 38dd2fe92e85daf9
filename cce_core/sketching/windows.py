"""One clustering of a table whose pointers are offsets into a circular memory that all chunks share."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core.clustering import circular_assign, circular_k_means, circular_update
from cce_core.sketching import blocks
from cce_core.sketching.layout import HASH, POINTER
from cce_core.sketching.runs import Run


class WindowsRun(Run):
    """Vectors of all chunks → circular k-means on one memory → every chunk of every id to its nearest window."""

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """`warm` makes no difference: the start is always what the table has."""
        layout, terms, m = self.layout, self.layout.terms, self.n_clusters
        parts = [layout.part(layout.columns[c : c + terms], terms) for c in range(0, len(layout.columns), terms)]
        pointers = tuple(c for c in layout.columns if c.kind == POINTER)
        ids, counts = self.sample(0)
        x = np.concatenate([self.decode(part, ids) for part in parts])
        each = None if counts is None else np.tile(counts, len(parts))
        start = self.old_memory.codes[pointers[0].base : pointers[0].base + m]
        at = (blocks.addresses(self.old.part(layout.part(pointers)), ids) - pointers[0].base).T.reshape(-1)
        means = circular_update(x, at, start, each)
        total = float(len(x) if each is None else each.sum(dtype=np.float64)) / len(parts)
        self.before = _cost(x, means, at, each) / total
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        start = min((means, start), key=lambda memory: _total(circular_assign(x, memory)[1], each))
        learned, _, inertia, iterations = circular_k_means(x, start, n_iter, each)
        self.after = inertia / total
        self.iterations.append(iterations)
        self._note(x.nbytes * 3)
        self.memory[pointers[0].base : pointers[0].base + m] = learned
        sums, seen = np.zeros((2, layout.size), np.float32)
        used, around = np.zeros(m, bool), np.arange(layout.width)
        for chunk, part in enumerate(parts):
            rest = self.new.part(part.part(tuple(c for c in part.columns if c.kind == HASH)))
            for low in range(0, self.vocab, self.batch):
                batch = np.arange(low, min(low + self.batch, self.vocab), dtype=np.uint64)
                vectors = self.decode(part, batch)
                labels, _ = circular_assign(vectors, learned)
                self.packing.write(self.new.pointers, chunk, low, labels)
                used[labels] = True
                if residual:
                    sums += blocks.scatter(rest, batch, vectors - learned[(labels[:, None] + around) % m])
                    seen += blocks.scatter(rest, batch, np.ones_like(vectors))
                bar.update(len(batch))
        self.empty = int(m - used.sum())
        hashed = next(c for c in layout.columns if c.kind == HASH)
        region = slice(hashed.base, hashed.base + m)
        self.memory[region] = sums[region] / np.maximum(seen[region], 1)


def _cost(x: Any, memory: Any, offsets: Any, weights: Any) -> float:
    apart = x - memory[(offsets[:, None] + np.arange(x.shape[1])) % len(memory)]
    return _total(np.square(apart).sum(1, dtype=np.float64), weights)


def _total(costs: Any, weights: Any) -> float:
    return float(np.sum(costs if weights is None else costs * weights, dtype=np.float64))
