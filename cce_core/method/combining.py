"""What `ce` and `qr` share: a codebook a chunk, and three ways to put the chunks' blocks together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.base import INITIAL_NORM, Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.layout import Column, Layout

COMBINES = ("concat", "add", "mul")


class Combining(SizedMethod):
    """Blocks B_c of the chunks' codebooks as one vector: [B₁, …, B_c] (concat), Σ B_c (add) or the product Π B_c (mul).

    A block is dim / n_chunks wide in the first case, and as wide as the vector in the others. With mul the table is not linear
    in its memory.
    """

    chunked = True

    def check(self, request: Request) -> None:
        """A product needs two factors."""
        combine = _check.choice("combine", request.options["combine"], COMBINES)
        if combine == "mul" and request.n_chunks < 2:
            raise ValueError('combine="mul" multiplies the blocks of several chunks: take n_chunks of at least 2')

    def splits(self, options: Any) -> bool:
        """Only where the blocks stand side by side."""
        return bool(options["combine"] == "concat")

    def is_linear(self, spec: TableSpec) -> bool:
        """A product is not."""
        return bool(spec.option("combine") != "mul")

    def is_plain(self, spec: TableSpec) -> bool:
        """Nor is it a plain sum."""
        return super().is_plain(spec) and bool(spec.option("combine") != "mul")

    def floats_per_row(self, request: Request) -> int:
        """A row in each of the chunks' codebooks."""
        return request.inner if request.options["combine"] == "concat" else request.inner * request.n_chunks

    def combined(self, spec: TableSpec, columns: tuple[Column, ...]) -> Layout:
        """The layout of one column a chunk; the columns' bases and strides are set here."""
        chunks, combine = spec.n_chunks, spec.option("combine")
        width = spec.inner // chunks if combine == "concat" else spec.inner
        rows = spec.sizes[0]
        placed = tuple(c._replace(base=j * rows * width, stride=width) for j, c in enumerate(columns))
        terms = chunks if combine == "add" else 1
        return Layout(placed, terms, width=width, size=rows * width * chunks, unit=width)

    def memory(self, spec: TableSpec, layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """The factors of a product share its scale."""
        values = super().memory(spec, layout, rng)
        if not self.is_linear(spec):
            scale = INITIAL_NORM * spec.dim**-0.5
            values *= np.float32(scale ** (1 / spec.n_chunks) / scale)
        return values

    def forward(self, table: TableState, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Any]:
        """The product of the blocks, which are kept; otherwise as for all."""
        vectors, saved = super().forward(table, ids, keep)
        if self.is_linear(table.spec):
            return vectors, saved
        factors = vectors.reshape(len(ids), table.spec.n_chunks, table.spec.inner)
        return factors.prod(1), (saved, factors) if keep else None

    def backward(
        self, table: TableState, ids: NDArray[np.uint64], saved: Any, grads: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """Each factor's gradient is the product's times all other factors."""
        if self.is_linear(table.spec):
            return super().backward(table, ids, saved, grads, dense)
        if saved is None:
            vectors, _ = super().forward(table, ids, keep=False)
            saved = None, vectors.reshape(len(ids), table.spec.n_chunks, table.spec.inner)
        inner, factors = saved
        slopes = np.empty_like(factors)
        for c in range(factors.shape[1]):
            slopes[:, c] = np.delete(factors, c, axis=1).prod(1) * grads
        return super().backward(
            table, ids, inner, slopes.reshape(len(ids), table.spec.n_chunks * table.spec.inner), dense
        )
