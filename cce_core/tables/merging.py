"""Two tables that were trained apart from one seed, made one: of every id what both know, weighted by how often it was met.

    W, b     the mean of both, weighted by what each has met; rows are written anew, so that x · W + b stays what it was, as near
             as W's rank allows
    shared   the mean of both, weighted by what their sketches have met
    own      of an owner in both the mean, weighted by counts, which are added
             of an owner in the other alone: a free row of its candidates; or that of the least count, if it leads by `lead`;
             else it is folded into its shared row, as an evicted row is
    sketch   cells are added

One after the other, the most frequent first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._guard import Changing, Still, in_order
from cce_core.method.state import TableState
from cce_core.storage.packed import write_bits
from cce_core.tiers import FrequencySketch
from cce_core.tiers.buckets import SLOTS, partner

_LOW = np.uint64(2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Merged:
    """What became of the other table's owners.

    Attributes:
        both: they had rows here too.
        added: were given free rows.
        won: took rows of others.
        folded: have no row here.
    """

    both: int
    added: int
    won: int
    folded: int


def merge(state: TableState, other: TableState) -> Merged:
    """Take in what another table of the same spec has learned; the other stays as it is."""
    if other is state:
        raise ValueError("a table cannot be merged with itself")
    if other.spec != state.spec:
        pairs = (
            (name, getattr(state.spec, name), getattr(other.spec, name)) for name in state.spec.__dataclass_fields__
        )
        name, own, theirs = next(pair for pair in pairs if pair[1] != pair[2])
        raise ValueError(f"tables that are merged must be of one spec: {name} is {own!r} here and {theirs!r} there")
    if not state.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to merge another into it")
    with Still(in_order((state.guard, other.guard))):
        values, matrix, own, report = _merged(state, other)
        with Changing((state.guard,)):
            for name, array in own.items():
                np.copyto(state.arrays()[name], array)
            if matrix is not None:
                state.parameters()["projection"][:] = matrix
            state.parameters()["memory"][:] = values.reshape(-1)
            state.requantize()
            state.reloaded()
    return report


def _merged(state: TableState, other: TableState) -> tuple[Any, Any, dict[str, NDArray[Any]], Merged]:
    """The rows, the projections or None, the other arrays, and what became of owners."""
    one, two, unit = state.owners, other.owners, state.layout.unit
    assert one is not None
    assert two is not None
    n, (column,), n_tables = one.map.n_slots, state.layout.columns, one.map.n_tables
    per_table = (column.rows - n) // n_tables
    a, b = (s.stored.read_rows(np.arange(column.rows), unit).astype(np.float64) for s in (state, other))
    masses = [float(o.counts.sum(dtype=np.int64)) + o.sketch.mass for o in (one, two)]
    matrix, slots = None, np.arange(n)
    if state.spec.rank:
        weight = masses[0] / sum(masses) if sum(masses) else 0.5
        pair = [
            s.arrays()["projection"].reshape(n_tables, -1, state.spec.dim).astype(np.float64) for s in (state, other)
        ]
        mean = weight * pair[0] + (1 - weight) * pair[1]
        for rows, owners, old in ((a, one, pair[0]), (b, two, pair[1])):
            whose = np.concatenate([owners.map.tables(), np.repeat(np.arange(n_tables), per_table)])
            for t in range(n_tables):
                back, mine = np.linalg.pinv(mean[t, :-1]), whose == t
                rows[mine] = rows[mine] @ (old[t, :-1] @ back) + (old[t, -1] - mean[t, -1]) @ back
        matrix = mean.reshape(-1, state.spec.dim).astype(np.float32)
    met = [o.sketch.mass for o in (one, two)]
    a[n:] = a[n:] + (met[1] / sum(met) if sum(met) else 0.5) * (b[n:] - a[n:])
    here, there = one.map.identities(slots), two.map.identities(slots)
    _, at, source = np.intersect1d(here, there, return_indices=True)
    at, source = at[here[at] > 0], source[there[source] > 0]
    counts, theirs = one.counts.astype(np.int64), two.counts.astype(np.int64)
    sums = counts[at] + theirs[source]
    a[at] += np.where(sums, theirs[source] / np.maximum(sums, 1), 0.5)[:, None] * (b[source] - a[at])
    counts[at] = np.minimum(255, sums)
    seen, young, words = one.seen.copy(), one.young.copy(), one.map.words.copy()
    for mine, his in ((seen, two.seen), (young, two.young)):
        if len(mine):
            mine[at] = np.maximum(mine[at], his[source])
    load, fold, lead = sum(met) / (n_tables * per_table), state.spec.option("fold"), one.policy.lead

    def folded(row: NDArray[np.float64], identity: np.uint64, count: int) -> None:
        if fold:
            to = one.map.shared_rows(np.array([identity]), per_table)[0]
            a[to] += count / max(1.0, count + load) * (row - a[to])

    rest, taken, (key, _, buckets, bits, _) = (
        np.flatnonzero((there > 0) & ~np.isin(there, here)),
        set(at.tolist()),
        one.map.args[:5],
    )
    added = won = lost = 0
    for slot in rest[np.argsort(-theirs[rest], kind="stable")].tolist():
        fingerprint, first = there[slot] & _LOW, slot // SLOTS
        second = int(partner(fingerprint, np.uint64(first), key, buckets))
        candidates = [SLOTS * bucket + k for bucket in (first, second) for k in range(SLOTS)]
        free = [row for row in candidates if here[row] == 0]
        to = (
            free[0]
            if free
            else min((row for row in candidates if row not in taken), key=lambda row: counts[row], default=-1)
        )
        if to < 0 or (not free and theirs[slot] < counts[to] + lead):
            folded(b[slot], there[slot], int(theirs[slot]))
            lost += 1
            continue
        if free:
            added += 1
        else:
            folded(a[to].copy(), here[to], int(counts[to]))
            won += 1
        write_bits(words, np.uint64(to) * bits, bits, fingerprint)
        a[to], counts[to], here[to] = b[slot], theirs[slot], there[slot]
        for mine, his in ((seen, two.seen), (young, two.young)):
            if len(mine):
                mine[to] = his[slot]
        taken.add(to)
    clock = np.array([max(one.now, two.now), sum(met)], np.int64)
    own = {
        "pointers": words,
        "own_counts": counts.astype(np.uint8),
        "clock": clock,
        "sketch": _added(one.sketch, two.sketch),
    }
    own |= {name: array for name, array in (("own_seen", seen), ("own_young", young)) if len(array)}
    return a.astype(np.float32), matrix, own, Merged(len(at), added, won, lost)


def _added(one: FrequencySketch, two: FrequencySketch) -> NDArray[np.uint64]:
    """The sums of all cells, none above what a cell can hold."""
    cells = [sketch.words.view(np.uint8).astype(np.uint16) for sketch in (one, two)]
    if one.bits == 8:
        return np.minimum(255, cells[0] + cells[1]).astype(np.uint8).view(np.uint64)
    low, high = (np.minimum(15, sum((c >> shift) & 15 for c in cells)) for shift in (0, 4))
    return (low | high << 4).astype(np.uint8).view(np.uint64)
