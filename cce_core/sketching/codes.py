"""One clustering of a table whose rows are sparse codes: a few atoms of a dictionary, each with its weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core.clustering import KMeans, assign, k_svd, omp
from cce_core.hashing.mix import derive_key
from cce_core.sketching import blocks
from cce_core.sketching.layout import POINTER
from cce_core.sketching.runs import SUNDRIES, Run
from cce_core.sketching.spec import SAMPLES

_MOST_ITERATIONS = 10  # of K-SVD: each is a pursuit of every sample


class CodesRun(Run):
    """Vectors of a sample → K-SVD → a dictionary; every id's atoms and weights by orthogonal matching pursuit."""

    _side_by_side, _most = False, 1 << 16

    def _point_bytes(self) -> int:
        """Of a sample: what `k_svd` keeps of its numbers and weights; ids that come more often are repeated."""
        each = 48 * self.layout.dim + 64 * self.layout.terms + 128
        return (each if self.weights is None else 3 * each) + self._source_bytes()

    def _id_bytes(self) -> int:
        dim, s = self.layout.dim, self.layout.terms
        return (28 + 4 * s) * dim + 48 * s + 48 + self._source_bytes()

    def _flat_bytes(self) -> int:
        """The dictionary in a few copies, and the rows that `omp` codes at once."""
        k, dim, s = self.n_clusters, self.layout.dim, self.layout.terms
        rows = max(self.vocab if self.weights is None else 3 * self.vocab, 1)
        return SUNDRIES + 64 * k * (dim + 2) + min(rows * (8 * k + 8 * (2 * s + 4) * (dim + s)), 3 << 23)

    def work(self, n_iter: int) -> int:
        """All ids once, after a K-SVD."""
        return self.vocab

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """Weights go to the nearest of a few levels, or to the mean of all weights that share a hashed place."""
        layout, weigher = self.layout, self.table.weigher
        assert weigher is not None
        whole = layout.part(layout.columns, layout.terms)
        ids, counts = self.sample(0)
        x = self.decode(whole, ids)
        if counts is not None:  # a pursuit takes no weights: ids that count more come more often
            repeat = np.maximum(1, np.round(counts / counts.mean())).astype(np.int64)
            x = np.repeat(x, repeat, axis=0)[: 4 * len(x)]
        before = float(np.square(x.astype(np.float64)).sum()) / len(x)
        seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation)
        found = k_svd(x, self.n_clusters, layout.terms, n_iter=min(n_iter, _MOST_ITERATIONS), seed=seed)
        self.iterations = np.array([len(found.errors) - 1])
        self.memory[:] = found.dictionary.reshape(-1)
        del x
        pointed = weigher.layout.columns[0].kind == POINTER
        n_factors = weigher.layout.size
        levels = np.zeros((0, 1), np.float32)
        sums, seen = np.zeros((2, n_factors), np.float32)
        if pointed:
            levels = KMeans(n_factors, seed=seed).fit(found.weights.reshape(-1, 1)).cluster_centers_
        used, error = np.zeros(self.n_clusters, bool), 0.0
        new = self.new.part(weigher.layout)
        for batch in self.batches():
            low = int(batch[0])
            vectors = self.decode(whole, batch)
            atoms, factors = omp(vectors, found.dictionary, layout.terms)
            used[atoms] = True
            for t in range(layout.terms):
                self.write(t, low, np.ascontiguousarray(atoms[:, t]))
                if pointed:
                    labels, _ = assign(factors[:, t : t + 1], levels)
                    self.write(layout.terms + t, low, labels)
                    factors[:, t] = levels[labels, 0]
            if not pointed:
                sums += blocks.scatter(new, batch, factors)
                seen += blocks.scatter(new, batch, np.ones_like(factors))
            rows = np.einsum("ns,nsd->nd", factors, found.dictionary[atoms])
            error += float(np.square((vectors - rows).astype(np.float64)).sum())
            self.tell(bar, len(batch))
        self.costs = np.array([[before, error / self.vocab]])
        self.empty = np.array([self.n_clusters - used.sum()])
        self.factors = levels[:, 0].copy() if pointed else np.divide(sums, np.maximum(seen, 1), dtype=np.float32)
