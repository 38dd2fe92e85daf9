"""What can be asked of tables that give rows to ids: who has one and why, what that serves, and what is to be forgotten."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.group import TableGroup
from cce_core.tables.deltas import Applied, Delta, Mark, apply_delta, delta_of, mark_of
from cce_core.tables.merging import Merged, merge
from cce_core.tables.passes import projected
from cce_core.tiers import Owners


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
        collision_rate: the chance that an id without a row is taken for an owner, of the table where it is largest.
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
        shares_with: counts of all ids without rows, over the shared rows of all tables: what one such row serves. 0 for an owner.
    """

    own: bool
    row: int
    count: int
    error: int
    last_seen: int | None
    wanted: int | None
    shares_with: float

    def __str__(self) -> str:
        least = max(0, self.count - self.error)
        counted = f"count {self.count:,}" if least == self.count else f"count {least:,} to {self.count:,}"
        if self.own:
            seen = "" if self.last_seen is None else f", last met in step {self.last_seen:,}"
            return f"own row {self.row:,}, {counted}{seen}"
        wanted = "" if self.wanted is None else f"; a row of its own takes {self.wanted:,}"
        return f"shared row {self.row:,}, which serves a count of about {self.shares_with:,.1f}, {counted}{wanted}"


class OwnRows:
    """Questions to tables whose ids have rows, and what is asked of them: a table itself, or a collection of several.

    Attributes:
        spec: theirs.
    """

    spec: Any

    def _whole(self) -> TableState:
        """Memory, map and counts; a table and a collection each have their own."""
        raise NotImplementedError

    def _names(self) -> tuple[Any, ...]:
        """Of the tables."""
        return (0,)

    def number(self, name: str | int) -> int:
        """The number of a table, from its name or number.

        Raises:
            KeyError: there is no such table; the message says which there are.
        """
        names = self._names()
        if name in names and not isinstance(name, bool):
            return names.index(name)
        if isinstance(name, (int, np.integer)) and not isinstance(name, bool) and 0 <= name < len(names):
            return int(name)
        known = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
        raise KeyError(f"there is no table {name!r}; the tables are {known}")

    def _group(self, table: int) -> TableGroup:
        """A table by itself, as the compiled loops read it; likewise."""
        raise NotImplementedError

    def _owners(self) -> Owners:
        owners = self._whole().owners
        assert owners is not None
        return owners

    def _n_shared(self) -> int:
        (column,) = self._whole().layout.columns
        return column.rows - column.a

    def stats(self) -> TierStats:
        """Who has rows, and what these have served since the tables were made or loaded.

        Lookups count nothing, so these are figures of training alone.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> for _ in range(4):
            ...     cce.SGD(lr=0.1).update(table, [1, 2], np.ones((2, 8)))
            >>> stats = table.stats()
            >>> stats.hit_rate, stats.own_rows, stats.inserts
            (0.75, array([2]), array([2]))
        """
        state, owners = self._whole(), self._owners()
        with state.guard.door:
            own = np.bincount(owners.map.tables() + 1, minlength=1 + owners.map.n_tables)[1:]
            met, hits, inserts, evictions = state.traffic.copy()
            return TierStats(
                self._names(), owners.now, owners.map.n_slots, own.astype(np.int64), met, hits, inserts, evictions,
                owners.map.false_hit_rate,
            )  # fmt: skip

    def explain(self, id: Any, table: str | int = 0) -> Explanation:
        """Where an id stands: its row, how often it was met lately, and what it would take to have a row of its own.

        Args:
            id: one integer, or what `cce_core.hash_strings` gives for one string.
            table: whose id it is, by name or number.

        Raises:
            TypeError: it is not one integer.
            KeyError: there is no such table.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> cce.SGD(lr=0.1).update(table, [5, 5, 5], np.ones((3, 8)))
            >>> explained = table.explain(5)
            >>> explained.own, explained.count, table.explain(6).own
            (True, 3, False)
        """
        number, word = self.number(table), _check.as_ids(id)
        if word.size != 1:
            raise TypeError(f"id must be one integer, got {_check.shown(id)}")
        state, owners = self._whole(), self._owners()
        with state.guard.door:
            row, count = int(owners.find(word, number).item()), int(owners.estimate(word, number).item())
            own, policy = row >= 0, owners.policy
            error = min(count, math.ceil(math.e * owners.sketch.mass / owners.sketch.width))
            if own:
                seen = int(owners.seen[row]) if policy.uses_steps else None
                return Explanation(True, row, count, error, seen, None, 0.0)
            at = blocks.addresses(self._group(number).sketch, word.reshape(-1))[0, 0]
            wanted = owners.wanted(word.reshape(-1), number)
            load = owners.sketch.mass / self._n_shared()
            return Explanation(False, int(at) // state.layout.unit, count, error, None, wanted, load)

    def export(self, ids: Any = None, table: str | int = 0) -> dict[str, NDArray[Any]]:
        """Rows as parallel arrays, an entry per id (or per owner).

        A map keeps fingerprints, and not ids: it can say of any id whether it has a row, but it cannot list the ids that do.
        Without `ids`, owners are named by what the map knows of them.

        Args:
            ids: integers of any shape, or None for all owners of the table.
            table: whose ids they are, by name or number.

        Returns:
            `keys`: the ids that were asked for, flat; without `ids` identities, uint64: 32 bits of the lower bucket, 32 of the
            fingerprint. `rows`: the own row of each, −1 for none. `values`: float32 (n, dim), the vectors. `freqs`: how often
            each was met lately, int32. `versions`: the step in which each was last met, −1 where that is not kept (it is for
            "lru" and "ttl").

        Raises:
            TypeError: ids are not integers.
            KeyError: there is no such table.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> cce.SGD(lr=0.1).update(table, [5, 6], np.ones((2, 8)))
            >>> asked, everyone = table.export([5, 7]), table.export()
            >>> asked["rows"] >= 0, everyone["values"].shape
            (array([ True, False]), (2, 8))
        """
        number, state, owners = self.number(table), self._whole(), self._owners()
        rows: NDArray[Any]
        with state.guard.door:
            if ids is None:
                rows = np.flatnonzero(owners.map.tables() == number)
                keys, freqs = owners.map.identities(rows), owners.counts[rows].astype(np.int32)
                values = self._vectors_of_rows(rows, number)
            else:
                keys = _check.as_ids(ids).reshape(-1)
                rows, freqs = owners.find(keys, number), owners.estimate(keys, number)
                values = blocks.lookup_wide(self._group(number), keys, state.spec.dim)
            versions = np.full(len(rows), -1, np.int64)
            if owners.policy.uses_steps:
                versions[rows >= 0] = owners.seen[rows[rows >= 0]]
        return {"keys": keys, "rows": rows.astype(np.int32), "values": values, "freqs": freqs, "versions": versions}

    def erase(self, ids: Any, table: str | int = 0) -> NDArray[np.bool_]:
        """Forget ids: their rows are free, and hold what their shared rows do.

        What they have taught shared rows and projections stays there, as it does of every id; what the sketch counts of them is
        halved away. Gradients that were made before are refused.

        Args:
            ids: integers of any shape.
            table: whose ids they are, by name or number.

        Returns:
            Whether each had a row, in the shape of ids; an id that comes twice had it the first time.

        Raises:
            TypeError: ids are not integers.
            KeyError: there is no such table.
            ValueError: the table is mapped read-only. Nothing is changed by any of these.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> cce.SGD(lr=0.1).update(table, [5, 6], np.ones((2, 8)))
            >>> table.erase([5, 7]), table.explain(5).own
            (array([ True, False]), False)
        """
        return self._whole().erase_rows(_check.as_ids(ids), self.number(table))

    # --- copies that follow -------------------------------------------------------------------------------------------

    def mark(self, *, complete: bool = False) -> Mark:
        """The present moment, from which `delta` tells what has changed.

        Args:
            complete: follow counts, the sketch and the clock too, so that a copy can go on training; else what lookups read.

        Returns:
            A `Mark`, which takes 6 % of the bytes of what it follows.
        """
        return mark_of(self._whole(), _check.flag("complete", complete))

    def delta(self, since: Mark) -> Delta:
        """What has changed since a mark: trained rows, rows that were given and taken, shared rows, projections.

        Args:
            since: a `mark()`, or the `mark` of the delta before.

        Returns:
            A `Delta`: `save` it, or hand it to `apply_delta` of a copy. Its own `mark` is where the next one begins.

        Raises:
            TypeError, ValueError: that is no mark of this table.

        Cost:
            A pass over the arrays, and the pages of 128 bytes in which something has changed.

        Example:
            >>> import copy, numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=1000)
            >>> copied, mark = copy.deepcopy(table), table.mark()
            >>> cce.SGD(lr=0.1).update(table, [5, 6], np.ones((2, 8)))
            >>> delta = table.delta(mark)
            >>> done = copied.apply_delta(delta)
            >>> delta.sequence, len(done.given), bool((copied.lookup([5, 6, 7]) == table.lookup([5, 6, 7])).all())
            (1, 2, True)
            >>> copied.apply_delta(delta).n_pages  # again: it does no harm
            0
        """
        return delta_of(self._whole(), since)

    def apply_delta(self, delta: Delta) -> Applied:
        """Be as the table is that the delta was made of: to the bit, all at once.

        Args:
            delta: made of the table of which this is a copy; one that was applied already changes nothing.

        Returns:
            Who was given rows, and from whom they were taken.

        Raises:
            TypeError: it is no delta.
            ValueError: it is of another table, out of order or damaged, or this table is mapped. Nothing is changed.

        Cost:
            Passes over the arrays, and a copy of those that change.
        """
        return apply_delta(self._whole(), delta)

    def merge(self, other: Any) -> Merged:
        """Take in what another table has learned that was made alike and trained apart: on other days, or on another machine.

        Of an id with a row in both the vector is the mean by counts, and counts are added; an owner of the other alone is given a
        free row, or that of a candidate which it leads, or is folded into its shared row. Projections are averaged, and all rows
        written anew for that. The other stays as it is. What optimisers know of this table is out of date: take new ones.

        Args:
            other: of the same spec, seed included.

        Returns:
            How many owners of the other were met here, added, have won a row, and were folded in.

        Raises:
            TypeError: it is no such table.
            ValueError: it is of another spec, or this very table, or this one is mapped read-only. Nothing is changed.

        Cost:
            Both memories decoded in float64, and a loop over the owners of the other alone.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> one, two = (cce.make_table("tiered", None, 8, num_bytes=1000, seed=3) for _ in range(2))
            >>> for table, ids in ((one, [5, 6]), (two, [6, 7])):
            ...     cce.SGD(lr=0.1).update(table, ids, np.ones((2, 8)))
            >>> one.merge(two), one.export([5, 6, 7])["rows"] >= 0
            (Merged(both=1, added=1, won=0, folded=0), array([ True,  True,  True]))
        """
        _check.instance(
            "other", other, OwnRows, "a table (or tables) whose ids have rows, as make_table('tiered', …) makes it"
        )
        return merge(self._whole(), other._whole())

    def _vectors_of_rows(self, rows: NDArray[Any], table: int) -> NDArray[np.float32]:
        """The vectors of own rows, by their numbers."""
        state, matrix = self._whole(), self._group(table).members[0].projection
        values = state.stored.read_rows(rows.astype(np.int64), state.layout.unit, exact=False)
        return values if matrix is None else projected(matrix, values)[0]
