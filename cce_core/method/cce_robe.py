"""CCE on circular memories: learned and hashed windows of two flat arrays, as in ROBE."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.storage.packed import bits_for


class ClusteredRobe(SizedMethod):
    """T[i, c·w : (c+1)·w] = M[pointer_c(i) : +w] + M'[hash_c(i) : +w], each modulo the size of its half.

    All chunks share M and M'. `cluster()` finds M and the pointers by circular k-means.
    """

    name = "cce_robe"
    paper = "arXiv:2210.05974 with arXiv:2108.02191"
    summary = "a learned and a hashed window a chunk, of two circular memories, clustered while training"
    stores = "8·size, and n_chunks·⌈log₂ size⌉ bits an id"
    takes = "n_chunks pointers, n_chunks hashes and 2·dim floats"
    learns = True
    learner = "windows"
    chunked = True

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError(
                "method 'cce_robe' needs a vocab: it keeps pointers for every id; 'robe' takes unbounded ids"
            )

    def floats_per_row(self, request: Request) -> int:
        """A place in each half."""
        return 2

    def least_rows(self, request: Request) -> int:
        """One window."""
        return request.inner // request.n_chunks

    def pointers(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """Offsets into the learned half, then hashes into the other."""
        (m,) = spec.sizes
        bits, columns = bits_for(m), []
        for c in range(spec.n_chunks):
            columns.append(Column(POINTER, 0, 1, m, a=c * bits, b=bits, region=m))
            columns.append(Column(HASH, m, 1, m, b=c, region=m))
        width, per_id = spec.inner // spec.n_chunks, spec.n_chunks * bits
        return Layout(tuple(columns), terms=2, width=width, size=2 * m, unit=1, bits_per_id=per_id)
