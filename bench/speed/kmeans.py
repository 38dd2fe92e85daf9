"""k-means on narrow vectors: whole fits of 25 iterations from the same start, against faiss and scikit-learn.

256 points a centroid, two threads each. Before a case is timed, the labels must be those of the definition and the
inertia must not be above faiss's by more than 0.1 %. The data are standard normal, then chunk vectors of trained tables:
one on MovieLens 100K where CCE_DATA names a folder that holds it, one with a million ids.

How time grows with points, centroids and coordinates is fitted as a power, and drawn where `--plot FILE` asks for it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures, Row, in_turn
from cce_core.clustering import assign

ITERATIONS, THREADS, POINTS = 25, 2, 256
LONG = 5.0  # seconds
MOST_ABOVE = 1.001  # of faiss's inertia
plot_to: str | None = None

Peer = Callable[[Any, Any], Any]


def peers() -> dict[str, Peer]:
    """What is installed: each takes points and a start and gives centroids."""
    found: dict[str, Peer] = {}
    try:
        import faiss

        faiss.omp_set_num_threads(THREADS)

        def by_faiss(x: Any, start: Any) -> Any:
            k, d = start.shape
            model = faiss.Kmeans(d, k, niter=ITERATIONS, max_points_per_centroid=len(x), min_points_per_centroid=1)
            model.train(x, init_centroids=start)
            return model.centroids

        found["faiss"] = by_faiss
    except ImportError:
        print("kmeans: faiss is not installed (pip install faiss-cpu): nothing is compared with it")
    try:
        import sklearn.cluster
        from threadpoolctl import threadpool_limits

        def by_sklearn(algorithm: str) -> Peer:
            def fit(x: Any, start: Any) -> Any:
                with threadpool_limits(THREADS):
                    model = sklearn.cluster.KMeans(
                        len(start), init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm=algorithm
                    )
                    return model.fit(x).cluster_centers_

            return fit

        found["scikit-learn lloyd"], found["scikit-learn elkan"] = by_sklearn("lloyd"), by_sklearn("elkan")
    except ImportError:
        print("kmeans: scikit-learn is not installed (pip install scikit-learn): nothing is compared with it")
    return found


def ours(x: Any, start: Any) -> Any:
    """Our fit; the number of threads is set by `run`."""
    return cce.KMeans(len(start), init=start, n_iter=ITERATIONS).fit(x)


def problem(x: Any, k: int) -> tuple[Any, Any]:
    """Points and k of them to start from."""
    return x, x[np.sort(np.random.default_rng(1).choice(len(x), k, replace=False))]


def normal(d: int, k: int) -> tuple[Any, Any]:
    """Standard normal points."""
    return problem(np.random.default_rng(d * k).normal(size=(POINTS * k, d)).astype(np.float32), k)


def check(x: Any, start: Any, by_faiss: Peer | None) -> list[float]:
    """Refuse to time a fit whose labels are not the definition's, or that ends above faiss; seconds of the two fits."""
    started = time.perf_counter()
    found = ours(x, start)
    seconds = [time.perf_counter() - started]
    some = np.random.default_rng(0).choice(len(x), min(len(x), 500), replace=False)
    apart = np.zeros((len(some), len(start)), np.float32)
    for j in range(x.shape[1]):
        apart += np.square(x[some, j, None] - found.cluster_centers_[None, :, j])
    if not np.array_equal(apart.argmin(axis=1), found.labels_[some]):
        raise AssertionError("labels are not those of the definition; nothing is timed")
    if by_faiss is not None:
        started = time.perf_counter()
        centroids = by_faiss(x, start)
        seconds.append(time.perf_counter() - started)
        theirs = float(assign(x, centroids)[1].sum(dtype=np.float64))
        if found.inertia_ > MOST_ABOVE * theirs:
            raise AssertionError(f"inertia {found.inertia_:.6g} is above faiss's {theirs:.6g}; nothing is timed")
    return seconds


def rounds(seconds: float, quick: bool) -> int:
    """How many rounds of so many seconds: 25 of the shortest, 5 of short ones (2 where `quick`), 1 of half a minute."""
    most = 25 if seconds < 0.1 else 2 if quick else 5
    return max(1, min(most, int((5 if quick else 30) / seconds)))


def compare(case: str, x: Any, start: Any, found: dict[str, Peer], quick: bool) -> Iterator[Row]:
    """One case against each peer, scikit-learn by the better of its two algorithms."""
    d, k = x.shape[1], len(start)
    first = check(x, start, found.get("faiss"))
    long = sum(first) > LONG  # then the fits that were checked count as well
    if "faiss" in found:
        turns = rounds(sum(first), quick)
        times = in_turn(turns, lambda: ours(x, start), lambda: found["faiss"](x, start), warm=long)
        times = [[*seconds, one] if long else seconds for seconds, one in zip(times, first, strict=True)]
        yield Row("kmeans", case, times[0], "faiss", times[1], 2.0 if d <= 4 else 1.0)
    if "scikit-learn lloyd" in found and d <= 8 and k <= 1024:
        names = ["scikit-learn lloyd", "scikit-learn elkan"]
        runs = [lambda f=found[name]: f(x, start) for name in names]  # type: ignore[misc]
        turns = rounds(150 * first[0], quick)  # at k = 1,024 theirs take so much longer
        times = in_turn(turns, lambda: ours(x, start), *runs, warm=turns == 1)
        best = min((0, 1), key=lambda i: statistics.median(times[1 + i]))
        yield Row("kmeans", case, times[0], names[best], times[1 + best], 3.0)


def chunk_vectors(width: int) -> Iterator[tuple[str, Any, list[Any]]]:
    """Chunk vectors of trained tables: all chunks of all ids, and one chunk of each table."""
    from cce_core.tuning import GMF

    splits = [
        ("a million ids", cce.datasets.Synthetic(400_000, n_users=1000, n_items=1_000_000, seed=0).block(0, 400_000))
    ]
    sizes = [(1000, 1_000_000)]
    if os.environ.get("CCE_DATA"):
        split = cce.datasets.load("ml-100k")
        splits.append(("MovieLens 100K", split.train))
        sizes.append((split.n_users, split.n_items))
    else:
        print("kmeans: CCE_DATA names no folder of data sets: MovieLens 100K is left out")
    for (name, rows), (users, items) in zip(splits, sizes, strict=True):
        tables = [
            cce.make_table("cce", n, 4 * width, num_params=4096 * width, n_chunks=4, rank=0, seed=i)
            for i, n in enumerate((users, items))
        ]
        model, rng = GMF(*tables, cce.AdamW()), np.random.default_rng(0)
        for _ in range(2):
            model.epoch(rows, 4096, rng)
            for table in tables:
                table.cluster(show_progress=False)
        model.epoch(rows, 4096, rng)
        vectors = [t.lookup(np.arange(t.spec.vocab)) for t in tables]
        yield name, np.concatenate([v.reshape(-1, width) for v in vectors]), [v[:, :width] for v in vectors]


def growth(quick: bool) -> Iterator[Figures]:
    """Time against points, centroids and coordinates, each with a power fitted to it."""
    base = 14 if quick else 16
    sweeps: dict[str, tuple[list[int], Callable[[int], tuple[int, int, int]]]] = {
        "n (k 256, d 4)": ([1 << e for e in range(base, base + 4)], lambda n: (n, 256, 4)),
        "k (d 2)": ([128 << e for e in range(5)], lambda k: (1 << base + 2, k, 2)),
        "k (d 4)": ([128 << e for e in range(5)], lambda k: (1 << base + 2, k, 4)),
        "k (d 8)": ([128 << e for e in range(5)], lambda k: (1 << base + 2, k, 8)),
        "d (k 256)": ([1, 2, 4, 8, 16, 32], lambda d: (1 << base, 256, d)),
    }
    curves = {}
    for name, (values, sizes) in sweeps.items():
        seconds = []
        for value in values:
            n, k, d = sizes(value)
            x, start = problem(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32), k)
            seconds.append(min(in_turn(3, lambda: ours(x, start))[0]))  # noqa: B023
        power = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        curves[name] = (values, seconds)
        shown = {f"{v:,}": f"{s * 1e3:.1f} ms" for v, s in zip(values, seconds, strict=True)}
        yield Figures("kmeans growth", f"with {name}", {"power": float(power), **shown})
    if plot_to:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 5))
        for name, (values, seconds) in curves.items():
            axes.loglog(values, seconds, marker="o", label=name)
        axes.set(xlabel="n, k or d", ylabel="seconds of 25 iterations")
        axes.legend()
        figure.savefig(plot_to)
        print(f"kmeans: drawn to {plot_to}")


def run(quick: bool) -> Iterator[Row | Figures]:
    """All cases; `quick` leaves out the largest."""
    cce.set_num_threads(THREADS)
    started, found = time.perf_counter(), peers()
    for d in (2, 4):  # with boxes, with lists, and with neither: a fit that has to be compiled first is not timed
        for k in (16, 256):
            ours(*normal(d, k))
    for d in (2, 4, 8, 16, 32):
        for k in (256, 1024) if quick else (256, 1024, 4096):
            x, start = normal(d, k)
            yield from compare(f"normal, d {d}, k {k}, n {len(x)}", x, start, found, quick)
    for width in (2, 4, 8):
        for name, vectors, ones in chunk_vectors(width):
            k = min(1024, max(16, len(vectors) // POINTS))
            some = np.random.default_rng(2).permutation(len(vectors))[: POINTS * k]
            x, start = problem(np.ascontiguousarray(vectors[some]), k)
            yield from compare(f"chunks, {name}, d {width}, k {k}, n {len(x)}", x, start, found, quick)
            for one in ones if len(vectors) < 20_000 else []:  # as `cluster()` has them: calls weigh most there
                for k in (64, 256):
                    x, start = problem(np.ascontiguousarray(one), k)
                    case = f"one chunk, {name}, d {width}, k {k}, n {len(x)}"
                    yield from compare(case, x, start, found, quick)
    yield from growth(quick)
    print(f"kmeans: {time.perf_counter() - started:.0f} s in all")
