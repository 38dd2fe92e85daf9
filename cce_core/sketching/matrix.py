"""The sketch as a matrix: T = H · M · W, written out for people who want to see or prove something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cce_core.sketching import blocks
from cce_core.sketching.layout import Column, Layout

if TYPE_CHECKING:
    import scipy.sparse

    from cce_core.sketching.table import Table


def factors(table: Table) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, NDArray[np.float32]]:
    """H, M and W of a linear table; see `Table.factors`."""
    import scipy.sparse

    spec = table.spec
    if not table.method.linear:
        raise ValueError(f"method {spec.method!r} is not linear: it has no sketch matrix")
    layout = table.layout
    if spec.vocab is None:
        raise ValueError("an unbounded table has no sketch matrix: make it with a vocab")
    rows_of, n_blocks = _block_rows(layout)
    ids = np.arange(spec.vocab, dtype=np.uint64)
    at, weights = blocks.addresses(table.sketch, ids), blocks.signs(table.sketch, ids)
    column = np.empty(at.shape, np.int64)
    for j, place in enumerate(layout.columns):
        column[:, j] = rows_of[j] + (at[:, j] - place.base) // place.stride
    ends = np.arange(spec.vocab + 1) * len(layout.columns)
    h = scipy.sparse.csr_array((weights.reshape(-1), column.reshape(-1), ends), shape=(spec.vocab, n_blocks))
    h.sum_duplicates()
    w = table.parameters().get("projection")
    return h, _memory(table, rows_of, n_blocks), np.eye(spec.dim, dtype=np.float32) if w is None else w


def _region(layout: Layout, j: int) -> tuple[int, Column]:
    """What two columns must share for their blocks to be the same rows of M: the chunk and the region."""
    c = layout.columns[j]
    return j // layout.terms, Column(0, c.base, c.stride, c.rows)


def _block_rows(layout: Layout) -> tuple[list[int], int]:
    """The first row of M for each column, and how many rows there are."""
    first: dict[tuple[int, Column], int] = {}
    total = 0
    for j in range(len(layout.columns)):
        if _region(layout, j) not in first:
            first[_region(layout, j)] = total
            total += layout.columns[j].rows
    return [first[_region(layout, j)] for j in range(len(layout.columns))], total


def _memory(table: Table, rows_of: list[int], n_blocks: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    layout, memory = table.layout, table.stored.decoded()
    values = np.empty((n_blocks, layout.width), np.float32)
    left = np.empty(n_blocks, np.int64)
    inside = np.arange(layout.width)
    for j, place in enumerate(layout.columns):
        rows = slice(rows_of[j], rows_of[j] + place.rows)
        starts = place.base + place.stride * np.arange(place.rows)
        values[rows] = memory[(starts[:, None] + inside) % layout.size]
        left[rows] = (j // layout.terms) * layout.width
    ends = np.arange(n_blocks + 1) * layout.width
    columns = (left[:, None] + inside).reshape(-1)
    return scipy.sparse.csr_array((values.reshape(-1), columns, ends), shape=(n_blocks, layout.dim))
