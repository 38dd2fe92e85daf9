"""The map of ids to own rows against a dict that knows fingerprints; its false hits and its load are as stated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference.id_map import IdMap as Naive
from reference.id_map import twins

from cce_core import set_num_threads
from cce_core._jit import COMPILED
from cce_core.hashing import hash_strings
from cce_core.storage.files import load_arrays, save_arrays
from cce_core.tiers import IdMap

EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]


def both(n_slots, bits=16, seed=0, buckets=None):
    return IdMap(n_slots, bits=bits, seed=seed, buckets=buckets), Naive(n_slots, bits, seed, n_buckets=buckets)


def same(real, naive):
    assert real.words.tolist() == naive.words()
    assert real.load == len(naive.rows) / real.n_slots
    assert real.occupied().tolist() == [name is not None for name in naive.owner]


# Against the dict


class Machine(RuleBasedStateMachine):
    """Maps so small that their buckets fill, ids chosen to collide among the others."""

    @initialize(
        bits=st.sampled_from([16, 32]), buckets=st.integers(1, 6), seed=st.integers(0, 3), fold=st.integers(1, 9)
    )
    def make(self, bits, buckets, seed, fold):
        known = max(buckets, fold * buckets - 1)
        self.real, self.naive = both(4 * buckets, bits, seed, known)
        self.pool = [*EXTREMES, *range(2, 12)]
        if bits == 16 and known == buckets < 3:
            self.pool += itertools.chain(*twins(4 * buckets, seed))

    def some(self, data):
        """A batch from the pool, with repetitions."""
        return data.draw(st.lists(st.sampled_from(self.pool), max_size=12))

    @rule(data=st.data())
    def find(self, data):
        ids = self.some(data)
        assert self.real.find(ids).tolist() == self.naive.find(ids)
        assert self.real.candidates(ids).tolist() == self.naive.candidates(ids)
        names = [self.naive.identity(self.naive.name(i)) for i in ids]
        assert self.real.names(ids).tolist() == names
        rows = np.concatenate([self.real.find(self.pool), [-(2**40), self.real.n_slots, 2**40]])
        assert ((self.real.identities(rows) > 0) == ((rows >= 0) & (rows < self.real.n_slots))).all()

    @rule(data=st.data())
    def insert(self, data):
        ids = self.some(data)
        assert self.real.insert(ids).tolist() == self.naive.insert(ids)

    @rule(data=st.data())
    def erase(self, data):
        ids = self.some(data)
        assert self.real.erase(ids).tolist() == self.naive.erase(ids)

    @rule(data=st.data())
    def clear(self, data):
        rows = data.draw(st.lists(st.integers(0, self.real.n_slots - 1), max_size=4))
        self.real.clear(rows)
        self.naive.clear(rows)

    @rule(data=st.data())
    def a_newcomer_takes_a_candidates_row(self, data):
        i = data.draw(st.sampled_from(self.pool))
        if self.naive.find([i]) == [-1]:
            row = data.draw(st.sampled_from(self.naive.candidates([i])[0]))
            self.real.clear([row])
            self.naive.clear([row])
            assert self.real.insert([i])[0] == self.naive.insert([i])[0] >= 0

    @invariant()
    def they_are_the_same(self):
        if hasattr(self, "real"):
            same(self.real, self.naive)
            assert all(row < 0 or row in self.naive.candidates([i])[0] for i, row in zip(self.pool, self.find_all()))

    def find_all(self):
        return self.real.find(self.pool).tolist()


Machine.TestCase.settings = settings(stateful_step_count=30 if COMPILED else 8)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("n_slots", [4, 8])
def test_every_short_life_of_a_small_map(n_slots):
    """All sequences of inserts and erases of six ids, two of them twins, up to a length."""
    (a, b), *_ = twins(n_slots, 0)
    ids = [a, b, 0, 2**64 - 1, 5, 6, 7]
    moves = [(kind, i) for i in ids for kind in ("insert", "erase")]
    for life in itertools.product(moves, repeat=3 if COMPILED else 1):
        real, naive = both(n_slots)
        filled = [3, 4, 8, 9][: n_slots - 4 or 2]
        assert real.insert(filled).tolist() == naive.insert(filled)
        for kind, i in life:
            assert getattr(real, kind)([i])[0] == getattr(naive, kind)([i])[0]
        assert real.find(ids).tolist() == naive.find(ids)
        assert real.words.tolist() == naive.words()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("n_slots", [4 * n for n in (1, 2, 3, 5, 16, 100)])
def test_maps_of_every_size_fill_as_the_dict_does(n_slots, bits):
    real, naive = both(n_slots, bits, seed=2**64 - 1)
    ids = np.random.default_rng(n_slots).integers(-(2**63), 2**63, 3 * n_slots)
    assert real.insert(ids).tolist() == naive.insert(ids.tolist())
    same(real, naive)
    assert real.find(ids).tolist() == naive.find(ids.tolist())
    assert real.erase(ids[::2]).tolist() == naive.erase(ids[::2].tolist())
    same(real, naive)


def test_twins_share_a_row_and_are_both_erased():
    for a, b in twins(8, 0):
        rows = IdMap(8)
        assert rows.insert([a]) == rows.find([b]) == rows.insert([b]) == rows.erase([b])
        assert (rows.find([a, b]) == -1).all()


# Any id


@pytest.mark.parametrize("bits", [16, 32])
def test_every_id_is_legal(bits):
    rows = IdMap(64, bits=bits)
    assert (rows.find(np.array(EXTREMES, object)) == -1).all()
    given = [int(rows.insert(i)) for i in EXTREMES]
    assert min(given) >= 0
    assert [int(rows.find(i)) for i in EXTREMES] == given
    assert given[2] == given[6], "−1 and 2^64 − 1 are one word"
    assert len(set(given)) == 5


def test_strings_are_hashed_first():
    rows, names = IdMap(64), ["user_1", "", "é", b"\0"]
    given = rows.insert(hash_strings(names))
    assert len(set(given.tolist())) == 4
    assert rows.find(hash_strings(["é"])) == given[2]
    with pytest.raises(TypeError, match="hash strings with cce_core.hash_strings"):
        rows.insert(names)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0)])
def test_shapes_and_types_are_those_of_the_ids(shape):
    rows, ids = IdMap(64), np.zeros(shape, np.int16)
    for call in (rows.find, rows.insert, rows.erase):
        assert call(ids).shape == shape
        assert call(ids).dtype == np.int32
    assert rows.candidates(ids).shape == (*shape, 8)


# What is stated


@pytest.mark.skipif(not COMPILED, reason="millions of ids")
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("share", [0.25, 0.5, 4.0])
def test_false_hits_are_as_many_as_stated(bits, share):
    """Five standard deviations of a binomial; a rate twice as large, or half as large, would be seen at 16 bits."""
    rows, n = IdMap(1 << 16, bits=bits, seed=1), 1 << 22
    rows.insert(np.arange(int(share * rows.n_slots)))
    p = rows.false_hit_rate
    assert p == pytest.approx(8 * rows.load / (2**bits - 1), rel=1e-3)
    hits = int((rows.find(np.arange(n) + 2**40) >= 0).sum())
    assert abs(hits - n * p) <= 5 * (n * p) ** 0.5 + (bits == 32)
    assert bits == 32 or hits > 100


@pytest.mark.skipif(not COMPILED, reason="a million ids")
@pytest.mark.parametrize(("n_slots", "first"), [(64, 0.81), (1024, 0.64), (1 << 14, 0.55), (1 << 20, 0.44)])
def test_the_load_is_as_stated(n_slots, first):
    """Where the first id is refused, on average; how full as many ids as slots, and three times as many, make the map."""
    found = []
    for seed in range(3 if n_slots > 1 << 16 else 30):
        rows = IdMap(n_slots, bits=32, seed=seed)
        given = rows.insert(np.arange(n_slots))
        found.append(int((given < 0).argmax()) / n_slots)
        assert (rows.find(np.arange(n_slots)) == given).all(), "no false misses; who was refused is not there"
        if n_slots >= 1 << 14:
            assert rows.load == pytest.approx(0.92, abs=0.01)
            rows.insert(np.arange(n_slots, 3 * n_slots))
            assert rows.load > 0.999
    assert np.mean(found) == pytest.approx(first, abs=0.05)


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
def test_threads_change_nothing():
    ids = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    found = []
    for threads in (1, 2, 8):
        set_num_threads(threads)
        rows = IdMap(1 << 16)
        given = rows.insert(ids)
        found.append((given.tobytes(), rows.find(ids).tobytes(), rows.candidates(ids).tobytes(), rows.digest()))
    assert found[0] == found[1] == found[2]


# The array


@pytest.mark.parametrize("bits", [16, 32])
def test_files_and_maps_of_files_hold_the_same(bits, tmp_path):
    rows, ids = IdMap(64, bits=bits, seed=7), np.arange(40)
    rows.insert(ids)
    save_arrays(tmp_path / "map", rows.arrays(), {"seed": 7})
    for mmap in (False, True):
        arrays, spec = load_arrays(tmp_path / "map", mmap=mmap)
        again = IdMap(64, bits=bits, seed=spec["seed"], words=arrays["words"])
        assert again.digest() == rows.digest()
        assert (again.find(ids) == rows.find(ids)).all()
        if mmap:
            for change in (again.insert, again.erase, again.clear):
                with pytest.raises(ValueError, match="read-only"):
                    change([1])
    assert again.digest() == rows.digest()


def test_the_digest_knows_every_change():
    rows, seen = IdMap(64), set()
    for change in (lambda: rows.insert([1]), lambda: rows.insert([2]), lambda: rows.erase([1])):
        seen.add(rows.digest())
        change()
    seen |= {rows.digest(), IdMap(64, seed=1).digest(), IdMap(64, bits=32).digest(), IdMap(128).digest()}
    assert len(seen) == 7
    rows.erase([2])
    assert rows.digest() == IdMap(64).digest()


@pytest.mark.parametrize("bits", [16, 32])
def test_bytes_are_those_of_the_fingerprints(bits):
    assert (
        IdMap(4000, bits=bits).nbytes
        == 4000 * bits // 8
        == sum(a.nbytes for a in IdMap(4000, bits=bits).arrays().values())
    )


# Bad input


def test_bad_sizes_say_what_is_wrong():
    with pytest.raises(ValueError, match="multiple of 4, got 10: take 8 or 12"):
        IdMap(10)
    with pytest.raises(ValueError, match="between 4 and"):
        IdMap(0)
    with pytest.raises(ValueError, match="bits must be 16 or 32, got 8"):
        IdMap(8, bits=8)
    with pytest.raises(TypeError, match="n_slots must be a whole number"):
        IdMap(8.0)
    for words in (np.zeros(3, np.uint64), np.zeros(2, np.int64), np.zeros(4, np.uint64)[::2]):
        with pytest.raises(ValueError, match=r"contiguous uint64 array of shape \(2,\)"):
            IdMap(8, words=words)
    with pytest.raises(TypeError, match="words must be an array"):
        IdMap(8, words=[0, 0])


def test_nothing_is_lost_on_bad_ids_and_rows():
    rows = IdMap(8)
    rows.insert([1, 2])
    before = rows.digest()
    for call in (rows.find, rows.insert, rows.erase, rows.candidates):
        with pytest.raises(TypeError, match="ids must be integers"):
            call([1.5])
        with pytest.raises(TypeError, match="got str at position 1"):
            call(np.array([3, "a"], object))
    for bad in ([0, 8], [0, -1]):
        with pytest.raises(IndexError, match=f"row {bad[1]} at position 1 is outside this map: rows go from 0 to 7"):
            rows.clear(bad)
    assert rows.digest() == before
    assert rows.erase([77]) == -1, "who is not there is not erased"
    assert rows.digest() == before


def test_the_name_says_how_full_it_is():
    rows = IdMap(8)
    rows.insert([2**64 - 1])
    assert repr(rows) == "<IdMap: 8 slots, 12.5 % full, 16 bits each>"
