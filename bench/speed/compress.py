"""Word vectors at a fiftieth of their bytes: read from GloVe's text, compressed and searched, beside faiss's product quantisers.

The vectors are drawn with a known structure, as those of words have: topics of Zipf sizes, a part of low rank that all share,
noise whose variances fall slowly, a mean that all share, and lengths that fall with the rank of a word's frequency. A thousand
words are left out of all tables and are the queries; the truth is an exact search by cosine. Ours must return vectors with their
lengths, so it gets these; faiss gets vectors of length 1, which is what one gives it for cosines. Bytes of faiss are codes,
codebooks, coarse centroids and, of inverted lists, the 8 bytes of an id, as it stores them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Figures
from cce_core import datasets

DIM, RATIO, QUERIES, K, THREADS = 300, 50, 1000, 10, 2
TOPICS, FACTORS = 2000, 40
Floats = Any


def words(n: int, seed: int = 0) -> Floats:
    """Float32 (n, 300), the most frequent word first."""
    rng = np.random.default_rng(seed)
    scales = (1.0 + np.arange(DIM)) ** -0.4 + 0.15
    sizes = 1.0 / np.arange(1, TOPICS + 1) ** 0.8
    topics = rng.standard_normal((TOPICS, DIM)) * scales
    x = 0.75 * topics[rng.choice(TOPICS, n, p=sizes / sizes.sum())]
    factors = rng.standard_normal((FACTORS, DIM)) * scales
    x += 0.5 * FACTORS**-0.5 * (rng.standard_normal((n, FACTORS)) @ factors)
    x += 0.45 * rng.standard_normal((n, DIM)) * scales
    x[:, :5] += [2.0, -1.5, 1.0, 0.7, 0.5]
    x = x @ np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    lengths = (np.arange(1, n + 1) + 200.0) ** -0.12 * np.exp(0.15 * rng.standard_normal(n))
    x *= (6 * lengths / lengths.mean() / np.linalg.norm(x, axis=1).mean())[:, None]
    return x.astype(np.float32)


def as_text(path: Path, x: Floats) -> None:
    """GloVe's text, five digits behind the point as there."""
    with path.open("w") as file:
        for n, row in enumerate(x):
            file.write(f"word{n} " + " ".join(f"{value:.5f}" for value in row.tolist()) + "\n")


def unit(x: Floats) -> Floats:
    """Vectors of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nearest(x: Floats, q: Floats) -> Floats:
    """The rows of the K largest products."""
    rows = [np.argpartition(-(part @ x.T), K - 1, axis=1)[:, :K] for part in np.array_split(q, 8)]
    return np.concatenate(rows)


def recall(found: Floats, truth: Floats) -> float:
    """The share of the true rows among those found."""
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))


def spent(since: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Seconds by the clock, and of all threads: on a machine that others use the latter, over two, is what counts."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


def named(what: str, seconds: tuple[float, float]) -> dict[str, float]:
    """Both as figures."""
    return {f"{what}_s": seconds[0], f"{what}_cpu_s": seconds[1]}


def by_faiss(x: Floats, q: Floats, truth: Floats, budget: int) -> Iterator[Figures]:
    """Its indexes of the most bytes within the budget."""
    try:
        import faiss
    except ImportError:
        print("compress: faiss is not installed (pip install faiss-cpu): nothing is compared with it")
        return
    faiss.omp_set_num_threads(THREADS)
    n, product = len(x), faiss.METRIC_INNER_PRODUCT

    def size(m: int, lists: int) -> int:
        return (m + 8 * (lists > 0)) * n + 4 * 256 * DIM + 4 * lists * DIM

    for lists in (0, 64):
        fitting = [m for m in range(1, DIM + 1) if DIM % m == 0 and size(m, lists) <= budget]
        if not fitting:
            continue
        m = max(fitting)
        if lists:
            flat = faiss.IndexFlatIP(DIM)
            index = faiss.IndexIVFPQ(flat, DIM, lists, m, 8, product)
            index.nprobe = lists  # of all lists: the most that it can find
        else:
            index = faiss.IndexPQ(DIM, m, 8, product)
        start = spent()
        index.train(x)
        index.add(x)
        built = spent(start)
        start = spent()
        _, found = index.search(q, K)
        searched = spent(start)
        case = f"faiss IndexIVFPQ, {lists} lists, all searched" if lists else "faiss IndexPQ"
        figures = {
            "bytes": size(m, lists),
            "recall@10": recall(found, truth),
            **named("built", built),
            **named("search", searched),
        }
        yield Figures("compress", f"{case}, {m} bytes a code", figures)


def run(quick: bool) -> Iterator[Figures]:
    """100,000 words; `quick` takes a tenth."""
    cce.set_num_threads(THREADS)
    n = 10_000 if quick else 100_000
    everything = words(n + QUERIES)
    held = np.zeros(len(everything), bool)
    held[np.random.default_rng(1).choice(len(everything), QUERIES, replace=False)] = True
    x, queries = everything[~held], everything[held]
    cce.most_similar(cce.compress(x[:2000], ratio=RATIO), queries[:2], K)  # compiled by now
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "glove.txt"
        as_text(path, x)
        start = spent()
        found = datasets.read_vectors(path)
        read = spent(start)
        start = spent()
        table = cce.compress(found.values, ratio=RATIO)
        built = spent(start)
        x = np.array(found.values)
    truth = nearest(unit(x), unit(queries))
    start = spent()
    same = cce.most_similar(table, queries, K)
    searched = spent(start)
    decoded = table.lookup(np.arange(n))
    mine = nearest(unit(decoded), unit(queries))
    if recall(same.ids, mine) < 0.999:
        raise AssertionError("most_similar finds other rows than a search of the decoded vectors")
    kept = float((unit(decoded) * unit(x)).sum(1).mean())
    times = {**named("built", built), **named("search", searched), **named("read", read)}
    figures = {"bytes": table.ledger().total, "recall@10": recall(same.ids, truth), "cosine": kept, **times}
    more = {"chunks": table.spec.n_chunks, "rank": table.spec.rank, "rows": table.spec.sizes[0]}
    yield Figures("compress", f"{n:,} x {DIM} at 1/{RATIO}, ours", {**figures, **more})
    yield from by_faiss(unit(x), unit(queries), truth, 4 * n * DIM // RATIO)
