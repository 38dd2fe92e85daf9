"""Learning the sketch while training: vectors → clusters → new pointers, as Clustered Compositional Embeddings do.

For each chunk: the vectors of a sample of ids → k-means → every id to its nearest centroid, decoded in batches, so that
the table is never built → pointers ← assignments, M ← centroids, hash ← a fresh one, M' ← 0 or the mean residual. Chunks
know nothing of each other: with several threads they are clustered side by side, where memory allows.

Nothing of the table changes before the last line, and that line is one call, which Python does not interrupt: whatever stops
the clustering, the table is as it was before, or wholly the new one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Changing, Writer
from cce_core._progress import progress
from cce_core.learning.circular import CircularLearner
from cce_core.learning.codebooks import Learner
from cce_core.learning.pointers import PointersLearner, reopened
from cce_core.learning.sampling import as_rows
from cce_core.learning.shared import Ranks, Shared, SharedCircularLearner, SharedLearner, SharedSparseCodesLearner
from cce_core.learning.sparse_codes import SparseCodesLearner
from cce_core.learning.targets import Source
from cce_core.method import get_method
from cce_core.method.spec import CODES
from cce_core.method.state import TableState

MAX_BYTES = 1 << 29
_LEARNERS: dict[str, tuple[type[Learner], type[Shared] | None]] = {
    "codebooks": (Learner, SharedLearner),
    "windows": (CircularLearner, SharedCircularLearner),
    "codes": (SparseCodesLearner, SharedSparseCodesLearner),
    "pointers": (PointersLearner, None),
}


@dataclasses.dataclass(frozen=True)
class ClusterReport:
    """What a `cluster()` did.

    Attributes:
        generation: how often the table has been clustered, this time included.
        n_clusters: rows of a codebook.
        inertia_before: mean squared distance of a sampled id's chunk vector from the mean of its old cluster, summed over
            the chunks (weighted, where weights were given); for `vq`, whose ids had rows, of its vector from the mean of all.
        inertia_after: the same with the new clusters' centroids.
        column_entropy: the least entropy of a pointer column in nats, at most log n_clusters; near 0 is collapse.
        pair_entropy: the least entropy of a pair of columns, at most 2·log n_clusters; as small as one column's where two
            columns have become copies of each other. It is the column's own for a single column.
        empty_clusters: centroids without an id, over all chunks.
        iterations: of k-means, for each chunk (or stage).
        scratch_bytes: the most extra memory that was held, a copy of pointers and memory included: counted, from above.
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


def cluster(
    table: TableState,
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
    ranks: Ranks | None = None,
) -> ClusterReport:
    """Learn the pointers of a table from its vectors as they are now, or from given ones.

    Args:
        table: of a method that learns its sketch. It is changed in place; its arrays keep their places and shapes.
        vectors: what to learn instead of the table's own vectors: real numbers (vocab, dim), or a trained table of the same
            vocabulary and dim. A table holds float32, so each number is off by up to 2^−24 of itself: behind an offset
            that leaves nothing of the rest, take the offset away first. With a rank, the projection is set too, to
            their mean and main directions.
        weights: how much each id counts, such as how often it was seen: real numbers (vocab,), at least 0, not all 0. If
            None, all alike; but in a `vq` table by the square root of how often training has met them, if it has met any.
        n_iter: most iterations of k-means.
        points_per_centroid: k-means sees a sample of so many ids a centroid, or all ids where there are fewer.
        residual: fill the fresh half M' (of a method that has one) with the mean of what the centroids leave over; with zeros
            otherwise.
        warm_start: from the second time on, k-means starts at the means of the present clusters.
        batch_size: most ids decoded at once (2^16 for `cce_robe` and `sparse`, which keep more of each).
        max_bytes: most bytes to hold beside a copy of pointers and memory (for `vq`, of those it is to have). Where it asks for
            it, the sample and the batches are smaller than said above, and fewer chunks are clustered side by side.
        show_progress: a bar; None shows one on a terminal when it takes more than two seconds.
        ranks: a group of processes that all hold the table and call this together: each decodes and assigns its share of the
            ids, and sums are reduced over all. Of `sparse` and `sparse2` K-SVD is not shared: on its sample, all do the same.

    Returns:
        A `ClusterReport`.

    Raises:
        ValueError: the method learns nothing, a `vq` table was clustered and not reopened, a number is out of range, the
            weights or vectors do not fit, `max_bytes` is too few, or NaN or infinity is found. The table is as before, also
            after an interrupt.
        RuntimeError: the ranks hold different tables, weights or vectors before, or different results afterwards; likewise.

    Cost:
        k-means over points_per_centroid · rows points, and one nearest-centroid search for every id, a chunk. Extra
        memory: a copy of memory and pointers, and `max_bytes`. Steps and clusterings of the same table in other threads wait;
        lookups and saving do not, and see it wholly before or after.

    References:
        Tsang and Ahle, arXiv:2210.05974, Section 2.
    """
    start = time.perf_counter()
    method = get_method(table.spec.method)
    if not method.learns:
        raise ValueError(f"method {table.spec.method!r} does not learn its sketch: there is nothing to cluster")
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to cluster it")
    points_per_centroid = _check.integer("points_per_centroid", points_per_centroid, 1)
    batch_size = _check.integer("batch_size", batch_size, 1)
    n_iter = _check.integer("n_iter", n_iter, 1)
    max_bytes = _check.integer("max_bytes", max_bytes, 1)
    residual, warm_start = _check.flag("residual", residual), _check.flag("warm_start", warm_start)
    show_progress = None if show_progress is None else _check.flag("show_progress", show_progress)
    alone, shared = _LEARNERS[method.learner]
    if ranks is not None and shared is None:
        raise ValueError(
            f"method {table.spec.method!r} is not learned by a group of processes: cluster() on one, and copy"
        )
    with table.guard.learning():
        if table.phase == CODES:
            raise ValueError(
                "the table is in phase 'codes' and has no rows to cluster: reopen() gives each id a row again, and new data "
                "can train it"
            )
        if ranks is not None:
            given = {"vectors": vectors, "weights": weights}
            arrays = {
                name: np.asarray(v) for name, v in given.items() if v is not None and not isinstance(v, TableState)
            }
            ranks.agree({"specs": table.spec, **table.arrays(), **arrays}, "before clustering")
            show_progress = show_progress if ranks.rank == 0 else False
        counts = checked_weights(weights, table.spec.vocab or 0)
        source = (
            None if vectors is None else Source(table, vectors, min(batch_size, 1 + max_bytes // (24 * table.spec.dim)))
        )
        settings = table, counts, points_per_centroid, batch_size, max_bytes, source
        learner = alone(*settings) if ranks is None or shared is None else shared(*settings, ranks)
        with progress(learner.work(n_iter), "cluster", unit="id", show=show_progress) as bar:
            learner.learn(n_iter, residual, warm_start and table.generation > 0, bar)
        if ranks is not None:
            fitted = None if source is None else source.projection
            made = {"memory": learner.memory, "pointers": learner.new.pointers, "keys": learner.new.keys}
            more = {"projection": fitted, "weights": learner.factors}
            ranks.agree({**made, **{name: v for name, v in more.items() if v is not None}}, "after clustering")
        report = report_of(learner, table.generation + 1, start)
        with table.guard.door:  # nobody asks for float32 values of the old codes between here and there
            change = learner.change()
            with Changing((table.guard,)):
                change()
                table.training_bytes["cluster"] = learner.scratch
    return report


def report_of(learner: Learner, generation: int, start: float) -> ClusterReport:
    """What a learner has done since `start`, of `time.perf_counter()`."""
    column_entropy, pair_entropy = learner.entropies()
    return ClusterReport(
        generation=generation,
        n_clusters=learner.n_clusters,
        inertia_before=float(learner.costs[:, 0].sum()),
        inertia_after=float(learner.costs[:, 1].sum()),
        column_entropy=column_entropy,
        pair_entropy=pair_entropy,
        empty_clusters=int(learner.empty.sum()),
        iterations=tuple(int(n) for n in learner.iterations),
        scratch_bytes=learner.scratch,
        seconds=time.perf_counter() - start,
    )


def reopen(table: TableState) -> None:
    """`Table.reopen`."""
    if table.phase != CODES:
        why = (
            f"method {table.spec.method!r} has no phases"
            if table.phase is None
            else "its ids have rows: it is in phase 'rows'"
        )
        raise ValueError(f"there is nothing to reopen: {why}")
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to reopen it")
    with Writer((table.guard,)):
        table.become(reopened(table))


def checked_weights(weights: Any, vocab: int) -> NDArray[Any] | None:
    """How much each id counts: real numbers (vocab,), at least 0, not all 0; None where all count alike."""
    if weights is None:
        return None
    values = as_rows("weights", weights, (vocab,))
    if float(values.min()) < 0 or float(values.max()) <= 0:
        raise ValueError("weights must be at least 0 and not all 0: how often each id was seen, say")
    return values
