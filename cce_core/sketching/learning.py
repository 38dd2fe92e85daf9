"""Learning the sketch while training: vectors → clusters → new pointers, as Clustered Compositional Embeddings do.

For each chunk: the vectors of a sample of ids → k-means → every id to its nearest centroid, decoded in batches, so that
the table is never built → pointers ← assignments, M ← centroids, hash ← a fresh one, M' ← 0 or the mean residual.

Nothing of the table changes before the last line, and that line is one compiled call, which Python does not interrupt:
whatever stops the clustering, the table is as it was before, or wholly the new one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._progress import progress
from cce_core.clustering import KMeans, assign, least_entropies, update
from cce_core.hashing.mix import derive_key
from cce_core.sketching import blocks
from cce_core.sketching.block_method import BlockMethod
from cce_core.sketching.blocks import Memory, Sketch
from cce_core.sketching.layout import HASH, POINTER, Layout
from cce_core.sketching.source import Source
from cce_core.sketching.spec import SAMPLES
from cce_core.storage.codec import FLOAT32

if TYPE_CHECKING:
    from cce_core.sketching.table import Table

_ENTROPY_IDS = 1 << 20


@dataclasses.dataclass(frozen=True)
class ClusterReport:
    """What a `cluster()` did.

    Attributes:
        generation: how often the table has been clustered, this time included.
        n_clusters: rows of a codebook.
        inertia_before: mean squared distance of a sampled id's chunk vector from the mean of its old cluster, summed over
            the chunks (weighted, where weights were given).
        inertia_after: the same with the new clusters' centroids.
        column_entropy: the least entropy of a pointer column in nats, at most log n_clusters; near 0 is collapse.
        pair_entropy: the least entropy of a pair of columns, at most 2·log n_clusters; as small as one column's where two
            columns have become copies of each other. It is the column's own for a single column.
        empty_clusters: centroids without an id, over all chunks.
        iterations: of k-means, for each chunk.
        scratch_bytes: the largest extra memory that was held.
        seconds: wall clock.

    Example:
        >>> import cce_core as cce
        >>> report = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0).cluster()
        >>> report.generation, report.column_entropy <= report.pair_entropy
        (1, True)
    """

    generation: int
    n_clusters: int
    inertia_before: float
    inertia_after: float
    column_entropy: float
    pair_entropy: float
    empty_clusters: int
    iterations: tuple[int, ...]
    scratch_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"cluster {self.generation}: inertia {self.inertia_before:.4g} -> {self.inertia_after:.4g}, entropy of a column "
            f"{self.column_entropy:.2f} of {math.log(self.n_clusters):.2f}, of a pair {self.pair_entropy:.2f} of "
            f"{2 * math.log(self.n_clusters):.2f}, {self.empty_clusters} empty, {self.seconds:.2f} s"
        )


@jit
def _commit(
    codes: Any, new_codes: Any, scales: Any, new_scales: Any, values: Any, new_values: Any, keys: Any, new_keys: Any,
    pointers: Any, new_pointers: Any, projection: Any, new_projection: Any, generation: Any,
) -> None:  # fmt: skip
    codes[:] = new_codes
    scales[:] = new_scales
    values[:] = new_values
    keys[:] = new_keys
    pointers[:] = new_pointers
    projection[:] = new_projection
    generation[0] += 1


def cluster(
    table: Table,
    *,
    vectors: Any = None,
    weights: Any = None,
    n_iter: int = 50,
    points_per_centroid: int = 256,
    residual: bool = True,
    warm_start: bool = True,
    batch_size: int = 1 << 16,
    show_progress: bool | None = None,
) -> ClusterReport:
    """Learn the pointers of a table from its vectors as they are now, or from given ones.

    Args:
        table: of a method that learns its sketch. It is changed in place; its arrays keep their places and shapes.
        vectors: what to learn instead of the table's own vectors: real numbers (vocab, dim), or a trained table of the same
            vocabulary and dim. With a rank, the projection is set too, to their mean and main directions.
        weights: how much each id counts, such as how often it was seen: real numbers (vocab,), at least 0, not all 0.
        n_iter: most iterations of k-means.
        points_per_centroid: k-means sees a sample of so many ids a centroid, or all ids where there are fewer.
        residual: fill the fresh half M' with the mean of what the centroids leave over; with zeros otherwise.
        warm_start: from the second time on, k-means starts at the means of the present clusters.
        batch_size: ids decoded at once.
        show_progress: a bar; None shows one on a terminal when it takes more than two seconds.

    Returns:
        A `ClusterReport`.

    Raises:
        ValueError: the method learns nothing, a number is out of range, the weights or vectors do not fit, or NaN or
            infinity is found. The table is as before, also after an interrupt.

    Cost:
        k-means over points_per_centroid · rows points, and one nearest-centroid search for every id, a chunk. Extra
        memory: a copy of memory and pointers, the sample and one batch.

    References:
        Tsang and Ahle, arXiv:2210.05974, Section 2.
    """
    start = time.perf_counter()
    if not table.method.learns:
        raise ValueError(f"method {table.spec.method!r} does not learn its sketch: there is nothing to cluster")
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to cluster it")
    points_per_centroid = _check.integer("points_per_centroid", points_per_centroid, 1)
    batch_size = _check.integer("batch_size", batch_size, 1)
    n_iter = _check.integer("n_iter", n_iter, 1)
    source = None if vectors is None else Source(table, vectors, batch_size)
    run = _Run(table, _checked_weights(weights, table.spec.vocab or 0), points_per_centroid, batch_size, source)
    layout, terms = table.layout, table.layout.terms
    with progress(layout.n_chunks * run.vocab, "cluster", unit="id", show=show_progress) as bar:
        for chunk in range(layout.n_chunks):
            columns = layout.columns[chunk * terms : (chunk + 1) * terms]
            part = layout.part(columns, terms)
            run.chunk(chunk, part, n_iter, residual, warm_start and table.generation > 0, bar)
    column_entropy, pair_entropy = run.entropies()
    report = ClusterReport(
        generation=table.generation + 1,
        n_clusters=run.n_clusters,
        inertia_before=run.before,
        inertia_after=run.after,
        column_entropy=column_entropy,
        pair_entropy=pair_entropy,
        empty_clusters=run.empty,
        iterations=tuple(run.iterations),
        scratch_bytes=run.scratch,
        seconds=time.perf_counter() - start,
    )
    table.training_bytes["cluster"] = run.scratch
    old, new = run.old, run.new
    arrays: Any = (*table.stored.pairs(run.memory), old.keys, new.keys, old.pointers, new.pointers)
    held = table.parameters().get("projection", run.memory[:0])
    fitted = None if source is None else source.projection
    arrays += (held, held if fitted is None else fitted, table.buffers()["generation"])
    _commit(*arrays)
    return report


def _checked_weights(weights: Any, vocab: int) -> NDArray[np.float32] | None:
    if weights is None:
        return None
    values = _check.as_float32("weights", weights, (vocab,))
    if float(values.min()) < 0 or float(values.max()) <= 0:
        raise ValueError("weights must be at least 0 and not all 0: how often each id was seen, say")
    return values


class _Run:
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
        self._note(x.nbytes * 3 + ids.nbytes)
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
