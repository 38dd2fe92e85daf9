"""The table that all others are measured against: a row of its own for every id."""

from __future__ import annotations

from cce_core.method.base import Request
from cce_core.method.block import BlockMethod
from cce_core.method.spec import BudgetError, TableSpec
from cce_core.sketching.layout import IDENTITY, Column, Layout


class Full(BlockMethod):
    """T = M: row i of the memory is the vector of id i. With a rank, T = M · W is the narrow table (`ldim`)."""

    name = "full"
    paper = "the plain embedding table"
    summary = "a row of its own for every id"
    stores = "4·dim an id"
    takes = "a copy of dim floats"
    budgeted = False

    def check(self, request: Request) -> None:
        """A row an id needs a last id."""
        if request.vocab is None:
            raise ValueError(
                f"method {self.name!r} needs a vocab: it keeps a row for every id; 'hash' takes unbounded ids"
            )

    def sizes(self, request: Request) -> tuple[int, ...]:
        """No choice: the vocabulary says it all; a budget is checked where one is given."""
        assert request.vocab is not None
        params = request.vocab * request.inner + request.projection
        if request.num_params is not None and params > request.num_params:
            raise BudgetError(f"{request.budget} are too few for {self.name!r}: it takes {params:,} parameters")
        nbytes = request.codec.nbytes(request.vocab * request.inner) + 4 * request.projection
        if request.num_bytes is not None and nbytes > request.num_bytes:
            raise BudgetError(f"{request.budget} are too few for {self.name!r}: it takes {nbytes:,} bytes")
        return ()

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """None."""
        if sizes:
            raise ValueError(f"a {self.name!r} table has no sizes but its vocabulary, got {len(sizes)}")

    def layout(self, spec: TableSpec) -> Layout:
        """One column: the id itself."""
        assert spec.vocab is not None
        size = spec.vocab * spec.inner
        column = Column(IDENTITY, 0, spec.inner, spec.vocab)
        return Layout((column,), terms=1, width=spec.inner, size=size, unit=spec.inner)


class Narrow(Full):
    """T = M · W + b: a row of its own for every id, but a narrow one, with a trained projection behind it."""

    name = "ldim"
    paper = "the narrow embedding table"
    summary = "a narrow row of its own for every id, widened by a trained projection"
    stores = "4·rank an id, and the projection"
    takes = "a copy of rank floats and rank·dim multiplications"
    budgeted = True

    def rank(self, request: Request) -> int:
        """The widest row that fits the budget."""
        assert request.vocab is not None

        def cost(rank: int) -> tuple[int, int]:
            floats = request.vocab * rank if request.vocab else 0
            projection = (rank + 1) * request.dim
            return floats + projection, request.codec.nbytes(floats) + 4 * projection

        def fits(rank: int) -> bool:
            params, nbytes = cost(rank)
            return (
                params <= request.num_params if request.num_params is not None else nbytes <= (request.num_bytes or 0)
            )

        if not fits(1):
            raise BudgetError(request.too_small(self.name, *cost(1)))
        return max(rank for rank in range(1, request.dim + 1) if fits(rank))


class Int8(Full):
    """The full table in whole numbers of 8 bits, with a scale for every 64."""

    name = "int8"
    summary = "a row of its own for every id, in 8 bits a number"
    stores = "1.06·dim an id"
    takes = "dim bytes decoded"
    default_codec = "int8"


class Int4(Full):
    """The full table in whole numbers of 4 bits, with a scale for every 64."""

    name = "int4"
    summary = "a row of its own for every id, in 4 bits a number"
    stores = "0.56·dim an id"
    takes = "dim/2 bytes decoded"
    default_codec = "int4"
