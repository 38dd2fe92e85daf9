"""One clustering of a table whose ids earn rows: owners settle, many to a row, and most of their rows are free again.

    settled    the owners, those that count most first, as many as the bytes have places for
    centroids  of each table 2^bits rows, by k-means of its owners' rows weighted by count, in the metric of its vectors
    own        as many rows as fit in what is left; `keep` of them stay with the owners that count most, all others are free
    others     fall to the rows that they share by hash, which stay as they are, or, where they would take more than an eighth of
               the bytes, half as many (or a quarter, …), each the mean of those whose hashes it serves

A settled id counts as one without a row: it may earn one again, which then begins as a copy of its centroid. Where not all owners
can settle with 8 bits each, fewer bits for more of them are weighed against more bits for fewer, by what either leaves over.

The table is only read until a new one is whole, and then becomes it in one moment.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._progress import progress
from cce_core.clustering import KMeans, assign, least_entropies, update
from cce_core.hashing.mix import derive_key
from cce_core.learning.cluster import MAX_BYTES, ClusterReport, checked_weights
from cce_core.learning.pointed import left_by
from cce_core.learning.reopening import another, ids_of
from cce_core.learning.sampling import weighted_ids
from cce_core.method import get_method
from cce_core.method.arrays import array_specs
from cce_core.method.heirs import Heirs
from cce_core.method.spec import SAMPLES, BudgetError, TableSpec
from cce_core.method.state import TableState
from cce_core.method.tiered import Tiers, folded
from cce_core.storage.codec import codec
from cce_core.tiers import IdMap, Settled
from cce_core.tiers.buckets import SLOTS
from cce_core.tiers.settled import MOST_BUCKET, MOST_POINTER, placed

_BITS, _JUDGED = 8, 1 << 12  # of a pointer, and points of a table by which bits are weighed
_OVERHEAD = 1 << 17
_PART = 8  # of the bytes, that rows which are found by hash take at most


@dataclasses.dataclass(frozen=True)
class SettlingReport(ClusterReport):
    """What a `cluster()` of a table with own rows did.

    Attributes:
        settled: ids that point to centroids now.
        left_out: owners that found no place, and fall to the rows that they share by hash.
        own_rows: own rows that there are now.
        kept: of these such as stay with those that count most.
        bits: of a pointer.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.make_table("tiered", None, 8, num_bytes=2000, seed=0)
        >>> cce.SGD(lr=0.1).update(table, np.arange(50), np.ones((50, 8)))
        >>> report = table.cluster()
        >>> report.settled, report.left_out
        (50, 0)
    """

    settled: int
    left_out: int
    own_rows: int
    kept: int
    bits: int

    def __str__(self) -> str:
        left = f", {self.left_out:,} left out" if self.left_out else ""
        return (
            f"cluster {self.generation}: {self.settled:,} ids settled to {self.n_clusters:,} rows a table{left}; "
            f"{self.own_rows:,} own rows, {self.kept:,} of them taken; inertia {self.inertia_before:.4g} -> "
            f"{self.inertia_after:.4g}, {self.seconds:.2f} s"
        )


def settle(
    table: TableState,
    *,
    num_bytes: int | None = None,
    bits: int | None = None,
    keep: float = 0.5,
    weights: Any = None,
    n_iter: int = 50,
    points_per_centroid: int = 256,
    batch_size: int = 1 << 16,
    max_bytes: int = MAX_BYTES,
    show_progress: bool | None = None,
) -> SettlingReport:
    """`OwnRows.cluster`, which says what the arguments are."""
    start = time.perf_counter()
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to cluster it")
    if num_bytes is not None:
        num_bytes = _check.integer("num_bytes", num_bytes, 1)
    if bits is not None:
        bits = _check.integer("bits", bits, 1, MOST_POINTER)
    keep = _check.number("keep", keep, 0.0, 1.0)
    n_iter = _check.integer("n_iter", n_iter, 1)
    points_per_centroid = _check.integer("points_per_centroid", points_per_centroid, 1)
    batch_size = _check.integer("batch_size", batch_size, 1)
    max_bytes = _check.integer("max_bytes", max_bytes, 1)
    show_progress = None if show_progress is None else _check.flag("show_progress", show_progress)
    with table.guard.learning():
        made = _Settling(table, weights, num_bytes, bits)
        made.plan(points_per_centroid, batch_size, max_bytes)
        with progress(made.work(n_iter), "cluster", unit="id", show=show_progress) as bar:
            new = made.learn(n_iter, keep, bar)
        report = made.report(start)
        with table.guard.door:
            table.become(new)
            table.training_bytes |= {"cluster": made.scratch, "heirs": made.heirs.nbytes}
    return report


class _Settling:
    """One `settle`: who settles, and the table that comes of it.

    Attributes:
        names: identities of all that have rows or have settled, those that count most first.
        at: the row of each.
        whose: the table of each.
        counted: what each counts, float32.
        places: of each among the settled; −1 for none.
    """

    def __init__(self, table: TableState, weights: Any, num_bytes: int | None, bits: int | None) -> None:
        owners = table.owners
        assert owners is not None
        self.table, self.owners, self.spec, self.method = table, owners, table.spec, get_method(table.spec.method)
        self.tiers, self.width = Tiers.of(table.spec), table.spec.inner
        known = owners.map
        given = checked_weights(weights, known.n_slots)
        names, at, near, self.n_owners = ids_of(owners)
        counts = np.ones(len(names), np.float32)
        counts[: self.n_owners] = (np.maximum(owners.counts, 1) if given is None else given)[at[: self.n_owners]]
        if not len(names):
            raise ValueError("no id has a row yet, so there is nothing to cluster: train the table first")
        order = np.argsort(-counts, kind="stable")
        self.owned = np.flatnonzero(order < self.n_owners)  # those that have own rows, in order
        self.names, self.at, self.counted, near = names[order], at[order], counts[order], near[order]
        self.whose = known.tables_of(self.names)
        self.judged: dict[tuple[int, int], float] = {}
        self.near, self.generation = near, table.generation
        self.metrics = [self._metric(t) for t in range(known.n_tables)]
        self.tiers, self.places = self._sizes(near, num_bytes, bits)
        self.new_spec = dataclasses.replace(self.spec, sizes=tuple(self.tiers))

    # --- sizes --------------------------------------------------------------------------------------------------------

    def _with(self, own: int, slots: int, bits: int) -> TableSpec:
        return dataclasses.replace(self.spec, sizes=(own, self.tiers.buckets, slots, bits, self.shared))

    def _sizes(self, near: NDArray[Any], num_bytes: int | None, bits: int | None) -> tuple[Tiers, NDArray[np.int64]]:
        """The sizes within the budget, and who is placed where."""
        budget = sum(array.nbytes for array in self.table.arrays().values()) if num_bytes is None else num_bytes
        key, buckets = self.owners.map.args[0], self.tiers.buckets
        most = int(np.bincount(self.whose).max())
        wanted = min(_BITS, max(1, (most - 1).bit_length())) if bits is None else bits
        options = range(wanted, 0, -1) if bits is None else [bits]
        found: dict[int, NDArray[np.int64]] = {}
        least = folded(buckets, SLOTS)
        tables, coder = self.owners.map.n_tables, codec(self.spec.codec)
        self.shared = self.table.n_shared // tables
        if self.spec.option("shared") is None:
            while self.shared > 1 and budget < max(
                _PART * coder.nbytes(tables * self.shared * self.width),
                self.method.nbytes(self._with(least, 1, options[-1])),
            ):
                self.shared = -(-self.shared // 2)
        for slots in range(1, MOST_BUCKET + 1):
            if not any(self.method.nbytes(self._with(least, slots, b)) <= budget for b in options):
                break
            found[slots] = placed(self.names, near, key, buckets, slots)
            if found[slots].min() >= 0:
                break
        if not found:
            smallest = self.method.nbytes(self._with(least, 1, options[-1]))
            raise BudgetError(
                f"{budget:,} bytes are too few for a {self.spec.method!r} table with settled ids: the least that fits is "
                f"{smallest:,} bytes, with {options[-1]} bits a pointer and places for {buckets:,} ids"
            )
        fitting = {
            slots: next(b for b in options if self.method.nbytes(self._with(least, slots, b)) <= budget)
            for slots in found
        }
        chosen = max(found)
        if len(found) > 1 and (fitting[chosen] < wanted or found[chosen].min() < 0):
            chosen = min(found, key=lambda slots: self._left(fitting[slots], found[slots] < 0))
        low, high = 1, buckets  # the fold: the smallest that fits
        while low < high:
            middle = (low + high) // 2
            own = SLOTS * -(-buckets // middle)
            fits = self.method.nbytes(self._with(folded(buckets, own), chosen, fitting[chosen])) <= budget
            low, high = (low, middle) if fits else (middle + 1, high)
        own = folded(buckets, SLOTS * -(-buckets // low))
        return Tiers(own, buckets, chosen, fitting[chosen], self.shared), found[chosen]

    def _left(self, bits: int, out: NDArray[np.bool_]) -> float:
        """About what is left over with so many bits, and with some left out."""
        total, n_shared = 0.0, self.table.n_shared // self.owners.map.n_tables
        for t, chosen in self._tables(~out):
            total += self._left_of(t, bits) * float(self.counted[chosen].sum(dtype=np.float64))
        for t, lost in self._tables(out):
            to = self.owners.map.shared_rows(self.names[lost], n_shared) + (
                self.owners.first_shared - self.owners.map.n_slots
            )
            apart = self._seen(t, self._read(self.at[lost]) - self._read(to))
            total += float(np.square(apart, dtype=np.float64).sum(1) @ self.counted[lost])
        return total

    def _left_of(self, t: int, bits: int) -> float:
        """What is left over of a point of a table by 2^bits centroids, judged by a sample."""
        if (t, bits) not in self.judged:
            mine = np.flatnonzero(self.whose == t)
            rng = np.random.Generator(np.random.PCG64(derive_key(self.spec.seed, SAMPLES, self.generation, t, 2)))
            weights = self.counted[mine] if self.counted[mine].any() else np.ones(len(mine), np.float32)
            drawn, times = weighted_ids(rng, weights, min(len(mine), _JUDGED))
            points = np.repeat(self._seen(t, self._read(self.at[mine[drawn]])), times.astype(np.int64), 0)
            seed = derive_key(self.spec.seed, SAMPLES, self.generation, t, 3)
            self.judged[t, bits] = left_by(points, 1 << bits, seed) / len(points)
        return self.judged[t, bits]

    # --- how much is held at once -------------------------------------------------------------------------------------

    def plan(self, points_per_centroid: int, batch_size: int, max_bytes: int) -> None:
        """Points that k-means sees, and ids at a time, within `max_bytes`."""
        k, w = self.tiers_rows, self.width
        flat, per_point = _OVERHEAD + 300 * k * (w + 1), 25 * w + 146
        most = int(np.bincount(self.whose).max())
        room = (max_bytes - flat) // per_point
        self.points, self.batch = min(most, points_per_centroid * k, room), min(batch_size, most, room)
        if self.points < min(most, k) or self.batch < 1:
            raise ValueError(
                f"max_bytes must be at least {flat + per_point * min(most, k):,} for {k:,} rows, got {max_bytes:,}"
            )
        rows = self.new_spec.sizes[0] + self.tiers.places
        self.scratch = flat + per_point * max(self.points, self.batch) + 64 * len(self.names) + 8 * rows
        self.scratch += self.method.nbytes(self.new_spec)

    @property
    def tiers_rows(self) -> int:
        """Centroids of a table."""
        return 1 << self.tiers.pointer_bits

    def work(self, n_iter: int) -> int:
        """Iterations over the samples, and all ids once."""
        counts = np.bincount(self.whose[self.places >= 0], minlength=1)
        return int(counts.sum() + n_iter * np.minimum(counts, self.points).sum())

    # --- reading ------------------------------------------------------------------------------------------------------

    def _metric(self, t: int) -> NDArray[np.float32] | None:
        """What rows of a table are multiplied by so that distances are those of vectors, ‖(x − y) · W‖."""
        projection = self.table.arrays().get("projection")
        if projection is None:
            return None
        matrix = projection[t * (self.width + 1) : (t + 1) * (self.width + 1)]
        _check.as_float32("the projection", matrix, matrix.shape)
        r: Any = np.linalg.qr(matrix[:-1].T.astype(np.float64), mode="r")
        metric = np.zeros((self.width, self.width), np.float32)
        metric[:, : len(r)] = r.T
        return metric

    def _seen(self, t: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        metric = self.metrics[t]
        return x if metric is None else x @ metric

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows as lookups read them, finite."""
        distinct, back = np.unique(rows, return_inverse=True)  # settled ids share some
        x = self.table.stored.read_rows(distinct, self.width, exact=False)
        return _check.as_float32("the rows", x, x.shape)[back]

    def _tables(self, which: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Of each table that has some of them, which these are, in order."""
        for t in range(self.owners.map.n_tables):
            mine = np.flatnonzero(which & (self.whose == t))
            if len(mine):
                yield t, mine

    # --- what is learned ----------------------------------------------------------------------------------------------

    def learn(self, n_iter: int, keep: float, bar: Any) -> TableState:
        """The table that is to be."""
        tiers, known, k = self.tiers, self.owners.map, self.tiers_rows
        coder, expected, held = codec(self.spec.codec), array_specs(self.new_spec), self.table.arrays()
        n_shared = known.n_tables * self.shared
        values = np.zeros((tiers.own + known.n_tables * k + n_shared, self.width), np.float32)
        self.iterations, self.costs, self.total = np.zeros(known.n_tables, np.int64), np.zeros(2), 0.0
        for t, mine in self._tables(self.places >= 0):
            values[tiers.own + t * k :][:k] = self._centroids(t, mine, n_iter, bar)
        into, of, part = self._fewer()
        sums, x = np.zeros((n_shared, self.width)), self._read(self.owners.first_shared + of)
        np.add.at(sums, into, x * part[:, None])
        values[-n_shared:] = sums / np.bincount(into, part, n_shared)[:, None]
        arrays = {name: np.zeros(a.shape, a.dtype) for name, a in expected.items() if name not in ("memory", "scales")}
        before = arrays["pointers"].size - -(-tiers.places * (known.bits + tiers.pointer_bits) // 64)
        again = {"bits": known.bits, "seed": known.seed, "n_tables": known.n_tables, "buckets": tiers.buckets}
        new_map = IdMap(tiers.own, **again, words=arrays["pointers"][:before])
        rows = new_map.take_in(self.names[self.owned], int(keep * tiers.own))
        stay, rows = self.owned[rows >= 0], rows[rows >= 0]
        slots = self.at[stay]
        if len(rows):
            values[rows] = self._read(slots)
        for name, array in (("counts", self.owners.counts), ("seen", self.owners.seen), ("young", self.owners.young)):
            if f"own_{name}" in arrays:
                arrays[f"own_{name}"][rows] = array[slots]
        codes, scales = coder.encode(values.reshape(-1))
        made = coder.decode(codes, scales, values.size).reshape(values.shape)[tiers.own :]
        pointers = self._assign(made, bar)
        Settled(new_map, tiers.slots, tiers.pointer_bits, arrays["pointers"][before:]).take_in(
            self.names, pointers, self.near
        )
        arrays |= {"memory": codes} | ({"scales": scales} if "scales" in expected else {})
        arrays["generation"][:] = self.generation + 1
        arrays["clock"][:] = held["clock"]
        arrays |= {name: held[name] for name in ("keys", "projection") if name in held}
        pointed = np.flatnonzero(self.places >= 0)
        ends: Sequence[tuple[NDArray[Any], ...]] = (
            (rows, slots, np.ones(len(rows))),
            (tiers.own + self.whose[pointed] * k + pointers[pointed], self.at[pointed], self.counted[pointed]),
            (tiers.own + known.n_tables * k + into, self.owners.first_shared + of, part),
        )
        new, old, weights = (np.concatenate(parts) for parts in zip(*ends))
        self.heirs = Heirs(
            self.generation, self.table.layout.n_units, len(values), new.astype(np.int32), old.astype(np.int32),
            weights.astype(np.float32),
        )  # fmt: skip
        self.kept, self.entropy = len(rows), least_entropies([pointers[self.places >= 0].astype(np.int32)], k)
        other = another(self.table, self.new_spec, arrays)
        other.heirs = self.heirs
        return other

    def _fewer(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Rows that are found by hash, new and old, and how much of what finds the old one will find the new one.

        Row r of n serves the hashes in [r/n, (r + 1)/n) of all, whatever n is: it goes on as one or two of fewer rows.
        """
        tables, n, m = self.owners.map.n_tables, self.table.n_shared // self.owners.map.n_tables, self.shared
        old = np.arange(n)
        first, last = old * m // n, ((old + 1) * m - 1) // n
        part = np.minimum((old + 1) * m, (first + 1) * n) - old * m
        two = last > first
        into, of = np.append(first, last[two]), np.append(old, old[two])
        part = np.append(part, ((old + 1) * m - last * n)[two]).astype(np.float64)
        ts = np.repeat(np.arange(tables), len(into))
        return ts * m + np.tile(into, tables), ts * n + np.tile(of, tables), np.tile(part, tables)

    def _centroids(self, t: int, mine: NDArray[np.int64], n_iter: int, bar: Any) -> NDArray[np.float32]:
        """Of the settled ids of a table, from a sample that is let go of here: float32 (2^bits, width)."""
        k, weights, drawn = self.tiers_rows, self.counted[mine], mine
        if not weights.any():
            weights = np.ones_like(weights)
        if len(mine) > self.points:
            rng = np.random.Generator(np.random.PCG64(derive_key(self.spec.seed, SAMPLES, self.generation, t)))
            chosen, weights = weighted_ids(rng, weights, self.points)
            drawn = mine[chosen]
        x, weights = self._read(self.at[drawn]), weights / weights.max()
        mean = np.average(x, 0, weights).astype(np.float32)
        sums = np.square(self._seen(t, x - mean), dtype=np.float64).sum(1)
        self.costs[0] += float(np.average(sums, weights=weights)) * float(self.counted[mine].sum())
        out = np.tile(mean, (k, 1))
        if len(x) <= k:
            out[: len(x)] = x
            bar.update(n_iter * len(x))
            return out
        seed = derive_key(self.spec.seed, SAMPLES, self.generation, t, 1)
        found = KMeans(k, n_iter=n_iter, seed=seed)
        found.fit(self._seen(t, x), sample_weight=weights, on_iteration=lambda *_: bar.update(len(x)))
        bar.update((n_iter - found.n_iter_) * len(x))
        self.iterations[t] = found.n_iter_
        centroids, mass = update(x, found.labels_, k, weights)
        out[mass > 0] = centroids[mass > 0]
        return out

    def _assign(self, centroids: NDArray[np.float32], bar: Any) -> NDArray[np.int64]:
        """To which of the centroids, as lookups will read them, each settled id is the nearest; 0 for all others."""
        k, out, self.empty = self.tiers_rows, np.zeros(len(self.names), np.int64), 0
        for t, mine in self._tables(self.places >= 0):
            seen, used = self._seen(t, centroids[t * k : (t + 1) * k]), np.zeros(k, bool)
            for low in range(0, len(mine), self.batch):
                part = mine[low : low + self.batch]
                labels, distances = assign(self._seen(t, self._read(self.at[part])), seen)
                out[part], used[labels] = labels, True
                self.costs[1] += float(distances.astype(np.float64) @ self.counted[part])
                bar.update(len(part))
            self.empty += int(k - used.sum())
        self.total = float(self.counted[self.places >= 0].sum(dtype=np.float64))
        return out

    def report(self, start: float) -> SettlingReport:
        """What was done since `start`."""
        before, after = (self.costs / max(self.total, math.ulp(0.0))).tolist()
        n_settled = int((self.places >= 0).sum())
        return SettlingReport(
            generation=self.generation + 1, n_clusters=self.tiers_rows, inertia_before=before, inertia_after=after,
            column_entropy=self.entropy[0], pair_entropy=self.entropy[1], empty_clusters=self.empty,
            iterations=tuple(self.iterations.tolist()), scratch_bytes=self.scratch, seconds=time.perf_counter() - start,
            settled=n_settled, left_out=len(self.names) - n_settled, own_rows=self.tiers.own, kept=self.kept,
            bits=self.tiers.pointer_bits,
        )  # fmt: skip
