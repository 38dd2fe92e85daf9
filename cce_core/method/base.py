"""What a method of compression must say of itself."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.spec import ROUNDINGS, ArraySpec, Option, TableSpec
from cce_core.method.state import TableState
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.layout import Layout
from cce_core.storage.codec import Codec, codec
from cce_core.tiers import Owners

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
    codec: Codec = dataclasses.field(default_factory=lambda: codec("float32"))

    @classmethod
    def of(cls, spec: TableSpec) -> Request:
        """What a spec must have been made from, its budget aside: none is too small for it."""
        options = dict(spec.options)
        return cls(spec.vocab, spec.dim, spec.rank, spec.n_chunks, 0, None, options, codec(spec.codec))

    @property
    def inner(self) -> int:
        """Floats of the vectors that the memory gives."""
        return self.rank or self.dim

    @property
    def n_tables(self) -> int:
        """Tables that share one memory, each with a projection of its own."""
        return int(self.options.get("tables") or 1)

    @property
    def projection(self) -> int:
        """Floats of the projection: a row for each float of the memory's vectors, and the bias."""
        return (self.rank + 1) * self.dim * self.n_tables if self.rank else 0

    @property
    def budget(self) -> str:
        """The budget in words."""
        return f"{self.num_params:,} parameters" if self.num_params is not None else f"{self.num_bytes:,} bytes"

    def too_small(self, name: str, params: int, nbytes: int) -> str:
        """What a BudgetError says, with the least that fits."""
        vocab = "unbounded" if self.vocab is None else f"{self.vocab:,}"
        least = f"{params:,} parameters" if self.num_params is not None else f"{nbytes:,} bytes"
        return (
            f"{self.budget} are too few for {name!r} with vocab {vocab}, dim {self.dim}, rank {self.rank} and "
            f"{self.n_chunks} chunks: the least that fits is {least}"
        )


class Method(abc.ABC):
    """One way to get vectors from ids and few numbers.

    Attributes:
        name: what `make_table` calls it.
        paper: where it was described.
        summary: one line.
        stores: bytes, for a float32 memory.
        takes: the work of a lookup, for one id.
        learns: whether `cluster()` learns its sketch from the trained vectors.
        learner: how it learns: "codebooks" a chunk, "windows" of one circular memory, or sparse "codes".
        phased: whether `cluster()` changes what is stored, as the option `phase` says.
        owned: whether training gives rows to ids and takes them away, as `Method.owners` says.
        post_training: whether it is learned from a trained table, by `cluster(vectors=…)`, rather than from its own vectors.
        linear: whether the table is H · M · W.
        chunked: whether `n_chunks` means something to it.
        budgeted: whether its size follows from a budget (`full` is as large as the vocabulary).
        projects: whether a rank may be asked for.
        codecs: whether its memory may be kept in another codec than float32.
        default_codec: the codec where the caller names none.
        default_rounding: the rounding where the caller names none.
        options: its own options and their defaults.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    stores: ClassVar[str]
    takes: ClassVar[str]
    learns: ClassVar[bool] = False
    learner: ClassVar[str] = "codebooks"
    phased: ClassVar[bool] = False
    owned: ClassVar[bool] = False
    post_training: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    chunked: ClassVar[bool] = False
    budgeted: ClassVar[bool] = True
    projects: ClassVar[bool] = True
    codecs: ClassVar[bool] = True
    default_codec: ClassVar[str] = "float32"
    default_rounding: ClassVar[str] = ROUNDINGS[0]
    options: ClassVar[Mapping[str, Option]] = {}

    def __repr__(self) -> str:
        learns = ", learns its sketch" if self.learns else ""
        return f"<{self.name}: {self.summary} ({self.paper}{learns}); bytes: {self.stores}; a lookup: {self.takes}>"

    def check(self, request: Request) -> None:
        """Refuse what makes no sense for this method."""

    def rank(self, request: Request) -> int:
        """The rank that the method takes where the caller names none."""
        return 0

    def splits(self, options: Mapping[str, Option]) -> bool:
        """Whether `n_chunks` divides the vector, and so must divide its width."""
        return True

    def is_linear(self, spec: TableSpec) -> bool:
        """Whether a table of this spec is H · M · W."""
        return self.linear

    def served(self, spec: TableSpec) -> TableSpec:
        """What a budget counts the bytes of: the spec itself, but for a method with phases that of the last one."""
        return spec

    def clustered(self, spec: TableSpec) -> list[TableSpec]:
        """All that `cluster()` may make of a spec with phases, the one with the most bytes, `served`, first."""
        return [self.served(spec)]

    def reopened(self, spec: TableSpec) -> TableSpec:
        """What `reopen()` makes of a clustered spec."""
        return spec

    def shape(self, spec: TableSpec) -> tuple[int, ...]:
        """The sizes that the arrays have, to be shown: those of the spec, where `cluster()` chose no others."""
        return spec.sizes

    @abc.abstractmethod
    def sizes(self, request: Request) -> tuple[int, ...]:
        """The sizes that make the most of the budget and stay within it; BudgetError where none do."""

    @abc.abstractmethod
    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """Refuse sizes that `sizes` gives for no budget: nothing is made of those of a file before."""

    def nbytes(self, spec: TableSpec) -> int:
        """Bytes of all arrays, the projection included, in closed form."""
        arrays = sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in self.arrays(spec).values())
        return arrays + 4 * Request.of(spec).projection

    def layout(self, spec: TableSpec) -> Layout | None:
        """The addresses, of a method that is made of blocks."""
        return None

    def weight_layout(self, spec: TableSpec) -> Layout | None:
        """The addresses of the weights of its blocks, where they have any: vectors of one float for each column of `layout`."""
        return None

    def is_plain(self, spec: TableSpec) -> bool:
        """Whether a vector is a plain sum of blocks, as one compiled call for many tables takes it."""
        return False

    @abc.abstractmethod
    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """The arrays of a table, the projection aside."""

    @abc.abstractmethod
    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """First values of the trained arrays (float32, whatever the codec), and the other arrays."""

    def owners(self, spec: TableSpec, arrays: Mapping[str, NDArray[Any]]) -> Owners | None:
        """Who owns which row, over the arrays of a table, for a method whose training gives rows to ids."""
        return None

    @abc.abstractmethod
    def forward(self, table: TableState, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Any]:
        """Vectors of flat, checked ids before any projection, float32 (n, spec.inner).

        With `keep`, the second is whatever spares `backward` work; None otherwise.
        """

    @abc.abstractmethod
    def backward(
        self, table: TableState, ids: NDArray[np.uint64], saved: Any, grads: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """The gradient of each trained array, from float32 (n, spec.inner) of the vectors.

        `saved` is what `forward` of the same ids gave, or None. Sparse gradients are wanted unless `dense`; where an array
        is always touched as a whole a dense one (flat, float32) is right in either case.
        """


def checked_chunks(method: Method, options: Mapping[str, Option], n_chunks: int | None, inner: int, what: str) -> int:
    """The number of chunks, which must divide the width of a vector where it splits it; 1 for a method without chunks."""
    if not method.chunked:
        return 1
    chunks = _check.integer("n_chunks", 4 if n_chunks is None else n_chunks, 1)
    if inner % chunks and method.splits(options):
        near = ", ".join(map(str, divisors(inner)))
        raise ValueError(f"{what} {inner} is not divisible by n_chunks {chunks}; choose n_chunks among {near}")
    return chunks


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
