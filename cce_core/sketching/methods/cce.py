"""Clustered Compositional Embeddings: a learned pointer and a fresh hash a chunk."""

from __future__ import annotations

import dataclasses

from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.sketching.method import Request
from cce_core.sketching.rows import RowMethod
from cce_core.sketching.spec import TableSpec
from cce_core.storage.packed import bits_for


class Clustered(RowMethod):
    """T[i, chunk c] = M_c[pointer_c(i)] + M'_c[hash_c(i)]; `cluster()` makes the clusters of these sums the pointers."""

    name = "cce"
    paper = "arXiv:2210.05974"
    summary = "a learned pointer and a fresh hash a chunk, clustered while training"
    stores = "8·rows·rank, the projection, and n_chunks·⌈log₂ rows⌉ bits an id"
    takes = "n_chunks pointers, n_chunks hashes, 2·rank floats and rank·dim multiplications"
    learns = True
    chunked = True

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'cce' needs a vocab: it keeps pointers for every id; 'ce' takes unbounded ids")

    def rank(self, request: Request) -> int:
        """The rank chosen by measurement: a few floats a chunk buy the rows that matter more.

        The largest rank at which every id may have a row of its own; where none gives that, two floats a chunk, or one
        where the projection would then take more than a quarter of the budget. 0 where a projection has nothing to gain.
        """
        assert request.vocab is not None
        chunks, dim = request.n_chunks, request.dim
        budget = request.num_params if request.num_params is not None else (request.num_bytes or 0) // 4
        for rank in (0, *range((dim - 1) // chunks * chunks, 0, -chunks)):
            if self.rows(dataclasses.replace(request, rank=rank)) >= request.vocab:
                return rank
        small = [rank for rank in (2 * chunks, chunks) if rank < dim and 4 * rank * dim <= budget]
        return small[0] if small else 0

    def floats_per_row(self, request: Request) -> int:
        """A row in both codebooks of every chunk."""
        return 2 * request.inner

    def pointers(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """A chunk's two codebooks lie side by side: the learned one, then the hashed one."""
        (rows,) = spec.sizes
        width, bits = spec.inner // spec.n_chunks, bits_for(rows)
        codebook = rows * width
        columns = []
        for c in range(spec.n_chunks):
            columns.append(Column(POINTER, 2 * c * codebook, width, rows, a=c * bits, b=bits))
            columns.append(Column(HASH, (2 * c + 1) * codebook, width, rows, b=c))
        return Layout(
            tuple(columns),
            terms=2,
            width=width,
            size=2 * rows * spec.inner,
            unit=width,
            bits_per_id=spec.n_chunks * bits,
        )
