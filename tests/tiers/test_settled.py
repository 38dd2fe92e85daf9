"""Settled ids against a dict of identities; who finds a place, and who is moved for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.id_map import IdMap as Naive

from cce_core._jit import COMPILED
from cce_core.tiers import IdMap, Settled
from cce_core.tiers.buckets import partner
from cce_core.tiers.settled import placed

LOW = np.uint64(2**32 - 1)


def pair(known, name):
    """The two buckets of an identity."""
    first = int(name) >> 32
    return first, int(partner(name & LOW, np.uint64(first), known.args[0], np.uint64(known.n_buckets)))


@given(
    buckets=st.integers(1, 9),
    slots=st.integers(1, 5),
    pointer_bits=st.integers(1, 16),
    bits=st.sampled_from([16, 32]),
    n_tables=st.integers(1, 3),
    seed=st.integers(0, 99),
    ids=st.lists(st.integers(0, 2**64 - 1), max_size=30, unique=True),
)
def test_who_is_in_is_found_where_it_points_to_and_nobody_else_is(
    buckets, slots, pointer_bits, bits, n_tables, seed, ids
):
    known = IdMap(4 * buckets, bits=bits, seed=seed, n_tables=n_tables)
    naive = Naive(4 * buckets, bits, seed, n_tables)
    names = np.unique([naive.identity(naive.name(i, k % n_tables)) for k, i in enumerate(ids)]).astype(np.uint64)
    pointers = np.random.default_rng(seed).integers(0, 2**pointer_bits, len(names))
    settled = Settled(known, slots, pointer_bits)
    places = settled.take_in(names, pointers)
    taken = places[places >= 0]
    assert len(set(taken.tolist())) == len(taken), "no place is given twice"
    assert all(place // slots in pair(known, name) for name, place in zip(names, places) if place >= 0)
    assert (places < 0).sum() >= len(names) - slots * buckets
    there = {int(name): int(p) for name, p, place in zip(names, pointers, places) if place >= 0}
    asked = np.append(names, np.uint64(0))
    assert settled.pointers(asked).tolist() == [there.get(int(name), -1) for name in asked]
    tables = known.tables_of(names)
    rows = [there[int(name)] + t * 2**pointer_bits if int(name) in there else -1 for name, t in zip(names, tables)]
    assert settled.rows_of(names).tolist() == rows
    assert sorted(settled.identities()[settled.identities() > 0].tolist()) == sorted(there)
    assert settled.tables().tolist() == [
        sum(t == k for n, t in zip(names, tables) if int(n) in there) for k in range(n_tables)
    ]
    again = Settled(known, slots, pointer_bits, words=settled.words.copy())
    gone = again.erase(np.append(names[:3], names[:3]))
    assert gone.tolist() == [there.get(int(name), -1) for name in names[:3]] + [-1] * len(names[:3])
    assert again.pointers(names[3:]).tolist() == settled.pointers(names[3:]).tolist()
    assert settled.nbytes == 8 * -(-settled.n_places * (bits + pointer_bits) // 64)


def matched(pairs, slots, n_buckets):
    """Who can find a place if those before it keep theirs: augmenting paths, one id after the other."""
    holder = [None] * (slots * n_buckets)

    def moved(who, tried):
        for place in (b * slots + s for b in pairs[who] for s in range(slots)):
            if place not in tried:
                tried.add(place)
                if holder[place] is None or moved(holder[place], tried):
                    holder[place] = who
                    return True
        return False

    return [moved(who, set()) for who in range(len(pairs))]


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("n_buckets", [1, 3, 7])
def test_whoever_can_be_placed_is_placed_and_the_first_come_first(slots, n_buckets):
    for seed in range(20 if COMPILED else 3):
        known = IdMap(4 * n_buckets, seed=seed)
        names = np.unique(known.names(np.random.default_rng(seed).integers(0, 2**62, slots * n_buckets + 3)))
        near = np.array([pair(known, name)[seed % 2] for name in names])
        found = placed(names, near, known.args[0], n_buckets, slots) >= 0
        assert found.tolist() == matched([pair(known, name) for name in names], slots, n_buckets)


@pytest.mark.skipif(not COMPILED, reason="thousands of ids")
@pytest.mark.parametrize(("slots", "load"), [(2, 0.88), (3, 0.95), (4, 0.97)])
def test_most_places_are_taken_before_the_first_is_refused(slots, load):
    known = IdMap(4 * 2000)
    names = np.unique(known.names(np.arange(slots * 2000)))
    places = placed(names, (names >> np.uint64(32)).astype(np.int64), known.args[0], 2000, slots)
    first = int(np.argmax(places < 0))
    assert first > load * slots * 2000 - 200
    assert (places >= 0).mean() > load


def test_owners_that_lie_in_a_full_map_all_stay():
    """With as many slots of a bucket nobody need move from where it lies."""
    known = IdMap(64)
    known.insert(np.arange(1000))
    slots = np.flatnonzero(known.occupied())
    names = known.identities(slots)
    order = np.random.default_rng(0).permutation(len(names))
    places = placed(names[order], slots[order] // 4, known.args[0], 16, 4)
    assert (places // 4).tolist() == (slots[order] // 4).tolist()
    assert len(names) > 60


def test_bad_sizes_say_what_is_wrong():
    known = IdMap(16)
    for sizes, message in (
        ((0, 8), "slots must be between 1 and 16"),
        ((4, 17), "pointer_bits must be between 1 and 16"),
    ):
        with pytest.raises(ValueError, match=message):
            Settled(known, *sizes)
    with pytest.raises(ValueError, match=r"words must be a contiguous uint64 array of shape \(6,\)"):
        Settled(known, 4, 8, words=np.zeros(5, np.uint64))
    with pytest.raises(ValueError, match="buckets must be between 4 and"):
        IdMap(16, buckets=3)
