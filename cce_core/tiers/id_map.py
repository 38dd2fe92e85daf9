"""Ids to own rows, in 2 bytes per row: buckets of fingerprints, two choices per id, and the slot *is* the row.

    h  = hash(id; key)                  f = 1 + ⌊(h mod 2^32) · m / 2^32⌋, m = 2^bits − 1     the fingerprint, never 0
    b₁ = ⌊h · n_buckets / 2^64⌋         b₂ = (⌊hash'(f; key) · n_buckets / 2^64⌋ − b₁) mod n_buckets

An id may lie in any of the 4 slots of b₁ and of b₂. The second bucket follows from the first and the fingerprint, and the first
from the second in the same way (as in a cuckoo filter): two ids are told apart if and only if {b₁, b₂} or f differs, wherever
they lie. An id is put where more slots are free and stays there, so that its slot's number can be the number of its row.

One map may serve several tables, each with ids of its own: h is then that of the id ^ the table's salt, which for table 0 is
0, and the table is the lowest digit of the fingerprint,

    f = 1 + table + n_tables · ⌊(h mod 2^32) · m / 2^32⌋, m = ⌊(2^bits − 1) / n_tables⌋

so that it is known of every owner, for no byte. (With one table that is what stands above.)

The fingerprints are packed pointers of 16 or 32 bits in 64-bit words (`storage/packed.py`): a bucket is a word or two. Version 1
is frozen: hash, fingerprint and buckets are part of saved files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._arrays import Ids
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.storage.files import digest
from cce_core.storage.packed import Packing, bits_for, read_bits, write_bits
from cce_core.tiers.buckets import (
    BITS,
    MOST_SLOTS,
    MOST_TABLES,
    SLOTS,
    candidate_buckets,
    identity,
    map_keys,
    owner,
    partner,
    put,
    seek,
    shared_row,
    start_of,
    table_of,
)

_IDS_A_THREAD = 1 << 13
_zero = np.uint64(0)


@jit
def _find_many(
    start: int, stop: int, ids: Any, table: Any, key: np.uint64, words: Any, buckets: Any, bits: Any, tables: Any, fold: Any,
    width: Any, rows: Any,
) -> None:  # fmt: skip
    for n in range(start, stop):
        fingerprint, first, second = candidate_buckets(ids[n], table, key, buckets, bits, tables)
        rows[n] = seek(words, fingerprint, first, second, bits, fold, width)


@jit
def _names_many(
    start: int, stop: int, ids: Any, table: Any, key: np.uint64, buckets: Any, bits: Any, tables: Any, out: Any
) -> None:
    for n in range(start, stop):
        fingerprint, first, second = candidate_buckets(ids[n], table, key, buckets, bits, tables)
        out[n] = identity(fingerprint, first, second)


@jit
def _candidates_many(
    start: int,
    stop: int,
    ids: Any,
    table: Any,
    key: np.uint64,
    buckets: Any,
    bits: Any,
    tables: Any,
    fold: Any,
    out: Any,
) -> None:
    for n in range(start, stop):
        _, first, second = candidate_buckets(ids[n], table, key, buckets, bits, tables)
        for s in range(SLOTS):
            out[n, s] = np.int64(start_of(first, fold)) + s
            out[n, SLOTS + s] = np.int64(start_of(second, fold)) + s


@jit
def _shared_many(
    owners: Any, key: np.uint64, n_slots: np.uint64, n_shared: np.uint64, tables: np.uint64, rows: Any
) -> None:
    for n in range(owners.shape[0]):
        rows[n] = shared_row(owners[n], key, n_slots, n_shared, tables)


@jit
def _insert_many(
    ids: Any, table: Any, key: np.uint64, words: Any, buckets: np.uint64, bits: np.uint64, tables: Any, fold: Any, width: Any,
    rows: Any,
) -> None:  # fmt: skip
    for n in range(ids.shape[0]):
        fingerprint, first, second = candidate_buckets(ids[n], table, key, buckets, bits, tables)
        slot = seek(words, fingerprint, first, second, bits, fold, width)
        rows[n] = put(words, fingerprint, first, second, bits, fold, width) if slot < 0 else slot


@jit
def _erase_many(
    ids: Any, table: Any, key: np.uint64, words: Any, buckets: np.uint64, bits: np.uint64, tables: Any, fold: Any, width: Any,
    rows: Any,
) -> None:  # fmt: skip
    for n in range(ids.shape[0]):
        fingerprint, first, second = candidate_buckets(ids[n], table, key, buckets, bits, tables)
        slot = seek(words, fingerprint, first, second, bits, fold, width)
        if slot >= 0:
            write_bits(words, np.uint64(slot) * width, width, _zero)
        rows[n] = slot


@jit
def _clear(rows: Any, words: Any, width: np.uint64) -> None:
    for n in range(rows.shape[0]):
        write_bits(words, rows[n] * width, width, _zero)


@jit
def _tables_many(words: Any, n_slots: int, bits: np.uint64, width: np.uint64, tables: np.uint64, out: Any) -> None:
    for slot in range(n_slots):
        fingerprint = read_bits(words, np.uint64(slot) * width, bits)
        out[slot] = -1 if fingerprint == _zero else np.int64(table_of(fingerprint, tables))


@jit
def _identities_many(
    rows: Any,
    key: np.uint64,
    words: Any,
    buckets: np.uint64,
    bits: np.uint64,
    tables: Any,
    fold: Any,
    width: Any,
    out: Any,
) -> None:
    n_slots = SLOTS * ((np.int64(buckets) + np.int64(fold) - 1) // np.int64(fold))
    for n in range(rows.shape[0]):
        out[n] = owner(words, np.uint64(rows[n]), key, buckets, bits, fold, width) if 0 <= rows[n] < n_slots else _zero


@jit
def _put_many(
    owners: Any,
    most: int,
    key: np.uint64,
    words: Any,
    buckets: np.uint64,
    bits: np.uint64,
    fold: Any,
    width: Any,
    rows: Any,
) -> None:
    given = 0
    for n in range(owners.shape[0]):
        rows[n] = -1
        if given < most:
            first, fingerprint = owners[n] >> np.uint64(32), owners[n] & np.uint64(0xFFFFFFFF)
            rows[n] = put(words, fingerprint, first, partner(fingerprint, first, key, buckets), bits, fold, width)
            given += rows[n] >= 0


@jit
def _put_at(owners: Any, rows: Any, words: Any, width: np.uint64) -> None:
    for n in range(rows.shape[0]):
        write_bits(words, np.uint64(rows[n]) * width, width, owners[n] & np.uint64(0xFFFFFFFF))


class IdMap:
    """A map of 64-bit ids to own rows that keeps a fingerprint of each id, and neither the id nor a row number.

        row(id) = the slot among 8 (4 of each of two buckets) that holds the id's fingerprint; −1 if none does

    **Every id is legal**, 0 and 2^64 − 1 among them; negative ones are taken by their bits, and strings are hashed by
    `cce_core.hash_strings`. Nothing but the fingerprint is reserved.

    **False hits.** An id that was never inserted is found with probability 1 − (1 − 1/(2^bits − 1))^(8 · load), about
    8 · load / (2^bits − 1): 0.012 % at 16 bits and load 1, and 2 in 10^9 at 32 bits. With the same chance a new id is taken for
    another as it is inserted; the two then share one row, which goes when either is erased. There are no false misses. Of a map
    that serves several tables 2^bits − 1 is divided by their number, and of the load that of the id's table alone counts: the
    rate is the same on average, and n_tables times as large for a table that has all rows. No id meets one of another table.

    **Load.** Nothing is ever moved, so `insert` may find both buckets of an id full before the map is: of random ids first at a
    load of .81 (64 slots), .64 (1,024), .55 (16,384) and .44 (2^20) on average. As many ids as slots fill 92 % of these,
    three times as many fill all. Who then wants a row must take one of its `candidates`: `clear` that, and insert again.

    Args:
        n_slots: rows, a multiple of 4 from 4 to 2^31 − 4.
        bits: of a fingerprint: 16, or 32.
        seed: of the hash, 0 to 2^64 − 1.
        n_tables: tables whose ids are kept apart, 1 to 1,024.
        buckets: of ids; None: one for 4 slots. A map of fewer slots, ⌈buckets / fold⌉ times 4, knows owners by the same
            identities as one that has them all, for ⌈log₂ fold⌉ bits more per slot.
        words: the array of a map of the same sizes and seed, as `arrays` gives it, also mapped from a file. None: an empty map.

    Attributes:
        args: key, words, buckets, bits, tables, fold and width, as the compiled functions take them.
        keys: `map_keys`.

    Raises:
        TypeError, ValueError: sizes out of range, or words of another type or length.

    Cost:
        bits / 8 bytes per row. `find` reads two places of memory per id, on all threads, and changes nothing; `insert`, `erase`
        and `clear` go through their ids in order, on one thread, so that the bits never depend on the number of threads.

    Paper:
        The second bucket: Fan et al., Cuckoo Filter (CoNEXT 2014). The choice of two: Azar et al., SIAM J. Comput. 29 (1999).

    Example:
        >>> import numpy as np
        >>> from cce_core.hashing import hash_strings
        >>> from cce_core.tiers import IdMap
        >>> rows = IdMap(8)
        >>> given = rows.insert([0, 2**64 - 1, -7])
        >>> bool((rows.find([0, 2**64 - 1, -7]) == given).all()), rows.find([5])
        (True, array([-1], dtype=int32))
        >>> _ = rows.insert(hash_strings(["user_1"]))
        >>> rows.load, rows.nbytes
        (0.5, 16)
        >>> bool(rows.erase([-7]) == given[2]), rows.find(-7)
        (True, array(-1, dtype=int32))
    """

    def __init__(
        self,
        n_slots: int,
        *,
        bits: int = 16,
        seed: int = 0,
        n_tables: int = 1,
        buckets: int | None = None,
        words: NDArray[np.uint64] | None = None,
    ) -> None:
        self.n_slots = _check.integer("n_slots", n_slots, SLOTS, MOST_SLOTS)
        if self.n_slots % SLOTS:
            below = self.n_slots - self.n_slots % SLOTS
            raise ValueError(f"n_slots must be a multiple of {SLOTS}, got {n_slots}: take {below} or {below + SLOTS}")
        self.bits, self.seed = _check.integer("bits", bits, 1), _check.seed(seed)
        if bits not in BITS:
            raise ValueError(f"bits must be 16 or 32, got {bits}")
        self.n_tables = _check.integer("n_tables", n_tables, 1, MOST_TABLES)
        places = self.n_slots // SLOTS
        self.n_buckets = places if buckets is None else _check.integer("buckets", buckets, places, MOST_SLOTS // SLOTS)
        self.fold = -(-self.n_buckets // places)
        self.width = self.bits + bits_for(self.fold)
        packing = Packing(self.n_slots, (self.width,))
        words = packing.empty() if words is None else _check.instance("words", words, np.ndarray, "an array")
        if words.dtype != np.uint64 or words.shape != (packing.n_words,) or not words.flags.c_contiguous:
            raise ValueError(
                f"words must be a contiguous uint64 array of shape ({packing.n_words},), as arrays() of a map of "
                f"{self.n_slots} slots and {bits} bits gives it; got {words.dtype} {words.shape}"
            )
        self.words = words
        self.keys = map_keys(self.seed, self.n_tables)
        sizes = np.uint64(self.n_buckets), np.uint64(self.bits), np.uint64(self.n_tables)
        self.args = self.keys[0], words, *sizes, np.uint64(self.fold), np.uint64(self.width)

    def __repr__(self) -> str:
        return f"<IdMap: {self.n_slots:,} slots, {100 * self.load:.1f} % full, {self.bits} bits each>"

    def arrays(self) -> dict[str, NDArray[np.uint64]]:
        """The array itself, not a copy: what is saved."""
        return {"words": self.words}

    def digest(self) -> str:
        """16 hexadecimal digits that equal maps share."""
        return digest(self.arrays(), f"{self.n_slots} {self.bits} {self.seed} {self.n_tables}{self._folded()}")

    def _folded(self) -> str:
        return "" if self.fold == 1 else f" {self.n_buckets}"

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.words.nbytes

    @property
    def load(self) -> float:
        """The share of slots that are taken."""
        return float(self.occupied().mean())

    @property
    def false_hit_rate(self) -> float:
        """The chance that an id which was never inserted is found, at the present load; of several tables that of the worst."""
        most = np.bincount(self.tables() + 1, minlength=2)[1:].max() / self.n_slots
        return float(-np.expm1(2 * SLOTS * most * np.log1p(-1.0 / (self.fold * ((2**self.bits - 1) // self.n_tables)))))

    def tables(self) -> NDArray[np.int32]:
        """Of whose table each row's owner is, −1 where it has none: int32 (n_slots,)."""
        out = np.empty(self.n_slots, np.int32)
        bits, tables, _, width = self.args[3:]
        _tables_many(self.words, self.n_slots, bits, width, tables, out)
        return out

    def occupied(self) -> NDArray[np.bool_]:
        """Which rows have an owner: (n_slots,)."""
        return self.tables() >= 0

    def identities(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        """Who has rows, as `Admissions` names owners: uint64 (n,), 0 for nobody, and of what is no row."""
        out = np.empty(len(rows), np.uint64)
        _identities_many(rows.astype(np.int64), *self.args, out)
        return out

    def tables_of(self, owners: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The tables of identities, none of them 0."""
        fingerprints = (owners & np.uint64(2**32 - 1)).astype(np.int64)
        return (fingerprints - 1) % self.n_tables

    def salted(self, ids: Any, table: int = 0) -> NDArray[np.uint64]:
        """Ids as words that tell the ids of one table from those of others: what all counts are kept by."""
        table, words = _check.integer("table", table, 0, self.n_tables - 1), _check.as_ids(ids)
        return words ^ self.keys[table] if table else words

    def find(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """The rows of ids, −1 where they have none.

        Args:
            ids: integers of any type and shape.
            table: whose ids they are.

        Returns:
            int32 in the shape of ids.

        Raises:
            TypeError: ids are not integers.
        """
        return self.find_salted(self.salted(ids, table), table)

    def find_salted(self, words: NDArray[np.uint64], table: int) -> NDArray[np.int32]:
        """The same of ids that are `salted`."""
        rows = np.empty(words.shape, np.int32)
        args = words.reshape(-1), np.uint64(table), *self.args, rows.reshape(-1)
        parallel_for(_find_many, words.size, _IDS_A_THREAD, *args)
        return rows

    def names(self, ids: Any, table: int = 0) -> NDArray[np.uint64]:
        """The identities of ids, whether they have rows or not: uint64 in the shape of ids."""
        words: Ids = self.salted(ids, table)
        out = np.empty(words.shape, np.uint64)
        key, _, buckets, bits, tables, *_ = self.args
        args = words.reshape(-1), np.uint64(table), key, buckets, bits, tables, out.reshape(-1)
        parallel_for(_names_many, words.size, _IDS_A_THREAD, *args)
        return out

    def take_in(self, owners: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
        """Give rows to identities that have none, in order, to at most so many: int64 (n,), −1 for who has been given none."""
        self._writeable()
        rows = np.empty(len(owners), np.int64)
        key, words, buckets, bits, _, fold, width = self.args
        _put_many(owners, most, key, words, buckets, bits, fold, width, rows)
        return rows

    def put_at(self, owners: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Put identities into rows that are free, each one of its candidates; of a map that is not folded."""
        self._writeable()
        _put_at(owners, rows, self.words, self.args[6])

    def candidates(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """The rows that ids may have: int32 (*ids.shape, 8). If both buckets of an id are one, its rows come twice."""
        given = self.salted(ids, table)
        out = np.empty((*given.shape, 2 * SLOTS), np.int32)
        key, _, *sizes, _ = self.args
        args = given.reshape(-1), np.uint64(table), key, *sizes, out.reshape(-1, 2 * SLOTS)
        parallel_for(_candidates_many, given.size, _IDS_A_THREAD, *args)
        return out

    def shared_rows(self, owners: NDArray[np.uint64], n_shared: int) -> NDArray[np.int64]:
        """The shared rows of identities, as `Admissions` names owners, if each table has `n_shared` of them: int64 (n,).

        Those of table 0 follow the own ones: n_slots to n_slots + n_shared − 1.
        """
        n_shared = _check.integer("n_shared", n_shared, 1, 2**32)
        rows = np.empty(len(owners), np.int64)
        _shared_many(owners, self.args[0], np.uint64(self.n_slots), np.uint64(n_shared), self.args[4], rows)
        return rows

    def insert(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """Give rows to ids, in order; who has one keeps it.

        Returns:
            int32 in the shape of ids: their rows; −1 where both buckets are full, and nothing was changed for that id.

        Raises:
            TypeError: ids are not integers.
            ValueError: the map is read-only. Nothing is changed by either.
        """
        return self._change(_insert_many, ids, table)

    def erase(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """Take the rows of ids away, in order.

        Returns:
            int32 in the shape of ids: the rows that they had; −1 where they had none.

        Raises:
            TypeError: ids are not integers.
            ValueError: the map is read-only. Nothing is changed by either.
        """
        return self._change(_erase_many, ids, table)

    def clear(self, rows: Any) -> None:
        """Take rows away from whoever has them; a row without an owner stays as it is.

        Raises:
            IndexError: a row is outside [0, n_slots); names the first. Nothing is changed.
            TypeError: rows are not integers.
            ValueError: the map is read-only.
        """
        words = _check.as_ids(rows, "rows").reshape(-1)
        if len(words) and (outside := words >= np.uint64(self.n_slots)).any():
            at = int(outside.argmax())
            raise IndexError(
                f"row {words[at].astype(np.int64)} at position {at} is outside this map: rows go from 0 to {self.n_slots - 1}"
            )
        self._writeable()
        _clear(words, self.words, self.args[6])

    def _change(self, kernel: Any, ids: Any, table: int) -> NDArray[np.int32]:
        given: Ids = self.salted(ids, table)
        self._writeable()
        rows = np.empty(given.shape, np.int32)
        kernel(given.reshape(-1), np.uint64(table), *self.args, rows.reshape(-1))
        return rows

    def _writeable(self) -> None:
        if not self.words.flags.writeable:
            raise ValueError("the map is read-only, as its array is mapped from a file: make it of a copy to change it")
