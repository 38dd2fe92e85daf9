"""A table with own and shared rows from its definition: a dict of owners, float64 rows, one id after the other."""

from __future__ import annotations

import numpy as np
from reference.owners import Owners
from reference.vq import memory_bytes


def table_bytes(n, dim, rank, codec, bits, steps, grace):
    """Memory, projection, key, fingerprints, what is counted of each row, and a sketch of a cell per row with its clock."""
    floats = (n + max(1, n // 16)) * (rank or dim)
    projection = 4 * (rank + 1) * dim if rank else 0
    sketch = 16 + 8 * -(-n // 8)
    return memory_bytes(floats, codec) + projection + 8 + n * bits // 8 + n * (1 + 4 * steps + grace) + sketch


class Tiered:
    """Trained by plain gradient descent. `values` are those that the table begins with."""

    def __init__(self, n, width, policy, values, bits=16, seed=0, fold=True):
        self.owners, self.fold = Owners(n, width, policy, bits, seed), fold
        self.n, self.values, self.mass = n, values.astype(np.float64), 0

    def shared(self, identity):
        return self.n + self.owners.map.shared(identity, len(self.values) - self.n)

    def row(self, i):
        (row,) = self.owners.map.find([i])
        return row if row >= 0 else self.shared(self.owners.map.identity(self.owners.map.name(i)))

    def lookup(self, ids):
        return np.array([self.values[self.row(i)] for i in ids])

    def step(self, ids, grads, lr):
        whole = np.zeros_like(self.values)
        for i, g in zip(ids, grads):
            whole[self.row(i)] += g
        self.mass += sum(self.owners.map.find([i])[0] < 0 for i in ids)
        newcomers = self.owners.count(ids)
        self.values -= lr * whole
        changes = self.owners.step(newcomers)
        if self.owners.now % self.owners.policy.half_life == 0:
            self.mass //= 2
        for owner, row, _, evicted, count in changes:
            if evicted and self.fold:
                share = count / max(1.0, count + self.mass / (len(self.values) - self.n))
                self.values[self.shared(evicted)] += share * (self.values[row] - self.values[self.shared(evicted)])
            self.values[row] = self.values[self.shared(owner)]
        return changes
