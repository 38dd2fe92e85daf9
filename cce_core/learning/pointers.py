"""One clustering of a table whose ids have rows of their own: rows → k-means → centroids, and a pointer per id and stage.

What counts is the distance of vectors in dim floats, ‖(x − y) · W‖. With Wᵀ = Q · R it is ‖(x − y) · Rᵀ‖, so that k-means sees
rows of rank floats. A further stage clusters what the stages before it leave over; once all are there, each is refined in turn.
Centroids are encoded before ids are assigned, so that every id points to the nearest of those that lookups will read. Where some
ids alone have pointers (`pointed`), k-means sees these, and row 0 is the mean of all others.

The table is only read until a new one is whole, and then becomes it in one moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering import KMeans, assign, update
from cce_core.hashing.mix import derive_key
from cce_core.learning.codebooks import Learner, cost
from cce_core.learning.pointed import MOST_TRIED, POINTS, Ranked, best
from cce_core.learning.sampling import SomeWeights, weighted_ids
from cce_core.learning.targets import Source
from cce_core.method import block_method
from cce_core.method.arrays import array_specs
from cce_core.method.spec import SAMPLES, TableSpec
from cce_core.method.state import TableState
from cce_core.method.vq import VectorQuantization
from cce_core.sketching import blocks
from cce_core.sketching.descriptors import Sketch
from cce_core.storage.codec import codec
from cce_core.storage.counters import Counts
from cce_core.storage.marks import mark

_SWEEPS, _REFINED = 2, 8  # over the stages, and iterations of k-means in each
_ROWS = 1 << 16  # of a table that is opened again, at a time


class PointersLearner(Learner):
    """One `cluster()` of a table with rows: the table in its next phase, made beside it.

    Args:
        as for `Learner`. Without weights an id counts by the square root of how often it was met in training, where any was.

    Raises:
        ValueError: `max_bytes` is too few for a point a centroid and a small batch.
    """

    _side_by_side = False

    def __init__(
        self,
        table: TableState,
        weights: Any,
        points_per_centroid: int,
        batch_size: int,
        max_bytes: int,
        source: Source | None,
    ) -> None:
        method = block_method(table.spec.method)
        assert isinstance(method, VectorQuantization)
        self.table, self.source, self.group = table, source, table.group
        self.vocab = self.walked = table.spec.vocab or 0
        counts = table.arrays()["counts"]
        met = weights is None and counts.any()
        self.weights = Counts(counts, roots=True) if met else weights
        self.metric, self.projection = self._metric()
        ranked = None if self.weights is None else Ranked(self.weights)
        limits = points_per_centroid, batch_size, max_bytes
        self.spec, tried = self._best(method, ranked, Counts(counts) if met else weights, limits)
        self.layout = method.layout(self.spec)
        self.n_clusters, self.n_stages = method.split(self.spec)[0], self.layout.terms
        self.pointed, self.all_weights = None, self.weights
        if self.layout.marks and ranked is not None:
            self.pointed = ranked.first(self.layout.pointed)
            self.weights = SomeWeights(self.all_weights, self.pointed)
        self.working_set = self._working_set(*limits)
        self.packing = method.packing(self.spec)
        self.new = Sketch(
            self.layout, np.empty(0, np.uint64), np.zeros(self.layout.marks + self.packing.n_words, np.uint64)
        )
        self._begin()
        self.arrays: dict[str, NDArray[Any]] = {}
        new = codec(self.spec.codec).nbytes(self.layout.size) + 12 * self.layout.size + self.new.pointers.nbytes
        self.scratch = max(tried, self.working_set.scratch) + new + 2 * self.vocab * (self.pointed is not None)

    def _metric(self) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """What rows are multiplied by so that distances are those of vectors; and the projection, if there is one."""
        source, width = self.source, self.table.layout.width
        projection = None if source is None else source.projection
        projection = self.table.arrays().get("projection") if projection is None else projection
        if projection is None:
            return None, None
        _check.as_float32("the projection", projection, projection.shape)
        r: Any = np.linalg.qr(projection[:-1].T.astype(np.float64), mode="r")
        metric = np.zeros((width, width), np.float32)
        metric[:, : len(r)] = r.T
        return metric, np.ascontiguousarray(projection)

    def _best(
        self, method: VectorQuantization, ranked: Ranked | None, weights: Any, limits: tuple[int, int, int]
    ) -> tuple[TableSpec, int]:
        """The spec of the next phase, that which spends the bytes best on these vectors, and the bytes that it took to find it.

        The first, in which every id has a pointer, where all ids count alike, or `max_bytes` leave no room to try others.
        """
        shapes = {spec: method.split(spec) for spec in method.clustered(self.table.spec)}
        # Of the layout only the width counts here, which both phases have.
        self.layout, self.n_stages = self.table.layout, self.table.spec.option("stages")
        first = next(iter(shapes))
        fitting = {spec: shape for spec, shape in shapes.items() if spec is first or self._can(shape[0], limits)}
        self.n_clusters = MOST_TRIED
        flat, per_point = self._flat_bytes(), self._point_bytes()
        n_points = min(POINTS, (limits[2] - flat) // per_point)
        if ranked is None or len(fitting) == 1 or n_points < MOST_TRIED:
            return first, 0

        def rows(ids: NDArray[np.uint64]) -> NDArray[np.float32]:
            return self._seen(self._rows(ids))

        found = best(fitting, ranked, weights, n_points, rows, self.table.generation)
        return found, flat + n_points * per_point

    def _can(self, rows: int, limits: tuple[int, int, int]) -> bool:
        """Whether so many rows can be learned in what may be held."""
        self.n_clusters = rows
        try:
            return bool(self._working_set(*limits))
        except ValueError:
            return False

    def _point_bytes(self) -> int:
        """Of a point of the sample: beside what `Learner` says, the row itself, what is left of it, and a label a stage."""
        return super()._point_bytes() + 8 * self.layout.width + 4 * self.n_stages

    def _id_bytes(self) -> int:
        """Of an id of a batch: beside what `Learner` says, what is left of it, and a label a stage."""
        return super()._id_bytes() + 8 * self.layout.width + 4 * self.n_stages

    def _seen(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows as k-means sees them: their distances are those of their vectors."""
        return x if self.metric is None else x @ self.metric

    def _rows(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The rows of ids as the table or the source has them, finite."""
        if self.source is not None:
            return np.ascontiguousarray(self.source.rows(ids))
        x = blocks.lookup(self.group, ids)
        return _check.as_float32("the rows", x, x.shape)

    def _shared_row(self) -> NDArray[np.float32]:
        """The mean of a sample of the ids without pointers, by their weights; where none counts, all count alike."""
        assert self.pointed is not None
        weights = SomeWeights(self.all_weights, ~self.pointed)
        if not any(weights[low : low + _ROWS].any() for low in range(0, self.vocab, _ROWS)):
            weights = SomeWeights(None, ~self.pointed)
        rng = np.random.Generator(
            np.random.PCG64(derive_key(self.table.spec.seed, SAMPLES, self.table.generation, 0, 2))
        )
        ids, times = weighted_ids(rng, weights, min(self.working_set.points, self.working_set.batch))
        return np.average(self._rows(ids), 0, times).astype(np.float32)

    def work(self, n_iter: int) -> int:
        """Iterations over the sample, and all ids once."""
        return self.walked + self.working_set.points * self.n_stages * (
            n_iter + _SWEEPS * _REFINED * (self.n_stages > 1)
        )

    def learn(self, n_iter: int, residual: bool, warm: bool, bar: Any) -> None:
        """Centroids of a sample; then every id to the nearest of them."""
        coder, size = codec(self.spec.codec), self.layout.size
        codes, scales = coder.encode(self._centroids(n_iter, bar).reshape(-1))
        centroids = coder.decode(codes, scales, size).reshape(self.n_stages, self.n_clusters, self.layout.width)
        seen, used = [self._seen(c) for c in centroids], np.zeros((self.n_stages, self.n_clusters), bool)
        entries, marks = 0, self.new.pointers[: self.layout.marks]
        for ids in self.batches():
            batch = ids if self.pointed is None else ids[self.pointed[ids]]
            self.tick(bar, len(ids))
            if self.pointed is not None:
                mark(marks, int(ids[0]), self.pointed[ids], entries)
            if not len(batch):
                continue
            left, labels = self._rows(batch), np.empty((self.n_stages, len(batch)), np.int32)
            for turn in range(2 if self.n_stages > 1 else 1):
                for s in range(self.n_stages):
                    if turn:
                        left += centroids[s][labels[s]]
                    labels[s], _ = assign(self._seen(left), seen[s])
                    left -= centroids[s][labels[s]]
            for s in range(self.n_stages):
                self.packing.write(self.new.pointers[self.layout.marks :], s, entries, labels[s])
                used[s, labels[s]] = True
            entries += len(batch)
        self.empty = np.count_nonzero(~used, axis=1)
        made = {"memory": codes, "scales": scales, "pointers": self.new.pointers, "projection": self.projection}
        made["generation"] = np.array([self.table.generation + 1])
        self.arrays = {name: array for name in array_specs(self.spec) if (array := made[name]) is not None}

    def _centroids(self, n_iter: int, bar: Any) -> NDArray[np.float32]:
        """Float32 (stages, clusters, width), from a sample that is let go of here."""
        ids, counts = self.sample(0)
        left, first = self._rows(ids), int(self.pointed is not None)
        k = self.n_clusters - first
        weights = None if counts is None else counts / counts.max()
        total = float(len(ids) if weights is None else weights.sum(dtype=np.float64))
        mean = np.average(left, 0, weights).astype(np.float32)
        self.costs[0, 0] = cost(self._seen(left), lambda rows: self._seen(mean[None]), weights) / total
        every = np.zeros((self.n_stages, k + first, self.layout.width), np.float32)
        if first:
            every[0, 0] = self._shared_row()
        centroids = every[:, first:]
        labels = np.zeros((self.n_stages, len(ids)), np.int32)

        def fit(stage: int, start: Any, most: int) -> None:
            seed = derive_key(self.table.spec.seed, SAMPLES, self.table.generation, stage, 1)
            found = KMeans(k, init=start, n_iter=most, seed=seed)
            found.fit(
                self._seen(left), sample_weight=weights, on_iteration=lambda *_: self.tick(bar, self.working_set.points)
            )
            labels[stage] = found.labels_
            centroids[stage], mass = update(left, labels[stage], k, weights)
            centroids[stage][mass == 0] = mean if stage == 0 else 0.0  # spare ones repeat what does no harm
            self.iterations[stage] += found.n_iter_
            self.tick(bar, (most - found.n_iter_) * self.working_set.points)

        for stage in range(self.n_stages):
            fit(stage, "k-means++", n_iter)
            left -= centroids[stage][labels[stage]]
        for stage in [*range(self.n_stages)] * (_SWEEPS if self.n_stages > 1 else 0):
            left += centroids[stage][labels[stage]]
            fit(stage, self._seen(centroids[stage]), _REFINED)
            left -= centroids[stage][labels[stage]]
        nothing = np.zeros((1, self.layout.width), np.float32)
        self.costs[0, 1] = cost(self._seen(left), lambda rows: nothing, weights) / total
        return every

    def change(self) -> Callable[[], None]:
        """The table becomes that of its next phase."""
        return functools.partial(self.table.become, _another(self.table, self.spec, self.arrays))


def _another(table: TableState, spec: TableSpec, arrays: dict[str, NDArray[Any]]) -> TableState:
    """A table of the same kind."""
    kind: Any = type(table)
    made: TableState = kind(spec, arrays)
    return made


def reopened(table: TableState) -> TableState:
    """The table in the phase "rows", each row that of its id's centroids; the projection is the same array."""
    spec = block_method(table.spec.method).reopened(table.spec)
    coder, expected, vocab = codec(spec.codec), array_specs(spec), spec.vocab or 0
    arrays = {n: np.zeros(expected[n].shape, expected[n].dtype) for n in ("generation", "counts")}
    arrays["generation"][:] = table.generation + 1
    if spec.rank:
        arrays["projection"] = table.arrays()["projection"]
    batches = (np.arange(low, min(low + _ROWS, vocab), dtype=np.uint64) for low in range(0, vocab, _ROWS))
    parts = (blocks.lookup(table.group, ids).reshape(-1) for ids in batches)
    made = zip(("memory", "scales"), coder.encode_parts(parts, vocab * spec.inner))
    arrays |= {name: array for name, array in made if name in expected}
    return _another(table, spec, arrays)
