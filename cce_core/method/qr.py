"""Quotient-remainder: complementary digits of the id address the codebooks, so that no two ids are equal."""

from __future__ import annotations

import math

from cce_core.hashing.digits import balanced_bases
from cce_core.method.base import Request
from cce_core.method.combining import Combining
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import DIGIT, Column, Layout


class QuotientRemainder(Combining):
    """T[i] = [ M₁[d₁(i)], …, M_c[d_c(i)] ], or their sum or product, with d_j(i) = ⌊i / D_j⌋ mod b: b rows a codebook.

    At the least size b^c ≥ vocab and D_j = b^j: the digits of i in radix b. With more rows the divisors grow more slowly,
    D_(j+1) = r_j · D_j with r_j ≤ b and D_c ≥ vocab / b: the digits overlap, still tell all ids apart, and every codebook
    is used to its end. (Plain digits would leave the last codebooks a row or two.)
    """

    name = "qr"
    paper = "arXiv:1909.02107"
    summary = "the digits of the id address a codebook a chunk: no two ids are equal (combine: concat, add or mul)"
    stores = "4·rows·dim, rows at least vocab^(1/n_chunks)"
    takes = "n_chunks divisions and a copy of dim floats"
    options = {"combine": "concat"}

    def check(self, request: Request) -> None:
        """Digits need a last id."""
        super().check(request)
        if request.vocab is None:
            raise ValueError("method 'qr' needs a vocab: its digits must reach every id; 'ce' takes unbounded ids")

    def hashes(self, request: Request) -> int:
        """None."""
        return 0

    def least_rows(self, request: Request) -> int:
        """The least base whose digits reach every id."""
        assert request.vocab is not None
        return max(balanced_bases(request.vocab, request.n_chunks))

    def most_rows(self, request: Request) -> int:
        """One row an id."""
        assert request.vocab is not None
        return request.vocab

    def layout(self, spec: TableSpec) -> Layout:
        """A digit a chunk, each into a codebook of its own."""
        (rows,) = spec.sizes
        assert spec.vocab is not None
        steps = balanced_bases(-(-spec.vocab // rows), spec.n_chunks - 1) if spec.n_chunks > 1 else ()
        divisors = (math.prod(int(r) for r in steps[:c]) for c in range(spec.n_chunks))
        return self.combined(spec, tuple(Column(DIGIT, 0, 0, rows, a=divisor) for divisor in divisors))
