"""Clustering under a process group: every rank takes its share of the ids, sums are reduced over all of them.

Sums are exact (`ranks.Exact`), so the result is the same, bit for bit, however many ranks there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._progress import progress
from cce_core.adapters.torch.distributed.ranks import Exact, Floats, Ranks
from cce_core.clustering import KMeans, assign, circular_assign
from cce_core.hashing.mix import derive_key
from cce_core.learning.circular import WindowsRun
from cce_core.learning.cluster import MAX_BYTES, ClusterReport, _checked_weights
from cce_core.learning.codebooks import Run
from cce_core.learning.sparse_codes import CodesRun
from cce_core.learning.targets import Source
from cce_core.method.spec import SAMPLES
from cce_core.sketching import blocks
from cce_core.sketching.layout import HASH, POINTER, Layout
from cce_core.tables.table import Table

_START_POINTS = 32  # a centroid, from which the first centroids are drawn, on every rank alike


class Together(Run):
    """One `cluster()` by all ranks together: each takes its share of the ids."""

    ranks: Ranks
    _side_by_side = False  # all ranks reduce the same sums in the same order

    def batches(self) -> Iterator[NDArray[np.uint64]]:
        """This rank's share of the ids, a batch at a time: the pointers of 64 ids fill whole words."""
        low, high = self.ranks.share(self.vocab, 64)
        for first in range(low, high, self.plan.batch):
            yield np.arange(first, min(first + self.plan.batch, high), dtype=np.uint64)

    def put_together(self) -> None:
        """Everyone's pointers, whose words no two ranks share."""
        self.new.pointers[:] = self.ranks.sum(self.new.pointers.view(np.int64)).view(np.uint64)


class SharedRun(Together):
    """A table with codebooks."""

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """A codebook for each chunk."""
        super().learn(n_iter, residual, warm, bar)
        self.put_together()

    def chunk(self, chunk: int, part: Any, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """As in the core, over this rank's share of the sample and of the ids."""
        ranks, k, width = self.ranks, self.n_clusters, part.width
        pointer = next(c for c in part.columns if c.kind == POINTER)
        ids, counts = self.sample(chunk)  # the same on every rank
        low, high = ranks.share(len(ids))
        x, w = self.decode(part, ids[low:high]), None if counts is None else counts[low:high]
        points = SharedPoints(ranks, x, w, len(ids))
        at = blocks.addresses(self.old.part(part.part((pointer,))), ids[low:high])
        means, before = points.present(((at[:, 0] - pointer.base) // pointer.stride).astype(np.int32), k)
        if warm:
            start = means
        else:
            few = ids[:: max(1, len(ids) // (_START_POINTS * k))]
            heavy = None if counts is None else counts[:: max(1, len(ids) // (_START_POINTS * k))]
            seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk, 1)
            start = KMeans(k, n_iter=0, seed=seed).fit(self.decode(part, few), sample_weight=heavy).cluster_centers_
        centroids, after, iterations = points.cluster(start, n_iter)
        self.costs[chunk], self.iterations[chunk] = (before, after), iterations
        self.memory[pointer.base : pointer.base + k * width] = centroids.reshape(-1)
        hashed = next((c for c in part.columns if c.kind == HASH), None)
        rest = None if hashed is None else self.new.part(part.part((hashed,)))
        most = part.terms * float(np.abs(self.old_memory.codes).max()) + float(np.abs(centroids).max())
        exact, used = Exact(self.vocab, 2 * (most if self.source is None else most + points.largest)), np.zeros(k)
        sums, seen = (None, None) if hashed is None else (np.zeros((hashed.rows, width)), np.zeros(hashed.rows))
        for batch in self.batches():
            vectors = self.decode(part, batch)
            labels, _ = assign(vectors, centroids)
            self.write(chunk, int(batch[0]), labels)
            used[labels] = 1
            if rest is not None and hashed is not None and residual and sums is not None and seen is not None:
                rows = (blocks.addresses(rest, batch)[:, 0] - hashed.base) // hashed.stride
                sums += exact.by_label(exact.rounded(vectors - centroids[labels]), rows, hashed.rows)
                seen += np.bincount(rows, minlength=hashed.rows)
            self.tell(bar, len(batch))
        self.empty[chunk] = k - np.count_nonzero(ranks.sum(used))
        if hashed is not None and sums is not None and seen is not None:
            total, count = ranks.sum(sums) * exact.step, ranks.sum(seen)
            region = slice(hashed.base, hashed.base + hashed.rows * width)
            self.memory[region] = (total / np.maximum(count, 1)[:, None]).astype(np.float32).reshape(-1)


class SharedWindowsRun(Together, WindowsRun):
    """A table whose pointers are offsets into a circular memory."""

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """As in the core, over this rank's share of the sample and of the ids."""
        layout, ranks, m, terms = self.layout, self.ranks, self.n_clusters, self.layout.terms
        parts = [layout.part(layout.columns[c : c + terms], terms) for c in range(0, len(layout.columns), terms)]
        base = next(c.base for c in layout.columns if c.kind == POINTER)
        points, learned = self._together(parts, base, n_iter)
        self.memory[base : base + m] = learned
        most = terms * float(np.abs(self.old_memory.codes).max()) + float(np.abs(learned).max())
        most = most if self.source is None else most + points.largest
        exact, around = Exact(self.vocab * layout.dim, 2 * most), np.arange(layout.width)
        sums, seen, used = np.zeros(m), np.zeros(m), np.zeros(m)
        hashed = next(c for c in layout.columns if c.kind == HASH)
        for chunk, part in enumerate(parts):
            rest = self.new.part(part.part(tuple(c for c in part.columns if c.kind == HASH)))
            for batch in self.batches():
                vectors = self.decode(part, batch)
                labels, _ = circular_assign(vectors, learned)
                self.write(chunk, int(batch[0]), labels)
                used[labels] = 1
                if residual:
                    at = blocks.addresses(rest, batch)[:, 0].astype(np.int64) - hashed.base
                    cells = ((at[:, None] + around) % m).reshape(-1)
                    left = vectors - learned[(labels[:, None] + around) % m]
                    sums += np.bincount(cells, exact.rounded(left).reshape(-1), m)
                    seen += np.bincount(cells, minlength=m)
                self.tell(bar, len(batch))
        self.put_together()
        self.empty = np.array([m - np.count_nonzero(ranks.sum(used))])
        left = ranks.sum(sums) * exact.step / np.maximum(ranks.sum(seen), 1)
        self.memory[hashed.base : hashed.base + m] = left.astype(np.float32)

    def _together(self, parts: list[Layout], base: int, n_iter: int) -> tuple[SharedWindows, NDArray[np.float32]]:
        """Circular k-means on a sample, of which this rank takes its share."""
        m, n_chunks = self.n_clusters, len(parts)
        ids, counts = self.sample(0)  # the same on every rank
        low, high = self.ranks.share(len(ids))
        x = np.concatenate([self.decode(part, ids[low:high]) for part in parts])
        at = [blocks.addresses(self.old.part(part.part(part.columns[:1])), ids[low:high])[:, 0] for part in parts]
        labels = (np.concatenate(at).astype(np.int64) - base).astype(np.int32)
        each = None if counts is None else np.tile(counts[low:high], n_chunks)
        points = SharedWindows(self.ranks, x, each, len(ids) * self.layout.dim)
        start = self.old_memory.codes[base : base + m]
        means = points.moved(labels, None, start)
        before = points.inertia(points.apart(means, labels)) / points.total
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        start = min((means, start), key=lambda memory: points.inertia(points.nearest(memory)[1]))
        learned, after, iterations = points.cluster(start, n_iter)
        self.costs, self.iterations = np.array([[before * n_chunks, after * n_chunks]]), np.array([iterations])
        return points, learned


class SharedCodesRun(Together, CodesRun):
    """A table of sparse codes. K-SVD moves one atom after the other, so every rank makes all of it, on the same sample."""

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """As in the core; the pursuit, which is most of the work, over this rank's share of the ids."""
        found, levels = self.dictionary(n_iter)
        assert self.table.weigher is not None
        new, k, s = self.new.part(self.table.weigher.layout), self.n_clusters, self.layout.terms
        largest = np.square(found.weights.astype(np.float64)).sum(1).max(initial=0.0)
        exact, costs = (
            Exact(self.vocab * s, float(np.abs(found.weights).max(initial=0.0))),
            Exact(self.vocab, 4.0 * largest),
        )
        size = new.layout.size
        sums, seen, used, error = np.zeros(size), np.zeros(size), np.zeros(k), np.zeros(1)
        for batch in self.batches():
            atoms, factors, left = self.code(batch, found, levels)
            used[atoms] = 1
            if levels is None:
                places = blocks.addresses(new, batch).reshape(-1)
                sums += np.bincount(places.astype(np.int64), exact.rounded(factors).reshape(-1), size)
                seen += np.bincount(places.astype(np.int64), minlength=size)
            error += costs.rounded(left).sum()
            self.tell(bar, len(batch))
        self.put_together()
        self.costs[0, 1] = self.ranks.sum(error)[0] * costs.step / self.vocab
        self.empty = np.array([k - np.count_nonzero(self.ranks.sum(used))])
        if levels is None:
            total = self.ranks.sum(sums) * exact.step / np.maximum(self.ranks.sum(seen), 1)
            self.factors = total.astype(np.float32)
        else:
            self.factors = levels[:, 0].copy()


_RUNS: dict[str, type[Together]] = {"codebooks": SharedRun, "windows": SharedWindowsRun, "codes": SharedCodesRun}


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


def cluster(
    table: Table,
    ranks: Ranks,
    *,
    vectors: Any = None,
    weights: Any = None,
    n_iter: int = 50,
    points_per_centroid: int = 256,
    residual: bool = True,
    warm_start: bool = True,
    batch_size: int = 1 << 18,
    max_bytes: int = MAX_BYTES,
    show_progress: bool | None = None,
) -> ClusterReport:
    """`cce_core.learning.cluster.cluster`, of one table that every rank holds, by all of them together.

    Every rank decodes and assigns its share of the ids; sums and counts are reduced over all. Of `sparse` and `sparse2` K-SVD is
    not shared: on its sample, all ranks do the same.

    Raises:
        RuntimeError: the ranks hold different tables, weights or vectors before, or different results afterwards; the table is
            as before.
    """
    start = time.perf_counter()
    given = {} if isinstance(vectors, Table) or vectors is None else {"vectors": np.asarray(vectors)}
    given |= {} if weights is None else {"weights": np.asarray(weights)}
    ranks.agree({"specs": table.spec, **table.arrays(), **given}, "before clustering")
    settings: dict[str, Any] = {
        "n_iter": n_iter, "points_per_centroid": points_per_centroid, "residual": residual, "warm_start": warm_start,
        "batch_size": batch_size, "max_bytes": max_bytes, "show_progress": show_progress if ranks.rank == 0 else False,
    }  # fmt: skip
    if not table.method.learns:
        return table.cluster(**settings)  # which says so
    for name in ("points_per_centroid", "batch_size", "n_iter", "max_bytes"):
        _check.integer(name, settings[name], 1)
    source = None if vectors is None else Source(table, vectors, batch_size)
    counts = _checked_weights(weights, table.spec.vocab or 0)
    run = _RUNS[table.method.learner](table, counts, points_per_centroid, batch_size, max_bytes, source)
    run.ranks = ranks
    shown = settings["show_progress"]
    work = run.vocab if table.method.learner == "codes" else table.layout.n_chunks * run.vocab
    with progress(work // ranks.size, "cluster", unit="id", show=shown) as bar:
        run.learn(n_iter, residual, warm_start and table.generation > 0, bar)
    new = {"memory": run.memory, "pointers": run.new.pointers, "keys": run.new.keys}
    if source is not None and source.projection is not None:
        new["projection"] = source.projection
    if run.factors is not None:
        new["weights"] = run.factors
    ranks.agree(new, "after clustering")
    column_entropy, pair_entropy = run.entropies()
    ours = {**table.buffers(), **table.parameters()}
    for name, values in new.items():
        if name in ours:
            ours[name][:] = values
    ours["generation"][0] += 1
    table.settle()
    table.training_bytes["cluster"] = run.scratch
    return ClusterReport(
        generation=table.generation,
        n_clusters=run.n_clusters,
        inertia_before=float(run.costs[:, 0].sum()),
        inertia_after=float(run.costs[:, 1].sum()),
        column_entropy=column_entropy,
        pair_entropy=pair_entropy,
        empty_clusters=int(run.empty.sum()),
        iterations=tuple(int(n) for n in run.iterations),
        scratch_bytes=run.scratch,
        seconds=time.perf_counter() - start,
    )
