"""Ids that have settled: for each a fingerprint and a pointer to a row that it shares with ids of like vectors.

    row(id) = centroid(table of id, pointer),   pointer: beside the id's fingerprint, in one of `slots` slots of b₁ or of b₂

Buckets and fingerprints are those of the `IdMap` whose owners they were: who an id is, is known in both by the same identity, so
that an owner can settle, and a settled id be an owner again. Nothing is counted here, and nobody is given a place: ids are put in
all at once by `placed`, which moves those that are there already to their other bucket where that makes room, as a cuckoo
filter does, so that most of the slots are taken before the first is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core.hashing.mix import keyed, premix
from cce_core.storage.packed import Packing, read_bits, write_bits
from cce_core.tiers.buckets import partner, seek_settled
from cce_core.tiers.id_map import IdMap

MOST_BUCKET, MOST_POINTER = 16, 16  # slots of a bucket, and bits of a pointer
_KICKS = 200
_zero, _32, _low = np.uint64(0), np.uint64(32), np.uint64(2**32 - 1)


@jit
def _free(holder: Any, bucket: Any, slots: int) -> Any:
    """The first free slot of a bucket; −1 if none is."""
    for s in range(slots):
        if holder[bucket * slots + s] < 0:
            return bucket * slots + s
    return -1


@jit
def _place(
    owners: Any, near: Any, key: np.uint64, n_buckets: np.uint64, slots: int, most: int, holder: Any, path: Any
) -> None:
    for n in range(owners.shape[0]):
        who, bucket, moved, slot = n, np.int64(near[n]), 0, np.int64(-1)
        while True:
            slot = _free(holder, bucket, slots)
            if slot < 0 and moved == 0:
                bucket = np.int64(partner(owners[n] & _low, np.uint64(bucket), key, n_buckets))
                slot = _free(holder, bucket, slots)
            if slot >= 0 or moved == most:
                break
            draw = keyed(premix(np.uint64(n)), np.uint64(moved)) % np.uint64(slots)
            slot = bucket * slots + np.int64(draw)
            path[moved] = slot
            who, holder[slot] = holder[slot], who
            bucket = np.int64(partner(owners[who] & _low, np.uint64(bucket), key, n_buckets))
            moved += 1
        if slot >= 0:
            holder[slot] = who
        else:  # everybody goes back
            for back in range(moved - 1, -1, -1):
                who, holder[path[back]] = holder[path[back]], who


def placed(
    owners: NDArray[np.uint64], near: NDArray[Any], key: np.uint64, n_buckets: int, slots: int
) -> NDArray[np.int64]:
    """Places for identities, those of the first of them first: int64 (n,), −1 for who finds none.

    Args:
        owners: identities, each once.
        near: the bucket of each that is tried first: one of its two.
        key: of the map.
        n_buckets: of the map.
        slots: of a bucket.
    """
    holder, path = np.full(n_buckets * slots, -1, np.int64), np.empty(_KICKS, np.int64)
    _place(owners, np.ascontiguousarray(near, np.int64), key, np.uint64(n_buckets), slots, _KICKS, holder, path)
    out, taken = np.full(len(owners), -1, np.int64), np.flatnonzero(holder >= 0)
    out[holder[taken]] = taken
    return out


@jit
def _write(owners: Any, places: Any, pointers: Any, words: Any, bits: np.uint64, pointer_bits: np.uint64) -> None:
    for n in range(owners.shape[0]):
        if places[n] >= 0:
            entry = (owners[n] & _low) | np.uint64(pointers[n]) << bits
            write_bits(words, np.uint64(places[n]) * (bits + pointer_bits), bits + pointer_bits, entry)


@jit
def _seek_many(
    owners: Any, key: np.uint64, words: Any, n_buckets: np.uint64, bits: np.uint64, pointer_bits: np.uint64, slots: int,
    erase: bool, out: Any,
) -> None:  # fmt: skip
    width = bits + pointer_bits
    for n in range(owners.shape[0]):
        out[n] = -1
        fingerprint, first = owners[n] & _low, owners[n] >> _32
        if fingerprint == _zero:
            continue
        second = partner(fingerprint, first, key, n_buckets)
        place = seek_settled(words, _zero, fingerprint, first, second, bits, pointer_bits, slots)
        if place >= 0:
            out[n] = np.int64(read_bits(words, np.uint64(place) * width + bits, pointer_bits))
            if erase:
                write_bits(words, np.uint64(place) * width, width, _zero)


@jit
def _all(
    n_buckets: np.uint64, key: np.uint64, words: Any, bits: np.uint64, pointer_bits: np.uint64, slots: int, owners: Any
) -> None:
    for place in range(owners.shape[0]):
        fingerprint = read_bits(words, np.uint64(place) * (bits + pointer_bits), bits)
        bucket = np.uint64(place // slots)
        owners[place] = _zero
        if fingerprint != _zero:
            owners[place] = min(bucket, partner(fingerprint, bucket, key, n_buckets)) << _32 | fingerprint


class Settled:
    """The settled ids of a map, and where they point to.

    Args:
        known: the map that ids are known by.
        slots: of a bucket, 1 to 16.
        pointer_bits: of a pointer, 1 to 16: each table has 2^pointer_bits rows to point to.
        words: the array of one of the same sizes, also mapped from a file. None: nobody has settled.

    Attributes:
        n_places: ids that there is room for.

    Raises:
        TypeError, ValueError: sizes out of range, or words of another type or length.

    Cost:
        (bits + pointer_bits) / 8 bytes per place; two places of memory per id that is looked for.

    Paper:
        Fan et al., Cuckoo Filter (CoNEXT 2014); Pagh and Rodler, Cuckoo Hashing, J. Algorithms 51 (2004).

    Example:
        >>> import numpy as np
        >>> from cce_core.tiers import IdMap, Settled
        >>> known = IdMap(16)
        >>> settled = Settled(known, slots=2, pointer_bits=8)
        >>> settled.take_in(known.names([7, -7]), np.array([3, 200])).min() >= 0
        np.True_
        >>> settled.pointers(known.names([7, -7, 8]))
        array([  3, 200,  -1])
    """

    def __init__(self, known: IdMap, slots: int, pointer_bits: int, words: NDArray[np.uint64] | None = None) -> None:
        self.slots = _check.integer("slots", slots, 1, MOST_BUCKET)
        self.pointer_bits = _check.integer("pointer_bits", pointer_bits, 1, MOST_POINTER)
        self.known, self.n_places = known, self.slots * known.n_buckets
        packing = Packing(self.n_places, (known.bits + self.pointer_bits,))
        words = packing.empty() if words is None else _check.instance("words", words, np.ndarray, "an array")
        if words.dtype != np.uint64 or words.shape != (packing.n_words,) or not words.flags.c_contiguous:
            raise ValueError(
                f"words must be a contiguous uint64 array of shape ({packing.n_words},), got {words.dtype} {words.shape}"
            )
        self.words = words
        key, _, buckets, bits, *_ = known.args
        self._args = key, words, buckets, bits, np.uint64(self.pointer_bits), self.slots

    def __repr__(self) -> str:
        taken = np.count_nonzero(self.identities())
        return f"<Settled: {taken:,} ids of {self.n_places:,}, {self.known.bits} + {self.pointer_bits} bits each>"

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.words.nbytes

    @property
    def rows(self) -> int:
        """Rows of each table that ids can point to."""
        return 1 << self.pointer_bits

    def identities(self) -> NDArray[np.uint64]:
        """Who has which place: uint64 (n_places,), 0 for nobody."""
        out, (key, words, buckets, bits, pointer_bits, slots) = np.empty(self.n_places, np.uint64), self._args
        _all(buckets, key, words, bits, pointer_bits, slots, out)
        return out

    def tables(self) -> NDArray[np.int64]:
        """How many ids of each table have settled: int64 (n_tables,)."""
        found = self.identities()
        return np.bincount(self.known.tables_of(found[found > 0]), minlength=self.known.n_tables)

    def pointers(self, owners: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where identities point to: int64 (n,), −1 for those that have not settled, and for 0."""
        return self._seek(owners, False)

    def rows_of(self, owners: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Their rows among those of all tables, those of table 0 first; −1 likewise."""
        found = self.pointers(owners)
        return np.where(found < 0, -1, found + self.known.tables_of(owners) * self.rows)

    def erase(self, owners: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Forget identities, in order: where they pointed to, −1 for those that had not settled."""
        return self._seek(owners, True)

    def take_in(self, owners: NDArray[np.uint64], pointers: NDArray[Any], near: Any = None) -> NDArray[np.int64]:
        """Put identities into an empty one, those of the first of them first, as `placed` finds places.

        Returns:
            The places, int64 (n,), −1 for who finds none.
        """
        key, words, _, bits, pointer_bits, slots = self._args
        near = (owners >> _32).astype(np.int64) if near is None else near
        places = placed(owners, near, key, self.known.n_buckets, slots)
        _write(owners, places, np.ascontiguousarray(pointers, np.int64), words, bits, pointer_bits)
        return places

    def _seek(self, owners: NDArray[np.uint64], erase: bool) -> NDArray[np.int64]:
        out = np.empty(len(owners), np.int64)
        _seek_many(owners, *self._args, erase, out)
        return out
