"""26 tables of width 16 that hold a hundred million ids together: their bytes, lookups a second, a step of training.

Then how the time grows with the batch and with the vocabulary; `--plot` draws it.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures

IDS, TABLES, DIM, ROWS = 100_000_000, 26, 16, 4096

plot_to: str | None = None


def vocabularies(total: int) -> list[int]:
    """A few large ones and many small ones, as recommenders have them: sizes fall by a third from one to the next."""
    shares = 1.5 ** -np.arange(TABLES)
    sizes = np.maximum(10, total * shares / shares.sum()).astype(int)
    sizes[0] += total - sizes.sum()
    return [int(size) for size in sizes]


def collection(sizes: list[int]) -> cce.Collection:
    """One cce table each, without a projection."""
    budget = 2 * ROWS * DIM
    return cce.Collection(
        cce.make_table("cce", size, DIM, num_params=budget, n_chunks=4, rank=0, seed=k) for k, size in enumerate(sizes)
    )


def seconds(program: Callable[[], Any], times: int) -> float:
    """The median of so many, after one that is not counted."""
    program()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        program()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def case(both: cce.Collection, sizes: list[int], batch: int, times: int) -> dict[str, Any]:
    """Seconds of a lookup and of a step of row-wise Adagrad."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, size, batch) for size in sizes], axis=1)
    optimizer = cce.Adagrad(0.01, rowwise=True)

    def step() -> None:
        seen = both.forward(ids)
        optimizer.update(both, seen, seen.vectors)

    for k in (0, TABLES - 1):  # correct first
        if not np.array_equal(both.split(both.lookup(ids))[k], both.tables[k].lookup(ids[:, k])):
            raise AssertionError("a collection and its tables differ; nothing is timed")
    lookup, trained = seconds(lambda: both.lookup(ids), times), seconds(step, times)
    return {"lookup_s": lookup, "lookups_a_second": batch * TABLES / lookup, "step_s": trained}


def run(quick: bool) -> Iterator[Figures]:
    """The bytes first, then the growth."""
    total, times = (IDS // 20, 3) if quick else (IDS, 9)
    sizes, start = vocabularies(total), time.perf_counter()
    both = collection(sizes)
    built = time.perf_counter() - start
    stored: dict[str, int] = {}
    for table in both.tables:
        for kind, nbytes in table.ledger().stored.items():
            stored[kind] = stored.get(kind, 0) + nbytes
    curves: dict[str, list[tuple[int, float]]] = {"batch": [], "vocabulary": []}
    for batch in (64, 256, 1024, 4096, 16_384):
        found = case(both, sizes, batch, times)
        curves["batch"].append((batch, found["step_s"]))
        yield Figures("scale", f"{TABLES} tables, {total:,} ids, batch {batch:,}", found)
    # Linux counts kilobytes, macOS bytes.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    yield Figures("scale", "bytes", {**stored, "peak_resident": resident, "built_s": built})
    for vocab in (TABLES * 1000, total // 100, total // 10, total):
        sizes = vocabularies(vocab)
        found = case(collection(sizes) if vocab < total else both, sizes, 4096, times)
        curves["vocabulary"].append((vocab, found["step_s"]))
        yield Figures("scale", f"{TABLES} tables, {vocab:,} ids, batch 4,096", found)
    if plot_to:
        draw(curves, plot_to)


def draw(curves: dict[str, list[tuple[int, float]]], path: str) -> None:
    """Both growths, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        axis.loglog(*zip(*points, strict=True), marker="o", color="#0072B2")
        axis.set(xlabel=f"{name} ({'rows' if name == 'batch' else 'ids in all tables'})")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="seconds of a step (forward, backward, Adagrad)")
    figure.savefig(path)
    print(f"scale: drawn to {path}")
