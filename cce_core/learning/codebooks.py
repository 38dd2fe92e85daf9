"""How a table's sketch is learned: one class, over verbs that NumPy, a group of processes and a GPU supply.

A learner makes the new arrays beside the old ones. `learn` and what it calls say what is done; the verbs `batches`, `decode`,
`label`, `left`, `means_of` and `total` say where: here over NumPy's arrays, in `shared` over all processes of a group, and in the
Triton kernels over tensors of a device.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import get_num_threads, map_threads, parallel_for
from cce_core.clustering import KMeans, assign, least_entropies, update
from cce_core.hashing.mix import derive_key
from cce_core.learning.sampling import some_ids, weighted_ids
from cce_core.learning.targets import Source
from cce_core.method import block_method
from cce_core.method.spec import SAMPLES
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.batch import JaggedBatch
from cce_core.sketching.descriptors import Memory, Sketch
from cce_core.sketching.group import TableGroup
from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.storage.codec import FLOAT32

_ENTROPY_IDS = 1 << 20
_ALIKE = 1 << 21  # ids that are enough where all have the same row: a spec may speak of 2^48 that take no byte
_LEAST_BATCH = 256  # ids, below which a smaller batch saves nothing worth having
_APART = 1 << 24  # multiply-adds of a search of the sample from which chunks are clustered side by side
_ROWS = 1 << 12  # at a time, where each needs more than its floats
_GRAIN = 1 << 14  # ids that make another thread worth waking
OVERHEAD_BYTES = 1 << 17  # bytes of whatever is small


@dataclasses.dataclass(frozen=True)
class WorkingSet:
    """How much is held at once. It follows from the sizes and `max_bytes` alone (but for `n_parallel`), so results do too.

    Attributes:
        points: ids that k-means sees.
        batch: ids decoded at once.
        entropy_ids: ids over which entropies are taken.
        n_parallel: chunks clustered at the same time.
        scratch: most bytes that are held for these, beside the new arrays.
    """

    points: int
    batch: int
    entropy_ids: int
    n_parallel: int
    scratch: int


@jit
def _commit(
    codes: Any, new_codes: Any, scales: Any, new_scales: Any, values: Any, new_values: Any, remainders: Any, new_remainders: Any,
    keys: Any, new_keys: Any, pointers: Any, new_pointers: Any, projection: Any, new_projection: Any, factors: Any,
    new_factors: Any, generation: Any,
) -> None:  # fmt: skip
    codes[:] = new_codes
    scales[:] = new_scales
    values[:] = new_values
    remainders[:] = new_remainders
    keys[:] = new_keys
    pointers[:] = new_pointers
    projection[:] = new_projection
    factors[:] = new_factors
    generation[0] += 1


@jit
def _leave(start: int, stop: int, vectors: Any, labels: Any, centroids: Any) -> None:
    """What the centroids leave over of the vectors [start, stop), in their place."""
    for i in range(start, stop):
        for j in range(vectors.shape[1]):
            vectors[i, j] -= centroids[labels[i], j]


def cost(x: NDArray[np.float32], near: Callable[[slice], Any], weights: Any) -> float:
    """Σ_n w_n |x_n − near_n|², in float64 and a few rows at a time: no square is too large, and no copy."""
    total = 0.0
    for low in range(0, len(x), _ROWS):
        rows = slice(low, low + _ROWS)
        apart = x[rows].astype(np.float64)
        apart -= near(rows)
        squares = np.square(apart, out=apart).sum(1)
        total += float(squares.sum() if weights is None else squares @ weights[rows])
    return total


class Means:
    """The mean of what lies on each float of a fresh hash, all ids added up in their order.

    Args:
        size: floats, of which the hash writes some.
        sketches: of each chunk, the hash.
        counted: the same hash with blocks of one float, where blocks are whole rows: fewer numbers to count; else None.
    """

    def __init__(self, size: int, sketches: dict[int, Sketch], counted: Sketch | None = None) -> None:
        self.groups = {chunk: TableGroup.of(sketch) for chunk, sketch in sketches.items()}
        self.counted = None if counted is None else TableGroup.of(counted)
        self.sums = np.zeros(size, np.float32)
        self.seen = np.zeros(size if counted is None else counted.layout.size, np.float32)

    def add(self, chunk: int, ids: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        """The vectors of ids, float32 (n, width)."""
        group, batch = self.groups[chunk], JaggedBatch.alone(ids)
        self.sums += blocks.scatter(group, batch, values)
        if self.counted is None:
            self.seen += blocks.scatter(group, batch, np.ones_like(values))
        else:
            self.seen += blocks.scatter(self.counted, batch, np.ones((len(ids), 1), np.float32))

    def means(self) -> NDArray[np.float32]:
        """float32 (size,); 0 where nothing lies."""
        rows = self.sums.reshape(len(self.seen), -1)
        return np.divide(rows, np.maximum(self.seen, 1)[:, None], dtype=np.float32).reshape(-1)


class Learner:
    """One `cluster()`: the new arrays as they are made, beside the table, which is only read.

    Args:
        table: of a method that learns its sketch.
        weights: (vocab,), at least 0, or None.
        points_per_centroid: ids of the sample, a centroid.
        batch_size: most ids decoded at once.
        max_bytes: most bytes to hold beside the new arrays.
        source: vectors to learn in place of the table's, or None.

    Raises:
        ValueError: the memory is not finite, or `max_bytes` is too few for a point a centroid and a small batch.
    """

    _side_by_side = True  # whether chunks may be clustered at the same time
    _most = 1 << 18  # ids of a batch

    def __init__(
        self,
        table: TableState,
        weights: Any,
        points_per_centroid: int,
        batch_size: int,
        max_bytes: int,
        source: Source | None,
    ) -> None:
        self.table, self.layout, self.source = table, table.layout, source
        self.vocab = table.spec.vocab or 0
        self.n_clusters = next(c.rows for c in self.layout.columns if c.kind == POINTER)
        self.walked = self.vocab if self.n_clusters > 1 else min(self.vocab, _ALIKE)
        self.old, old_memory = table.sketch, table.stored.decoded()
        _check.as_float32("the memory", old_memory, old_memory.shape)
        self.weights = weights
        self.working_set = self._working_set(points_per_centroid, batch_size, max_bytes)
        self.old_memory, self.memory = Memory(FLOAT32, old_memory), old_memory.copy()
        # The fresh hash is drawn once, before anything is decoded, and decoding goes on with the old one to the end.
        method = block_method(table.spec.method)
        self.packing = method.packing(table.spec)
        keys = method.keys(table.spec, table.generation + 1)
        self.new = Sketch(self.layout, keys, self.packing.empty())
        self.factors: NDArray[np.float32] | None = None  # new weights of a table that has some
        self._begin()
        coded = 0 if table.spec.codec == "float32" else 2  # the old memory decoded, the new one encoded
        self.scratch = (
            (1 + coded) * self.memory.nbytes + self.new.pointers.nbytes + keys.nbytes + self.working_set.scratch
        )

    def _begin(self) -> None:
        self.costs = np.zeros((self.layout.n_chunks, 2))  # of each chunk, before and after
        n_codebooks = sum(column.kind == POINTER for column in self.layout.columns)
        self.empty, self.iterations = np.zeros((2, n_codebooks), np.int64)
        self.ended, self._one = threading.Event(), threading.Lock()

    # --- how much is held at once -------------------------------------------------------------------------------------

    def _source_bytes(self) -> int:
        return 0 if self.source is None else 4 * (3 * self.table.spec.dim + self.layout.dim)

    def _point_bytes(self) -> int:
        """Of a point of the sample: ids, vectors, and what `KMeans` keeps of each, its short lists too."""
        w = self.layout.width
        return 17 * w + 70 + min(max(5 * w, 28), 72) + self._source_bytes()

    def _id_bytes(self) -> int:
        """Of an id of a batch: its vector, that in a tile, and a few numbers."""
        return 13 * self.layout.width + 72 + self._source_bytes()

    def _flat_bytes(self) -> int:
        """What takes its room however few points there are: centroids in many copies, and the sums of what is left."""
        w = self.layout.width
        hashed = next((c.rows for c in self.layout.columns if c.kind == HASH), 0)
        return OVERHEAD_BYTES + 300 * self.n_clusters * (w + 1) + hashed * (8 * w + 16)

    def _working_set(self, points_per_centroid: int, batch_size: int, max_bytes: int) -> WorkingSet:
        flat, per_point, per_id = self._flat_bytes(), self._point_bytes(), self._id_bytes()
        most, size = min(self.vocab, points_per_centroid * self.n_clusters), min(batch_size, self.vocab, self._most)
        least, least_size = min(self.vocab, self.n_clusters), min(size, _LEAST_BATCH)
        points, batch = (min(n, (max_bytes - flat) // each) for n, each in ((most, per_point), (size, per_id)))
        if points < least or batch < least_size:
            needed = flat + max(least * per_point, least_size * per_id)
            raise ValueError(
                f"max_bytes must be at least {needed:,} for {self.n_clusters:,} clusters of width {self.layout.width}, "
                f"got {max_bytes:,}"
            )
        chunk = flat + max(points * per_point, batch * per_id)
        n_parallel = 1
        if self._side_by_side and points * self.n_clusters * self.layout.width >= _APART:
            n_parallel = max(1, min(get_num_threads(), self.layout.n_chunks, max_bytes // chunk))
        each = 96 + 8 * self.layout.n_chunks
        entropy_ids = max(1, min(self.vocab, _ENTROPY_IDS, max_bytes // (each + 96)))
        pairs = 24 * min(self.n_clusters**2, 1 << 20, 4 * entropy_ids)  # a table of their counts
        return WorkingSet(points, batch, entropy_ids, n_parallel, max(n_parallel * chunk, entropy_ids * each + pairs))

    # --- a chunk ------------------------------------------------------------------------------------------------------

    def sample(self, chunk: int) -> tuple[NDArray[np.uint64], NDArray[np.float32] | None]:
        """Ids for k-means, and what each counts: all of them, or a sample without and (weighted) with replacement."""
        if self.working_set.points == self.vocab:
            counts = None if self.weights is None else self.weights[:].astype(np.float32, copy=False)
            return np.arange(self.vocab, dtype=np.uint64), counts
        rng = np.random.Generator(
            np.random.PCG64(derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk))
        )
        if self.weights is None:
            return some_ids(rng, self.vocab, self.working_set.points), None
        return weighted_ids(rng, self.weights, self.working_set.points)

    def part(self, chunk: int) -> Layout:
        """The layout of one chunk alone."""
        terms = self.layout.terms
        return self.layout.part(self.layout.columns[chunk * terms : (chunk + 1) * terms], terms)

    def column(self, chunk: int, kind: int) -> Column | None:
        """The chunk's column of a kind."""
        terms = self.layout.terms
        return next((c for c in self.layout.columns[chunk * terms : (chunk + 1) * terms] if c.kind == kind), None)

    def decode(self, chunk: int, ids: Any) -> Any:
        """The chunk's vectors as the table or the source has them: float32 (n, width)."""
        part = self.part(chunk)
        if self.source is not None:
            return np.ascontiguousarray(self.source.rows(ids, slice(chunk * part.width, (chunk + 1) * part.width)))
        return blocks.lookup(TableGroup.of(self.old.part(part), self.old_memory), ids)

    def batches(self) -> Iterator[Any]:
        """All ids (of one row, evenly spaced ones), a batch at a time, until the end is called."""
        step = self.vocab // self.walked
        for low in range(0, self.walked, self.working_set.batch):
            if self.ended.is_set():
                return
            ids = np.arange(low, min(low + self.working_set.batch, self.walked), dtype=np.uint64)
            yield ids if step == 1 else ids * np.uint64(step)

    def write(self, field: int, low: int, values: Any) -> None:
        """New pointers of ids from `low` on. Those of all chunks share words: one thread at a time."""
        with self._one:
            self.packing.write(self.new.pointers, field, low, values)

    def tick(self, bar: Any, n: int) -> None:
        """Move the bar on."""
        with self._one:
            bar.update(n)

    def label(self, chunk: int, ids: Any, vectors: Any, codebook: Any) -> Any:
        """The nearest centroid of each vector, written as the pointers of its id."""
        labels, _ = assign(vectors, codebook)
        self.write(chunk, int(ids[0]), labels)
        return labels

    def left(self, vectors: Any, codebook: Any, labels: Any) -> Any:
        """What the centroids leave over of the vectors, which may be overwritten."""
        parallel_for(_leave, len(vectors), _GRAIN, vectors, labels, codebook)
        return vectors

    def means_of(self, chunks: Sequence[int], codebook: Any) -> Any:
        """`Means` of what the codebook leaves over, on the fresh hashes of these chunks; None where they have none."""
        (chunk,) = chunks
        column = self.column(chunk, HASH)
        if column is None:
            return None
        whole, counted = (self.new.part(self.alone(column, width)) for width in (self.layout.width, 1))
        return Means(whole.layout.size, {chunk: whole}, counted)

    def total(self, counts: Any) -> Any:
        """The sum over all that share the work: here, what it is."""
        return counts

    def work(self, n_iter: int) -> int:
        """What the bar counts to: ids looked at, in each iteration and at the end, by all chunks."""
        return self.layout.n_chunks * (self.walked + n_iter * self.working_set.points)

    # --- what is learned ----------------------------------------------------------------------------------------------

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """New memory and pointers: here, a codebook for each chunk."""

        def one(chunk: int) -> None:
            self.chunk(chunk, n_iter, residual, warm, bar)

        map_threads(one, self.layout.n_chunks, self.working_set.n_parallel, self.ended)

    def chunk(self, chunk: int, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """Cluster one chunk: k-means on a sample, then every id to its nearest centroid."""
        k, pointer, hashed = self.n_clusters, self.column(chunk, POINTER), self.column(chunk, HASH)
        assert pointer is not None
        codebook = self.codebook(chunk, n_iter, warm, bar)
        self.memory[pointer.base : pointer.base + k * pointer.stride] = codebook.reshape(-1)
        rest = self.means_of((chunk,), codebook) if residual else None
        self.empty[chunk] = k - int((self.walk(chunk, codebook, rest, bar) > 0).sum())
        if hashed is not None:
            region = slice(hashed.base, hashed.base + hashed.rows * hashed.stride)
            self.memory[region] = 0.0 if rest is None else rest.means()

    def walk(self, chunk: int, codebook: Any, rest: Any, bar: Any) -> Any:
        """Point every id to its nearest centroid, and add what that leaves over to `rest`; (k,), above 0 where one is used."""
        used = self.unused()
        for ids in self.batches():
            vectors = self.decode(chunk, ids)
            labels = self.label(chunk, ids, vectors, codebook)
            used[labels] = 1
            if rest is not None:
                rest.add(chunk, ids, self.left(vectors, codebook, labels))
            self.tick(bar, len(ids))
        return self.total(used)

    def unused(self) -> Any:
        """A zero for each centroid, to be set where an id points to it."""
        return np.zeros(self.n_clusters, np.int64)

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> Any:
        """k-means on a sample, which is let go of here: float32 (k, width)."""
        ids, counts = self.sample(chunk)
        x = self.decode(chunk, ids)
        means, before = self._present(chunk, ids, x, counts)
        seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation, chunk, 1)

        def iterated(step: int, inertia: float) -> bool:
            self.tick(bar, self.working_set.points)
            return self.ended.is_set()

        start: Any = means if warm else "k-means++"
        found = KMeans(self.n_clusters, init=start, n_iter=n_iter, seed=seed)
        found.fit(x, sample_weight=counts, on_iteration=iterated)
        total = float(len(ids) if counts is None else counts.sum(dtype=np.float64))
        self.costs[chunk] = before / total, float(found.inertia_) / total
        self.iterations[chunk] = found.n_iter_
        self.tick(bar, (n_iter - found.n_iter_) * self.working_set.points)
        return found.cluster_centers_

    def alone(self, column: Column, width: int) -> Layout:
        """The hash of one chunk into a memory of its own, with blocks of `width` floats."""
        own = column._replace(base=0, stride=width, region=0)
        size = column.rows * width
        return dataclasses.replace(self.layout, columns=(own,), terms=1, width=width, size=size, unit=width)

    def _present(self, chunk: int, ids: Any, x: Any, counts: Any) -> tuple[Any, float]:
        """The means of the present clusters, and what they cost."""
        labels = self.labels(self.old, self.column(chunk, POINTER), ids)
        means, _ = update(x, labels, self.n_clusters, counts)
        return means, cost(x, lambda rows: means[labels[rows]], counts)

    def labels(self, sketch: Sketch, column: Column | None, ids: Any) -> NDArray[np.int32]:
        """The row that a column of pointers gives each id, int32 (n,)."""
        assert column is not None
        at = blocks.addresses(sketch.part(self.layout.part((column,))), ids)[:, 0]
        at -= column.base
        at //= column.stride
        return at.astype(np.int32)

    def change(self) -> Callable[[], None]:
        """What makes the table the new one, in a call that Python does not interrupt: each array is copied into its place."""
        old, new, table = self.old, self.new, self.table
        held = table.arrays().get("projection", self.memory[:0])
        fitted = None if self.source is None else self.source.projection
        factors = table.arrays().get("weights", self.memory[:0])
        arrays: Any = (*table.stored.updates(self.memory), old.keys, new.keys, old.pointers, new.pointers)
        arrays += (held, held if fitted is None else fitted)
        arrays += (factors, factors if self.factors is None else self.factors, table.buffers()["generation"])
        return functools.partial(_commit, *arrays)

    def entropies(self) -> tuple[float, float]:
        """The two least entropies of the new pointers, over at most a million ids."""
        n = self.working_set.entropy_ids
        ids = np.arange(n, dtype=np.uint64)
        ids *= np.uint64(self.vocab - 1)
        ids //= np.uint64(max(n - 1, 1))
        labels = [self.labels(self.new, column, ids) for column in self.layout.columns if column.kind == POINTER]
        return least_entropies(labels, self.n_clusters)
