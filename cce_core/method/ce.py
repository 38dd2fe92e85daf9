"""Compositional Embeddings with hashes: a codebook a chunk, addressed by a hash of its own."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.combining import Combining
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout


class Compositional(Combining):
    """T[i] = [ M₁[h₁(i)], …, M_c[h_c(i)] ], or their sum or product: two ids are equal only where all their hashes are."""

    name = "ce"
    paper = "arXiv:1909.02107"
    summary = "a hashed codebook a chunk, concatenated (combine: concat, add or mul)"
    stores = "4·rows·dim"
    takes = "n_chunks hashes and a copy of dim floats"
    options = {"combine": "concat"}

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """A hash a chunk, each into a codebook of its own."""
        return self.combined(spec, tuple(Column(HASH, 0, 0, spec.sizes[0], b=c) for c in range(spec.n_chunks)))
