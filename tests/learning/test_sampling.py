"""Ids drawn for k-means: the right ones, as likely as they should be, and no whole copies of what is large."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cce_core._jit import COMPILED
from cce_core.learning import sampling
from cce_core.learning.sampling import as_rows, some_ids, weighted_ids


def rng(seed=0):
    return np.random.default_rng(seed)


def test_some_ids_exhaustively():
    for vocab in range(1, 9):
        for n in range(vocab + 1):
            for seed in range(4):
                ids = some_ids(rng(seed), vocab, n)
                assert ids.dtype == np.uint64
                assert ids.shape == (n,)
                assert (np.diff(ids.astype(np.int64)) > 0).all()
                assert n == 0 or ids[-1] < vocab


@pytest.mark.parametrize(("vocab", "n"), [(5, 2), (5, 3), (12, 4)])
def test_each_set_is_as_likely(vocab, n):
    draws, turns = np.zeros(vocab), 4000
    pairs = np.zeros((vocab, vocab))
    generator = rng(7)
    for _ in range(turns):
        ids = some_ids(generator, vocab, n).astype(int)
        draws[ids] += 1
        pairs[np.ix_(ids, ids)] += 1
    share = n / vocab
    assert np.abs(draws / turns - share).max() < 5 * np.sqrt(share * (1 - share) / turns)
    both = share * (n - 1) / (vocab - 1)
    apart = pairs[~np.eye(vocab, dtype=bool)] / turns
    assert np.abs(apart - both).max() < 5 * np.sqrt(both * (1 - both) / turns)


@given(
    st.lists(st.sampled_from([0, 1e-45, 1e-3, 1, 5, 3e38]), min_size=1, max_size=30),
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_weighted_ids_have_weight(values, n, block, seed):
    weights = np.array(values, np.float32)
    if not weights.any():
        weights[-1] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_BLOCK", block)
        ids, counts = weighted_ids(rng(seed), weights, n)
    assert (np.diff(ids.astype(np.int64)) > 0).all()
    assert (weights[ids] > 0).all()
    assert counts.min() >= 1
    assert counts.sum() == n


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_weighted_ids_come_in_proportion(kind, monkeypatch):
    weights = np.array([0, 4, 1, 0, 0, 0, 0, 3, 2, 0], kind)
    n, whole = 40_000, weighted_ids(rng(1), weights, 40_000)
    monkeypatch.setattr(sampling, "_BLOCK", 3)  # blocks without a weight among them, the last one too
    ids, counts = weighted_ids(rng(1), weights, n)
    assert ids.tolist() == [1, 2, 7, 8]
    assert np.abs(counts / n - weights[ids] / 10).max() < 0.02
    assert all(np.array_equal(a, b) for a, b in zip(whole, (ids, counts)))  # blocks change nothing


@pytest.mark.skipif(not COMPILED, reason="blocks are large, and the loops over them slow")
@pytest.mark.parametrize("kind", [np.float64, np.int64, np.float16])
def test_rows_are_checked_without_a_copy(kind):
    values = np.zeros((300_000, 4), kind)
    assert as_rows("X", values, values.shape) is values
    tracemalloc.start()
    as_rows("X", values, values.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.size * 4 / 2


def test_rows_say_what_is_wrong():
    values = np.zeros((70_001, 1))
    values[70_000] = 1e300
    with pytest.raises(ValueError, match=r"X must be finite, got inf at \(70000, 0\)"):
        as_rows("X", values, values.shape)
    with pytest.raises(ValueError, match=r"X must have shape \(3, 2\)"):
        as_rows("X", values, (3, 2))
    with pytest.raises(TypeError, match="X must be real numbers"):
        as_rows("X", np.array([["a"]]), (1, 1))
