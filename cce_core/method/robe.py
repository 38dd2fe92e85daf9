"""ROBE: every chunk is a window, hashed to any place, of one flat array that wraps round."""

from __future__ import annotations

from typing import Any

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, Column, Layout


class Robe(SizedMethod):
    """T[i, c·w : (c+1)·w] = s_c(i) · M[h_c(i) : h_c(i) + w], indices modulo the size of M; s_c is a drawn sign where `signed`.

    The paper's Z is the width w of a window: dim / n_chunks, or `chunk_size` where that is given.
    """

    name = "robe"
    paper = "arXiv:2108.02191"
    summary = "windows, hashed to any place, of one flat circular memory (chunk_size is Z; signed=True draws signs)"
    stores = "4·size"
    takes = "a hash a window and a copy of dim floats"
    chunked = True
    options = {"chunk_size": None, "signed": False}

    def check(self, request: Request) -> None:
        """Windows of one size make up the vector."""
        size = request.options["chunk_size"]
        if size is not None and request.inner % _check.integer("chunk_size", size, 1):
            raise ValueError(f"chunk_size {size} must divide the vector's {request.inner} floats")

    def floats_per_row(self, request: Request) -> int:
        """A place in the memory is one float."""
        return 1

    def least_rows(self, request: Request) -> int:
        """One window."""
        return _width(request.inner, request.n_chunks, request.options["chunk_size"])

    def hashes(self, request: Request) -> int:
        """One a window."""
        return request.inner // self.least_rows(request)

    def layout(self, spec: TableSpec) -> Layout:
        """A hash a window, all into the same memory, to any float of it."""
        (size,), signed = spec.sizes, int(spec.option("signed"))
        width = _width(spec.inner, spec.n_chunks, spec.option("chunk_size"))
        columns = tuple(Column(HASH, 0, 1, size, a=signed, b=c) for c in range(spec.inner // width))
        return Layout(columns, terms=1, width=width, size=size, unit=1)


def _width(inner: int, n_chunks: int, chunk_size: Any) -> int:
    return inner // n_chunks if chunk_size is None else int(chunk_size)
