"""`cluster()` on the device: vectors → k-means → packed pointers, for every method that learns its sketch.

The learners are those of `cce_core.learning`, over tensors: the vectors of the same sample of ids, k-means, all ids decoded and
assigned in batches, their labels packed by the kernel that finds them. No table of vectors is ever built, and no id's pointer
leaves the device. Two things differ: the first clustering of codebooks starts from k-means++ with one draw a centre, and sums
are taken in another fixed order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cce_core import _check
from cce_core.clustering import KSVD
from cce_core.hashing import derive_key
from cce_core.learning.circular import CircularLearner
from cce_core.learning.cluster import ClusterReport, report_of
from cce_core.learning.codebooks import Learner, WorkingSet
from cce_core.learning.sampling import some_ids
from cce_core.learning.sparse_codes import SparseCodesLearner, dictionary
from cce_core.method import block_method, get_method
from cce_core.method.spec import SAMPLES, TableSpec
from cce_core.sketching.layout import HASH, POINTER, Layout
from cce_core.storage.codec import codec as get_codec
from cce_kernels import circular, codecs, kmeans, ordered, packing, scatter
from cce_kernels import lookup as forward
from cce_kernels.launch import Launch, Member
from cce_kernels.pursuit import omp
from cce_kernels.runtime import floats, on_device, torch
from cce_kernels.tables import Tables

_ENTROPY_IDS = 1 << 20


def cluster(
    tables: Tables, k: int = 0, *, vectors: torch.Tensor | None = None, weights: torch.Tensor | None = None,
    n_iter: int = 50, points_per_centroid: int = 256, residual: bool = True, warm_start: bool = True,
    batch_size: int = 1 << 18,
) -> ClusterReport:  # fmt: skip
    """Learn the pointers of table `k` from its vectors as they are now, or from given ones; its arrays change in place.

    Args:
        tables: on one device.
        k: which of them; its method learns its sketch; `pq`, `sparse` and `sparse2` need `vectors`.
        vectors: float32 (vocab, dim) to learn from instead, for a table without a projection.
        weights: float32 (vocab,), how much each id counts: at least 0, not all 0.
        n_iter, points_per_centroid, residual, warm_start: as for `Table.cluster`.
        batch_size: ids decoded at once.

    Returns:
        A `ClusterReport`, as `Table.cluster` gives it. Same table, settings and seed: the same bits.

    Raises:
        ValueError: another method (`Table.cluster` on the CPU has them all), wrong shapes, NaN or infinity; nothing is changed.

    Cost:
        For each chunk, 3·vocab·rows·width operations for the assignment, and the sample's k-means.
    """
    began = time.perf_counter()
    points, n_iter = _check.integer("points_per_centroid", points_per_centroid, 1), _check.integer("n_iter", n_iter, 1)
    spec = tables.specs[_check.integer("k", k, 0, len(tables.specs) - 1)]
    if not takes(spec):
        raise ValueError(f"a {spec.method!r} table is not clustered on the device: use Table.cluster of cce_core")
    learner = _LEARNERS[get_method(spec.method).learner](tables, k, vectors, weights, points, batch_size)
    learner.learn(n_iter, residual, warm_start and learner.generation > 0, None)
    report = report_of(learner, learner.generation + 1, began)
    learner.commit()
    return report


def takes(spec: TableSpec) -> bool:
    """Whether a table with this spec is clustered here."""
    method = get_method(spec.method)
    return method.learns and method.learner in _LEARNERS


class _Means:
    """`codebooks.Means` on the device: sums in a fixed order, counts by atomic additions of whole numbers, which have none."""

    def __init__(self, size: int, layouts: dict[int, Layout], keys: torch.Tensor, vocab: int) -> None:
        self.sums, self.seen = torch.zeros((2, size), dtype=torch.float32, device=keys.device)
        self.launches = {chunk: Launch([Member(one, self.sums, keys, vocab=vocab)]) for chunk, one in layouts.items()}
        self.unit = next(iter(layouts.values())).unit

    def add(self, chunk: int, ids: torch.Tensor, values: torch.Tensor) -> None:
        """The vectors of ids, float32 (n, width)."""
        rest = self.launches[chunk]
        (units, sums), _ = ordered.run(rest, ids, None, None, None, forward.SUM, values)
        self.sums.view(-1, self.unit)[units] += sums
        scatter.run(rest, ids, None, None, None, forward.SUM, torch.ones_like(values), rest.origin, self.seen, None)

    def means(self) -> torch.Tensor:
        """float32 (size,); 0 where nothing lies."""
        return self.sums / self.seen.clamp(min=1)


class _Learner(Learner):
    """The verbs over tensors; the table is only read until `commit`."""

    def __init__(self, tables: Tables, k: int, vectors: Any, weights: Any, points: int, batch: int) -> None:
        self.tables, self.k, self.spec, self.arrays = tables, k, tables.specs[k], tables.arrays[k]
        spec, method = self.spec, block_method(self.spec.method)
        if method.post_training and vectors is None:
            raise ValueError(f"a {spec.method!r} table learns from a trained one: give its vectors")
        self.layout, self.vocab = method.layout(spec), spec.vocab or 0
        self.device = on_device(memory=self.arrays["memory"], vectors=vectors, weights=weights)
        self.n_clusters = next(c.rows for c in self.layout.columns if c.kind == POINTER)
        self.old = codecs.decode(
            get_codec(spec.codec), self.arrays["memory"], self.arrays.get("scales"), self.layout.size
        )
        if not bool(self.old.isfinite().all()):
            raise ValueError("the memory must be finite, got NaN or infinity; nothing was changed")
        self.vectors = vectors
        if vectors is not None:
            if spec.rank:
                raise ValueError(
                    "vectors for a table with a projection: use Table.cluster of cce_core, which fits it too"
                )
            floats("vectors", vectors, (self.vocab, spec.dim))
        self.weights = weights
        if weights is not None:
            floats("weights", weights, (self.vocab,))
            if not (float(weights.min()) >= 0 and 0 < float(weights.max()) < float("inf")):
                raise ValueError("weights must be at least 0 and not all 0: how often each id was seen, say")
        self.generation = int(self.arrays["generation"])
        self.memory, self.packing = self.old.clone(), method.packing(spec)
        self.keys = torch.from_numpy(method.keys(spec, self.generation + 1)).to(self.device)
        self.words = torch.zeros(self.packing.n_words, dtype=torch.int64, device=self.device).view(torch.uint64)
        points, size = min(self.vocab, points * self.n_clusters), _check.integer("batch_size", batch, 1)
        self.working_set = WorkingSet(points, size, min(self.vocab, _ENTROPY_IDS), 1, 0)
        self.walked, self.ended = self.vocab, threading.Event()
        self.costs, self.factors = np.zeros((self.layout.n_chunks, 2)), None
        self.empty, self.iterations = np.zeros((2, self.layout.n_chunks), np.int64)
        self.scratch = 4 * 5 * self.layout.size + 8 * self.packing.n_words

    def sample(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The ids that `cce_core` would draw for k-means, and what each counts."""
        if self.working_set.points == self.vocab:
            return torch.arange(self.vocab, device=self.device), self.weights
        seed = derive_key(self.spec.seed, SAMPLES, self.generation, chunk)
        rng = np.random.Generator(np.random.PCG64(seed))
        if self.weights is None:
            ids = some_ids(rng, self.vocab, self.working_set.points)
            return torch.from_numpy(ids.view(np.int64)).to(self.device), None
        ends = kmeans.ends_of(self.weights.double())
        uniforms = torch.from_numpy(rng.random(self.working_set.points)).to(self.device)
        drawn = torch.searchsorted(ends, (uniforms * ends[-1]).long(), right=True).clamp_(max=self.vocab - 1)
        ids, counts = drawn.unique(return_counts=True)
        return ids, counts.float()

    def decode(self, chunk: int, ids: torch.Tensor) -> torch.Tensor:
        """The chunk's vectors of int64 ids, as the table or the given vectors have them."""
        width = self.layout.width
        if self.vectors is not None:
            return self.vectors[ids, chunk * width : (chunk + 1) * width].contiguous()
        part, arrays = self.part(chunk), self.arrays
        launch = Launch([Member(part, self.old, arrays.get("keys"), arrays["pointers"], vocab=self.vocab)])
        out = torch.empty((len(ids), width), dtype=torch.float32, device=self.device)
        error = torch.full((1,), forward.GOOD, dtype=torch.int64, device=self.device)
        forward.run(launch, ids, None, None, None, forward.SUM, out, error)
        return out

    def batches(self) -> Iterator[torch.Tensor]:
        """All ids, int64, a batch at a time."""
        for low in range(0, self.vocab, self.working_set.batch):
            yield torch.arange(low, min(low + self.working_set.batch, self.vocab), device=self.device)

    def label(self, chunk: int, ids: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        """The nearest centroid of each vector, packed by the kernel that finds it."""
        low = int(ids[0])
        labels, _ = kmeans.assign(vectors, codebook, pack=(self.packing, self.words, chunk, low))
        self.scratch = max(self.scratch, 4 * self.working_set.batch * (4 * self.layout.width + 8))
        return labels.long()

    def left(self, vectors: torch.Tensor, codebook: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Vectors minus centroids."""
        return vectors - codebook[labels]

    def means_of(self, chunks: Sequence[int], codebook: Any) -> _Means | None:
        """Of one chunk's fresh hash, in a memory of its own."""
        (chunk,) = chunks
        column = self.column(chunk, HASH)
        if column is None:
            return None
        alone = self.alone(column, self.layout.width)
        return _Means(alone.size, {chunk: alone}, self.keys, self.vocab)

    def unused(self) -> torch.Tensor:
        """A zero for each centroid."""
        return torch.zeros(self.n_clusters, dtype=torch.int64, device=self.device)

    def tick(self, bar: Any, n: int) -> None:
        """Nothing waits to be told."""

    def present(self, chunk: int, ids: torch.Tensor) -> torch.Tensor:
        """What the chunk's pointers of ids are now."""
        return packing.read(self.packing, self.arrays["pointers"], chunk, ids).clamp_(max=self.n_clusters - 1)

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> torch.Tensor:
        """k-means on a sample of ids."""
        ids, counts = self.sample(chunk)
        x, present = self.decode(chunk, ids), self.present(chunk, ids)
        means, _ = kmeans.update(x, present, self.n_clusters, counts, deterministic=True)
        costs = (x - means[present.long()]).square().sum(1, dtype=torch.float64)
        total = float(len(ids) if counts is None else counts.sum(dtype=torch.float64))
        before = float(costs.sum() if counts is None else (costs * counts).sum()) / total
        seed = derive_key(self.spec.seed, SAMPLES, self.generation, chunk, 1)
        start = means if warm else kmeans.spread_out(x, self.n_clusters, seed, counts)
        centroids, _, inertia, self.iterations[chunk] = kmeans.k_means(x, start, n_iter, counts)
        self.costs[chunk] = before, inertia / total
        self.scratch = max(self.scratch, 4 * (6 * x.numel() + 8 * len(x)))
        return centroids

    def entropies(self) -> tuple[float, float]:
        """The least entropy of a new pointer column and of a pair of them, over at most a million ids, in nats."""
        chunks = sum(column.kind == POINTER for column in self.layout.columns)
        ids = torch.linspace(0, self.vocab - 1, min(self.vocab, _ENTROPY_IDS), dtype=torch.float64).long().unique()
        labels = [packing.read(self.packing, self.words, c, ids.to(self.device)).long() for c in range(chunks)]
        first = min(_entropy(column) for column in labels)
        pairs = [_entropy(a * self.n_clusters + b) for i, a in enumerate(labels) for b in labels[:i]]
        return first, min(pairs, default=first)

    def commit(self) -> None:
        """All that was made, into the table's own arrays."""
        arrays = self.arrays
        codecs.encode_into(get_codec(self.spec.codec), self.memory, arrays["memory"], arrays.get("scales"))
        if self.factors is not None:
            arrays["weights"].copy_(self.factors)
        if "keys" in arrays:
            arrays["keys"].copy_(self.keys.view(arrays["keys"].dtype))
        arrays["pointers"].copy_(self.words.view(arrays["pointers"].dtype))
        arrays["generation"] += 1
        self.tables.generations[self.k] += 1


class _CircularLearner(_Learner, CircularLearner):
    """Vectors of all chunks → circular k-means on one memory → every chunk of every id to its nearest window."""

    def label(self, chunk: int, ids: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        """The offset of the nearest window."""
        return super().label(chunk, ids, vectors, self._windows)

    def left(self, vectors: torch.Tensor, codebook: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Vectors minus windows."""
        return super().left(vectors, self._windows, labels)

    def means_of(self, chunks: Sequence[int], codebook: Any) -> _Means:
        """On one memory for all chunks, where blocks overlap."""
        columns = {chunk: self.column(chunk, HASH) for chunk in chunks}
        layouts = {chunk: self.layout.part((column,)) for chunk, column in columns.items() if column is not None}
        return _Means(self.layout.size, layouts, self.keys, self.vocab)

    def codebook(self, chunk: int, n_iter: int, warm: bool, bar: Any) -> torch.Tensor:
        """Circular k-means on a sample of all chunks."""
        chunks, width = range(self.layout.n_chunks), self.layout.width
        base = next(c.base for c in self.layout.columns if c.kind == POINTER)
        ids, counts = self.sample(0)
        x = torch.cat([self.decode(one, ids) for one in chunks])
        at = torch.cat([self.present(one, ids) for one in chunks])
        each = None if counts is None else counts.repeat(len(chunks))
        start = self.old[base : base + self.n_clusters]
        means = circular.update(x, at, start, each)
        ones = float(len(x) if each is None else each.sum(dtype=torch.float64)) / len(chunks)
        apart = (x - circular.windows(means, width)[at.long()]).square().sum(1, dtype=torch.float64)
        before = kmeans.total(apart, each) / ones
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        costs = [kmeans.total(kmeans.assign(x, circular.windows(m, width))[1], each) for m in (means, start)]
        memory, _, inertia, made = circular.k_means(x, means if costs[0] <= costs[1] else start, n_iter, each)
        self.costs, self.iterations = np.array([[before, inertia / ones]]), np.array([made])
        self._windows = circular.windows(memory, width)
        self.scratch += 4 * width * (2 * self.n_clusters + 12 * len(x)) + 8 * len(x)
        return memory


class _SparseCodesLearner(_Learner, SparseCodesLearner):
    """Given vectors → K-SVD of a sample, on the CPU, since it moves atom after atom → a pursuit of every row, on the device."""

    @property
    def _places(self) -> Layout:
        """Where the weights lie."""
        layout = get_method(self.spec.method).weight_layout(self.spec)
        assert isinstance(layout, Layout)
        return layout

    def means_of(self, chunks: Sequence[int], codebook: Any) -> _Means:
        """Of the weights that share a hashed place."""
        return _Means(self._places.size, {0: self._places}, self.keys, self.vocab)

    def dictionary(self, n_iter: int) -> tuple[KSVD, torch.Tensor | None]:
        """K-SVD of a sample, and the levels of its weights."""
        ids, counts = self.sample(0)
        x, heavy = self.vectors[ids].cpu().numpy(), None if counts is None else counts.cpu().numpy()
        seed = derive_key(self.spec.seed, SAMPLES, self.generation)
        found, levels, before = dictionary(x, heavy, self.layout, self._places, n_iter, seed)
        self.costs, self.iterations = np.array([[before, 0.0]]), np.array([len(found.errors) - 1])
        self._atoms = torch.from_numpy(found.dictionary).to(self.device)
        self.memory[:] = self._atoms.view(-1)
        each = 8 * (self.layout.dim * (self.layout.terms + 3) + self.n_clusters)
        self.scratch += x.nbytes + min(self.vocab, self.working_set.batch) * each
        return found, None if levels is None else torch.from_numpy(levels).to(self.device)

    def code(
        self, ids: torch.Tensor, found: KSVD, levels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Atoms and weights of a batch of ids, packed; and the squared error of each id."""
        low, terms, vectors = int(ids[0]), self.layout.terms, self.vectors[ids]
        chosen, factors = omp(vectors, self._atoms, terms)
        for t in range(terms):
            packing.write(self.packing, self.words, t, low, chosen[:, t].int().contiguous())
            if levels is not None:
                place = self.packing, self.words, terms + t, low
                labels, _ = kmeans.assign(factors[:, t : t + 1].contiguous(), levels, pack=place)
                factors[:, t] = levels[labels.long(), 0]
        left = vectors - (factors[:, :, None] * self._atoms[chosen]).sum(1)
        return chosen, factors, left.double().square()


_LEARNERS: dict[str, type[_Learner]] = {
    "codebooks": _Learner,
    "windows": _CircularLearner,
    "codes": _SparseCodesLearner,
}


def _entropy(column: torch.Tensor) -> float:
    shares = column.unique(return_counts=True)[1].double() / len(column)
    return float(-(shares * shares.log()).sum())
