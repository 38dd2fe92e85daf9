"""A table with own and shared rows from its definition: a dict of owners, float64 rows, one id after the other."""

from __future__ import annotations

import numpy as np
from reference.owners import Owners
from reference.vq import memory_bytes


def table_bytes(n, dim, rank, codec, bits, steps, grace, tables=1):
    """Memory, projections, keys, fingerprints, what is counted of each row, and a sketch of a cell per row with its clock."""
    floats = (n + tables * min(8, max(1, n // (16 * tables)))) * (rank or dim)
    projection = 4 * (rank + 1) * dim * tables if rank else 0
    sketch = 16 + 8 * -(-n // 8)
    return memory_bytes(floats, codec) + projection + 8 * tables + n * bits // 8 + n * (1 + 4 * steps + grace) + sketch


class Tiered:
    """Trained by plain gradient descent. `values` are those that the table begins with.

    Of several tables with one memory, `ids` and `grads` of a step are lists of each table's. Once ids have settled, `settled` is
    a dict of their identities to the rows that they point to, of `centroids` that follow the own ones, and `n_buckets` those of
    the map before.
    """

    def __init__(
        self, n, width, policy, values, bits=16, seed=0, fold=True, n_tables=1, settled=(), centroids=0, n_buckets=None
    ):
        self.owners, self.fold = Owners(n, width, policy, bits, seed, n_tables, n_buckets), fold
        self.n, self.values = n, values.astype(np.float64)
        self.settled, self.first = dict(settled), n + centroids
        self.n_shared = (len(values) - self.first) // n_tables

    def shared(self, identity):
        """The row that an id has without one of its own."""
        return self.settled.get(identity, self.first + self.owners.map.shared(identity, self.n_shared))

    def row(self, i, table=0):
        known = self.owners.map
        name = known.name(i, table)
        return known.rows.get(name, self.shared(known.identity(name)))

    def lookup(self, ids, table=0):
        return np.array([self.values[self.row(i, table)] for i in ids])

    def step(self, ids, grads, lr):
        return self.step_all([ids], [grads], lr)

    def step_all(self, ids_of, grads_of, lr):
        whole, newcomers, tables = np.zeros_like(self.values), [], []
        for table, (ids, grads) in enumerate(zip(ids_of, grads_of)):
            for i, g in zip(ids, grads):
                whole[self.row(i, table)] += g
            found = self.owners.count(ids, table)
            newcomers, tables = newcomers + found, tables + [table] * len(found)
        self.values -= lr * whole
        changes = self.owners.step(newcomers, tables)
        for owner, row, _, evicted, count in changes:
            if evicted and self.fold:
                share = count / max(1.0, count + self.owners.sketch.mass / (len(self.values) - self.first))
                self.values[self.shared(evicted)] += share * (self.values[row] - self.values[self.shared(evicted)])
            self.values[row] = self.values[self.shared(owner)]
        return changes
