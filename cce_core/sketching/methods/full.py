"""The table that all others are measured against: a row of its own for every id."""

from __future__ import annotations

from cce_core.sketching.block_method import BlockMethod
from cce_core.sketching.layout import IDENTITY, Column, Layout
from cce_core.sketching.method import Request
from cce_core.sketching.spec import BudgetError, TableSpec


class Full(BlockMethod):
    """T = M: row i of the memory is the vector of id i. With a rank, T = M · W is the narrow table (`ldim`)."""

    name = "full"
    paper = "the plain embedding table"
    summary = "a row of its own for every id"
    budgeted = False

    def check(self, request: Request) -> None:
        """A row an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'full' needs a vocab: it keeps a row for every id; 'hash' takes unbounded ids")

    def sizes(self, request: Request) -> tuple[int, ...]:
        """No choice: the vocabulary says it all; a budget is checked where one is given."""
        assert request.vocab is not None
        params = request.vocab * request.inner + request.rank * request.dim
        if request.num_params is not None and params > request.num_params:
            raise BudgetError(f"{request.budget} are too few for 'full': it takes {params:,} parameters")
        nbytes = request.codec.nbytes(request.vocab * request.inner) + 4 * request.rank * request.dim
        if request.num_bytes is not None and nbytes > request.num_bytes:
            raise BudgetError(f"{request.budget} are too few for 'full': it takes {nbytes:,} bytes")
        return ()

    def layout(self, spec: TableSpec) -> Layout:
        """One column: the id itself."""
        assert spec.vocab is not None
        size = spec.vocab * spec.inner
        column = Column(IDENTITY, 0, spec.inner, spec.vocab)
        return Layout((column,), terms=1, width=spec.inner, size=size, unit=spec.inner)
