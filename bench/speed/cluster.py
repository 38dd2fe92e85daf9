"""Clustering a whole table: what `cluster()` adds to an epoch, against the same work by faiss, and for 100 million ids.

Four chunks of four coordinates, 256 rows each, two threads. Before a time is given, ids that were drawn at random must point
to the nearest centroid of the vectors they had, by the definition. The peer decodes the same vectors, fits faiss's k-means on
as many of them with as many iterations, and searches all ids through its flat index, chunk by chunk; it makes no pointers.

Extra memory is the highest resident size during the call, less what was resident before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures, Row, in_turn
from cce_core.sketching import blocks

THREADS, DIM, CHUNKS, ROWS, POINTS, ITERATIONS = 2, 16, 4, 256, 256, 50
MOST_EXTRA = 1 << 30  # beside the new pointers
TARGET = 2.0


def table_of(vocab: int) -> cce.Table:
    """A table as it is before its first clustering."""
    return cce.make_table("cce", vocab, DIM, num_params=2 * ROWS * DIM, n_chunks=CHUNKS, rank=0, seed=0)


def clustered(table: cce.Table, some: int = 2000) -> tuple[Any, float]:
    """The report and the seconds of `cluster()`; refuses a table in which a drawn id is not at its nearest centroid."""
    ids = np.random.default_rng(0).integers(0, table.spec.vocab, some).astype(np.uint64)
    before = table.lookup(ids).reshape(some, CHUNKS, -1)
    start = time.perf_counter()
    report = table.cluster(n_iter=ITERATIONS, points_per_centroid=POINTS)
    seconds = time.perf_counter() - start
    codebooks = table.parameters()["memory"].reshape(CHUNKS, 2, ROWS, -1)[:, 0]
    at = blocks.addresses(table.sketch, ids)
    for chunk, column in enumerate(table.layout.columns[::2]):
        apart = np.zeros((some, ROWS), np.float32)
        for j in range(DIM // CHUNKS):
            apart += np.square(before[:, chunk, j, None] - codebooks[chunk, None, :, j])
        if not np.array_equal(apart.argmin(axis=1), (at[:, 2 * chunk] - column.base) // column.stride):
            raise AssertionError("an id does not point to its nearest centroid; nothing is timed")
    return report, seconds


def by_faiss(table: cce.Table) -> float:
    """The same by faiss; the inertia of the samples, of an id."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    vocab, width, batch, inertia = table.spec.vocab or 0, DIM // CHUNKS, 1 << 18, 0.0
    for chunk in range(CHUNKS):
        part = slice(chunk * width, (chunk + 1) * width)
        some = np.random.default_rng(chunk).choice(vocab, min(vocab, POINTS * ROWS), replace=False)
        x = np.ascontiguousarray(table.lookup(some)[:, part])
        model = faiss.Kmeans(width, ROWS, niter=ITERATIONS, max_points_per_centroid=POINTS)
        model.train(x)
        inertia += float(model.index.search(x, 1)[0].mean())
        labels = np.empty(vocab, np.uint8)
        for low in range(0, vocab, batch):
            high = min(low + batch, vocab)
            vectors = np.ascontiguousarray(table.lookup(np.arange(low, high))[:, part])
            labels[low:high] = model.index.search(vectors, 1)[1][:, 0]
    return inertia


def resident(kind: str) -> int:
    """Bytes: VmRSS, what is resident now, or VmHWM, the most since `forget`; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(kind)), 0)


def forget() -> None:
    """Let VmHWM begin anew."""
    where = Path("/proc/self/clear_refs")
    if where.exists():
        where.write_text("5")


def run(quick: bool) -> Iterator[Row | Figures]:
    """Against faiss, then alone for as many ids as fit."""
    cce.set_num_threads(THREADS)
    vocab = 200_000 if quick else 2_000_000
    report, _ = clustered(table_of(vocab))
    case = f"{vocab:,} ids, dim {DIM}, {CHUNKS} chunks, {ROWS} rows"
    try:
        theirs = by_faiss(table_of(vocab))
        if report.inertia_after > 1.01 * theirs:
            raise AssertionError(f"inertia {report.inertia_after:.6g} is above faiss's {theirs:.6g}; nothing is timed")
        settings = {"n_iter": ITERATIONS, "points_per_centroid": POINTS}
        ours, peer = (lambda: table_of(vocab).cluster(**settings)), (lambda: by_faiss(table_of(vocab)))
        times = in_turn(3 if quick else 5, ours, peer)
        yield Row("cluster", case, times[0], "faiss", times[1], TARGET)
    except ImportError:
        print("cluster: faiss is not installed (pip install faiss-cpu): nothing is compared with it")
    vocab = 10_000_000 if quick else 100_000_000
    table = table_of(vocab)
    forget()
    before = resident("VmRSS")
    report, seconds = clustered(table)
    extra, pointers = resident("VmHWM") - before, table.buffers()["pointers"].nbytes
    if before and extra > MOST_EXTRA + pointers:
        raise AssertionError(f"{extra:,} bytes beside the table: more than {MOST_EXTRA:,} and the new pointers")
    yield Figures(
        "cluster",
        f"{vocab:,} ids, dim {DIM}, {CHUNKS} chunks, {ROWS} rows",
        {
            "seconds": seconds,
            "million ids a second": vocab / seconds / 1e6,
            "new pointers, MiB": pointers / 2**20,
            "extra beside them, MiB": max(extra - pointers, 0) / 2**20,
            "at most, says the ledger, MiB": (table.ledger().training["cluster"] - pointers) / 2**20,
            "inertia before": report.inertia_before,
            "inertia after": report.inertia_after,
        },
    )
