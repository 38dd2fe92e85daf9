"""Product quantisation: a learned pointer a chunk, found after training."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import POINTER, Column, Layout
from cce_core.storage.packed import bits_for


class ProductQuantization(SizedMethod):
    """T[i, chunk c] = M_c[pointer_c(i)]: `cluster(vectors=…)` learns pointers and codebooks from a trained table.

    The codebooks can be trained on afterwards; the pointers stay.
    """

    name = "pq"
    paper = "Jégou et al., IEEE TPAMI 33 (2011)"
    summary = "a learned pointer a chunk, from a table that was trained before"
    stores = "4·rows·dim, and n_chunks·⌈log₂ rows⌉ bits an id"
    takes = "n_chunks pointers and a copy of dim floats"
    learns = True
    post_training = True
    chunked = True

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'pq' needs a vocab: it keeps pointers for every id; 'ce' takes unbounded ids")

    def floats_per_row(self, request: Request) -> int:
        """A row in each of the chunks' codebooks."""
        return request.inner

    def pointers(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def hashes(self, request: Request) -> int:
        """None."""
        return 0

    def least_rows(self, request: Request) -> int:
        """Two of a budget in bytes: with one, all ids would have the same vector. A budget of parameters says what it wants."""
        return 1 if request.num_params is not None else min(2, request.vocab or 2)

    def most_rows(self, request: Request) -> int:
        """One an id."""
        assert request.vocab is not None
        return request.vocab

    def layout(self, spec: TableSpec) -> Layout:
        """A pointer a chunk, each into a codebook of its own."""
        (rows,) = spec.sizes
        width, bits = spec.inner // spec.n_chunks, bits_for(rows)
        columns = tuple(
            Column(POINTER, c * rows * width, width, rows, a=c * bits, b=bits) for c in range(spec.n_chunks)
        )
        return Layout(
            columns, terms=1, width=width, size=rows * spec.inner, unit=width, bits_per_id=spec.n_chunks * bits
        )
