"""What tables say of ids that have rows: figures of all, and where one stands."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class TierStats:
    """What own rows have done, in arrays of an entry per table.

    Attributes:
        names: of the tables.
        step: the next one.
        max_capacity: own rows that there are, of all tables together.
        own_rows: of them those that a table's ids have.
        met: occurrences of ids in training since the tables were made or loaded.
        hits: those of them whose id had a row of its own by then.
        inserts: rows that were given to ids, since then too.
        evictions: rows that were taken from ids.
        collision_rate: the chance that an id without a row is taken for one that has one (or has settled), of the table where it
            is largest.
        settled: ids of each table that have settled, whether they own rows again or not.
    """

    names: tuple[Any, ...]
    step: int
    max_capacity: int
    own_rows: NDArray[np.int64]
    met: NDArray[np.int64]
    hits: NDArray[np.int64]
    inserts: NDArray[np.int64]
    evictions: NDArray[np.int64]
    collision_rate: float
    settled: NDArray[np.int64]

    @property
    def table_usage_ratio(self) -> float:
        """The share of own rows that have owners."""
        return float(self.own_rows.sum() / self.max_capacity)

    def _share(self, counts: NDArray[np.int64]) -> float:
        return float(counts.sum() / max(1, self.met.sum()))

    @property
    def hit_rate(self) -> float:
        """The share of training's occurrences that own rows have served."""
        return self._share(self.hits)

    @property
    def insert_rate(self) -> float:
        """Rows given to ids, per occurrence."""
        return self._share(self.inserts)

    @property
    def eviction_rate(self) -> float:
        """Rows taken from ids, per occurrence."""
        return self._share(self.evictions)

    def __str__(self) -> str:
        head = f"step {self.step:,}: {self.own_rows.sum():,} of {self.max_capacity:,} own rows taken"
        head += f", {self.settled.sum():,} ids settled" if self.settled.any() else ""
        lines = [f"{'table':>12} {'own rows':>12} {'ids met':>14} {'hit rate':>9} {'given':>10} {'taken':>10}"]
        rows = zip(self.names, self.own_rows, self.met, self.hits, self.inserts, self.evictions)
        for name, own, met, hits, given, taken in rows:
            lines.append(f"{name!s:>12} {own:>12,} {met:>14,} {hits / max(1, met):>9.4f} {given:>10,} {taken:>10,}")
        return "\n".join([head, *lines, f"hit rate {self.hit_rate:.4f}, collision rate {self.collision_rate:.2g}"])


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Where an id stands, and why.

    Attributes:
        own: whether it has a row of its own.
        row: the number of its row, of all own and shared ones.
        count: how often it was met lately, halved with time: of an owner as counted beside its row, else as the sketch has it.
        error: by how much `count` may be too large, with probability at least 1 − e^−depth, of an id without a row. An
            owner's was estimated like that when it was given its row, and is exact from then on.
        last_seen: the step in which an owner was last met, where the policy keeps it ("lru", "ttl"); else None.
        wanted: the count from which it would be given a row now; None for an owner, and if counts do not decide, or
            nobody may go.
        shares_with: counts of all ids without rows, over the shared rows of all tables: what one such row serves. 0 for an owner,
            and for one that has settled.
        settled: whether it has settled: `row`, where it has no own one, is then one of those that were learned for such ids.
    """

    own: bool
    row: int
    count: int
    error: int
    last_seen: int | None
    wanted: int | None
    shares_with: float
    settled: bool = False

    def __str__(self) -> str:
        least = max(0, self.count - self.error)
        counted = f"count {self.count:,}" if least == self.count else f"count {least:,} to {self.count:,}"
        if self.own:
            seen = "" if self.last_seen is None else f", last met in step {self.last_seen:,}"
            return f"own row {self.row:,}, {counted}{seen}"
        wanted = "" if self.wanted is None else f"; a row of its own takes {self.wanted:,}"
        if self.settled:
            return f"settled at row {self.row:,}, {counted}{wanted}"
        return f"shared row {self.row:,}, which serves a count of about {self.shares_with:,.1f}, {counted}{wanted}"
