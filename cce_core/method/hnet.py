"""HashedNets: every single number of a vector is hashed into the memory."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout


class HashedNet(SizedMethod):
    """T[i, j] = s_j(i) · M[h_j(i)]: a hash for each coordinate, and, where `signed`, a sign."""

    name = "hnet"
    paper = "arXiv:1504.04788"
    summary = "every coordinate hashed into one flat memory; signed=True draws signs as well"
    stores = "4·size, and 8·dim of keys"
    takes = "dim hashes, each for one float"
    options = {"signed": False}

    def floats_per_row(self, request: Request) -> int:
        """A place in the memory is one float."""
        return 1

    def hashes(self, request: Request) -> int:
        """One a coordinate."""
        return request.inner

    def layout(self, spec: TableSpec) -> Layout:
        """A chunk a coordinate, one float wide."""
        (size,), signed = spec.sizes, int(spec.option("signed"))
        columns = tuple(Column(HASH, 0, 1, size, a=signed, b=j) for j in range(spec.inner))
        return Layout(columns, terms=1, width=1, size=size, unit=1)
