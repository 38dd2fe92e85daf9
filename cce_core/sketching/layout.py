"""Where the blocks of an id lie: columns of addresses, chunk by chunk, into one flat memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IDENTITY, HASH, POINTER, DIGIT, MAP = 0, 1, 2, 3, 4
# Of the compiled loops' array; the last two are the layout's.
KIND, BASE, STRIDE, ROWS, A, B, REGION, PER_ID, MARKS = range(9)


def map_tables(table: int, n_tables: int, slots: int = 0, pointer_bits: int = 0) -> int:
    """What stands in a column of the kind MAP for one of the tables that a map serves; its keys are the first, `map_keys`.

    Where ids have settled, `slots` of a bucket hold them, each with a pointer of so many bits.
    """
    return table | (n_tables - 1) << 16 | slots << 32 | pointer_bits << 48


class Column(NamedTuple):
    """Where one address of an id comes from: `base + stride · index`, with the index in [0, rows).

    A block that passes the end of its region, `base + region`, goes on at the region's start.

    Attributes:
        kind: IDENTITY (the id), HASH (of the id, under this column's key), POINTER (packed), DIGIT ((id // a) mod rows), MAP (an
            own row by the fingerprints that stand in place of pointers, or else one of the rest, which ids share by hash).
        base: the first float of the region that the column addresses.
        stride: floats from one index to the next.
        rows: how many indices there are.
        a: for HASH, 1 where a sign is drawn as well; for POINTER, the bit offset within an id; for DIGIT, the divisor; for MAP,
            how many of the rows are own ones, which come first; then come those that settled ids point to, 2^pointer_bits for
            each table that the map serves, where any have settled, and then all others, as many for each table.
        b: for HASH, which key is its own; for POINTER, its bits; for MAP, `map_tables`.
        region: floats of the region; 0 says rows · stride.
    """

    kind: int
    base: int
    stride: int
    rows: int
    a: int = 0
    b: int = 0
    region: int = 0

    @property
    def size(self) -> int:
        """Floats of its region."""
        return self.region or self.rows * self.stride


@dataclasses.dataclass(frozen=True)
class Layout:
    """All addresses of a table: `columns` chunk by chunk, `terms` of them a chunk, into a memory of `size` floats.

    Attributes:
        columns: chunk-major; `len(columns) // terms` chunks.
        terms: blocks summed in each chunk.
        width: floats a block.
        size: floats of the memory.
        unit: the largest block that divides every address and the width: the grain of a sparse gradient.
        bits_per_id: bits of all packed pointers of an id, those of other layouts of the table included; for a MAP, those of a
            fingerprint.
        marks: 64-bit words of marks (`storage.marks`) before the packed pointers, where not every id has some; else 0. For a
            MAP with settled ids, the buckets that ids are known by.
        pointed: how many ids have pointers then; those of all others are 0.
    """

    columns: tuple[Column, ...]
    terms: int
    width: int
    size: int
    unit: int
    bits_per_id: int = 0
    marks: int = 0
    pointed: int = 0

    @functools.cached_property
    def n_chunks(self) -> int:
        """Chunks of a vector."""
        return len(self.columns) // self.terms

    @functools.cached_property
    def dim(self) -> int:
        """Floats of a vector that the memory gives (before any projection)."""
        return self.n_chunks * self.width

    @functools.cached_property
    def n_units(self) -> int:
        """Units in the memory."""
        return self.size // self.unit

    @functools.cached_property
    def bits(self) -> tuple[int, ...]:
        """Bits of every packed pointer of an id, in order."""
        return tuple(c.b for c in self.columns if c.kind == POINTER)

    @functools.cached_property
    def n_hashes(self) -> int:
        """Keys that the hash columns need."""
        return 1 + max(
            (c.b if c.kind == HASH else c.b >> 16 & 0xFFFF for c in self.columns if c.kind in (HASH, MAP)), default=-1
        )

    @functools.cached_property
    def signed(self) -> bool:
        """Whether any column draws signs."""
        return any(c.kind == HASH and c.a for c in self.columns)

    @functools.cached_property
    def regions(self) -> int:
        """Regions of the memory that share no float, if every column has its own; otherwise 1."""
        regions = sorted((c.base, c.base + c.size) for c in self.columns)
        apart = all(end <= base for (_, end), (base, _) in itertools.pairwise(regions))
        return len(regions) if apart else 1

    @functools.cached_property
    def array(self) -> NDArray[np.int64]:
        """The columns as the compiled loops read them."""
        rows = [(*c[:REGION], c.size, self.bits_per_id, self.marks) for c in self.columns]
        return np.array(rows, np.int64).reshape(len(self.columns), 1 + MARKS)

    def n_words(self, vocab: int) -> int:
        """64-bit words of the packed pointers of all ids below `vocab`, and of marks."""
        if not any(c.kind == POINTER for c in self.columns):
            return 0
        return self.marks - (-(self.pointed if self.marks else vocab) * self.bits_per_id // 64)

    def part(self, columns: tuple[Column, ...], terms: int = 1) -> Layout:
        """The same memory and pointers through some of the columns alone."""
        return dataclasses.replace(self, columns=columns, terms=terms)
