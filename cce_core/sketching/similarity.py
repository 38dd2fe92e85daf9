"""How like a query all vectors are, straight from their pointers: products of the query with every block, summed by address.

    q · T[i] = Σ_j table[j, index_j(i)]        table[j, k] = q_chunk(j) · M[base_j + stride_j · k : +width]

What is kept of the best is exact in the end: `exact_scores` goes through the vectors themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core._jit import jit
from cce_core.sketching.addressing import TILE, find, unpack
from cce_core.sketching.layout import BASE, STRIDE

DOT, COSINE, L2 = 0, 1, 2


@jit
def indices_range(
    start: int, stop: int, ids: Any, columns: Any, keys: Any, pointers: Any, offsets: Any, lengths: Any, out: Any, squares: Any
) -> None:  # fmt: skip
    """For the ids [start, stop) where each column's number stands in a row of the tables, out[j, n]; and Σ_j lengths[it]."""
    at, fields = np.empty(TILE, np.uint64), np.empty(TILE, np.uint64)
    for low in range(start, stop, TILE):
        high = min(low + TILE, stop)
        for n in range(low, high):
            squares[n] = 0.0
        unpack(low, high, ids, columns, pointers, fields)
        for j in range(columns.shape[0]):
            find(low, high, ids, columns[j], keys, pointers, fields, at)
            base, stride, offset = np.uint64(columns[j, BASE]), np.uint64(columns[j, STRIDE]), offsets[j]
            for n in range(low, high):
                place = offset + np.int32((at[n - low] - base) // stride)
                out[j, n] = place
                squares[n] += lengths[place]


@jit
def sums_range(start: int, stop: int, places: Any, tables: Any, scores: Any) -> None:
    """scores[q, n] = Σ_j tables[q, places[j, n]] for n in [start, stop), in the order of j."""
    for low in range(start, stop, TILE):
        high = min(low + TILE, stop)
        for q in range(tables.shape[0]):
            table, row = tables[q], scores[q]
            for n in range(low, high):
                row[n] = table[places[0, n]]
            for j in range(1, places.shape[0]):
                place = places[j]
                for n in range(low, high):
                    row[n] += table[place[n]]


@jit
def squares_range(start: int, stop: int, vectors: Any, out: Any) -> None:
    """The squared length of vectors [start, stop), in float64, one coordinate after the other."""
    for n in range(start, stop):
        total = 0.0
        for d in range(vectors.shape[1]):
            total += np.float64(vectors[n, d]) * np.float64(vectors[n, d])
        out[n] = total


@jit
def finish_range(
    start: int, stop: int, scores: Any, metric: int, squares: Any, doubt: float, constants: Any, lengths: Any
) -> None:
    """Scores of queries [start, stop), larger is more like, from their products: in place.

    Args:
        metric: DOT; COSINE, product / length, 0 for what has none; L2, −|q − x|².
        squares: of the lengths of the rows, which are right within `doubt`; lengths: of the queries.
        constants: what each query's product with every vector has beside its sums.
    """
    for q in range(start, stop):
        own = lengths[q]
        for n in range(scores.shape[1]):
            product, square = np.float64(scores[q, n]) + constants[q], squares[n]
            if metric == COSINE:
                usable = square > doubt and own > 0.0
                product = product / (own * np.sqrt(square)) if usable else 0.0
            elif metric == L2:
                product = 2.0 * product - square - own * own
            scores[q, n] = np.float32(product)


@jit
def keep_range(start: int, stop: int, scores: Any, first: int, without: Any, best: Any, ids: Any) -> None:
    """The best of queries [start, stop) so far, falling, ties by the lower id: those of rows from `first` on are added."""
    most = best.shape[1]
    for q in range(start, stop):
        least = best[q, most - 1]
        for n in range(scores.shape[1]):
            score = scores[q, n]
            if score > least and first + n != without[q]:
                at = most - 1
                while at > 0 and best[q, at - 1] < score:
                    best[q, at], ids[q, at] = best[q, at - 1], ids[q, at - 1]
                    at -= 1
                best[q, at], ids[q, at] = score, first + n
                least = best[q, most - 1]


@jit
def exact_range(start: int, stop: int, vectors: Any, query: Any, metric: int, out: Any) -> None:
    """How like the query vectors [start, stop) are, larger is more, in float64, one coordinate after the other."""
    own = 0.0
    for d in range(query.shape[0]):
        own += query[d] * query[d]
    for n in range(start, stop):
        product, square = 0.0, 0.0
        for d in range(query.shape[0]):
            x = np.float64(vectors[n, d])
            if metric == L2:
                apart = x - query[d]
                product -= apart * apart
            else:
                product += query[d] * x
                square += x * x
        if metric == COSINE:
            length = np.sqrt(square) * np.sqrt(own)
            product = product / length if length > 0.0 else 0.0
        out[n] = product
