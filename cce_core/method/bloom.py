"""Bloom embeddings: several hashed rows of one memory, summed."""

from __future__ import annotations

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout


class Bloom(SizedMethod):
    """T[i] = Σ_t s_t(i) · M[h_t(i)], t < n_hashes: two ids are equal only where all their rows are."""

    name = "bloom"
    paper = "arXiv:1706.03993"
    summary = "the sum of several hashed rows; signed=True draws signs as well"
    stores = "4·rows·dim"
    takes = "n_hashes hashes and as many additions of dim floats"
    options = {"n_hashes": 4, "signed": False}

    def check(self, request: Request) -> None:
        """A sum needs a term."""
        _check.integer("n_hashes", request.options["n_hashes"], 1, 64)

    def floats_per_row(self, request: Request) -> int:
        """One vector."""
        return request.inner

    def hashes(self, request: Request) -> int:
        """One a term."""
        return int(request.options["n_hashes"] or 0)

    def layout(self, spec: TableSpec) -> Layout:
        """All terms hash into the same rows."""
        (rows,), terms = spec.sizes, spec.option("n_hashes")
        signed = int(spec.option("signed"))
        columns = tuple(Column(HASH, 0, spec.inner, rows, a=signed, b=t) for t in range(terms))
        return Layout(columns, terms, width=spec.inner, size=rows * spec.inner, unit=spec.inner)
