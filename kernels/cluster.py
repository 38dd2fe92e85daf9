"""`cluster()` on the device: vectors → k-means → packed pointers, for every method that learns its sketch.

The steps are those of the learners in `cce_core.learning`: for each chunk, the vectors of a sample of ids (the same ids),
k-means, all ids decoded and assigned in batches, their labels packed by the kernel that finds them; the fresh hash drawn once,
before anything is decoded; M' the mean residual. No table of vectors is ever built, and no id's pointer leaves the device. Two
things differ: the first clustering of codebooks starts from k-means++ with one draw a centre, and sums are taken in another
fixed order.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cce_core import _check
from cce_core.hashing import derive_key
from cce_core.learning.cluster import ClusterReport
from cce_core.learning.sampling import some_ids
from cce_core.learning.sparse_codes import dictionary
from cce_core.method import get_method
from cce_core.method.block import BlockMethod
from cce_core.method.spec import SAMPLES, TableSpec
from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.storage.codec import codec as get_codec
from cce_kernels import circular, codecs, kmeans, packing, scatter, segments
from cce_kernels import lookup as forward
from cce_kernels.needs import floats, on_device, torch
from cce_kernels.parts import Launch, Part
from cce_kernels.pursuit import omp
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
    run = _RUNS[get_method(spec.method).learner](tables, k, vectors, weights, points, batch_size, residual)
    run.learn(n_iter, warm_start and run.generation > 0)
    column, pair = run.entropies()
    run.commit()
    return ClusterReport(
        generation=run.generation + 1,
        n_clusters=run.rows,
        inertia_before=run.before,
        inertia_after=run.after,
        column_entropy=column,
        pair_entropy=pair,
        empty_clusters=run.empty,
        iterations=tuple(run.iterations),
        scratch_bytes=run.scratch,
        seconds=time.perf_counter() - began,
    )


def takes(spec: TableSpec) -> bool:
    """Whether a table with this spec is clustered here."""
    method = get_method(spec.method)
    return method.learns and method.learner in _RUNS


class _Run:
    """One clustering: the new arrays as they are made, beside the table, which is only read until `commit`."""

    def __init__(
        self, tables: Tables, k: int, vectors: Any, weights: Any, points: int, batch: int, residual: bool
    ) -> None:
        self.tables, self.k, self.spec, self.arrays = tables, k, tables.specs[k], tables.arrays[k]
        spec, method = self.spec, get_method(self.spec.method)
        assert isinstance(method, BlockMethod)
        if method.post_training and vectors is None:
            raise ValueError(f"a {spec.method!r} table learns from a trained one: give its vectors")
        self.layout, self.vocab, self.batch = (
            method.layout(spec),
            spec.vocab or 0,
            _check.integer("batch_size", batch, 1),
        )
        self.device = on_device(memory=self.arrays["memory"], vectors=vectors, weights=weights)
        self.rows = next(c.rows for c in self.layout.columns if c.kind == POINTER)
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
        self.points = min(self.vocab, points * self.rows)
        self.before = self.after = 0.0
        self.residual, self.factors = residual, None
        self.sums, self.seen = torch.zeros((2, self.layout.size), dtype=torch.float32, device=self.device)
        self.empty, self.iterations = 0, list[int]()
        self.scratch = 4 * 5 * self.layout.size + 8 * self.packing.n_words

    def sample(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The ids that `cce_core` would draw for k-means, and what each counts."""
        if self.points == self.vocab:
            return torch.arange(self.vocab, device=self.device), self.weights
        seed = derive_key(self.spec.seed, SAMPLES, self.generation, chunk)
        rng = np.random.Generator(np.random.PCG64(seed))
        if self.weights is None:
            ids = some_ids(rng, self.vocab, self.points)
            return torch.from_numpy(ids.view(np.int64)).to(self.device), None
        ends = kmeans.ends_of(self.weights.double())
        uniforms = torch.from_numpy(rng.random(self.points)).to(self.device)
        drawn = torch.searchsorted(ends, (uniforms * ends[-1]).long(), right=True).clamp_(max=self.vocab - 1)
        ids, counts = drawn.unique(return_counts=True)
        return ids, counts.float()

    def decode(self, chunk: int, ids: torch.Tensor) -> torch.Tensor:
        """The chunk's vectors of int64 ids, as the table or the given vectors have them."""
        width, terms = self.layout.width, self.layout.terms
        if self.vectors is not None:
            return self.vectors[ids, chunk * width : (chunk + 1) * width].contiguous()
        part = self.layout.part(self.layout.columns[chunk * terms : (chunk + 1) * terms], terms)
        launch = Launch([Part(part, self.old, self.arrays.get("keys"), self.arrays["pointers"], vocab=self.vocab)])
        out = torch.empty((len(ids), width), dtype=torch.float32, device=self.device)
        error = torch.full((1,), forward.GOOD, dtype=torch.int64, device=self.device)
        forward.run(launch, ids, None, None, None, forward.SUM, out, error)
        return out

    def present(self, chunk: int, ids: torch.Tensor) -> torch.Tensor:
        """What the chunk's pointers of ids are now."""
        return packing.read(self.packing, self.arrays["pointers"], chunk, ids).clamp_(max=self.rows - 1)

    def learn(self, n_iter: int, warm: bool) -> None:
        """A codebook for each chunk: k-means on a sample, then every id to its nearest centroid."""
        for chunk in range(self.layout.n_chunks):
            centroids = self.codebook(chunk, n_iter, warm)
            self.empty += self.rows - int(self.assign_all(chunk, centroids).sum())

    def column(self, chunk: int, kind: int) -> Column | None:
        """The chunk's column of a kind."""
        terms = self.layout.terms
        return next((c for c in self.layout.columns[chunk * terms : (chunk + 1) * terms] if c.kind == kind), None)

    def codebook(self, chunk: int, n_iter: int, warm: bool) -> torch.Tensor:
        """k-means on a sample of ids; the centroids go into the new memory."""
        pointer = self.column(chunk, POINTER)
        assert pointer is not None
        ids, counts = self.sample(chunk)
        x, present = self.decode(chunk, ids), self.present(chunk, ids)
        means, _ = kmeans.update(x, present, self.rows, counts, deterministic=True)
        costs = (x - means[present.long()]).square().sum(1, dtype=torch.float64)
        total = float(len(ids) if counts is None else counts.sum(dtype=torch.float64))
        self.before += float(costs.sum() if counts is None else (costs * counts).sum()) / total
        seed = derive_key(self.spec.seed, SAMPLES, self.generation, chunk, 1)
        start = means if warm else kmeans.spread_out(x, self.rows, seed, counts)
        centroids, _, inertia, made = kmeans.k_means(x, start, n_iter, counts)
        self.after += inertia / total
        self.iterations.append(made)
        self.memory[pointer.base : pointer.base + centroids.numel()] = centroids.view(-1)
        self.scratch = max(self.scratch, 4 * (6 * x.numel() + 8 * len(x)))
        return centroids

    def assign_all(self, chunk: int, centroids: torch.Tensor) -> torch.Tensor:
        """Every id to its nearest centroid, into the packed words; what that leaves over, into the fresh half. Which are used."""
        hashed, width = self.column(chunk, HASH), self.layout.width
        rest = self._hashed_alone(hashed) if hashed is not None and self.residual else None
        used = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        for low in range(0, self.vocab, self.batch):
            batch = torch.arange(low, min(low + self.batch, self.vocab), device=self.device)
            vectors = self.decode(chunk, batch)
            labels, _ = kmeans.assign(vectors, centroids, pack=(self.packing, self.words, chunk, low))
            labels = labels.long()
            used[labels] = True
            if rest is not None:
                (units, values), _ = segments.run(
                    rest, batch, None, None, None, forward.SUM, vectors - centroids[labels]
                )
                self.sums.view(-1, self.layout.unit)[units] += values
                # Whole numbers: atomic additions of them have no order.
                ones = torch.ones_like(vectors)
                scatter.run(rest, batch, None, None, None, forward.SUM, ones, rest.origin, self.seen, None)
        if hashed is not None:
            region = slice(hashed.base, hashed.base + hashed.rows * hashed.stride)
            self.memory[region] = self.sums[region] / self.seen[region].clamp(min=1)
        self.scratch = max(self.scratch, 4 * self.batch * (4 * width + 8))
        return used

    def _hashed_alone(self, column: Column) -> Launch:
        part: Layout = self.layout.part((column,))
        return Launch([Part(part, self.old, self.keys, vocab=self.vocab)])

    def entropies(self) -> tuple[float, float]:
        """The least entropy of a new pointer column and of a pair of them, over at most a million ids, in nats."""
        chunks = sum(column.kind == POINTER for column in self.layout.columns)
        ids = torch.linspace(0, self.vocab - 1, min(self.vocab, _ENTROPY_IDS), dtype=torch.float64).long().unique()
        labels = [packing.read(self.packing, self.words, c, ids.to(self.device)).long() for c in range(chunks)]
        first = min(_entropy(column) for column in labels)
        pairs = [_entropy(a * self.rows + b) for i, a in enumerate(labels) for b in labels[:i]]
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


class _WindowsRun(_Run):
    """Vectors of all chunks → circular k-means on one memory → every chunk of every id to its nearest window."""

    def learn(self, n_iter: int, warm: bool) -> None:
        """`warm` makes no difference: the start is always what the table has."""
        chunks, width = range(self.layout.n_chunks), self.layout.width
        memory = circular.windows(self.learned(n_iter), width)
        used = torch.stack([self.assign_all(chunk, memory) for chunk in chunks]).any(0)
        self.empty = self.rows - int(used.sum())

    def learned(self, n_iter: int) -> torch.Tensor:
        """Circular k-means on a sample of ids; the memory that it finds goes into the new one."""
        chunks, width = range(self.layout.n_chunks), self.layout.width
        base = next(c.base for c in self.layout.columns if c.kind == POINTER)
        ids, counts = self.sample(0)
        x = torch.cat([self.decode(chunk, ids) for chunk in chunks])
        at = torch.cat([self.present(chunk, ids) for chunk in chunks])
        each = None if counts is None else counts.repeat(len(chunks))
        start = self.old[base : base + self.rows]
        means = circular.update(x, at, start, each)
        ones = float(len(x) if each is None else each.sum(dtype=torch.float64)) / len(chunks)
        apart = (x - circular.windows(means, width)[at.long()]).square().sum(1, dtype=torch.float64)
        self.before = kmeans.total(apart, each) / ones
        # Whichever lies nearer: the memory as it is, or the means of what now points to each place.
        costs = [kmeans.total(kmeans.assign(x, circular.windows(m, width))[1], each) for m in (means, start)]
        memory, _, inertia, made = circular.k_means(x, means if costs[0] <= costs[1] else start, n_iter, each)
        self.after, self.iterations = inertia / ones, [made]
        self.memory[base : base + self.rows] = memory
        self.scratch += 4 * width * (2 * self.rows + 12 * len(x)) + 8 * len(x)
        return memory


class _CodesRun(_Run):
    """Given vectors → K-SVD of a sample, on the CPU, since it moves atom after atom → a pursuit of every row, on the device."""

    def learn(self, n_iter: int, warm: bool) -> None:
        """Weights go to the nearest of a few levels, or to the mean of all weights that share a hashed place."""
        layout, weighing = self.layout, get_method(self.spec.method).weighing(self.spec)
        ids, counts = self.sample(0)
        seed = derive_key(self.spec.seed, SAMPLES, self.generation)
        x = self.vectors[ids].cpu().numpy()
        found, levels, self.before = dictionary(
            x, None if counts is None else counts.cpu().numpy(), layout, weighing, n_iter, seed
        )
        self.iterations = [len(found.errors) - 1]
        atoms = torch.from_numpy(found.dictionary).to(self.device)
        self.memory[:] = atoms.view(-1)
        sums, seen = torch.zeros((2, weighing.size), dtype=torch.float32, device=self.device)
        if levels is None:
            rest = Launch([Part(weighing, sums, self.keys, vocab=self.vocab)])
        else:
            levels = torch.from_numpy(levels).to(self.device)
        used = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        error = torch.zeros((), dtype=torch.float64, device=self.device)
        for low in range(0, self.vocab, self.batch):
            batch = torch.arange(low, min(low + self.batch, self.vocab), device=self.device)
            vectors = self.vectors[batch]
            chosen, factors = omp(vectors, atoms, layout.terms)
            used[chosen.view(-1)] = True
            for t in range(layout.terms):
                packing.write(self.packing, self.words, t, low, chosen[:, t].int().contiguous())
                if levels is not None:
                    place = self.packing, self.words, layout.terms + t, low
                    labels, _ = kmeans.assign(factors[:, t : t + 1].contiguous(), levels, pack=place)
                    factors[:, t] = levels[labels.long(), 0]
            if levels is None:
                (places, values), _ = segments.run(rest, batch, None, None, None, forward.SUM, factors)
                sums[places] += values[:, 0]
                ones = torch.ones_like(factors)
                scatter.run(rest, batch, None, None, None, forward.SUM, ones, rest.origin, seen, None)
            error += (vectors - (factors[:, :, None] * atoms[chosen]).sum(1)).double().square().sum()
        self.after, self.empty = float(error) / self.vocab, self.rows - int(used.sum())
        self.factors = sums / seen.clamp(min=1) if levels is None else levels[:, 0]
        each = 8 * (layout.dim * (layout.terms + 3) + self.rows)
        self.scratch += x.nbytes + min(self.vocab, self.batch) * each


_RUNS: dict[str, type[_Run]] = {"codebooks": _Run, "windows": _WindowsRun, "codes": _CodesRun}


def _entropy(column: torch.Tensor) -> float:
    shares = column.unique(return_counts=True)[1].double() / len(column)
    return float(-(shares * shares.log()).sum())
