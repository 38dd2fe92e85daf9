"""Owners of rows in a stream: against dicts and lists step by step; what is promised of duels, grace, time and bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference.id_map import twins
from reference.owners import Owners as Naive

from cce_core import set_num_threads
from cce_core._jit import COMPILED
from cce_core.storage.files import load_arrays, save_arrays
from cce_core.tiers import Owners, Policy
from cce_core.tiers.policies import ADMISSIONS, EVICTIONS

EXTREMES = [0, 2**63 - 1, 2**63, 2**64 - 1]
policies = st.builds(
    Policy,
    admission=st.sampled_from(ADMISSIONS),
    eviction=st.sampled_from(EVICTIONS),
    half_life=st.sampled_from([None, 1, 2, 3, 5]),
    lead=st.integers(1, 3),
    grace=st.sampled_from([0, 0, 1, 5, 8]),
    admit_threshold=st.integers(1, 4),
    admit_probability=st.sampled_from([0.0, 0.3, 1.0]),
    ttl=st.integers(1, 4),
)


def both(n_slots, policy, sketch_bytes=64, **sizes):
    real = Owners(n_slots, sketch_bytes, policy, **sizes)
    return real, Naive(n_slots, real.sketch.width, policy, **sizes)


def same(real, naive):
    assert real.map.words.tolist() == naive.map.words()
    assert real.sketch.words.tolist() == naive.sketch.words(len(real.sketch.words))
    for name in ("counts", "seen", "young"):
        if len(array := getattr(real, name)):
            assert array.tolist() == getattr(naive, name), name
    assert real.now == naive.now


class Machine(RuleBasedStateMachine):
    """Few rows, a sketch with collisions, and more ids than both can hold."""

    @initialize(policy=policies, buckets=st.integers(1, 4), bits=st.sampled_from([16, 32]), seed=st.integers(0, 3))
    def make(self, policy, buckets, bits, seed):
        self.real, self.naive = both(4 * buckets, policy, bits=bits, seed=seed)
        self.newcomers = np.empty(0, np.uint64)
        self.pool = [*EXTREMES, *range(1, 25)]
        if bits == 16 and buckets < 3:
            self.pool += [i for pair in twins(4 * buckets, seed) for i in pair]

    @rule(data=st.data())
    def count(self, data):
        ids = data.draw(st.lists(st.sampled_from(self.pool), max_size=40))
        found = self.real.count(ids)
        assert found.tolist() == self.naive.count(ids)
        self.newcomers = np.concatenate([self.newcomers, found])

    @rule()
    def step(self):
        ids = list(dict.fromkeys(self.newcomers.tolist()))
        changes, self.newcomers = self.real.step(ids), self.newcomers[:0]
        assert list(zip(*(array.tolist() for array in changes))) == self.naive.step(ids)
        assert len(set(changes.rows.tolist())) == len(changes.rows)

    @rule(data=st.data())
    def erase(self, data):
        ids = data.draw(st.lists(st.sampled_from(self.pool), max_size=4))
        assert self.real.erase(ids).tolist() == self.naive.erase(ids)

    @invariant()
    def they_are_the_same(self):
        if hasattr(self, "real"):
            same(self.real, self.naive)


Machine.TestCase.settings = settings(stateful_step_count=30 if COMPILED else 8)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("grace", [0, 4])
def test_streams_under_every_policy(admission, eviction, grace):
    policy = Policy(admission, eviction, half_life=5, grace=grace, ttl=3, admit_probability=0.4)
    real, naive = both(16, policy, 200, seed=1)
    rng, evicted = np.random.default_rng(0), 0
    for _ in range(40 if COMPILED else 10):
        ids = rng.zipf(1.3, 40) % 2**40
        newcomers = real.count(ids)
        assert newcomers.tolist() == naive.count(ids.tolist())
        changes = real.step(newcomers)
        assert list(zip(*(array.tolist() for array in changes))) == naive.step(newcomers.tolist())
        evicted += np.count_nonzero(changes.evicted)
        same(real, naive)
    assert evicted or not COMPILED


# What is promised


def run(owners, *ids):
    return owners.step(owners.count(list(ids)))


def test_rows_are_given_at_first_sight_while_free_and_then_by_duels():
    owners = Owners(4, 1000, Policy(lead=2))
    changes = run(owners, 1, 2, 2, 3, 3, 4, 4)
    assert changes.counts.tolist() == [2, 2, 2, 1], "the most frequent first"
    assert not changes.evicted.any()
    assert len(run(owners, 5, 5).rows) == 0
    changes = run(owners, 5)
    assert (changes.counts.tolist(), changes.evicted_counts.tolist()) == ([3], [1])
    assert owners.find([1, 2, 3, 4, 5]).tolist()[0] == -1
    assert owners.find(5) == changes.rows
    assert len(run(owners, 1).rows) == 0, "it has lost its row, and does not take it back at once"


def test_two_ids_that_come_equally_often_do_not_take_a_row_from_each_other():
    owners, changes = Owners(4, 1000, Policy(half_life=10**6)), 0
    for _ in range(50):
        changes += len(run(owners, 1, 2, 3, 4, 5).rows)
    assert changes == 4


@pytest.mark.parametrize("grace", [1, 4, 10, 16])
def test_a_new_owner_keeps_its_row_for_its_time_of_grace(grace):
    whole = 4 * -(-grace // 4)
    for start in range(5):
        owners = Owners(4, 1000, Policy("frequency", "lfu", grace=grace, admit_threshold=1))
        for _ in range(start):
            run(owners)
        run(owners, 1, 2, 3, 4)
        kept = 0
        while not len(run(owners, 5).rows):
            kept += 1
        assert whole <= kept <= whole + whole // 4


def test_twins_that_come_in_one_step_share_one_row():
    for pair in twins(8, 0):
        owners = Owners(8, 1000)
        changes = run(owners, *pair)
        assert len(changes.rows) == 1
        assert (owners.find(pair) == changes.rows).all()


def test_ttl_lets_nobody_else_go():
    owners = Owners(4, 1000, Policy(eviction="ttl", ttl=3, lead=1))
    run(owners, 1, 2, 3, 4)
    for _ in range(3):
        assert len(run(owners, 1, 2, 3, *[5] * 50).rows) == 0
    changes = run(owners, 1, 2, 3, 5)
    assert len(changes.rows) == 1
    assert owners.find(4) == -1


def test_who_was_hot_is_forgotten_unless_counts_are_for_ever():
    for eviction, kept in (("lfu_decay", False), ("lfu", True)):
        owners = Owners(4, 1000, Policy(eviction=eviction, half_life=5))
        run(owners, *[1, 2, 3, 4] * 40)
        for _ in range(50):
            run(owners, 5, 5)
        assert (owners.find(5) < 0) == kept


def test_lookups_count_nothing():
    owners = Owners(16, 1000)
    run(owners, 1, 2, 3)
    before = owners.digest()
    owners.find(np.arange(1000))
    assert owners.digest() == before


def test_the_frequent_ids_have_the_rows():
    """Of a stream of which most ids come once, nearly all of the most frequent ids own rows in the end, found on the way."""
    rng, owners = np.random.default_rng(0), Owners(64, 4096, Policy(half_life=50))
    hot = np.arange(48 if COMPILED else 20, dtype=np.uint64) + 10**12
    for _ in range(100 if COMPILED else 15):
        batch = np.concatenate([rng.choice(hot, 100), rng.integers(0, 2**60, 100).astype(np.uint64)])
        owners.step(owners.count(rng.permutation(batch)))
    assert (owners.find(hot) >= 0).mean() >= 0.95
    assert owners.map.load > 0.9


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
def test_threads_change_nothing():
    found = []
    for threads in (1, 2, 8):
        set_num_threads(threads)
        owners, rng = Owners(1 << 12, 1 << 16, Policy(half_life=2)), np.random.default_rng(0)
        for _ in range(5):
            owners.step(owners.count(rng.zipf(1.2, 40_000)))
        found.append(owners.digest())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_run_that_is_saved_in_the_middle_goes_on_with_the_same_bits(eviction, tmp_path):
    policy, rng = Policy("probability", eviction, half_life=3, grace=4, ttl=1), np.random.default_rng(0)
    batches = [rng.zipf(1.3, 60) for _ in range(12)]
    whole = parted = Owners(16, 200, policy)
    for n, batch in enumerate(batches):
        if n == 6:
            save_arrays(tmp_path / "owners", whole.arrays(), {})
            parted = Owners(16, 200, policy, arrays=load_arrays(tmp_path / "owners")[0])
            mapped = Owners(16, 200, policy, arrays=load_arrays(tmp_path / "owners", mmap=True)[0])
            assert mapped.digest() == parted.digest() == whole.digest()
            for change in (mapped.count, mapped.step, mapped.erase):
                with pytest.raises(ValueError, match="read-only"):
                    change([1])
        for one in {id(o): o for o in (whole, parted)}.values():
            one.step(one.count(batch))
    assert parted.digest() == whole.digest() != mapped.digest()
    assert parted is not whole


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("grace", [0, 9])
def test_bytes_are_as_stated_and_stay_so(eviction, bits, grace):
    owners = Owners(400, 1000, Policy(eviction=eviction, grace=grace), bits=bits)
    per_row = bits // 8 + 1 + 4 * (eviction in ("lru", "ttl")) + (grace > 0)
    assert owners.nbytes == sum(a.nbytes for a in owners.arrays().values()) == 400 * per_row + 1000
    run(owners, *range(1000))
    assert owners.nbytes == 400 * per_row + 1000


def test_nothing_is_lost_on_bad_input():
    owners = Owners(8, 100)
    run(owners, 1, 2)
    before = owners.digest()
    for call in (owners.find, owners.count, owners.step, owners.erase):
        with pytest.raises(TypeError, match="must be integers"):
            call([1.5])
    assert owners.digest() == before
    with pytest.raises(TypeError, match="policy must be a Policy, got 'duel'"):
        Owners(8, 100, "duel")
    arrays = owners.arrays()
    with pytest.raises(ValueError, match=r"counts must be uint8 of shape \(8,\), got uint8 \(4,\)"):
        Owners(8, 100, arrays={**arrays, "counts": np.zeros(4, np.uint8)})
    with pytest.raises(TypeError, match="young must be an array, got None"):
        Owners(8, 100, arrays={name: array for name, array in arrays.items() if name != "young"})
