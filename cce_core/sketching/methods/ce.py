"""Compositional Embeddings with hashes: a codebook a chunk, addressed by a hash of its own."""

from __future__ import annotations

from cce_core.sketching.layout import HASH, Column, Layout
from cce_core.sketching.method import Request
from cce_core.sketching.rows import RowMethod
from cce_core.sketching.spec import TableSpec


class Compositional(RowMethod):
    """T[i] = [ M₁[h₁(i)], …, M_c[h_c(i)] ]: two ids are equal only where all their hashes are."""

    name = "ce"
    paper = "arXiv:1909.02107"
    summary = "a hashed codebook a chunk, concatenated"
    chunked = True

    def floats_per_row(self, request: Request) -> int:
        """A row in each of the chunks' codebooks."""
        return request.inner

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """A hash a chunk, each into a codebook of its own."""
        (rows,) = spec.sizes
        width = spec.inner // spec.n_chunks
        columns = tuple(Column(HASH, c * rows * width, width, rows, b=c) for c in range(spec.n_chunks))
        return Layout(columns, terms=1, width=width, size=rows * spec.inner, unit=width)
