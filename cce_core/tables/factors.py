"""The sketch as a matrix: T = H · M · W, written out for people who want to see or prove something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cce_core.method import block_method, get_method
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.layout import Column, Layout

if TYPE_CHECKING:
    import scipy.sparse


def factors(table: TableState) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, NDArray[np.float32]]:
    """H, M and W of a linear table; see `Table.factors`."""
    import scipy.sparse

    spec = table.spec
    if not get_method(spec.method).is_linear(spec):
        raise ValueError(f"method {spec.method!r} is not linear: it has no sketch matrix")
    if spec.vocab is None:
        raise ValueError("an unbounded table has no sketch matrix: make it with a vocab")
    method, layout = block_method(spec.method), table.layout
    rows_of, n_blocks = _block_rows(layout)
    ids = np.arange(spec.vocab, dtype=np.uint64)
    at = blocks.addresses(table.sketch, ids)
    weights, found = method.weights_of(table, ids)
    column = np.empty(at.shape, np.int64)
    for j, place in enumerate(layout.columns):
        column[:, j] = rows_of[j] + (at[:, j] - place.base) // place.stride
    values = np.ones(at.shape, np.float32) if weights is None else weights
    m = _memory(table, rows_of, n_blocks)
    if found is not None and method.appends_weights(spec):  # each weight is a coordinate: a row of its own in M
        column = np.hstack([column, np.broadcast_to(n_blocks + np.arange(found.shape[1]), found.shape)])
        values = np.hstack([values, found])
        m = scipy.sparse.csr_array(scipy.sparse.block_diag([m, np.eye(found.shape[1], dtype=np.float32)]))
        n_blocks += found.shape[1]
    w = table.arrays().get("projection")
    if w is not None:  # the bias is a block that all ids share: the constant 1, a coordinate of its own
        column = np.hstack([column, np.full((len(ids), 1), n_blocks)])
        values = np.hstack([values, np.ones((len(ids), 1), np.float32)])
        m = scipy.sparse.csr_array(scipy.sparse.block_diag([m, np.ones((1, 1), np.float32)]))
        n_blocks += 1
    ends = np.arange(spec.vocab + 1) * (column.size // spec.vocab)
    h = scipy.sparse.csr_array((values.reshape(-1), column.reshape(-1), ends), shape=(spec.vocab, n_blocks))
    h.sum_duplicates()
    return h, m, np.eye(spec.dim, dtype=np.float32) if w is None else w


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


def _memory(table: TableState, rows_of: list[int], n_blocks: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    layout, memory = table.layout, table.stored.decoded()
    values = np.empty((n_blocks, layout.width), np.float32)
    left = np.empty(n_blocks, np.int64)
    inside = np.arange(layout.width)
    for j, place in enumerate(layout.columns):
        rows = slice(rows_of[j], rows_of[j] + place.rows)
        starts = place.stride * np.arange(place.rows)
        values[rows] = memory[place.base + (starts[:, None] + inside) % place.size]
        left[rows] = (j // layout.terms) * layout.width
    ends = np.arange(n_blocks + 1) * layout.width
    columns = (left[:, None] + inside).reshape(-1)
    return scipy.sparse.csr_array((values.reshape(-1), columns, ends), shape=(n_blocks, layout.dim))
