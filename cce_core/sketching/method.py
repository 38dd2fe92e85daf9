"""What a method of compression must say of itself, and the sizing that most of them share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.sketching.blocks import Layout
from cce_core.sketching.spec import BudgetError, Option, TableSpec
from cce_core.storage.packed import Packing, bits_for

_MOST_BITS = 48

# Root mean square norm of the first vectors. Dot products of smaller ones start near 0, and training then does not have
# to undo them first: on MovieLens 100K, 20 epochs, the full table reaches AUC 0.843 from norm 0.2, 0.841 from 0.35,
# 0.838 from 0.5, 0.824 from 1 and 0.807 from 1.5; the hashed methods follow the same order.
INITIAL_NORM = 0.25


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caller wants, checked: the sizes, and a budget in parameters, in bytes, or none."""

    vocab: int | None
    dim: int
    rank: int
    n_chunks: int
    num_params: int | None
    num_bytes: int | None
    options: Mapping[str, Option]

    @property
    def inner(self) -> int:
        """Floats of the vectors that the memory gives."""
        return self.rank or self.dim

    @property
    def budget(self) -> str:
        """The budget in words."""
        return f"{self.num_params:,} parameters" if self.num_params is not None else f"{self.num_bytes:,} bytes"


class Method(abc.ABC):
    """One way to get addresses from an id.

    Attributes:
        name: what `make_table` calls it.
        paper: where it was described.
        summary: one line.
        learns: whether `cluster()` learns its sketch from the trained vectors.
        linear: whether the table is H · M · W.
        chunked: whether `n_chunks` means something to it.
        budgeted: whether its size follows from a budget (`full` is as large as the vocabulary).
        options: its own options and their defaults.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    learns: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    chunked: ClassVar[bool] = False
    budgeted: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {}

    def __repr__(self) -> str:
        return f"<{self.name}: {self.summary} ({self.paper})>"

    def check(self, request: Request) -> None:
        """Refuse what makes no sense for this method."""

    def rank(self, request: Request) -> int:
        """The rank that the method takes where the caller names none."""
        return 0

    @abc.abstractmethod
    def sizes(self, request: Request) -> tuple[int, ...]:
        """The sizes that make the most of the budget and stay within it; BudgetError where none do."""

    @abc.abstractmethod
    def layout(self, spec: TableSpec) -> Layout:
        """The addresses."""

    def memory(self, spec: TableSpec, layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """The first values of the memory: normal, so that vectors have norm `INITIAL_NORM` whatever the sizes are.

        A projection begins with the variance 1 / rank, so a float of the memory has the same one with it and without.
        """
        values = rng.standard_normal(layout.size, np.float32)
        values *= np.float32(INITIAL_NORM * (spec.dim * layout.terms) ** -0.5)
        return values


class RowMethod(Method):
    """A method whose whole size is one number of rows, found in closed form from the budget."""

    @abc.abstractmethod
    def floats_per_row(self, request: Request) -> int:
        """Floats of memory that one more row costs."""

    def pointers(self, request: Request) -> int:
        """Packed pointers an id."""
        return 0

    @abc.abstractmethod
    def hashes(self, request: Request) -> int:
        """Hash keys that are stored."""

    def least_rows(self, request: Request) -> int:
        """The fewest rows that make a table."""
        return 1

    def most_rows(self, request: Request) -> int:
        """Rows past which more would be of no use."""
        return 2**_MOST_BITS

    def rows(self, request: Request) -> int:
        """The most rows that fit the budget; below `least_rows` where it is too small."""
        if request.num_params is not None:
            return (request.num_params - request.rank * request.dim) // self.floats_per_row(request)
        return max(self._rows_in(request, bits) for bits in range(_MOST_BITS + 1))

    def sizes(self, request: Request) -> tuple[int, ...]:
        """Rows: the most that fit."""
        rows, least = self.rows(request), self.least_rows(request)
        if rows < least:
            if request.num_params is not None:
                needed, kind = least * self.floats_per_row(request) + request.rank * request.dim, "parameters"
            else:
                needed, kind = self._bytes(request, least), "bytes"
            vocab = "unbounded" if request.vocab is None else f"{request.vocab:,}"
            raise BudgetError(
                f"{request.budget} are too few for {self.name!r} with vocab {vocab}, dim {request.dim}, rank "
                f"{request.rank} and {request.n_chunks} chunks: the least that fits is {needed:,} {kind}"
            )
        return (min(rows, self.most_rows(request)),)

    def _fixed(self, request: Request, bits: int) -> int:
        """Bytes that do not grow with the rows, for pointers of so many bits."""
        vocab, pointers = request.vocab or 0, self.pointers(request)
        packed = 8 * Packing(vocab, (bits,) * pointers).n_words
        return 4 * request.rank * request.dim + 8 * self.hashes(request) + 8 * self.learns + packed

    def _bytes(self, request: Request, rows: int) -> int:
        return self._fixed(request, bits_for(rows)) + 4 * rows * self.floats_per_row(request)

    def _rows_in(self, request: Request, bits: int) -> int:
        """The most rows that pointers of `bits` bits can tell apart and the bytes can hold."""
        assert request.num_bytes is not None
        room = request.num_bytes - self._fixed(request, bits)
        fit = room // (4 * self.floats_per_row(request))
        return min(fit, 2**bits) if self.pointers(request) else fit


def checked_chunks(method: Method, n_chunks: int | None, inner: int, what: str) -> int:
    """The number of chunks, which must divide the width of a vector; 1 for a method without chunks."""
    if not method.chunked:
        return 1
    chunks = _check.integer("n_chunks", 4 if n_chunks is None else n_chunks, 1)
    if inner % chunks:
        near = [c for c in range(1, inner + 1) if inner % c == 0]
        raise ValueError(
            f"{what} {inner} is not divisible by n_chunks {chunks}; choose n_chunks among {', '.join(map(str, near))}"
        )
    return chunks
