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
    def __init__(self, n_slots, width, policy, bits=16, seed=0):
        self.map, self.sketch = IdMap(n_slots, bits, seed), Sketch(width, 8, 3, policy.half_life, seed)
        self.policy, self.seed, self.now = policy, seed, 0
        self.counts, self.seen, self.young = [0] * n_slots, [0] * n_slots, [0] * n_slots

    def count(self, ids):
        newcomers = []
        for i in ids:
            (row,) = self.map.find([i])
            if row >= 0:
                self.counts[row], self.seen[row] = min(self.counts[row] + 1, 255), self.now
            else:
                self.sketch.add(i)
                newcomers += [] if i in newcomers else [i]
        return newcomers

    def step(self, newcomers):
        """(new owner, row, its count, owner before or 0, its count) for each row that is given away."""
        coin, changes = derive_key(self.seed, 0x6475656C, self.now), []
        found = {i: self.sketch.estimate(i) for i in newcomers}
        for i in sorted(newcomers, key=lambda i: -found[i]):  # which keeps the order of equals
            chance = (keyed(premix(i), coin) >> 11) * 2.0**-53
            if self.map.find([i])[0] >= 0 or not is_worth(self.policy, found[i], chance):
                continue
            (row,), before, rival = self.map.insert([i]), 0, 0
            if row < 0:
                given = {change[1] for change in changes}
                candidates = [row for row in self.map.candidates([i])[0] if row not in given]
                row = victim(self.policy, candidates, self.counts, self.seen, self.young, self.now)
                if row is None or not wins(self.policy, found[i], self.counts[row]):
                    continue
                before, rival = self.map.identity(self.map.owner[row]), self.counts[row]
                self.map.clear([row])
                assert self.map.insert([i]) == [row]
            changes.append((self.map.identity(self.map.name(i)), row, found[i], before, rival))
            # Five quarters, of which the first may be nearly over.
            self.counts[row], self.seen[row], self.young[row] = found[i], self.now, 5 if self.policy.grace else 0
        self.now += 1
        self.sketch.step()
        if self.now % self.policy.half_life == 0 and self.policy.eviction != "lfu":
            self.counts = [count // 2 for count in self.counts]
        if self.policy.grace and self.now % -(-self.policy.grace // 4) == 0:
            self.young = [max(0, left - 1) for left in self.young]
        return changes

    def erase(self, ids):
        rows = self.map.erase(ids)
        for row in rows:
            if row >= 0:
                self.counts[row] = self.young[row] = 0
        return rows
