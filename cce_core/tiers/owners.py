"""Who owns which row while a stream goes by: the map, counts of owners and of candidates, and one step after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._arrays import Ids
from cce_core._jit import jit
from cce_core.hashing.distinct import number_distinct
from cce_core.hashing.mix import derive_key
from cce_core.storage.files import digest
from cce_core.storage.packed import read_bits, write_bits
from cce_core.tiers.buckets import SLOTS, candidate_buckets, entry_of, identity, owner, put, seek, start_of
from cce_core.tiers.frequency import FrequencySketch
from cce_core.tiers.id_map import IdMap
from cce_core.tiers.policies import FREQUENCY, LFU, MOST_COUNT, PROBABILITY, Policy, draw, is_worth, victim, wins
from cce_core.tiers.settled import Settled

_STREAM = 0x6475656C  # "duel"
_MOST = np.uint8(MOST_COUNT)
_one, _two = np.uint64(1), np.uint64(2)
_GRACE_PARTS = 4
_SAMPLE = 5  # counts of candidates, for each row, at which they are halved: with more all newcomers would seem frequent


class Admissions(NamedTuple):
    """What a step has changed, an entry for each row that was given away, in the order in which it was.

    Attributes:
        owners: identities of the new owners, uint64 (n,).
        rows: the rows, int32 (n,), no two alike.
        counts: of the new owners, uint8 (n,).
        evicted: identities of the owners before, uint64 (n,); 0 where the row was free.
        evicted_counts: theirs, uint8 (n,).
    """

    owners: NDArray[np.uint64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint8]
    evicted: NDArray[np.uint64]
    evicted_counts: NDArray[np.uint8]


@jit
def _meet(rows: Any, counts: Any, seen: Any, now: int) -> None:
    for n in range(rows.shape[0]):
        row = rows[n]
        if row >= 0:
            counts[row] += np.uint8(counts[row] < _MOST)
            if len(seen) > 0:
                seen[row] = now


@jit
def _admit(
    ids: Any, tables: Any, found: Any, order: Any, rule: Any, coin: np.uint64, now: int, grace: int, key: np.uint64, words: Any,
    n_buckets: np.uint64, bits: np.uint64, n_tables: np.uint64, fold: np.uint64, width: np.uint64, counts: Any, seen: Any,
    young: Any, given: Any, owners: Any, rows: Any, numbers: Any, evicted: Any, evicted_counts: Any,
) -> int:  # fmt: skip
    """Newcomers with their counts, in order; what is changed goes to the last five. Gives how many rows were given away."""
    n_given, candidates = 0, np.empty(2 * SLOTS, np.int64)
    for n in order:
        fingerprint, first, second = candidate_buckets(ids[n], np.uint64(tables[n]), key, n_buckets, bits, n_tables)
        if seek(words, fingerprint, first, second, bits, fold, width) >= 0:
            continue  # its twin was given a row in this step
        if not is_worth(rule, found[n], draw(ids[n], coin)):
            continue
        slot, before, rival = put(words, fingerprint, first, second, bits, fold, width), np.uint64(0), np.uint8(0)
        if slot < 0:
            for s in range(2 * SLOTS):
                row = start_of(first if s < SLOTS else second, fold) + np.uint64(s % SLOTS)
                # Whoever was given a row in this step keeps it for this step.
                candidates[s] = -1 if read_bits(given, row, _one) == _one else np.int64(row)
            slot = victim(rule, candidates, counts, seen, young, now)
            if slot < 0 or not wins(rule, found[n], np.int64(counts[slot])):
                continue
            before, rival = owner(words, np.uint64(slot), key, n_buckets, bits, fold, width), counts[slot]
            place = np.uint64(slot)
            bucket = first if start_of(first, fold) >> _two == place >> _two else second
            write_bits(words, place * width, width, entry_of(fingerprint, bucket, bits, fold))
        write_bits(given, np.uint64(slot), _one, _one)
        counts[slot] = found[n]
        if len(seen) > 0:
            seen[slot] = now
        if len(young) > 0:
            young[slot] = grace
        owners[n_given], rows[n_given], numbers[n_given] = identity(fingerprint, first, second), slot, found[n]
        evicted[n_given], evicted_counts[n_given] = before, rival
        n_given += 1
    return n_given


class Owners:
    """The owners of `n_slots` rows, found in a stream of ids without end, in a number of bytes that is known beforehand.

    A training batch is `count`ed; after each step of the optimiser `step` gives rows to newcomers of the batch, by the policy.
    Looking rows up (`find`) changes nothing, and never counts.

    Args:
        n_slots: rows, a multiple of 4.
        sketch_bytes: of the counts of candidates.
        policy: who is given a row, and who gives one up.
        bits: of a fingerprint, 16 or 32.
        seed: of all hashes and draws.
        n_tables: tables whose ids are kept apart, and compete for the same rows.
        buckets: as for `IdMap`.
        settled: where ids may have settled, slots of a bucket and bits of a pointer, as for `Settled`.
        arrays: those of owners of the same sizes, policy and seed, as `arrays` gives them; in `map` the words of settled ids
            follow those of owners. None: all rows are free.

    Attributes:
        map: ids to rows.
        settled: ids that share rows that were learned for them, where there are any; who is an owner too has its own row. A
            settled id counts as one without a row: it may earn one.
        sketch: counts of candidates.
        counts: of owners, uint8 (n_slots,).
        seen: the step in which each was last met, for "lru" and "ttl"; else empty.
        young: what is left of its time of grace, in quarters of it; empty without one.

    Raises:
        TypeError, ValueError: sizes out of range, or arrays of other sizes.

    Cost:
        bits / 8 + 1 bytes per row, 4 more for "lru" and "ttl", and 1 more with a time of grace; and the sketch. Counting and
        admission go through ids in a fixed order, so that the bits never depend on the number of threads.

    Example:
        >>> from cce_core.tiers import Owners
        >>> owners = Owners(4, 1000)
        >>> _ = owners.step(owners.count([1, 2, 3, 4, 4]))
        >>> owners.step(owners.count([5, 5])).rows  # 2 is no more than 1 by the lead, 2
        array([], dtype=int32)
        >>> owners.step(owners.count([5])).rows.size, int((owners.find([1, 2, 3, 4, 5]) >= 0).sum())
        (1, 4)
    """

    def __init__(
        self,
        n_slots: int,
        sketch_bytes: int,
        policy: Policy | None = None,
        *,
        bits: int = 16,
        seed: int = 0,
        n_tables: int = 1,
        buckets: int | None = None,
        settled: tuple[int, int] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.policy = policy = Policy() if policy is None else _check.instance("policy", policy, Policy, "a Policy")
        given = {} if arrays is None else dict(_check.instance("arrays", arrays, Mapping, "a dict of arrays"))
        sizes: Any = {"bits": bits, "seed": seed, "n_tables": n_tables, "buckets": buckets}
        self._settings = (n_slots, sketch_bytes, policy), {**sizes, "settled": settled}
        words = self._words = given.get("map")
        if words is not None and settled is not None:  # one array: lookups read both
            known = IdMap(n_slots, **sizes)
            self.map = IdMap(n_slots, **sizes, words=words[: known.words.size])
            self.settled: Settled | None = Settled(self.map, *settled, words=words[known.words.size :])
        else:
            self.map = IdMap(n_slots, **sizes, words=words)
            self.settled = None if settled is None else Settled(self.map, *settled)
        sketched: Any = None if arrays is None else {"words": given.get("sketch"), "clock": given.get("clock")}
        sample = _SAMPLE * self.map.n_slots if policy.half_life is None else None
        cells: Any = {"bits": policy.cell_bits, "half_life": policy.half_life, "sample": sample}
        self.sketch = FrequencySketch(sketch_bytes, **cells, seed=seed, arrays=sketched)
        sizes = {
            "counts": (np.uint8, self.map.n_slots),
            "seen": (np.uint32, self.map.n_slots if policy.uses_steps else 0),
            "young": (np.uint8, self.map.n_slots if policy.grace else 0),
        }
        own = {name: np.zeros(n, dtype) for name, (dtype, n) in sizes.items()} if arrays is None else given
        for name, (dtype, n) in sizes.items():
            array = _check.instance(name, own.get(name), np.ndarray, "an array")
            if array.dtype != dtype or array.shape != (n,):
                raise ValueError(f"{name} must be {np.dtype(dtype)} of shape ({n},), got {array.dtype} {array.shape}")
        self.counts, self.seen, self.young = own["counts"], own["seen"], own["young"]

    def __repr__(self) -> str:
        return f"<Owners: {self.map!r}, {self.policy.admission}, {self.policy.eviction}>"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays themselves, not copies: what is saved."""
        words = self._words
        if words is None:
            words = self.map.words if self.settled is None else np.concatenate([self.map.words, self.settled.words])
        return {
            "map": words, "sketch": self.sketch.words, "clock": self.sketch.clock,
            "counts": self.counts, "seen": self.seen, "young": self.young,
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """The arrays alone, so that copies of a table and of its owners have them together again."""
        return {"settings": self._settings, "arrays": self.arrays()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        sizes, more = state["settings"]
        self.__init__(*sizes, **more, arrays=state["arrays"])  # type: ignore[misc]

    @property
    def first_shared(self) -> int:
        """How many rows come before those that ids share by hash: own ones, and those that settled ids share."""
        return self.map.n_slots + (0 if self.settled is None else self.map.n_tables * self.settled.rows)

    def fallback_rows(self, owners: NDArray[np.uint64], n_shared: int) -> NDArray[np.int64]:
        """The rows that identities have without own ones, if each table has `n_shared` that are found by hash: int64 (n,)."""
        rows = self.map.shared_rows(owners, n_shared) + (self.first_shared - self.map.n_slots)
        if self.settled is None:
            return rows
        found = self.settled.rows_of(owners)
        return np.where(found < 0, rows, found + self.map.n_slots)

    @property
    def false_hit_rate(self) -> float:
        """The chance that an id without a row, which has not settled, is taken for one that has; of the worst table."""
        rate = self.map.false_hit_rate
        if self.settled is None:
            return rate
        most = int(self.settled.tables().max()) / self.map.n_buckets  # in a bucket
        fingerprints = (2**self.map.bits - 1) // self.map.n_tables
        return float(1 - (1 - rate) * np.exp(2 * most * np.log1p(-1.0 / fingerprints)))

    def digest(self) -> str:
        """16 hexadecimal digits that equal owners share."""
        return digest(self.arrays(), f"{self.map.bits} {self.map.seed} {self.map.n_tables} {self.policy}")

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    @property
    def now(self) -> int:
        """The step that comes next."""
        return int(self.sketch.clock[0])

    def find(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """The rows of ids, −1 for those without one: int32 in the shape of ids. Nothing is counted."""
        return self.map.find(ids, table)

    def estimate(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """How often ids were met lately: of owners as counted beside their rows, of others as the sketch has it, from above.

        Returns:
            int32 in the shape of ids, 0 to 255.
        """
        words = self.map.salted(ids, table)
        rows, found = self.map.find_salted(words, table), self.sketch.estimate(words)
        return np.where(rows >= 0, self.counts[rows], found).astype(np.int32)

    def wanted(self, ids: Any, table: int = 0) -> int | None:
        """The count from which an id without a row is given one: 1 while one of its rows is free, if each newcomer is worth one.

        None if counts do not decide, or none of its candidates may go now.
        """
        rows = self.map.candidates(ids, table).reshape(-1).astype(np.int64)
        policy = self.policy
        if policy.admission == PROBABILITY:
            return None
        least = policy.admit_threshold if policy.admission == FREQUENCY else 1
        if not all(self.map.identities(rows)):
            return least
        row = int(victim(policy.rule, rows, self.counts, self.seen, self.young, self.now))
        return None if row < 0 else least if policy.admission == FREQUENCY else int(self.counts[row]) + policy.lead

    def count(self, ids: Any, table: int = 0) -> NDArray[np.uint64]:
        """Count every occurrence of a training batch: of owners beside their rows, of others in the sketch.

        Returns:
            The distinct ids without a row, `salted`, in the order in which they come first: what `step` is to be given.

        Raises:
            TypeError: ids are not integers.
            ValueError: the arrays are read-only. Nothing is changed by either.
        """
        words: Ids = self.map.salted(ids, table).reshape(-1)
        self._writeable()
        rows = self.map.find_salted(words, table)
        _meet(rows, self.counts, self.seen, self.now)
        others = np.ascontiguousarray(words[rows < 0])
        self.sketch.add(others)
        firsts = np.empty(len(others), np.int64)
        return others[firsts[: number_distinct(others, np.empty_like(firsts), firsts)]]

    def step(self, newcomers: Any, tables: Any = 0) -> Admissions:
        """Give rows to newcomers, those of the largest counts first, and let the clock go on by one step.

        Args:
            newcomers: what `count` gave for the batch (or for several, side by side).
            tables: whose ids they are, one number or (n,).

        Raises:
            TypeError: newcomers are not integers.
            ValueError: the arrays are read-only. Nothing is changed by either.
        """
        ids: Ids = _check.as_ids(newcomers, "newcomers").reshape(-1)
        self._writeable()
        whose = np.ascontiguousarray(np.broadcast_to(np.asarray(tables, np.int64), ids.shape))
        found, now, n = self.sketch.estimate(ids), self.now, len(ids)
        order = np.argsort(-found, kind="stable")
        given = np.zeros(-(-self.map.n_slots // 64), np.uint64)
        out: list[Any] = [np.empty(n, dtype) for dtype in (np.uint64, np.int32, np.uint8, np.uint64, np.uint8)]
        n_given = _admit(
            ids, whose, found, order, self.policy.rule, np.uint64(derive_key(self.map.seed, _STREAM, now)), now,
            _GRACE_PARTS + 1, *self.map.args, self.counts, self.seen, self.young, given, *out,
        )  # fmt: skip
        if self.sketch.step() and self.policy.eviction != LFU:
            self.counts >>= np.uint8(1)
        if len(self.young) and (now + 1) % -(-self.policy.grace // _GRACE_PARTS) == 0:
            self.young -= self.young > 0
        return Admissions(*(array[:n_given].copy() for array in out))

    def erase(self, ids: Any, table: int = 0) -> NDArray[np.int32]:
        """Take rows away, as `IdMap.erase` does; what the sketch counts is forgotten by and by."""
        rows = self.map.erase(ids, table)
        for array in (self.counts, self.young):
            array[rows[rows >= 0] if len(array) else []] = 0
        return rows

    def forget(self, ids: Any, table: int = 0) -> NDArray[np.bool_]:
        """`erase`, also of those that have settled: who had a row or had settled, in the shape of ids."""
        had = self.erase(ids, table) >= 0
        if self.settled is None:
            return had
        names = self.map.names(ids, table)
        return had | (self.settled.erase(names.reshape(-1)).reshape(names.shape) >= 0)

    def _writeable(self) -> None:
        if not all(array.flags.writeable for array in self.arrays().values()):
            raise ValueError("the owners are read-only, as they are mapped from a file: make them of copies to go on")
