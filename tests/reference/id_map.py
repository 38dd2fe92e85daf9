"""The map of ids to own rows from its definition: a dict that knows fingerprints, in Python's integers."""

from __future__ import annotations

from reference.hashing import derive_key, keyed, premix

SLOTS = 4


class IdMap:
    """An id is known by its pair of buckets and its fingerprint: `rows` is a dict of these; `owner` says who lies where.

    Of more buckets than the slots are for, `fold` neighbours have the same slots.
    """

    def __init__(self, n_slots, bits=16, seed=0, n_tables=1, n_buckets=None):
        self.n_buckets, self.bits, self.key = n_buckets or n_slots // SLOTS, bits, derive_key(seed, 0x69646D6170)
        self.fold = -(-self.n_buckets // (n_slots // SLOTS))
        self.salts = [0, *(derive_key(seed, 0x69646D6170, table) for table in range(1, n_tables))]
        self.rows = {}
        self.owner, self.bucket = [None] * n_slots, [0] * n_slots

    def buckets(self, i, table=0):
        """(fingerprint, first bucket, second bucket)"""
        h, n_tables = keyed(premix(i % 2**64 ^ self.salts[table]), self.key), len(self.salts)
        fingerprint = 1 + table + n_tables * (h % 2**32 * ((2**self.bits - 1) // n_tables) >> 32)
        first = h * self.n_buckets >> 64
        turn = keyed(fingerprint, self.key) * self.n_buckets >> 64
        return fingerprint, first, (turn - first) % self.n_buckets

    def name(self, i, table=0):
        fingerprint, first, second = self.buckets(i, table)
        return frozenset((first, second)), fingerprint

    def identity(self, name):
        """All that is known of an id, as one word."""
        buckets, fingerprint = name
        return min(buckets) * 2**32 + fingerprint

    def table_of(self, fingerprint):
        return (fingerprint - 1) % len(self.salts)

    def shared(self, identity, n_shared):
        """Of the shared rows, `n_shared` for each table."""
        table = self.table_of(identity % 2**32)
        return table * n_shared + (keyed(premix(identity), self.key) * n_shared >> 64)

    def own_or_shared(self, i, n_shared, table=0):
        name = self.name(i, table)
        return self.rows.get(name, len(self.owner) + self.shared(self.identity(name), n_shared))

    def find(self, ids, table=0):
        return [self.rows.get(self.name(i, table), -1) for i in ids]

    def candidates(self, ids, table=0):
        return [[SLOTS * (b // self.fold) + s for b in self.buckets(i, table)[1:] for s in range(SLOTS)] for i in ids]

    def free(self, bucket):
        place = bucket // self.fold
        return [row for row in range(SLOTS * place, SLOTS * (place + 1)) if self.owner[row] is None]

    def insert(self, ids, table=0):
        out = []
        for i in ids:
            name = self.name(i, table)
            if name not in self.rows:
                # `max` takes the first of those that are as large.
                bucket = max(self.buckets(i, table)[1:], key=lambda bucket: len(self.free(bucket)))
                if free := self.free(bucket):
                    self.rows[name] = free[0]
                    self.owner[free[0]], self.bucket[free[0]] = name, bucket
            out.append(self.rows.get(name, -1))
        return out

    def erase(self, ids, table=0):
        out = []
        for i in ids:
            row = self.rows.pop(self.name(i, table), -1)
            if row >= 0:
                self.owner[row] = None
            out.append(row)
        return out

    def clear(self, rows):
        for row in rows:
            self.rows.pop(self.owner[row], None)
            self.owner[row] = None

    def words(self):
        """The fingerprints (of a folded map with what tells its buckets apart) as they lie in memory, low bits first."""
        width = self.bits + (self.fold - 1).bit_length()
        entries = [
            0 if name is None else name[1] + (bucket % self.fold << self.bits)
            for name, bucket in zip(self.owner, self.bucket)
        ]
        whole = sum(entry << width * k for k, entry in enumerate(entries))
        return [whole >> at & 2**64 - 1 for at in range(0, width * len(entries), 64)]


def twins(n_slots, seed, count=3):
    """Pairs of ids that a map with fingerprints of 16 bits cannot tell apart."""
    naive, seen, found = IdMap(n_slots, 16, seed), {}, []
    for i in range(20_000):
        name = naive.name(i)
        if name in seen:
            found.append((seen[name], i))
            if len(found) == count:
                break
        seen[name] = i
    assert len(found) == count
    return found
