"""The learners over a group of processes: every rank takes its share of the ids, sums are reduced over all of them.

Sums are exact (`exact.Exact`), so the result is the same, bit for bit, however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cce_core.clustering import KSVD, KMeans, assign, circular_assign
from cce_core.hashing.mix import derive_key
from cce_core.learning.circular import CircularLearner
from cce_core.learning.codebooks import Learner
from cce_core.learning.exact import Exact, Floats
from cce_core.learning.sparse_codes import SparseCodesLearner
from cce_core.method.spec import SAMPLES
from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Sketch
from cce_core.sketching.layout import HASH, POINTER

_START_POINTS = 32  # a centroid, from which the first centroids are drawn, on every rank alike


class Ranks(Protocol):
    """A group of processes, as a framework has it: each holds the whole table."""

    rank: int
    size: int

    def share(self, n: int, align: int = 1) -> tuple[int, int]:
        """This rank's [low, high) of n items; every share but the last is a multiple of `align`."""

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks, of float64 or int64."""

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Everyone's array, all of one shape, by rank."""

    def most(self, value: float) -> float:
        """The largest of everyone's numbers."""

    def agree(self, things: Mapping[str, Any], when: str) -> None:
        """RuntimeError on every rank, with the names, unless all ranks hold the same bits under every name."""


class ExactMeans:
    """`codebooks.Means` over all ranks.

    Args:
        ranks: who add.
        exact: the step of the sums.
        size: floats.
        sketches: of each chunk, the hash.
    """

    def __init__(self, ranks: Ranks, exact: Exact, size: int, sketches: dict[int, Sketch]) -> None:
        self.ranks, self.exact, self.sketches = ranks, exact, sketches
        self.sums, self.seen = np.zeros((2, size))

    def add(self, chunk: int, ids: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        """The vectors of ids of this rank, float32 (n, columns · width)."""
        sketch = self.sketches[chunk]
        column, width = sketch.layout.columns[0], sketch.layout.width
        at = blocks.addresses(sketch, ids) - column.base
        cells = ((at[:, :, None] + np.arange(width)) % column.size + column.base).reshape(-1)
        self.sums += np.bincount(cells, self.exact.rounded(values).reshape(-1), len(self.sums))
        self.seen += np.bincount(cells, minlength=len(self.seen))

    def means(self) -> NDArray[np.float32]:
        """float32 (size,), the same on all ranks."""
        total, count = self.ranks.sum(self.sums) * self.exact.step, self.ranks.sum(self.seen)
        return (total / np.maximum(count, 1)).astype(np.float32)


class ExactSum:
    """`sparse_codes.Sum` over all ranks."""

    def __init__(self, ranks: Ranks, exact: Exact) -> None:
        self._ranks, self._exact, self._steps = ranks, exact, np.zeros(1)

    def add(self, values: Floats) -> None:
        """Add all of them."""
        self._steps += self._exact.rounded(values).sum()

    def value(self) -> float:
        """What they add up to."""
        return float(self._ranks.sum(self._steps)[0]) * self._exact.step


class Shared(Learner):
    """What is different where all ranks learn one table together."""

    _side_by_side = False  # all ranks reduce the same sums in the same order

    def __init__(self, *settings: Any) -> None:
        *others, self.ranks = settings
        super().__init__(*others)
        self.largest = 0.0  # magnitude of a number in the given vectors

    def batches(self) -> Iterator[Any]:
        """This rank's share of the ids, a batch at a time: the pointers of 64 ids fill whole words."""
        low, high = self.ranks.share(self.vocab, 64)
        for first in range(low, high, self.working_set.batch):
            yield np.arange(first, min(first + self.working_set.batch, high), dtype=np.uint64)

    def total(self, counts: Any) -> Any:
        """The sum over all ranks."""
        return self.ranks.sum(counts)

    def work(self, n_iter: int) -> int:
        """Each rank shows its own share of the ids."""
        return super().work(0) // self.ranks.size

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """As alone; then everyone's pointers, whose words no two ranks share."""
        super().learn(n_iter, residual, warm, bar)
        self.new.pointers[:] = self.ranks.sum(self.new.pointers.view(np.int64)).view(np.uint64)

    def bound(self, codebook: Any) -> float:
        """No number that a codebook leaves over is larger."""
        most = self.layout.terms * float(np.abs(self.old_memory.codes).max()) + float(np.abs(codebook).max())
        return 2 * (most if self.source is None else most + self.largest)


class SharedLearner(Shared):
    """A table with codebooks."""

    def means_of(self, chunks: Sequence[int], codebook: Any) -> Any:
        """Exact ones."""
        (chunk,) = chunks
        column = self.column(chunk, HASH)
        if column is None:
            return None
        alone = self.new.part(self.alone(column, self.layout.width))
        return ExactMeans(self.ranks, Exact(self.vocab, self.bound(codebook)), alone.layout.size, {chunk: alone})

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> Any:
        """k-means over everyone's share of the sample."""
        ranks, k = self.ranks, self.n_clusters
        ids, counts = self.sample(chunk)  # the same on every rank
        low, high = ranks.share(len(ids))
        x, w = self.decode(chunk, ids[low:high]), None if counts is None else counts[low:high]
        points = SharedPoints(ranks, x, w, len(ids))
        means, before = points.present(self.labels(self.old, self.column(chunk, POINTER), ids[low:high]), k)
        if warm:
            start = means
        else:
            few = slice(None, None, max(1, len(ids) // (_START_POINTS * k)))
            heavy = None if counts is None else counts[few]
            seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk, 1)
            found = KMeans(k, n_iter=0, seed=seed).fit(self.decode(chunk, ids[few]), sample_weight=heavy)
            start = found.cluster_centers_
        centroids, after, iterations = points.cluster(start, n_iter)
        self.costs[chunk], self.iterations[chunk], self.largest = (before, after), iterations, points.largest
        return centroids


class SharedCircularLearner(Shared, CircularLearner):
    """A table whose pointers are offsets into a circular memory."""

    def means_of(self, chunks: Sequence[int], codebook: Any) -> Any:
        """Exact ones."""
        exact = Exact(self.vocab * self.layout.dim, self.bound(codebook))
        return ExactMeans(self.ranks, exact, self.layout.size, {chunk: self._hashed(chunk) for chunk in chunks})

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> Any:
        """Circular k-means over everyone's share of the sample."""
        n_chunks = self.layout.n_chunks
        ids, counts = self.sample(0)  # the same on every rank
        low, high = self.ranks.share(len(ids))
        x = np.concatenate([self.decode(each, ids[low:high]) for each in range(n_chunks)])
        start, at = self.present(ids[low:high])
        labels = at.astype(np.int32)
        mass = None if counts is None else np.tile(counts[low:high], n_chunks)
        points = SharedWindows(self.ranks, x, mass, len(ids) * self.layout.dim)
        means = points.moved(labels, None, start)
        before = points.inertia(points.apart(means, labels)) / points.total
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        start = min((means, start), key=lambda memory: points.inertia(points.nearest(memory)[1]))
        learned, after, iterations = points.cluster(start, n_iter)
        self.costs, self.iterations = np.array([[before * n_chunks, after * n_chunks]]), np.array([iterations])
        self.largest = points.largest
        return learned


class SharedSparseCodesLearner(Shared, SparseCodesLearner):
    """A table of sparse codes. K-SVD moves one atom after the other, so every rank makes all of it, on the same sample."""

    def means_of(self, chunks: Sequence[int], codebook: KSVD) -> Any:
        """Exact ones."""
        new, most = self._weights(), float(np.abs(codebook.weights).max(initial=0.0))
        return ExactMeans(self.ranks, Exact(self.vocab * self.layout.terms, most), new.layout.size, {0: new})

    def summed(self, found: KSVD) -> Any:
        """An exact one."""
        largest = np.square(found.weights.astype(np.float64)).sum(1).max(initial=0.0)
        return ExactSum(self.ranks, Exact(self.vocab, 4.0 * largest))


class SharedPoints:
    """Points of which every rank holds a share, and Lloyd's iteration over them.

    Args:
        ranks: who holds them.
        x: this rank's, float32 (m, d).
        weights: what each counts, (m,), or None.
        n: how many numbers are added up at most, over all ranks.
    """

    def __init__(self, ranks: Ranks, x: NDArray[np.float32], weights: Any, n: int) -> None:
        self.ranks, self.x = ranks, x
        self.weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
        heaviest = ranks.most(float(self.weights.max(initial=0.0)))
        self.largest = largest = ranks.most(float(np.abs(x).max(initial=0.0)))
        self.sums, self.masses = Exact(n, largest * heaviest), Exact(n, heaviest)
        self.costs = Exact(n, 4 * largest * largest * x.shape[1] * heaviest)
        self.values = self.sums.rounded(x * self.weights[:, None])
        self.mass = self.masses.rounded(self.weights)
        self.total = float(ranks.sum(np.array([self.mass.sum()]))[0]) * self.masses.step
        self.first = sum(int(one[0]) for one in ranks.gather(np.array([len(x)]))[: ranks.rank])

    def means(self, labels: NDArray[Any], k: int) -> tuple[NDArray[np.float32], Floats]:
        """The mean of each cluster over all ranks, and its mass; 0 for one without."""
        own = np.hstack([self.sums.by_label(self.values, labels, k), np.bincount(labels, self.mass, k)[:, None]])
        everyone = self.ranks.sum(own)
        mass = everyone[:, -1] * self.masses.step
        means = everyone[:, :-1] * self.sums.step / np.where(mass > 0, mass, 1.0)[:, None]
        return means.astype(np.float32), mass

    def inertia(self, costs: NDArray[Any]) -> float:
        """Σ w · cost over all ranks."""
        return float(self.ranks.sum(np.array([self.costs.rounded(costs * self.weights).sum()]))[0]) * self.costs.step

    def present(self, labels: NDArray[np.int32], k: int) -> tuple[NDArray[np.float32], float]:
        """The means of given clusters, and the mean cost of a point."""
        means, _ = self.means(labels, k)
        costs = np.square((self.x - means[labels]).astype(np.float64)).sum(1)
        return means, self.inertia(costs) / self.total

    def nearest(self, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The labels of this rank's points, and what they cost."""
        return assign(self.x, centroids)

    def moved(self, labels: NDArray[np.int32], costs: Any, centroids: NDArray[np.float32]) -> NDArray[np.float32]:
        """The means of the clusters; where one is empty, one of the costliest points."""
        moved, mass = self.means(labels, len(centroids))
        empty = np.flatnonzero(mass == 0)
        moved[empty] = centroids[empty]
        self._refill(moved, empty, costs)
        return moved

    def cluster(self, centroids: NDArray[np.float32], n_iter: int) -> tuple[NDArray[np.float32], float, int]:
        """Lloyd's iteration: (centroids, mean cost of a point, iterations), the same on all ranks.

        A cluster without mass is given one of the points that cost most, distinct ones. The inertia never rises: an iteration
        that raises it is undone and is the last.
        """
        labels, costs = self.nearest(centroids)
        inertia, step = self.inertia(costs), 0
        while step < n_iter:
            moved = self.moved(labels, costs, centroids)
            if np.array_equal(moved, centroids):
                break
            labels, costs = self.nearest(moved)
            total = self.inertia(costs)
            if total > inertia:
                break
            fall, centroids, inertia, step = inertia - total, moved, total, step + 1
            if fall <= 0:
                break
        return centroids, inertia / self.total, step

    def _refill(self, centroids: NDArray[np.float32], empty: NDArray[Any], costs: NDArray[np.float32]) -> None:
        """Put the empty centroids on the costliest points of all ranks."""
        if not len(empty):
            return
        share = costs * self.weights
        order = np.lexsort((np.arange(len(share)), -share))[: 4 * len(empty)]
        offer = np.zeros((4 * len(empty), 2 + centroids.shape[1]))
        offer[: len(order)] = np.column_stack([share[order], self.first + order, self.x[order]])
        offers = np.concatenate(self.ranks.gather(offer))
        offers = offers[offers[:, 0] > 0]
        offers = offers[np.lexsort((offers[:, 1], -offers[:, 0]))]
        _, first = np.unique(offers[:, 2:], axis=0, return_index=True)
        chosen = offers[np.sort(first)][: len(empty), 2:]
        centroids[empty[: len(chosen)]] = chosen.astype(np.float32)


class SharedWindows(SharedPoints):
    """The same where centroids are the windows of one circular memory; a cell on which no point lies stays as it is."""

    def _cells(self, labels: NDArray[np.int32], m: int) -> NDArray[Any]:
        return (labels[:, None] + np.arange(self.x.shape[1])) % m

    def nearest(self, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The offsets of the nearest windows."""
        return circular_assign(self.x, centroids)

    def moved(self, labels: NDArray[np.int32], costs: Any, centroids: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each cell the mean of what lies on it, over all ranks."""
        m, cells = len(centroids), self._cells(labels, len(centroids)).reshape(-1)
        mass = np.repeat(self.mass, self.x.shape[1])
        sums = self.ranks.sum(np.stack([np.bincount(cells, v, m) for v in (self.values.reshape(-1), mass)]))
        means = sums[0] * self.sums.step / np.where(sums[1] > 0, sums[1] * self.masses.step, 1.0)
        return np.where(sums[1] > 0, means, centroids).astype(np.float32)

    def apart(self, memory: NDArray[np.float32], labels: NDArray[np.int32]) -> Floats:
        """The squared distances from windows at given offsets."""
        return np.square((self.x - memory[self._cells(labels, len(memory))]).astype(np.float64)).sum(1)
