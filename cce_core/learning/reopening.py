"""Tables whose ids have settled, opened again: who is in them, and each of these with a row of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._guard import Writer
from cce_core.method.arrays import array_specs
from cce_core.method.base import Request
from cce_core.method.heirs import Heirs
from cce_core.method.spec import TableSpec
from cce_core.method.state import TableState
from cce_core.method.tiered import Tiers
from cce_core.storage.codec import codec
from cce_core.tiers import IdMap, Owners
from cce_core.tiers.buckets import SLOTS
from cce_core.tiers.settled import placed


def ids_of(owners: Owners) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], int]:
    """All ids that own rows, and then those that have settled and own none.

    Returns:
        Their identities, their rows, a bucket in which each may lie (where it does, if that is known), and how many own rows.
    """
    known, slots = owners.map, np.flatnonzero(owners.map.occupied())
    names, at = known.identities(slots), slots.astype(np.int64)
    near = at // SLOTS if known.fold == 1 else (names >> np.uint64(32)).astype(np.int64)
    if owners.settled is not None:
        old = owners.settled.identities()
        there = np.flatnonzero((old > 0) & ~np.isin(old, names))
        names, at = np.append(names, old[there]), np.append(at, known.n_slots + owners.settled.rows_of(old[there]))
        near = np.append(near, there // owners.settled.slots)
    return names, at, near, len(slots)


def another(table: TableState, spec: TableSpec, arrays: dict[str, NDArray[Any]]) -> TableState:
    """A table of the same kind, which goes on with what only the present one knows."""
    kind: Any = type(table)
    made: TableState = kind(spec, arrays)
    made.traffic, made.turn = table.traffic, table.turn + 1
    return made


def reopen(table: TableState) -> None:
    """`OwnRows.reopen`: every id a row again, as far as the rows go that there were before the first `cluster()`."""
    owners = table.owners
    assert owners is not None
    if owners.settled is None:
        raise ValueError("there is nothing to reopen: no ids have settled")
    if not table.writeable:
        raise ValueError("the table is mapped read-only; load it with mmap=False to reopen it")
    with Writer((table.guard,)):
        table.become(_reopened(table, owners))


def _reopened(table: TableState, owners: Owners) -> TableState:
    known, width, buckets = owners.map, table.spec.inner, owners.map.n_buckets
    names, at, near, n_owners = ids_of(owners)
    order = np.append(
        np.argsort(-owners.counts[at[:n_owners]].astype(int), kind="stable"), np.arange(n_owners, len(names))
    )
    rows = placed(names[order], near[order], known.args[0], buckets, SLOTS)
    order, rows = order[rows >= 0], rows[rows >= 0]
    spec = dataclasses.replace(table.spec, sizes=(SLOTS * buckets,))
    expected, held, coder = array_specs(spec), table.arrays(), codec(spec.codec)
    arrays = {name: np.zeros(a.shape, a.dtype) for name, a in expected.items() if name not in ("memory", "scales")}
    arrays |= {name: held[name] for name in ("keys", "projection") if name in held}
    arrays["clock"][:] = held["clock"]
    again: Any = {"bits": known.bits, "seed": known.seed, "n_tables": known.n_tables}
    IdMap(SLOTS * buckets, **again, words=arrays["pointers"]).put_at(names[order], rows)
    owned = order < n_owners
    arrays["own_counts"][rows] = 1
    for name, array in (("counts", owners.counts), ("seen", owners.seen), ("young", owners.young)):
        if f"own_{name}" in arrays:
            arrays[f"own_{name}"][rows[owned]] = array[at[order[owned]]]
    few, many = (
        table.n_shared // known.n_tables,
        (Tiers.of(spec).rows(Request.of(spec)) - SLOTS * buckets) // known.n_tables,
    )
    shared = np.arange(known.n_tables * many)  # each as the one of fewer that serves its hashes
    values = np.zeros((SLOTS * buckets + len(shared), width), np.float32)
    new = np.append(rows, SLOTS * buckets + shared)
    old = np.append(at[order], owners.first_shared + shared // many * few + shared % many * few // many)
    distinct, back = np.unique(old, return_inverse=True)
    values[new] = table.stored.read_rows(distinct, width, exact=False)[back]
    codes, scales = coder.encode(values.reshape(-1))
    arrays |= {"memory": codes} | ({"scales": scales} if "scales" in expected else {})
    made = another(table, spec, arrays)
    made.age[:] = table.generation + 1  # which is not stored while nobody has settled
    ends: Any = new.astype(np.int32), old.astype(np.int32), np.ones(len(new), np.float32)
    made.heirs = Heirs(table.generation, table.layout.n_units, len(values), *ends)
    return made
