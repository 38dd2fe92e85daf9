"""ROBE: every chunk is a window, hashed to any place, of one flat array that wraps round."""

from __future__ import annotations

from cce_core.sketching.layout import HASH, Column, Layout
from cce_core.sketching.method import Request
from cce_core.sketching.rows import RowMethod
from cce_core.sketching.spec import TableSpec


class Robe(RowMethod):
    """T[i, c·w : (c+1)·w] = M[h_c(i) : h_c(i) + w], indices modulo the size of M."""

    name = "robe"
    paper = "arXiv:2108.02191"
    summary = "windows, hashed to any place, of one flat circular memory"
    chunked = True

    def floats_per_row(self, request: Request) -> int:
        """A place in the memory is one float."""
        return 1

    def least_rows(self, request: Request) -> int:
        """One window."""
        return request.inner // request.n_chunks

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """A hash a chunk, all into the same memory, to any float of it."""
        (size,) = spec.sizes
        columns = tuple(Column(HASH, 0, 1, size, b=c) for c in range(spec.n_chunks))
        return Layout(columns, terms=1, width=spec.inner // spec.n_chunks, size=size, unit=1)
