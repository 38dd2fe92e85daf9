"""Owners of rows from their definitions: dicts, lists and Python's integers, one id after the other."""

from __future__ import annotations

from reference.frequency import Sketch
from reference.hashing import derive_key, keyed, premix
from reference.id_map import IdMap


def score(eviction, count, seen):
    return seen if eviction in ("lru", "ttl") else count


def victim(policy, candidates, counts, seen, young, now):
    """The row of the least score among those that may go, the first of equals; None if nobody may."""
    free = [row for row in candidates if not young[row]]
    if policy.eviction == "ttl":
        free = [row for row in free if now - seen[row] > policy.ttl]
    return min(free, key=lambda row: score(policy.eviction, counts[row], seen[row]), default=None)


def is_worth(policy, count, chance):
    return {
        "duel": True,
        "frequency": count >= policy.admit_threshold,
        "probability": chance < policy.admit_probability,
    }[policy.admission]


def wins(policy, count, rival):
    return policy.admission != "duel" or count >= rival + policy.lead


class Owners:
    def __init__(self, n_slots, width, policy, bits=16, seed=0, n_tables=1, n_buckets=None):
        self.map, self.sketch = (
            IdMap(n_slots, bits, seed, n_tables, n_buckets),
            Sketch(
                width, policy.cell_bits, 3, policy.half_life, seed, sample=None if policy.half_life else 5 * n_slots
            ),
        )
        self.policy, self.seed, self.now = policy, seed, 0
        self.counts, self.seen, self.young = [0] * n_slots, [0] * n_slots, [0] * n_slots

    def count(self, ids, table=0):
        newcomers = []
        for i in ids:
            (row,) = self.map.find([i], table)
            if row >= 0:
                self.counts[row], self.seen[row] = min(self.counts[row] + 1, 255), self.now
            else:
                salted = i % 2**64 ^ self.map.salts[table]
                self.sketch.add(salted)
                newcomers += [] if salted in newcomers else [salted]
        return newcomers

    def step(self, newcomers, tables=None):
        """(new owner, row, its count, owner before or 0, its count) for each row that is given away."""
        coin, changes = derive_key(self.seed, 0x6475656C, self.now), []
        found = [(self.sketch.estimate(s), s, t) for s, t in zip(newcomers, tables or [0] * len(newcomers))]
        for count, salted, table in sorted(found, key=lambda one: -one[0]):  # which keeps the order of equals
            i, chance = salted ^ self.map.salts[table], (keyed(premix(salted), coin) >> 11) * 2.0**-53
            if self.map.find([i], table)[0] >= 0 or not is_worth(self.policy, count, chance):
                continue
            (row,), before, rival = self.map.insert([i], table), 0, 0
            if row < 0:
                given = {change[1] for change in changes}
                candidates = [row for row in self.map.candidates([i], table)[0] if row not in given]
                row = victim(self.policy, candidates, self.counts, self.seen, self.young, self.now)
                if row is None or not wins(self.policy, count, self.counts[row]):
                    continue
                before, rival = self.map.identity(self.map.owner[row]), self.counts[row]
                self.map.clear([row])
                assert self.map.insert([i], table) == [row]
            changes.append((self.map.identity(self.map.name(i, table)), row, count, before, rival))
            # Five quarters, of which the first may be nearly over.
            self.counts[row], self.seen[row], self.young[row] = count, self.now, 5 if self.policy.grace else 0
        self.now += 1
        if self.sketch.step() and self.policy.eviction != "lfu":
            self.counts = [count // 2 for count in self.counts]
        if self.policy.grace and self.now % -(-self.policy.grace // 4) == 0:
            self.young = [max(0, left - 1) for left in self.young]
        return changes

    def erase(self, ids, table=0):
        rows = self.map.erase(ids, table)
        for row in rows:
            if row >= 0:
                self.counts[row] = self.young[row] = 0
        return rows
