"""Where an id may lie in a map, and what a slot holds of it: the compiled parts of `IdMap` and `Settled`.

    h  = hash(id; key)                  f = the fingerprint, b₁ and b₂ the buckets: as `id_map` says
    identity                            min(b₁, b₂) and f in one word: all that a map knows of an id

A map of fewer slots than its buckets would take is folded: `fold` neighbouring buckets lie in the same 4 slots, and an entry is
the fingerprint with, above it, which of them the entry is of, so that nothing is forgotten. With a fold of 1, as every map
begins, the entry is the fingerprint. So a map can shrink while its owners stay who they are.

Ids that have settled (`settled`) lie in the same buckets once more, each of `slots` slots: a fingerprint, and above it the number
of a row that many ids may share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core.hashing.mix import derive_key, keyed, multiply_high, premix
from cce_core.storage.packed import read_bits, write_bits

SLOTS = 4  # of a bucket
BITS = (16, 32)  # of a fingerprint
_STREAM = 0x69646D6170  # "idmap"
MOST_SLOTS = 2**31 - SLOTS
MOST_TABLES = 1024  # of one map: 63 fingerprints of 16 bits are left to each
_zero, _one, _two, _32, _low = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(32), np.uint64(2**32 - 1)


def map_key(seed: int) -> int:
    """The key of the hash of an `IdMap` of that seed."""
    return derive_key(seed, _STREAM)


def map_keys(seed: int, n_tables: int = 1) -> NDArray[np.uint64]:
    """That key, and after it the salts of all tables but the first: uint64 (n_tables,)."""
    return np.array([map_key(seed), *(derive_key(seed, _STREAM, table) for table in range(1, n_tables))], np.uint64)


@jit
def salt_of(table: np.uint64, keys: Any) -> np.uint64:
    """What the ids of a table are mixed with, of `map_keys`."""
    return keys[table] if table > _zero else _zero


@jit
def partner(fingerprint: np.uint64, bucket: np.uint64, key: np.uint64, n_buckets: np.uint64) -> np.uint64:
    """The other bucket of a fingerprint that may lie in this one."""
    other = multiply_high(keyed(fingerprint, key), n_buckets)
    return other + n_buckets * np.uint64(other < bucket) - bucket


@jit
def candidate_buckets(
    word: np.uint64, table: np.uint64, key: np.uint64, n_buckets: np.uint64, bits: np.uint64, n_tables: np.uint64
) -> Any:
    """The fingerprint of an id (with its table's salt), and its two buckets."""
    h = keyed(premix(word), key)
    digit = ((h & _low) * (((_one << bits) - _one) // n_tables)) >> _32
    fingerprint = _one + table + n_tables * digit
    first = multiply_high(h, n_buckets)
    return fingerprint, first, partner(fingerprint, first, key, n_buckets)


@jit
def start_of(bucket: np.uint64, fold: np.uint64) -> np.uint64:
    """The first slot of a bucket."""
    return (bucket if fold == _one else bucket // fold) << _two


@jit
def entry_of(fingerprint: np.uint64, bucket: np.uint64, bits: np.uint64, fold: np.uint64) -> np.uint64:
    """What a slot of a bucket holds of an id."""
    return fingerprint if fold == _one else fingerprint | (bucket % fold) << bits


@jit
def identity(fingerprint: np.uint64, bucket: np.uint64, other: np.uint64) -> np.uint64:
    """All that a map knows of an id, from both its buckets: one word, never 0, that equal ids and twins share."""
    return min(bucket, other) << _32 | fingerprint


@jit
def table_of(owner: np.uint64, n_tables: np.uint64) -> np.uint64:
    """The table of an identity, or of a fingerprint."""
    return ((owner & _low) - _one) % n_tables


@jit
def owner(
    words: Any, slot: np.uint64, key: np.uint64, n_buckets: np.uint64, bits: np.uint64, fold: np.uint64, width: np.uint64
) -> np.uint64:  # fmt: skip
    """The identity of who has a slot; 0 if nobody has."""
    entry = read_bits(words, slot * width, width)
    if entry == _zero:
        return _zero
    fingerprint, bucket = entry & ((_one << bits) - _one), (slot >> _two) * fold + (entry >> bits)
    return identity(fingerprint, bucket, partner(fingerprint, bucket, key, n_buckets))


@jit
def seek(
    words: Any, fingerprint: np.uint64, first: np.uint64, second: np.uint64, bits: np.uint64, fold: np.uint64, width: np.uint64
) -> np.int64:  # fmt: skip
    """The slot among those of two buckets that holds an id of that fingerprint; −1 if none does."""
    for bucket in (first, second):
        start, entry = start_of(bucket, fold), entry_of(fingerprint, bucket, bits, fold)
        for s in range(SLOTS):
            slot = start + np.uint64(s)
            if read_bits(words, slot * width, width) == entry:
                return np.int64(slot)
    return np.int64(-1)


@jit
def put(
    words: Any, fingerprint: np.uint64, first: np.uint64, second: np.uint64, bits: np.uint64, fold: np.uint64, width: np.uint64
) -> np.int64:  # fmt: skip
    """Put an id that is in neither bucket where more slots are free, the first bucket if as many; −1 if none is."""
    slot, most, entry = np.int64(-1), 0, _zero
    for bucket in (first, second):
        start, free, lowest = start_of(bucket, fold), 0, np.int64(-1)
        for s in range(SLOTS):
            at = start + np.uint64(SLOTS - 1 - s)
            if read_bits(words, at * width, width) == _zero:
                free, lowest = free + 1, np.int64(at)
        if free > most:
            slot, most, entry = lowest, free, entry_of(fingerprint, bucket, bits, fold)
    if slot >= 0:
        write_bits(words, np.uint64(slot) * width, width, entry)
    return slot


@jit
def shared_row(
    owner: np.uint64, key: np.uint64, before: np.uint64, n_shared: np.uint64, n_tables: np.uint64
) -> np.uint64:
    """The row of those that follow so many others, `n_shared` for each table, which an identity shares."""
    return before + n_shared * table_of(owner, n_tables) + multiply_high(keyed(premix(owner), key), n_shared)


@jit
def seek_settled(
    words: Any, begin: np.uint64, fingerprint: np.uint64, first: np.uint64, second: np.uint64, bits: np.uint64,
    pointer_bits: np.uint64, slots: Any,
) -> np.int64:  # fmt: skip
    """The place of a settled id among the slots of its buckets, which begin at a bit of the words; −1 if it has not settled."""
    for bucket in (first, second):
        for s in range(slots):
            place = bucket * np.uint64(slots) + np.uint64(s)
            if read_bits(words, begin + place * (bits + pointer_bits), bits) == fingerprint:
                return np.int64(place)
    return np.int64(-1)


@jit
def row_of(
    word: np.uint64, table: np.uint64, key: np.uint64, words: Any, n_slots: np.uint64, n_shared: np.uint64, bits: np.uint64,
    n_tables: np.uint64, n_buckets: np.uint64, fold: np.uint64, width: np.uint64, begin: np.uint64, pointer_bits: np.uint64,
    slots: Any,
) -> np.uint64:  # fmt: skip
    """The row of an id: its own, or that which it points to once it has settled, or one that ids share by what the map knows."""
    fingerprint, first, second = candidate_buckets(word, table, key, n_buckets, bits, n_tables)
    slot = seek(words, fingerprint, first, second, bits, fold, width)
    if slot >= 0:
        return np.uint64(slot)
    before = n_slots
    if slots > 0:
        place = seek_settled(words, begin, fingerprint, first, second, bits, pointer_bits, slots)
        if place >= 0:
            at = begin + np.uint64(place) * (bits + pointer_bits) + bits
            return n_slots + (table << pointer_bits) + read_bits(words, at, pointer_bits)
        before = n_slots + (n_tables << pointer_bits)
    return shared_row(identity(fingerprint, first, second), key, before, n_shared, n_tables)
