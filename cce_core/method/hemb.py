"""Hash Embeddings: several hashed rows, summed with trained weights that are found by hash themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.base import INITIAL_NORM, Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout

WEIGHTS = ("flat", "shared", "independent", "concat")


class HashEmbedding(SizedMethod):
    """T[i] = Σ_t p_t(i) · M[h_t(i)], t < n_hashes, with the weights p(i) in an array of their own:

    shared         p(i) = P[g(i)], a row of weights found by one hash, as in the paper
    independent    p_t(i) = P_t[g_t(i)], a column of weights for each term, found by a hash of its own
    flat           p_t(i) = P[g_t(i)], all in one column
    concat         as shared, and p(i) itself follows the sum as further coordinates
    """

    name = "hemb"
    paper = "arXiv:1709.03933"
    summary = "hashed rows summed with trained weights, found by hash (weights: flat, shared, independent or concat)"
    stores = "4·rows·dim, and 1.5 times as much for the weights"
    takes = "2·n_hashes hashes and as many multiply-adds of dim floats"
    options = {"n_hashes": 2, "weights": "flat"}

    def check(self, request: Request) -> None:
        """The terms, the kind of weights, and room for them in the vector where they are part of it."""
        terms = _check.integer("n_hashes", request.options["n_hashes"], 1, 64)
        if _check.choice("weights", request.options["weights"], WEIGHTS) == "concat" and terms >= request.inner:
            raise ValueError(
                f'weights="concat" puts {terms} weights into a vector of {request.inner} floats and leaves none for the sum; '
                f"take n_hashes below {request.inner}"
            )

    def floats_per_row(self, request: Request) -> int:
        """One vector, less the weights that are part of it."""
        terms = int(request.options["n_hashes"] or 0)
        return request.inner - (terms if request.options["weights"] == "concat" else 0)

    def weights_per_row(self, request: Request) -> int:
        """Three numbers in P for two in M: an id's own weights tell more of it than its share of a row."""
        terms = int(request.options["n_hashes"] or 0)
        return _weight_rows(request.inner, terms) * terms

    def hashes(self, request: Request) -> int:
        """One a term, and one for the weights or one more a term."""
        terms = int(request.options["n_hashes"] or 0)
        return 2 * terms if request.options["weights"] in ("flat", "independent") else terms + 1

    def appends_weights(self, spec: TableSpec) -> bool:
        """With `concat`."""
        return bool(spec.option("weights") == "concat")

    def layout(self, spec: TableSpec) -> Layout:
        """All terms hash into the same rows."""
        (rows,), terms = spec.sizes, spec.option("n_hashes")
        width = spec.inner - (terms if self.appends_weights(spec) else 0)
        columns = tuple(Column(HASH, 0, width, rows, b=t) for t in range(terms))
        return Layout(columns, terms, width=width, size=rows * width, unit=width)

    def weight_layout(self, spec: TableSpec) -> Layout:
        """A row of weights, or one weight a term."""
        terms, kind = spec.option("n_hashes"), spec.option("weights")
        rows = spec.sizes[0] * _weight_rows(spec.inner, terms)
        size = rows * terms
        if kind in ("shared", "concat"):
            return Layout((Column(HASH, 0, terms, rows, b=terms),), terms=1, width=terms, size=size, unit=terms)
        base, call_args = (rows, rows) if kind == "independent" else (0, size)
        columns = tuple(Column(HASH, t * base, 1, call_args, b=terms + t) for t in range(terms))
        return Layout(columns, terms=1, width=1, size=size, unit=1)

    def memory(self, spec: TableSpec, layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """As for all; where the weights are coordinates and so are small, the rows are large."""
        values = super().memory(spec, layout, rng)
        if self.appends_weights(spec):
            values *= np.float32((spec.dim * layout.terms / layout.width) ** 0.5 / INITIAL_NORM)
        return values

    def weights(self, spec: TableSpec, weight_layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
        """Ones (signs at random train worse: AUC 0.63 against 0.76); as coordinates, signs that make half the vector's square."""
        if not self.appends_weights(spec):
            return np.ones(weight_layout.size, np.float32)
        scale = INITIAL_NORM * (spec.inner / spec.dim / (2 * spec.option("n_hashes"))) ** 0.5
        return np.where(rng.random(weight_layout.size) < 0.5, np.float32(-scale), np.float32(scale))


def _weight_rows(inner: int, terms: int) -> int:
    """Rows of weights for each row of the memory."""
    return max(1, 3 * inner // (2 * terms))
