"""What can be asked of tables that give rows to ids: who has one and why, what that serves, and what is to be forgotten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.learning.reopening import reopen
from cce_core.learning.settling import SettlingReport, settle
from cce_core.method.state import TableState
from cce_core.sketching import blocks
from cce_core.sketching.group import TableGroup
from cce_core.tables.deltas import Followed
from cce_core.tables.merging import Merged, merge
from cce_core.tables.passes import projected
from cce_core.tables.standing import Explanation, TierStats
from cce_core.tiers import Owners


class OwnRows(Followed):
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
                owners.false_hit_rate,
                np.zeros_like(own) if owners.settled is None else owners.settled.tables(),
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
                return Explanation(True, row, count, error, seen, None, 0.0, bool(self._settled(word, number)[0]))
            at = blocks.addresses(self._group(number).sketch, word.reshape(-1))[0, 0]
            wanted = owners.wanted(word.reshape(-1), number)
            settled = bool(self._settled(word, number)[0])
            load = 0.0 if settled else owners.sketch.mass / state.n_shared
            return Explanation(False, int(at) // state.layout.unit, count, error, None, wanted, load, settled)

    def _settled(self, words: NDArray[np.uint64], table: int) -> NDArray[np.bool_]:
        """Which ids have settled, flat."""
        owners = self._owners()
        if owners.settled is None:
            return np.zeros(words.size, bool)
        return owners.settled.pointers(owners.map.names(words, table).reshape(-1)) >= 0

    def export(self, ids: Any = None, table: str | int = 0) -> dict[str, NDArray[Any]]:
        """Rows as parallel arrays, an entry per id (or per owner).

        A map keeps fingerprints, and not ids: it can say of any id whether it has a row, but it cannot list the ids that do.
        Without `ids`, owners are named by what the map knows of them; after them come ids that have settled and own no row.

        Args:
            ids: integers of any shape, or None for all owners (and settled ids) of the table.
            table: whose ids they are, by name or number.

        Returns:
            `keys`: the ids that were asked for, flat; without `ids` identities, uint64: 32 bits of the lower bucket, 32 of the
            fingerprint. `rows`: the own row of each, −1 for none. `values`: float32 (n, dim), the vectors. `freqs`: how often
            each was met lately, int32. `versions`: the step in which each was last met, −1 where that is not kept (it is for
            "lru" and "ttl"). `settled`: which of them have settled.

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
                at, settled = rows, np.zeros(len(rows), bool)
                if owners.settled is not None:
                    there, settled = owners.settled.identities(), owners.settled.pointers(keys) >= 0
                    there = there[(there > 0) & (owners.map.tables_of(there) == number)]
                    there = there[~np.isin(there, keys)]
                    at = np.append(rows, owners.map.n_slots + owners.settled.rows_of(there))
                    rows, freqs = (
                        np.append(rows, np.full(len(there), -1)),
                        np.append(freqs, np.zeros(len(there), np.int32)),
                    )
                    keys, settled = np.append(keys, there), np.append(settled, np.ones(len(there), bool))
                values = self._vectors_of_rows(at, number)
            else:
                keys = _check.as_ids(ids).reshape(-1)
                rows, freqs = owners.find(keys, number), owners.estimate(keys, number)
                values, settled = (
                    blocks.lookup_wide(self._group(number), keys, state.spec.dim),
                    self._settled(keys, number),
                )
            versions = np.full(len(rows), -1, np.int64)
            if owners.policy.uses_steps:
                versions[rows >= 0] = owners.seen[rows[rows >= 0]]
        columns: dict[str, NDArray[Any]] = {
            "keys": keys,
            "rows": rows.astype(np.int32),
            "values": values,
            "freqs": freqs,
        }
        return columns | {"versions": versions, "settled": settled}

    def erase(self, ids: Any, table: str | int = 0) -> NDArray[np.bool_]:
        """Forget ids: their rows are free, and hold what their shared rows do.

        What they have taught shared rows and projections stays there, as it does of every id; what the sketch counts of them is
        halved away. Gradients that were made before are refused.

        Args:
            ids: integers of any shape.
            table: whose ids they are, by name or number.

        Returns:
            Whether each had a row, or had settled, in the shape of ids; an id that comes twice had it the first time.

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

    # --- fewer rows ---------------------------------------------------------------------------------------------------

    def cluster(self, **settings: Any) -> SettlingReport:
        """Let owners settle: each keeps a pointer to a row that it shares with ids of like vectors, and own rows are free again.

            T[i] = M[centroid(table of i, pointer(i))] · W + b        of a settled id without an own row

        A settled id takes its fingerprint and `bits` bits: about 3 bytes instead of 8 and more. It may earn an own row again,
        which begins as a copy of its centroid; centroids go on learning, from all that point to them. After the last step of
        training, `num_bytes` is what is served; while training, the bytes that are won become own rows for newcomers.
        Clustered once more, those that own rows by then settle too, and settled ids beside them find new centroids.

        Args:
            num_bytes: most bytes of all arrays afterwards; None: as many as now.
            bits: of a pointer, 1 to 16, so that each table has 2^bits centroids; None: 8, or fewer if not all owners find places,
                and what is left over is less so.
            keep: the share of the own rows that fit in the rest which stays with the owners that count most; all others are free.
            weights: how much the owner of each own row counts, real numbers (max_capacity,), at least 0, not all 0; None: how
                often it was met lately, at least 1. Those that have settled count 1.
            n_iter: most iterations of k-means.
            points_per_centroid: k-means sees a sample of so many ids a centroid, or all where there are fewer.
            batch_size: most ids that are pointed to centroids at once.
            max_bytes: most bytes for the sample and the batches, which it makes smaller where it must.
            show_progress: a bar; None shows one on a terminal when it takes more than two seconds.

        Returns:
            A `SettlingReport`.

        Raises:
            BudgetError: `num_bytes` is too few; the least is named.
            ValueError: nobody has a row yet, the table is mapped, a number is out of range, weights do not fit, `max_bytes` is
                too few, or NaN or infinity is found. The table is as before, also after an interrupt.

        Cost:
            k-means over points_per_centroid · 2^bits points of each table, and a nearest-centroid search for every owner. Beside
            `max_bytes`, the new arrays and 64 bytes per owner. Steps in other threads wait; lookups and saving do not. What
            optimisers know of rows goes with them, of a centroid's the weighted mean of its ids' (12 bytes of each are kept for
            that while the table is there). Gradients and forward passes that were made before are refused.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=2000, seed=0)
            >>> for _ in range(3):
            ...     cce.SGD(lr=0.1).update(table, np.arange(100), np.ones((100, 8)))
            >>> report = table.cluster(num_bytes=1500, bits=4)
            >>> report.settled, report.own_rows, table.ledger().total <= 1500
            (100, 108, True)
        """
        report = settle(self._whole(), **settings)
        self._changed()
        return report

    def reopen(self) -> None:
        """Go back to own rows alone, and the bytes that they take: every id gets one, as far as the rows from before go.

        First those that own rows, then settled ids, whose rows begin as copies of their centroids and count 1. Who finds no row
        in its buckets falls to a shared one.

        Raises:
            ValueError: no ids have settled, or the table is mapped read-only; it stays as it was.

        Example:
            >>> import numpy as np, cce_core as cce
            >>> table = cce.make_table("tiered", None, 8, num_bytes=2000, seed=0)
            >>> cce.SGD(lr=0.1).update(table, np.arange(50), np.ones((50, 8)))
            >>> _ = table.cluster(num_bytes=1500)
            >>> table.reopen()
            >>> int(table.stats().own_rows.sum()), table.ledger().total <= 2000
            (50, True)
        """
        reopen(self._whole())
        self._changed()

    def _changed(self) -> None:
        """See the tables as they are since they were clustered."""

    # --- tables that were trained apart -------------------------------------------------------------------------------

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
            ValueError: it is of another spec, or this very table, or this one is mapped read-only, or ids of either have settled.
                Nothing is changed.

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
        for state, whose in ((self._whole(), "this table"), (other._whole(), "the other table")):
            if state.phase is not None:
                raise ValueError(
                    f"ids have settled in {whose}, and are not counted: merge before cluster(), or after reopen()"
                )
        return merge(self._whole(), other._whole())

    def _vectors_of_rows(self, rows: NDArray[Any], table: int) -> NDArray[np.float32]:
        """The vectors of own rows, by their numbers."""
        state, matrix = self._whole(), self._group(table).members[0].projection
        values = state.stored.read_rows(rows.astype(np.int64), state.layout.unit, exact=False)
        return values if matrix is None else projected(matrix, values)[0]
