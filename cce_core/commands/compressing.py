"""`cce compress`: a file of vectors becomes a table, with the names of its rows beside it, and what it has kept is said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from cce_core.commands import data
from cce_core.datasets.vectors import Vectors
from cce_core.method import get_method, resolved
from cce_core.tables.compressing import AUTO, compress
from cce_core.tables.faithful import Faithfulness, faithfulness, held_out
from cce_core.tables.table import Table


def made(
    found: Vectors, ratio: float | None, num_bytes: int | None, method: str, seed: int, n_queries: int, k: int
) -> tuple[Table, Faithfulness | None]:
    """The table, and what is left by rows that it has not learned from."""
    n = len(found.values)
    rows = held_out(n, n_queries, seed) if n_queries and n > 1 else np.empty(0, np.int64)
    weights: Any = None
    if len(rows) and (method == AUTO or get_method(resolved(method)[0]).learns):
        weights = np.ones(n, np.float32)
        weights[rows] = 0
    settings: dict[str, Any] = {"ratio": ratio, "num_bytes": num_bytes, "method": method, "seed": seed}
    table = compress(found.values, weights=weights, **settings)
    return table, faithfulness(table, found.values, rows, k) if len(rows) else None


def saved(table: Table, found: Vectors, out: Path) -> list[Path]:
    """The table in a file, and the names of its rows beside it; names of an earlier table there are removed."""
    table.save(out)
    if found.words is None:
        data.ids_beside(out).unlink(missing_ok=True)
        return [out]
    data.write_ids(out, found.words)
    return [out, data.ids_beside(out)]


def told(table: Table, found: Vectors, kept: Faithfulness | None, files: list[Path], start: float) -> str:
    """What the command prints."""
    n, dim = found.values.shape
    stored = table.ledger().total
    lines = [
        f"{n:,} vectors of {dim}{'' if found.words is None else ', with names'}: {4 * n * dim:,} bytes -> {stored:,}, "
        f"1/{4 * n * dim / stored:.1f}",
        repr(table),
        *([] if kept is None else [str(kept)]),
        f"saved: {', '.join(map(str, files))} ({time.perf_counter() - start:.0f} s)",
    ]
    return "\n".join(lines)
