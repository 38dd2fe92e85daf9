"""Gradients of the touched units alone, numbered by a hash table of the batch's size, against whole gradients."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.sketching.scatter import places_for

VOCAB = 5_000
METHODS = {
    "full": {},
    "cce": {"num_params": 8_000, "n_chunks": 2, "rank": 0},
    "robe": {"num_params": 4_001, "n_chunks": 2},  # units of one float, in blocks that wrap
}


def first_touched(ids):
    """Each id once, in the order in which it comes first, and how often it comes."""
    counts = dict.fromkeys(ids, 0)
    for i in ids:
        counts[i] += 1
    return list(counts), list(counts.values())


@pytest.mark.parametrize("vocab", [6, 40])  # a place for each unit; and fewer places than units
def test_units_are_numbered_in_the_order_of_first_touch(vocab):
    table, some = cce.make_table("full", vocab, 2), (0, 1, vocab - 1, vocab // 2)
    for n in range(5):
        for ids in itertools.product(some, repeat=n):
            found, (index, counts) = table.backward(ids, np.ones((n, 2)))["memory"], first_touched(ids)
            assert found.index.tolist() == index
            assert found.values.tolist() == [[count, count] for count in counts]


@given(
    method=st.sampled_from(sorted(METHODS)),
    ids=st.lists(st.integers(0, VOCAB - 1) | st.integers(0, 9).map(lambda k: 512 * k), max_size=60),
    seed=st.integers(0, 99),
)
def test_a_sparse_gradient_has_the_bits_of_the_whole_one(method, ids, seed):
    table = cce.make_table(method, VOCAB, 8, seed=1, **METHODS[method])
    g = np.random.default_rng(seed).standard_normal((len(ids), 8)).astype(np.float32)
    sparse, dense = (table.backward(ids, g, dense=d)["memory"] for d in (False, True))
    np.testing.assert_array_equal(sparse.dense(), dense)
    assert len(set(sparse.index.tolist())) == len(sparse.index)
    if method == "full":
        assert sparse.index.tolist() == first_touched(ids)[0]


@given(
    method=st.sampled_from(sorted(METHODS)),
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
    seed=st.integers(0, 99),
)
def test_a_fused_step_of_few_units_moves_those_alone(method, ids, seed):
    table, twin = (cce.make_table(method, VOCAB, 8, seed=1, **METHODS[method]) for _ in range(2))
    g = np.random.default_rng(seed).standard_normal((len(ids), 8)).astype(np.float32)
    gradient = twin.backward(ids, g, dense=True)["memory"]
    cce.SGD(0.5).update(cce.Collection([table]), np.array(ids)[:, None], g)
    expected = twin.parameters()["memory"] - np.float32(0.5) * gradient
    np.testing.assert_array_equal(table.parameters()["memory"], expected)


@given(most=st.integers(0, 10**6), units=st.integers(1, 10**9))
def test_places_follow_the_batch_and_never_outgrow_the_units(most, units):
    most = min(most, units)
    places = int(places_for(most, units))
    assert places & (places - 1) == 0
    assert places >= min(4 * most, units)
    assert places < max(2, 2 * min(4 * most, units))


def test_scratch_does_not_grow_with_the_vocabulary():
    """An integer for every unit would be 4 MB here."""
    vocab = 1_000_000 if COMPILED else 100_000
    table, ids, g = cce.make_table("full", vocab, 1), np.arange(20)[:, None] * 7, np.ones((20, 1), np.float32)
    both, optimizer = cce.Collection([table]), cce.SGD(0.1)
    for step in (lambda: table.backward(ids[:, 0], g), lambda: optimizer.update(both, ids, g)):
        step()
        tracemalloc.start()
        step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
