"""What a table has kept of the vectors that it was made from: neighbours that are still found, and directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._progress import progress
from cce_core.hashing.mix import derive_key
from cce_core.learning.sampling import as_rows, some_ids
from cce_core.method.spec import SAMPLES
from cce_core.tables.similarity import most_similar
from cce_core.tables.table import Table

_BLOCK = 1 << 13  # rows at a time
_QUERIES = 2  # of a stream of draws: which rows are queries


class Faithfulness(NamedTuple):
    """What is left, by held-out queries.

    Attributes:
        queries: how many.
        k: neighbours of each.
        recall: the share of a query's k nearest rows, by cosine and by the vectors themselves, that a search of the table finds;
            before it was 1.
        cosine: the mean cosine of a query's row in the table with itself; before it was 1.
        near_before, near_after: the mean cosine, by the vectors themselves, of queries with the rows that were found before, and
            with those that are found now.
    """

    queries: int
    k: int
    recall: float
    cosine: float
    near_before: float
    near_after: float

    def __str__(self) -> str:
        return (
            f"recall@{self.k} 1 -> {self.recall:.4f}, mean cosine with the rows found {self.near_before:.4f} -> "
            f"{self.near_after:.4f}, of a vector with itself 1 -> {self.cosine:.4f} ({self.queries:,} held-out queries)"
        )


def held_out(n: int, n_queries: int, seed: int) -> NDArray[np.int64]:
    """Rows that are queries, drawn by a seed, in rising order: at most a tenth of all, at least one."""
    rng = np.random.Generator(np.random.PCG64(derive_key(seed, SAMPLES, _QUERIES)))
    return some_ids(rng, n, max(1, min(n_queries, n // 10))).astype(np.int64)


def faithfulness(table: Table, vectors: Any, rows: Any, k: int = 10, *, show: bool | None = None) -> Faithfulness:
    """Compare a table with the vectors that it was made from, by the neighbours of some of them.

    A query is the vector of a row as it was, which is looked for among all other rows: of the vectors, for the truth, and of the
    table, by `most_similar`.

    Args:
        table: of as many rows.
        vectors: real numbers (vocab, dim); an array that is mapped from a file is read some rows at a time.
        rows: the queries' rows, integers (n,).
        k: neighbours; of tables with few rows, as many as there are.
        show: a progress bar; None shows one on a terminal.

    Returns:
        `Faithfulness`.

    Raises:
        ValueError, TypeError, IndexError: vectors or rows do not fit.

    Cost:
        n · vocab · dim multiply-adds, and `most_similar`.
    """
    spec = table.spec
    x = as_rows("vectors", vectors, (spec.vocab or 0, spec.dim))
    rows = _check.as_ids(rows, "rows").reshape(-1)
    _check.ids_within(rows, len(x))
    rows = rows.astype(np.int64)
    k = min(_check.integer("k", k, 1), len(x) - 1)
    if k < 1 or not len(rows):
        raise ValueError(f"neighbours need two rows and a query, got {len(x):,} rows and {len(rows):,} queries")
    own = x[rows].astype(np.float32)
    q = own / _lengths(own)
    ids, best = np.full((len(q), k), -1, np.int64), np.full((len(q), k), -np.inf, np.float32)
    with progress(len(x), "nearest rows", unit="row", show=show) as bar:
        for low in range(0, len(x), _BLOCK):
            part = x[low : low + _BLOCK].astype(np.float32)
            scores = np.dot(q, (part / _lengths(part)).T)
            inside = np.flatnonzero((rows >= low) & (rows < low + len(part)))
            scores[inside, rows[inside] - low] = -np.inf
            m = min(k, scores.shape[1])
            top = np.argpartition(-scores, m - 1, axis=1)[:, :m]
            every = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
            named = np.concatenate([ids, low + top], axis=1)
            order = np.argsort(-every, axis=1, kind="stable")[:, :k]
            best, ids = np.take_along_axis(every, order, 1), np.take_along_axis(named, order, 1)
            bar.update(len(part))
    found = most_similar(table, own, k, without=rows).ids
    kept = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, found, strict=True)])
    kept_rows = table.lookup(rows)
    cosine = (q * kept_rows / _lengths(kept_rows)).sum(1).mean()
    near = np.mean(
        [(one @ (y := x[where].astype(np.float32)).T / _lengths(y)[:, 0]).mean() for one, where in zip(q, found)]
    )
    return Faithfulness(len(rows), k, float(kept), float(cosine), float(best.mean()), float(near))


def _lengths(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1), 1 where there is none."""
    found = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(found > 0, found, np.float32(1.0))
