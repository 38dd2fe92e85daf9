"""`most_similar`: the rows that are most like a query, straight from their codes, and yet exactly those of the decoded vectors.

Scores are first worked out in float32: for tables whose rows are sums of few different blocks by tables of the query's products
with these (asymmetric distances; Jégou et al., 2011), for others from vectors that are looked up some at a time. A bound of their
error says which rows may be among the best k; these are looked up and compared in float64, one coordinate after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._guard import Still
from cce_core._threads import parallel_for
from cce_core.method.block import BlockMethod
from cce_core.sketching import similarity as loops
from cce_core.sketching.layout import DIGIT, HASH, POINTER
from cce_core.sketching.similarity import COSINE, DOT, L2
from cce_core.tables.table import Table

METRICS = {"cosine": COSINE, "dot": DOT, "l2": L2}
_BLOCK = 1 << 13  # rows at a time
_SPARE = 32  # rows beyond k that are kept
_BYTES = 1 << 24  # of the tables, and of the scores, of queries at a time
_U = 2.0**-24
_ORTHOGONAL = 1e-3  # of a projection, up to which lengths are those of the memory's vectors
_GRAIN = 1 << 10

Floats64 = NDArray[np.float64]


class Neighbors(NamedTuple):
    """What is most like each query, best first, ties by the lower id.

    Attributes:
        ids: int64 (*queries, k).
        scores: float64, likewise: cosines or products, which fall, or distances, which rise.
    """

    ids: NDArray[np.int64]
    scores: Floats64


def most_similar(table: Table, queries: Any, k: int = 10, metric: str = "cosine", *, without: Any = None) -> Neighbors:
    """The k rows of a table that are most like each query: those that a search of `lookup` of all ids would find.

        cosine  q · T[i] / |q| |T[i]|  (0 where either has no length)        dot  q · T[i]        l2  |q − T[i]|

    Args:
        table: with a vocabulary.
        queries: ids (integers), whose vectors are the queries and who are left out of their own results; or vectors, real numbers
            (dim,) or (n, dim).
        k: how many, at most the rows that are searched.
        metric: "cosine", "dot" or "l2".
        without: of queries that are vectors, the id that each leaves out: integers, one or (n,).

    Returns:
        `Neighbors` in the shape of the queries.

    Raises:
        IndexError: an id is outside the vocabulary.
        ValueError: another metric or shape, NaN, too large a k, or a table without a vocabulary.
        TypeError: something else than a table, ids or vectors.

    Cost:
        For each row and query one addition a pointer (of tables with few different blocks, such as `pq` and `vq`; for cosine and
        l2 if a projection is near to a rotation, as `compress` makes it), else a lookup and dim multiplications. About 50 MB,
        whatever the number of rows.

    References:
        Jégou et al., product quantization for nearest neighbor search, IEEE TPAMI 33 (2011), section 3.

    Example:
        >>> import numpy as np, cce_core as cce
        >>> table = cce.compress(np.random.default_rng(0).standard_normal((500, 16)), ratio=5)
        >>> found = cce.most_similar(table, [3, 4], k=2)
        >>> found.ids.shape, bool((found.scores[:, 0] >= found.scores[:, 1]).all())
        ((2, 2), True)
        >>> int(cce.most_similar(table, table.lookup(3), k=1, metric="l2").ids[0])
        3
    """
    _check.instance("table", table, Table, "a table")
    kind, vocab = METRICS[_check.choice("metric", metric, tuple(METRICS))], table.spec.vocab
    if vocab is None:
        raise ValueError("a table that takes every id has no rows to search: make it with a vocab")
    with Still((table.guard,)):
        q, left_out, shape = _queries(table, vocab, queries, without)
        most = vocab - int((left_out >= 0).any())
        k = _check.integer("k", k, 1)
        if k > most:
            raise ValueError(f"k must be at most {most:,}, the rows that are searched, got {k:,}")
        source = _source(table, kind)
        n_queries = max(1, min(256, _BYTES // (4 * max(source.width, _BLOCK))))
        ids, scores = np.empty((len(q), k), np.int64), np.empty((len(q), k))
        for low in range(0, len(q), n_queries):
            part = slice(low, low + n_queries)
            ids[part], scores[part] = _Search(table, source, q[part], left_out[part], k, kind).best()
    if kind == L2:
        scores = np.sqrt(-scores)
    return Neighbors(ids.reshape(*shape, k), scores.reshape(*shape, k))


def _queries(
    table: Table, vocab: int, queries: Any, without: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[int, ...]]:
    """Vectors (n, dim), the id that each leaves out, −1 for none, and the shape of the results."""
    given, dim = _check.array("queries", queries, "ids, or vectors"), table.spec.dim
    if given.size and given.dtype.kind in "iu":
        if without is not None:
            raise ValueError("queries that are ids leave themselves out: without= is for vectors")
        ids = _check.as_ids(given)
        _check.ids_within(ids, vocab)
        flat = np.ascontiguousarray(ids.reshape(-1))
        return table.look_up(flat, False)[0], flat.astype(np.int64), given.shape
    if given.ndim not in (1, 2) or given.shape[-1] != dim:
        raise ValueError(
            f"queries must be ids (integers), or vectors of shape ({dim},) or (n, {dim}), got shape {given.shape}"
        )
    q = _check.as_float32("queries", given, given.shape).reshape(-1, dim)
    if without is None:
        return q, np.full(len(q), -1, np.int64), given.shape[:-1]
    out = _check.as_ids(without, "without")
    if out.shape != given.shape[:-1]:
        raise ValueError(f"without must have shape {given.shape[:-1]}, an id a query, got {out.shape}")
    _check.ids_within(out, vocab)
    return q, out.reshape(-1).astype(np.int64), given.shape[:-1]


class _Prepared(NamedTuple):
    """Some queries, as a source of scores takes them.

    Attributes:
        data: what the source makes of them.
        constants: what each one's product with every row has beside what `products` gives.
        errors, relative: a product with a row x is off by at most errors + relative · |x|.
    """

    data: Any
    constants: Floats64
    errors: Floats64
    relative: Floats64


class _Decoded:
    """Scores from vectors, which are looked up."""

    width, doubt = 0, 0.0

    def __init__(self, table: Table) -> None:
        self.table = table

    def prepared(self, q: NDArray[np.float32]) -> _Prepared:
        nothing, lengths = np.zeros(len(q)), np.sqrt(np.square(q.astype(np.float64)).sum(1))
        return _Prepared(q, nothing, nothing + 1e-36, (self.table.spec.dim + 4) * _U * lengths)

    def products(self, q: _Prepared, low: int, high: int) -> tuple[NDArray[np.float32], Floats64]:
        """Float32 (queries, rows), and the squared length of each row."""
        x, squares = self.table.look_up(np.arange(low, high, dtype=np.uint64), False)[0], np.empty(high - low)
        parallel_for(loops.squares_range, len(x), _GRAIN, x, squares)
        return np.dot(q.data, x.T), squares


class _Codes:
    """Scores from tables of the queries' products with all blocks that rows are made of."""

    def __init__(self, table: Table) -> None:
        layout, memory = table.layout, table.stored.decoded()
        self.columns, self.keys, self.pointers = layout.array, table.sketch.keys, table.sketch.pointers
        self.terms, self.rank = layout.terms, table.spec.rank
        self.blocks = [
            memory[c.base : c.base + c.rows * c.stride].reshape(c.rows, c.stride)[:, : layout.width].astype(np.float64)
            for c in layout.columns
        ]
        sizes = [len(block) for block in self.blocks]
        self.width = sum(sizes)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
        projection = table.arrays().get("projection")
        w = None if projection is None else projection.astype(np.float64)
        self.w: Floats64 | None = None if w is None else w[:-1]
        self.bias: Floats64 = np.zeros(table.spec.dim) if w is None else w[-1]
        longest = [float(np.sqrt(np.square(block).sum(1).max())) for block in self.blocks]
        self.longest = float(np.linalg.norm(np.reshape(longest, (-1, self.terms)).sum(1)))
        inner = self.parts(np.zeros((1, table.spec.dim)) if self.w is None else (self.w @ self.bias)[None])
        self.lengths = np.concatenate(
            [np.square(b).sum(1) + 2 * (b @ part[0]) for b, part in zip(self.blocks, inner, strict=True)]
        )
        self.lengths[: sizes[0]] += self.bias @ self.bias  # every row has one block of the first column
        self.skew, rounded = 0.0, (self.terms - 1) * _U * self.longest
        if self.w is not None:
            self.skew = float(np.linalg.norm(self.w @ self.w.T - np.eye(self.rank)))
            own = float(np.linalg.norm(self.bias))
            rounded = (self.rank + 6) * _U * (self.longest * float(np.linalg.norm(self.w)) + own)
        most = self.longest * (1 + self.skew) + float(np.linalg.norm(self.bias))
        self.doubt = self.skew * self.longest**2 + 2 * most * rounded + rounded**2 + 1e-12 * most**2

    def parts(self, inner: Floats64) -> list[Floats64]:
        """For each column the floats of the vectors (n, inner) that it adds to."""
        width = self.blocks[0].shape[1]
        chunks = (j // self.terms for j in range(len(self.blocks)))
        return [inner[:, c * width : (c + 1) * width] for c in chunks]

    def prepared(self, q: NDArray[np.float32]) -> _Prepared:
        exact = q.astype(np.float64)
        inner = exact if self.w is None else exact @ self.w.T
        products = [part @ block.T for part, block in zip(self.parts(inner), self.blocks, strict=True)]
        most = sum((np.abs(p).max(1) for p in products), np.zeros(len(q)))
        constants = exact @ self.bias
        errors = (len(self.blocks) + 5) * _U * (most + np.abs(constants))
        if self.w is None:
            errors += (self.terms + 1) * _U * self.longest * np.linalg.norm(exact, axis=1)
        else:
            reach = np.linalg.norm(np.abs(exact) @ np.abs(self.w).T, axis=1)
            errors += (self.rank + self.terms + 6) * _U * (self.longest * reach + np.abs(exact) @ np.abs(self.bias))
        tables = np.concatenate(products, axis=1).astype(np.float32)
        return _Prepared(tables, constants, errors + 1e-36, np.zeros(len(q)))

    def products(self, q: _Prepared, low: int, high: int) -> tuple[NDArray[np.float32], Floats64]:
        """Float32 (queries, rows), and the squared length of each row, within `doubt`."""
        n, ids = high - low, np.arange(low, high, dtype=np.uint64)
        places, squares = np.empty((len(self.blocks), n), np.int32), np.empty(n)
        scores = np.empty((len(q.constants), n), np.float32)
        at = self.columns, self.keys, self.pointers, self.offsets, self.lengths, places, squares
        parallel_for(loops.indices_range, n, _GRAIN, ids, *at)
        parallel_for(loops.sums_range, n, _GRAIN, places, q.data, scores)
        return scores, np.maximum(squares, 0.0)


def _source(table: Table, kind: int) -> _Codes | _Decoded:
    """Codes where they serve; what must be looked up, otherwise."""
    spec = table.spec
    if not isinstance(table.method, BlockMethod) or not table.plain or not table.method.is_linear(spec):
        return _Decoded(table)
    layout, vocab = table.layout, spec.vocab or 0
    apart = all(c.kind in (POINTER, HASH, DIGIT) and c.stride >= layout.width for c in layout.columns)
    whole = all(c.size == c.rows * c.stride for c in layout.columns)
    if not apart or not whole or sum(c.rows for c in layout.columns) > max(1 << 12, vocab):
        return _Decoded(table)
    source = _Codes(table)
    if kind != DOT and (layout.terms > 1 or source.skew > _ORTHOGONAL):
        return _Decoded(table)
    return source


class _Search:
    """The best k of some queries."""

    def __init__(
        self, table: Table, source: _Codes | _Decoded, q: NDArray[np.float32], without: NDArray[np.int64], k: int, kind: int
    ) -> None:  # fmt: skip
        self.table, self.source, self.without, self.k, self.kind = table, source, without, k, kind
        self.vocab, self.q, self.exact = table.spec.vocab or 0, source.prepared(q), q.astype(np.float64)
        self.own = np.sqrt(np.square(self.exact).sum(1))

    def blocks(self, which: Any) -> Any:
        """All rows, some at a time: the first one, scores of the queries, and the rows' squared lengths."""
        q, own = _Prepared(*(field[which] for field in self.q)), self.own[which]
        for low in range(0, self.vocab, _BLOCK):
            scores, squares = self.source.products(q, low, min(low + _BLOCK, self.vocab))
            settings = self.kind, squares, self.source.doubt, q.constants, own
            parallel_for(loops.finish_range, len(scores), max(1, _GRAIN * 8 // _BLOCK), scores, *settings)
            yield low, scores, squares

    def slack(self, which: Any, squares: Floats64) -> Floats64:
        """By how much scores may be off, (queries, rows)."""
        lengths, doubt = np.sqrt(squares)[None], self.source.doubt
        off = self.q.errors[which][:, None] + self.q.relative[which][:, None] * lengths
        own = self.own[which][:, None]
        if self.kind == DOT:
            return off
        if self.kind == L2:
            return 2 * off + doubt + 4 * _U * (own + lengths + np.sqrt(doubt)) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found = off / (own * lengths) + doubt / squares[None] + 4 * _U
        unsure = (squares[None] <= 4 * doubt) & (own > 0)
        return np.where(unsure, np.inf, np.where((own > 0) & (lengths > 0), 1.5 * found, 0.0))

    def best(self) -> tuple[NDArray[np.int64], Floats64]:
        """Ids (queries, k) and scores, larger is better."""
        n, room = len(self.exact), min(self.k + _SPARE, self.vocab)
        best, ids = np.full((n, room), -np.inf, np.float32), np.full((n, room), -1, np.int64)
        least, every, most = np.inf, np.arange(n), 0.0
        for low, scores, squares in self.blocks(every):
            parallel_for(loops.keep_range, n, 1, scores, low, self.without, best, ids)
            least, most = min(least, float(squares.min())), max(most, float(squares.max()))
        slack = self.slack(every, np.array([least, most])).max(1)
        found = [self.ranked(q, ids[q][ids[q] >= 0]) for q in range(n)]
        kth = np.array([scores[self.k - 1] for _, scores in found])
        doubtful = np.flatnonzero((best[:, -1] + slack >= kth) & (ids[:, -1] >= 0))
        if len(doubtful):
            for q, one in zip(doubtful.tolist(), self.all_that_may_be(doubtful, kth[doubtful]), strict=True):
                found[q] = one
        return np.stack([one for one, _ in found]), np.stack([scores for _, scores in found])

    def all_that_may_be(self, which: NDArray[np.int64], least: Floats64) -> list[tuple[NDArray[np.int64], Floats64]]:
        """The best of queries, from all rows whose scores may be as good as `least`."""
        found = [(np.empty(0, np.int64), np.empty(0))] * len(which)
        for low, scores, squares in self.blocks(which):
            may = scores + self.slack(which, squares) >= least[:, None]
            for n in np.flatnonzero(may.any(1)).tolist():
                rows = low + np.flatnonzero(may[n])
                found[n] = self.ranked(int(which[n]), rows[rows != self.without[which[n]]], found[n])
        return found

    def ranked(
        self, q: int, rows: NDArray[np.int64], held: tuple[NDArray[np.int64], Floats64] | None = None
    ) -> tuple[NDArray[np.int64], Floats64]:
        """The best k of some rows, and of those that are held, by their vectors."""
        scores = np.empty(len(rows))
        x = self.table.look_up(rows.astype(np.uint64), False)[0]
        parallel_for(loops.exact_range, len(rows), _GRAIN, x, self.exact[q], self.kind, scores)
        if held is not None:
            rows, scores = np.concatenate([held[0], rows]), np.concatenate([held[1], scores])
        order = np.lexsort((rows, -scores))[: self.k]
        return rows[order], scores[order]
