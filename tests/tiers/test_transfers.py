"""Vectors and states of rows that change hands, against their definition in Python's floats."""

from __future__ import annotations

import numpy as np
import pytest
from reference.owners import Owners as Naive

from cce_core._jit import COMPILED
from cce_core.tiers import Moves, Owners, Policy


def naive_transfer(naive, changes, mass, n_shared, values, fold):
    def shared(word):
        return len(naive.counts) + naive.map.shared(word, n_shared)

    for owner, row, _, evicted, count in changes:
        if evicted and fold:
            target = shared(evicted)
            share = count / max(1.0, count + mass / n_shared)
            values[target] += np.float32(share) * (values[row] - values[target])
        values[row] = values[shared(owner)]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("n_shared", [1, 3])
@pytest.mark.parametrize("admission", ["duel", "probability"])
def test_a_stream_moves_rows_as_the_definition_does(fold, n_shared, admission):
    policy, rng = Policy(admission, half_life=4, admit_probability=0.5), np.random.default_rng(0)
    real = Owners(12, 300, policy, seed=2)
    naive = Naive(12, real.sketch.width, policy, seed=2)
    values = rng.standard_normal((12 + n_shared, 3)).astype(np.float32)
    states = [np.ones((12 + n_shared) * 3, np.float32), np.ones(12 + n_shared, np.float32)]
    twin, evicted = values.copy(), 0
    for _ in range(30 if COMPILED else 8):
        ids = rng.zipf(1.3, 30) % 2**40
        changes = real.step(real.count(ids))
        mass = real.sketch.mass
        moves, whole = Moves.of(real, changes, n_shared, fold), values.copy()
        moves.apply(whole)
        moves.reset(states, len(values))
        index, few = moves.compact()
        part = values[index]
        few.apply(part)
        values[index] = part
        np.testing.assert_array_equal(values, whole)
        expected = naive.step(naive.count(ids.tolist()))
        naive_transfer(naive, expected, mass, n_shared, twin, fold)
        np.testing.assert_allclose(values, twin, rtol=1e-6, atol=1e-7)
        for state in states:
            by_row = state.reshape(12 + n_shared, -1)
            assert not by_row[changes.rows].any(), "a new owner begins with a state of its own"
            assert (np.delete(by_row, changes.rows, 0) == 1).all()
            state[:] = 1
        evicted += np.count_nonzero(changes.evicted)
    assert evicted or not COMPILED


def test_no_vector_jumps_at_admission_and_what_was_learned_is_folded_back():
    owners, values = Owners(4, 1000, Policy(lead=1)), np.zeros((5, 2), np.float32)
    values[4] = 1.0
    Moves.of(owners, owners.step(owners.count([1, 2, 3, 4])), 1).apply(values)
    assert (values == 1).all()
    values[:4] = 3.0
    changes = owners.step(owners.count([5, 5]))
    Moves.of(owners, changes, 1).apply(values)
    share = 1 / (1 + owners.sketch.mass)
    np.testing.assert_allclose(values[4], 1 + share * 2, rtol=1e-6)
    np.testing.assert_array_equal(values[changes.rows[0]], values[4])
    assert (values[owners.find([i for i in (1, 2, 3, 4) if owners.find(i) >= 0])] == 3).all()


def test_nothing_is_lost_where_nothing_changes_hands():
    owners, values = Owners(4, 1000), np.arange(10, dtype=np.float32).reshape(5, 2)
    Moves.of(owners, owners.step(np.empty(0, np.uint64)), 1).apply(values)
    assert values.reshape(-1).tolist() == list(range(10))
