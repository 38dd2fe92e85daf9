"""`compress`: vectors that were trained elsewhere become a table of a fraction of their bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.hashing.mix import derive_key
from cce_core.learning.least_squares import learn
from cce_core.learning.sampling import as_rows, some_ids
from cce_core.method import get_method, resolved
from cce_core.method.base import divisors
from cce_core.method.checked import MOST_DIM, MOST_IDS
from cce_core.method.spec import SAMPLES, TableSpec
from cce_core.sketching.layout import IDENTITY
from cce_core.storage.codec import codec
from cce_core.storage.packed import bits_for
from cce_core.tables.make import make_table
from cce_core.tables.table import Table

AUTO, RATIO = "auto", 50.0
_SAMPLE = 1 << 14  # rows whose covariance says what directions are worth
_MOST_BITS, _N_ITER = 8, 25
_ROWS = 1 << 14  # copied at a time


class Shape(NamedTuple):
    """A `pq` table with an int8 memory.

    Attributes:
        n_chunks: pointers of an id.
        rank: floats behind the projection; 0 without one.
        rows: of each codebook.
        loss: squared distance that is expected of a row, over the sample.
    """

    n_chunks: int
    rank: int
    rows: int
    loss: float


def compress(
    vectors: Any,
    *,
    ratio: float | None = None,
    num_bytes: int | None = None,
    method: str = AUTO,
    seed: int = 0,
    weights: Any = None,
    show_progress: bool | None = None,
    **options: Any,
) -> Table:
    """Make a table that holds given vectors in a fraction of their bytes: word vectors, sentence embeddings, item factors.

    With the method "auto" a budget that a row of whole numbers of 8 bits fits in gets that (or more bits). Otherwise it is
    product quantisation behind a rotation: directions of large variance, dealt out to the chunks so that each has as much to say
    (`pq` with a rank, codebooks in int8), and chunks, rank and bits of a pointer are those of the least expected loss within the
    budget:

        loss = min over active directions of Σ_j min(θ, λ_j),  where  ½ Σ_j log₂(λ_j / θ)⁺ = the bits of an id

    with the variances λ of a sample. All of it counts: pointers, codebooks, scales and the rotation.

    Args:
        vectors: real numbers (rows, dim), finite; an array that is mapped from a file is read some rows at a time.
        ratio: how many times smaller than float32; 50 if neither it nor num_bytes is given, or
        num_bytes: the most stored bytes.
        method: "auto", or a name for `make_table`: methods that learn their sketch learn it from the vectors, other
            linear ones are solved for by least squares.
        seed: of the samples and first values.
        weights: how much each row counts for methods that learn: (rows,), at least 0, not all 0. A row of weight 0 is not learned
            from, and coded all the same.
        show_progress: a bar; None shows one on a terminal.
        options: for `make_table`, with a method other than "auto".

    Returns:
        The table: `lookup(i)` is near to `vectors[i]`; `most_similar` searches it.

    Raises:
        BudgetError: the budget is too small; the message says the least that fits.
        ValueError: no rows, NaN, both budgets, an unknown method, or one that can't be solved for (`tt`, `dhe`).
        TypeError: the vectors are no real numbers.

    Cost:
        k-means over at most 65,536 rows a chunk, and a search of one codebook a chunk for each row; beside the table at most
        512 MB, whatever the number of rows. 100,000 × 300 at a fiftieth: `python -m bench compress`.

    References:
        Jégou et al., product quantization, IEEE TPAMI 33 (2011); Ge et al., optimized product quantization, IEEE TPAMI 36 (2014).

    Example:
        >>> import numpy as np, cce_core as cce
        >>> rng = np.random.default_rng(0)
        >>> vectors = rng.standard_normal((2000, 8)) @ rng.standard_normal((8, 64))
        >>> table = cce.compress(vectors, ratio=20)
        >>> table.ledger().total <= 4 * 2000 * 64 / 20
        True
        >>> lost = np.square(table.lookup(np.arange(2000)) - vectors).sum() / np.square(vectors).sum()
        >>> bool(lost < 0.25)
        True
    """
    given = _check.array("vectors", vectors, "real numbers (rows, dim)")
    if given.ndim != 2 or not given.size:
        raise ValueError(
            f"vectors must have shape (rows, dim), at least one row of one number, got shape {given.shape}"
        )
    n, dim = _check.size("rows", given.shape[0], 1, MOST_IDS), _check.size("dim", given.shape[1], 1, MOST_DIM)
    rows, seed = as_rows("vectors", given, (n, dim)), _check.seed(seed)
    budget = budget_of(n, dim, ratio, num_bytes)
    if _check.instance("method", method, str, "a method's name") == AUTO:
        if options:
            raise ValueError(
                f"method 'auto' chooses all options itself: name a method for {next(iter(options))!r}, such as method='pq'"
            )
        table = _chosen(rows, budget, seed)
    else:
        name = resolved(method)[0]
        table = make_table(method, n, dim, num_bytes=budget, seed=seed, **options)
        if get_method(name).owned:
            raise ValueError(
                f"method {name!r} gives rows to ids as training meets them: there is nothing to learn from vectors"
            )
    if weights is not None and not table.method.learns:
        raise ValueError(f"method {table.spec.method!r} learns no sketch, so weights count nothing: leave them out")
    _learn(table, rows, weights, show_progress)
    return table


def budget_of(n: int, dim: int, ratio: float | None = None, num_bytes: int | None = None) -> int:
    """The most stored bytes, from a ratio or as they are given.

    Raises:
        ValueError, TypeError: both are given, or what is given is not above 0.
    """
    if ratio is not None and num_bytes is not None:
        raise ValueError("give ratio or num_bytes, not both")
    if num_bytes is not None:
        return _check.integer("num_bytes", num_bytes, 1)
    asked = _check.number("ratio", RATIO if ratio is None else ratio, 0.0, open_at_least=True)
    return max(1, int(min(4 * n * dim / asked, 2.0**60)))


def _chosen(rows: NDArray[Any], budget: int, seed: int) -> Table:
    """An empty table of the kind that "auto" takes."""
    n, dim = rows.shape
    for name in ("float32", "bfloat16", "int8"):
        if codec(name).nbytes(n * dim) <= budget:
            return make_table("full", n, dim, codec=name, seed=seed)
    shape = best_shape(n, budget, _covariance(rows, seed))
    if shape is None:
        return make_table("pq", n, dim, num_bytes=budget, n_chunks=1, codec="int8", seed=seed)  # says what would fit
    return Table(TableSpec("pq", n, dim, shape.rank, shape.n_chunks, (shape.rows,), seed, codec="int8"))


def _covariance(rows: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Of a sample of rows."""
    n = min(len(rows), _SAMPLE)
    rng = np.random.Generator(np.random.PCG64(derive_key(seed, SAMPLES)))
    x = rows[some_ids(rng, len(rows), n).astype(np.int64)].astype(np.float64)
    x -= x.mean(0)
    found: NDArray[np.float64] = x.T @ x / n
    return found


def best_shape(n: int, budget: int, covariance: NDArray[np.float64]) -> Shape | None:
    """The shape of the least expected loss whose bytes are within the budget; None where none is.

    Args:
        n: rows of the table.
        budget: bytes.
        covariance: of the vectors, (dim, dim).
    """
    dim, coder = len(covariance), codec("int8")
    variances = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
    found: list[Shape] = []
    plain = {
        n_chunks: [np.maximum(np.linalg.eigvalsh(part)[::-1], 0.0) for part in _blocks(covariance, dim // n_chunks)]
        for n_chunks in divisors(dim)
    }

    def nbytes(n_chunks: int, rank: int, rows: int) -> int:
        pointers = 8 * -(-n * n_chunks * bits_for(rows) // 64)
        return 8 + pointers + coder.nbytes(rows * (rank or dim)) + (4 * (rank + 1) * dim if rank else 0)

    for bits in range(1, min(_MOST_BITS, max(1, bits_for(n))) + 1):
        rows = min(2**bits, n)
        for width in range(1, dim + 1):  # for each width as many chunks as fit: more never lose
            low, high = 0, dim // width
            while low < high:
                middle = (low + high + 1) // 2
                fits = nbytes(middle, middle * width, rows) <= budget
                low, high = (middle, high) if fits else (low, middle - 1)
            if low:
                found.append(Shape(low, low * width, rows, _loss(variances, low * width, low * _worth(bits))))
        for n_chunks, parts in plain.items():
            if nbytes(n_chunks, 0, rows) <= budget:
                loss = sum(_loss(part, len(part), _worth(bits)) for part in parts)
                found.append(Shape(n_chunks, 0, rows, loss))
    return min(found, key=lambda shape: (shape.loss, shape.rank), default=None)


def _blocks(covariance: NDArray[np.float64], width: int) -> list[NDArray[np.float64]]:
    """Of the chunks of a vector as it is."""
    return [covariance[a : a + width, a : a + width] for a in range(0, len(covariance), width)]


def _worth(bits: int) -> float:
    """What a pointer tells of a normal vector: short of its bits, the fewer these are (0.36 of the variance is left by one bit,
    where 0.25 could be).
    """
    return bits * (1 - 0.27 * bits**-0.39)


def _loss(variances: NDArray[np.float64], rank: int, bits: float) -> float:
    """Σ_j min(θ, λ_j) over the first `rank` directions at so many bits in all, and all of the others: reverse water-filling.

    Cover and Thomas, Elements of Information Theory, section 10.3.3.
    """
    total = float(variances.sum())
    positive = variances[: min(rank, int(np.count_nonzero(variances > 1e-12 * max(total, 1e-300))))]
    if not len(positive):
        return total
    m = np.arange(1, len(positive) + 1)
    levels = np.exp2((np.cumsum(np.log2(positive)) - 2 * bits) / m)
    active = np.flatnonzero(levels <= positive)
    last = int(active[-1]) if len(active) else 0
    return float((last + 1) * min(levels[last], positive[last]) + total - positive[: last + 1].sum())


def _learn(table: Table, rows: NDArray[Any], weights: Any, show_progress: bool | None) -> None:
    """The table's memory and sketch, from the rows."""
    plain = hasattr(table, "sketch") and table.plain and not table.spec.rank and not table.method.learns
    if plain and table.layout.columns[0].kind == IDENTITY:
        memory = table.parameters()["memory"].reshape(rows.shape)
        for low in range(0, len(rows), _ROWS):
            memory[low : low + _ROWS] = rows[low : low + _ROWS]
        table.requantize()
        return
    settings: dict[str, Any] = {}
    if table.method.learns:
        settings = {"weights": weights, "n_iter": _N_ITER, "show_progress": show_progress}
    learn(table, rows, **settings)
