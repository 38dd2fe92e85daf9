"""The sketch of counts against its definition in lists, and against a counter per id; its error is as stated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference import frequency as naive

from cce_core import set_num_threads
from cce_core._jit import COMPILED
from cce_core.hashing import hash_strings
from cce_core.storage.files import load_arrays, save_arrays
from cce_core.tiers import FrequencySketch

EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]


def both(n_words, **sizes):
    real = FrequencySketch(8 * n_words + 16, **sizes)
    return real, naive.Sketch(real.width, **sizes)


def stream(n, seed=0, exponent=1.2):
    """Ids most of which come once, and none so often that it fills a cell: those have own rows."""
    ids = np.minimum(np.random.default_rng(seed).zipf(exponent, 2 * n), 2**62)
    return ids[ids > 20][:n]


class Machine(RuleBasedStateMachine):
    """Sketches so small that cells are shared and full."""

    @initialize(
        words=st.integers(3, 8),
        bits=st.sampled_from([4, 8]),
        depth=st.integers(1, 4),
        half_life=st.sampled_from([None, 1, 2, 3]),
        sample=st.sampled_from([None, 1, 10, 40]),
        seed=st.integers(0, 3),
    )
    def make(self, words, bits, depth, half_life, sample, seed):
        self.real, self.naive = both(words, bits=bits, depth=depth, half_life=half_life, sample=sample, seed=seed)
        self.exact = naive.Exact(most=2**bits - 1)

    @rule(ids=st.lists(st.sampled_from([*EXTREMES, *range(2, 40)]), max_size=30), times=st.sampled_from([1, 1, 9]))
    def add(self, ids, times):
        self.real.add(ids * times)
        for i in ids * times:
            self.naive.add(i)
            self.exact.add(i % 2**64)

    @rule()
    def step(self):
        halved = self.real.step()
        assert halved == self.naive.step()
        self.exact.step(halved)

    @invariant()
    def they_are_the_same(self):
        if hasattr(self, "real"):
            assert self.real.words.tolist() == self.naive.words(len(self.real.words))
            assert self.real.mass == self.naive.mass
            ids = [i % 2**64 for i in EXTREMES] + list(range(2, 12))
            found = self.real.estimate(ids)
            assert found.tolist() == [self.naive.estimate(i) for i in ids]
            assert all(n >= self.exact.halved[i] for i, n in zip(ids, found))


Machine.TestCase.settings = settings(stateful_step_count=20 if COMPILED else 6)
TestMachine = Machine.TestCase


@pytest.mark.parametrize(("bits", "depth"), [(4, 1), (4, 2), (8, 1), (8, 2)])
def test_every_short_life_of_a_small_sketch(bits, depth):
    """All sequences of three ids and of steps up to a length, in the fewest cells that there can be, nearly full."""
    for life in itertools.product([5, 6, -7, "step"], repeat=4 if COMPILED else 2):
        real, twin = both(1, bits=bits, depth=depth, half_life=2)
        filled = [5] * (2**bits - 3)
        real.add(filled)
        for i in filled:
            twin.add(i)
        for move in life:
            if move == "step":
                real.step()
                twin.step()
            else:
                real.add(move)
                twin.add(move)
        assert real.words.tolist() == twin.words(1)


# What is stated


@pytest.mark.parametrize("half_life", [None, 3])
@pytest.mark.parametrize(("depth", "width"), [(1, 500), (2, 500), (3, 333)])
def test_the_error_is_within_its_bounds(depth, width, half_life):
    """For every id from below; from above for all but e^−depth of them, and plain counting would err half as much again."""
    n = 4_000 if COMPILED else 400
    real = FrequencySketch(16 + depth * width, depth=depth, half_life=half_life, seed=3)
    plain, exact = naive.Sketch(real.width, 8, depth, half_life, 3, plain=True), naive.Exact(half_life)
    for batch in np.array_split(stream(n), 10):
        real.add(batch)
        for i in batch.tolist():
            plain.add(i)
            exact.add(i)
        for one in (real, plain, exact):
            one.step()
    ids = list(exact.real)
    count, found = np.array([exact.real[i] for i in ids]), real.estimate(ids)
    assert count.sum() - 2 < real.mass <= count.sum()
    assert (found > count - 1).all()
    assert found.max() < 255
    over = found - count
    assert (over > math.e * count.sum() / real.width).mean() <= math.exp(-depth)
    by_plain = np.array([plain.estimate(i) for i in ids])
    assert (found <= by_plain).all()
    if depth > 1 and COMPILED:
        assert 1.5 * over.mean() < (by_plain - count).mean()
        assert over.mean() > 0.1, "the test must have collisions to be one"


@pytest.mark.parametrize("half_life", [1, 4])
def test_what_is_met_no_more_is_forgotten(half_life):
    real = FrequencySketch(1000, half_life=half_life)
    real.add([5] * 300)
    assert real.estimate(5) == 255
    for n in range(8 * half_life):
        assert real.estimate(5) == 255 >> n // half_life
        assert real.step() == ((n + 1) % half_life == 0)
    assert not real.words.any()
    assert real.mass == 300 >> 8


def test_who_is_met_as_often_as_ever_stays_where_it_is():
    """k times per half-life: from k to 2 · k."""
    real = FrequencySketch(1000, half_life=1)
    for _ in range(20):
        real.add([5] * 10)
        assert 10 <= real.estimate(5) <= 20
        real.step()


@pytest.mark.parametrize(("bits", "most"), [(4, 15), (8, 255)])
def test_full_cells_count_no_further(bits, most):
    real = FrequencySketch(1000, bits=bits)
    real.add([3] * (most - 1))
    assert real.estimate(3) == most - 1
    real.add([3] * 1000)
    assert real.estimate([3, 4]).tolist() == [most, 0]
    assert real.largest == most


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_budget_is_kept_and_used(bits, depth):
    for budget in (16 + 8 * -(-depth * bits // 64), 50, 51, 1000, 4096):
        real = FrequencySketch(budget, bits=bits, depth=depth)
        assert real.nbytes == sum(array.nbytes for array in real.arrays().values())
        assert budget - 8 < real.nbytes <= budget
        assert real.depth * real.width * bits <= 64 * len(real.words) < (real.depth * (real.width + 1)) * bits
        real.add(np.arange(2000))


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
def test_threads_change_nothing():
    ids, found = stream(100_000), []
    for threads in (1, 2, 8):
        set_num_threads(threads)
        real = FrequencySketch(1 << 21, half_life=1)
        real.add(ids)
        before = real.estimate(ids).tobytes()
        real.step()
        found.append((before, real.estimate(ids).tobytes(), real.digest()))
    assert found[0] == found[1] == found[2]


def test_every_id_is_legal_and_strings_are_hashed_first():
    real = FrequencySketch(10_000)
    for i in EXTREMES:
        real.add(i)
    assert real.estimate(EXTREMES).tolist() == [1, 1, 2, 1, 2, 2, 2], "−1 and 2^64 − 1 are one word"
    real.add(hash_strings(["user_1", "user_1"]))
    assert real.estimate(hash_strings("user_1")) == 2
    with pytest.raises(TypeError, match="hash strings with cce_core.hash_strings"):
        real.add(["user_1"])


# The arrays


def test_a_run_that_is_saved_in_the_middle_goes_on_with_the_same_bits(tmp_path):
    whole = FrequencySketch(500, half_life=3)
    for n, batch in enumerate(np.array_split(stream(2000), 10)):
        if n == 5:
            save_arrays(tmp_path / "sketch", whole.arrays(), {})
            parted = FrequencySketch(500, half_life=3, arrays=load_arrays(tmp_path / "sketch")[0])
            mapped = FrequencySketch(500, half_life=3, arrays=load_arrays(tmp_path / "sketch", mmap=True)[0])
            assert mapped.digest() == whole.digest() == parted.digest()
            with pytest.raises(ValueError, match="read-only"):
                mapped.step()
            with pytest.raises(ValueError, match="read-only"):
                mapped.add([1])
        for one in (whole, parted) if n >= 5 else (whole,):
            one.add(batch)
            one.step()
    assert parted.digest() == whole.digest() != mapped.digest()


# Bad input


def test_bad_sizes_say_what_is_wrong():
    with pytest.raises(ValueError, match="num_bytes must be at least 24 for 3 cells of 8 bits, got 23"):
        FrequencySketch(23)
    with pytest.raises(ValueError, match="at least 32 for 9 cells"):
        FrequencySketch(31, depth=9)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 16"):
        FrequencySketch(100, bits=16)
    with pytest.raises(ValueError, match="depth must be between 1 and 16, got 0"):
        FrequencySketch(100, depth=0)
    with pytest.raises(ValueError, match="sample must be between 1 and"):
        FrequencySketch(100, sample=0)
    with pytest.raises(ValueError, match="half_life must be between 1 and"):
        FrequencySketch(100, half_life=0)
    good = FrequencySketch(100).arrays()
    for bad in ({**good, "words": good["words"][:-1]}, {**good, "clock": np.zeros(2, np.int32)}):
        with pytest.raises(ValueError, match="must be a contiguous .* as many bytes"):
            FrequencySketch(100, arrays=bad)
    for clock in ([-1, 0], [0, -1], [2**63 - 1, 0]):
        with pytest.raises(ValueError, match="must be between 0 and"):
            FrequencySketch(100, arrays={**good, "clock": np.array(clock)})
    with pytest.raises(TypeError, match="clock must be an array, got None"):
        FrequencySketch(100, arrays={"words": good["words"]})


def test_nothing_is_lost_on_bad_ids():
    real = FrequencySketch(100)
    real.add([1, 2])
    before = real.digest()
    for call in (real.add, real.estimate):
        with pytest.raises(TypeError, match="ids must be integers"):
            call([1, 2.5])
    assert real.digest() == before


def test_the_name_says_its_sizes():
    assert repr(FrequencySketch(1016, half_life=1000)) == (
        "<FrequencySketch: 3 × 333 cells of 8 bits, halved every 1,000 steps>"
    )
