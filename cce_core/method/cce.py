"""Clustered Compositional Embeddings: a learned pointer and a fresh hash a chunk."""

from __future__ import annotations

import dataclasses

from cce_core.method.base import Request
from cce_core.method.sizing import SizedMethod
from cce_core.method.spec import TableSpec
from cce_core.sketching.layout import HASH, POINTER, Column, Layout
from cce_core.storage.packed import bits_for


class Clustered(SizedMethod):
    """T[i, chunk c] = M_c[pointer_c(i)] + M'_c[hash_c(i)]; `cluster()` makes the clusters of these sums the pointers."""

    name = "cce"
    paper = "arXiv:2210.05974"
    summary = "a learned pointer and a fresh hash a chunk, clustered while training"
    stores = "4·(learned + hashed rows)·rank, the projection, and n_chunks·⌈log₂ learned rows⌉ bits an id"
    takes = "n_chunks pointers, n_chunks hashes, 2·rank floats and rank·dim multiplications"
    learns = True
    chunked = True

    def check(self, request: Request) -> None:
        """A pointer an id needs a last id."""
        if request.vocab is None:
            raise ValueError("method 'cce' needs a vocab: it keeps pointers for every id; 'ce' takes unbounded ids")

    def rank(self, request: Request) -> int:
        """The rank chosen by measurement: a few floats a chunk buy the rows that matter more.

        The largest rank at which every id may have a row of its own. Where none gives that, two floats a chunk, or one where
        the projection would then take more than a quarter of the budget. Of a budget in bytes, two floats a chunk where that
        leaves a hashed row to eight ids, else one (0.02 to 0.07 of AUC there), and a projection may take half. 0 where a
        projection has nothing to gain.
        """
        assert request.vocab is not None
        chunks, dim = request.n_chunks, request.dim
        of_rank = {rank: dataclasses.replace(request, rank=rank) for rank in range(0, dim, chunks)}
        for rank in (0, *sorted(of_rank)[:0:-1]):
            if self.rows(of_rank[rank]) >= request.vocab:
                return rank
        small = [rank for rank in (2 * chunks, chunks) if rank < dim]
        if request.num_params is not None:
            small = [rank for rank in small if 4 * rank * dim <= request.num_params]
        else:
            few = [rank for rank in small if 8 * rank * dim <= (request.num_bytes or 0)]
            rich = [rank for rank in few if 8 * self._codebooks(of_rank[rank])[1] >= request.vocab]
            small = rich or few[-1:]
        return small[0] if small else 0

    def sizes(self, request: Request) -> tuple[int, ...]:
        """Rows of both codebooks; of a budget in bytes, those of the learned one and of the hashed one, where they differ.

        Pointers take at most half of the bytes; what is left over buys hashed rows, which need none. At ten bits an id AUC
        rises by 0.18 (drawn interactions, 10,000 ids), and where not even a bit an id is left the table is a hashed one.
        """
        if request.num_bytes is None:
            return super().sizes(request)
        rows, hashed = self._codebooks(request)
        if rows < 1:
            return super().sizes(request)  # says what would fit
        return (rows, hashed) if 16 * (hashed - rows) >= rows else (rows,)

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """One number of rows, or two."""
        if not 1 <= len(sizes) <= 2:
            raise ValueError(f"a {self.name!r} table has one size or two, rows learned and hashed, got {len(sizes)}")
        for rows in sizes:
            self._check_rows(request, rows)

    def nbytes(self, spec: TableSpec) -> int:
        """With the rows of both codebooks."""
        request, floats = Request.of(spec), (spec.sizes[0] + spec.sizes[-1]) * spec.inner
        return self._bytes(request, bits_for(spec.sizes[0]), 0) + request.codec.nbytes(floats)

    def _codebooks(self, request: Request) -> tuple[int, int]:
        """Rows of the learned codebooks and of the hashed ones that fit a budget in bytes; of the former 0 where none do."""
        assert request.num_bytes is not None
        rows = self.rows(request)
        if rows < 1:
            return 0, 0
        most = max(b for b in range(bits_for(rows) + 1) if self._pointer_bytes(request, b) <= request.num_bytes // 2)
        rows = min(rows, 2**most)
        room = request.num_bytes - self._bytes(request, bits_for(rows), 0)
        return rows, max(rows, request.codec.floats_within(room) // request.inner - rows)

    def floats_per_row(self, request: Request) -> int:
        """A row in both codebooks of every chunk."""
        return 2 * request.inner

    def pointers(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def hashes(self, request: Request) -> int:
        """One a chunk."""
        return request.n_chunks

    def layout(self, spec: TableSpec) -> Layout:
        """A chunk's two codebooks lie side by side: the learned one, then the hashed one."""
        rows, hashed = spec.sizes[0], spec.sizes[-1]
        width, bits = spec.inner // spec.n_chunks, bits_for(rows)
        codebooks = (rows + hashed) * width
        columns = []
        for c in range(spec.n_chunks):
            columns.append(Column(POINTER, c * codebooks, width, rows, a=c * bits, b=bits))
            columns.append(Column(HASH, c * codebooks + rows * width, width, hashed, b=c))
        return Layout(
            tuple(columns),
            terms=2,
            width=width,
            size=spec.n_chunks * codebooks,
            unit=width,
            bits_per_id=spec.n_chunks * bits,
        )
