"""Sizing from a budget, for methods whose whole size is one number of rows."""

from __future__ import annotations

import abc

from cce_core import _check
from cce_core.method.base import Request
from cce_core.method.block import BlockMethod
from cce_core.method.spec import BudgetError, TableSpec
from cce_core.storage.packed import bits_for

_MOST_BITS = 48
MOST_COLUMNS = 2**16  # hashes, or pointers, of an id


class SizedMethod(BlockMethod):
    """A method whose size is one number of rows, found in closed form from the budget."""

    @abc.abstractmethod
    def floats_per_row(self, request: Request) -> int:
        """Floats of memory that one more row costs."""

    def weights_per_row(self, request: Request) -> int:
        """Weights (float32 in every codec) that one more row costs."""
        return 0

    def fixed_weights(self, request: Request) -> int:
        """Weights whose number does not depend on the rows."""
        return 0

    def pointers(self, request: Request) -> int:
        """Packed pointers an id, each to one of the rows."""
        return 0

    def fixed_bits(self, request: Request) -> tuple[int, ...]:
        """Bits of further packed pointers an id, whose number does not depend on the rows."""
        return ()

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
            room = request.num_params - request.projection - self.fixed_weights(request)
            return room // (self.floats_per_row(request) + self.weights_per_row(request))
        return max(self._rows_in(request, bits) for bits in range(_MOST_BITS + 1))

    def sizes(self, request: Request) -> tuple[int, ...]:
        """Rows: the most that fit."""
        rows, least = self.rows(request), self.least_rows(request)
        if rows < least:
            raise BudgetError(
                request.too_small(self.name, self._params(request, least), self._bytes(request, bits_for(least), least))
            )
        return (min(rows, self.most_rows(request)),)

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """One number of rows, and no more addresses an id than can be looked at in a moment."""
        if len(sizes) != 1:
            raise ValueError(f"a {self.name!r} table has one size, its rows, got {len(sizes)}")
        self._check_rows(request, sizes[0])

    def _check_rows(self, request: Request, rows: int) -> None:
        _check.integer(
            "n_chunks (or what an id has as many hashes or pointers of)", self.hashes(request), 0, MOST_COLUMNS
        )
        _check.integer("n_chunks (or what an id has as many pointers of)", self.pointers(request), 0, MOST_COLUMNS)
        _check.integer("sizes[0], the rows,", rows, self.least_rows(request), self.most_rows(request))

    def nbytes(self, spec: TableSpec) -> int:
        """As `sizes` reckons."""
        return self._bytes(Request.of(spec), bits_for(spec.sizes[0]), spec.sizes[0])

    def _params(self, request: Request, rows: int) -> int:
        per_row = self.floats_per_row(request) + self.weights_per_row(request)
        return rows * per_row + self.fixed_weights(request) + request.projection

    def _pointer_bytes(self, request: Request, bits: int) -> int:
        per_id = bits * self.pointers(request) + sum(self.fixed_bits(request))
        return 8 * -(-(request.vocab or 0) * per_id // 64)

    def _bytes(self, request: Request, bits: int, rows: int) -> int:
        floats = request.projection + self.fixed_weights(request) + rows * self.weights_per_row(request)
        memory = request.codec.nbytes(rows * self.floats_per_row(request))
        return 4 * floats + 8 * self.hashes(request) + 8 * self.learns + self._pointer_bytes(request, bits) + memory

    def _rows_in(self, request: Request, bits: int) -> int:
        """The most rows that pointers of `bits` bits can tell apart and the bytes can hold."""
        assert request.num_bytes is not None
        room = request.num_bytes - self._bytes(request, bits, 0)
        if room < 0:
            return -1
        codec, floats = request.codec, self.floats_per_row(request)
        weights = 4 * self.weights_per_row(request)
        if weights:
            whole = codec.nbytes(64 * floats) + 64 * weights  # 64 rows fill whole blocks of the codec
            fit = room // whole * 64
            rest = room % whole
            fit += max(n for n in range(64) if codec.nbytes(n * floats) + n * weights <= rest)
        else:
            fit = codec.floats_within(room) // floats
        return min(fit, 2**bits) if self.pointers(request) else fit
