"""The Hashing Trick: ids share rows at random."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout


class HashingTrick(SizedMethod):
    """T[i] = s(i) · M[h(i)], with a drawn sign s(i) where `signed` (Count Sketch) and s = 1 otherwise."""

    name = "hash"
    paper = "arXiv:0902.2206"
    summary = "one hashed row an id; signed=True draws a sign as well"
    stores = "4·rows·dim"
    takes = "a hash and a copy of dim floats"
    options = {"signed": False}

    def floats_per_row(self, request: Request) -> int:
        """One vector."""
        return request.inner

    def hashes(self, request: Request) -> int:
        """One."""
        return 1

    def layout(self, spec: TableSpec) -> Layout:
        """One column: a hash."""
        (rows,) = spec.sizes
        column = Column(HASH, 0, spec.inner, rows, a=int(spec.option("signed")), b=0)
        return Layout((column,), terms=1, width=spec.inner, size=rows * spec.inner, unit=spec.inner)
