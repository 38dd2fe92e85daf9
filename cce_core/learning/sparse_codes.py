"""One clustering of a table whose rows are sparse codes: a few atoms of a dictionary, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core.clustering import KSVD, KMeans, assign, k_svd, omp
from cce_core.hashing.mix import derive_key
from cce_core.learning.codebooks import OVERHEAD_BYTES, Learner, Means
from cce_core.method.spec import SAMPLES
from cce_core.sketching.descriptors import Sketch
from cce_core.sketching.layout import POINTER, Layout

_MOST_ITERATIONS = 10  # of K-SVD: each is a pursuit of every sample


def dictionary(
    x: NDArray[np.float32],
    counts: NDArray[np.float32] | None,
    layout: Layout,
    weight_layout: Layout,
    n_iter: int,
    seed: int,
) -> tuple[KSVD, NDArray[np.float32] | None, float]:
    """K-SVD of a sample, the levels (levels, 1) of its weights, None where those are hashed, and what a row costs without codes.

    Args:
        x: the sampled vectors, (n, dim).
        counts: what each counts, or None.
        layout, weight_layout: of the atoms and of their weights.
        n_iter: most iterations; K-SVD makes a few at most.
        seed: of the start.
    """
    if counts is not None:  # a pursuit takes no weights: ids that count more come more often
        repeat = np.maximum(1, np.round(counts / counts.mean())).astype(np.int64)
        x = np.repeat(x, repeat, axis=0)[: 4 * len(x)]
    before = float(np.square(x.astype(np.float64)).sum()) / len(x)
    found = k_svd(x, layout.columns[0].rows, layout.terms, n_iter=min(n_iter, _MOST_ITERATIONS), seed=seed)
    if weight_layout.columns[0].kind != POINTER:
        return found, None, before
    return found, KMeans(weight_layout.size, seed=seed).fit(found.weights.reshape(-1, 1)).cluster_centers_, before


class Sum:
    """A sum in float64."""

    def __init__(self) -> None:
        self._total = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add all of them."""
        self._total += float(values.sum())

    def value(self) -> float:
        """What they add up to."""
        return self._total


class SparseCodesLearner(Learner):
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
        return OVERHEAD_BYTES + 64 * k * (dim + 2) + min(rows * (8 * k + 8 * (2 * s + 4) * (dim + s)), 3 << 23)

    def work(self, n_iter: int) -> int:
        """All ids once, after a K-SVD."""
        return self.walked

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """Weights go to the nearest of a few levels, or to the mean of all weights that share a hashed place."""
        found, levels = self.dictionary(n_iter)
        rest, used, error = self.means_of((0,), found) if levels is None else None, self.unused(), self.summed(found)
        for ids in self.batches():
            atoms, factors, costs = self.code(ids, found, levels)
            used[atoms] = 1
            if rest is not None:
                rest.add(0, ids, factors)
            error.add(costs)
            self.tick(bar, len(ids))
        self.costs[0, 1] = error.value() / self.walked
        self.empty = np.array([self.n_clusters - int((self.total(used) > 0).sum())])
        self.factors = levels[:, 0] if rest is None else rest.means()

    def means_of(self, chunks: Sequence[int], codebook: Any) -> Any:
        """Of the weights that share a hashed place."""
        new = self._weights()
        return Means(new.layout.size, {0: new})

    def summed(self, found: KSVD) -> Any:
        """What adds up the squared errors of all ids."""
        return Sum()

    def _weights(self) -> Sketch:
        """The new places of the weights."""
        assert self.table.weight_sketch is not None
        return self.new.part(self.table.weight_sketch.layout)

    def dictionary(self, n_iter: int) -> tuple[KSVD, Any]:
        """K-SVD on a sample, and the levels (levels, 1) of its weights, None where weights are hashed."""
        ids, counts = self.sample(0)
        x = self.decode(0, ids)
        seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation)
        found, levels, before = dictionary(x, counts, self.layout, self._weights().layout, n_iter, seed)
        self.costs, self.iterations = np.array([[before, 0.0]]), np.array([len(found.errors) - 1])
        self.memory[:] = found.dictionary.reshape(-1)
        return found, levels

    def code(self, ids: Any, found: KSVD, levels: Any) -> tuple[Any, Any, Any]:
        """Atoms and weights of a batch of ids, written as their pointers; and the squared error of each id."""
        layout, low = self.layout, int(ids[0])
        vectors = self.decode(0, ids)
        atoms, factors = omp(vectors, found.dictionary, layout.terms)
        for t in range(layout.terms):
            self.write(t, low, np.ascontiguousarray(atoms[:, t]))
            if levels is not None:
                labels, _ = assign(factors[:, t : t + 1], levels)
                self.write(layout.terms + t, low, labels)
                factors[:, t] = levels[labels, 0]
        rows = np.einsum("ns,nsd->nd", factors, found.dictionary[atoms])
        return atoms, factors, np.square((vectors - rows).astype(np.float64)).sum(1)
