"""K-SVD: an iteration against its definition, what it promises of errors, and hard data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import LARGEST, same_bits
from reference import ksvd as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import k_svd

MODULE = sys.modules["cce_core.clustering.pursuit.ksvd"]


def check(X, found, n_nonzero):
    """What holds for every result."""
    D, indices, weights, errors = found
    assert (D.dtype, indices.dtype, weights.dtype, errors.dtype) == (np.float32, np.int32, np.float32, np.float64)
    assert indices.shape == weights.shape == (len(X), n_nonzero)
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1, rtol=1e-6)
    assert all(len(set(row)) == n_nonzero and 0 <= min(row) <= max(row) < len(D) for row in indices.tolist())
    assert np.isfinite(weights).all()
    assert (np.diff(errors) < 0).all()
    X = np.asarray(X, np.float32).astype(float)
    exact = np.sum(twin.left(X, D, indices, weights.astype(float)) ** 2)
    np.testing.assert_allclose(errors[-1], exact, rtol=1e-9, atol=1e-14 * np.sum(X**2))


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(0, 3))
def test_equals_its_definition(seed, s, n_iter):
    X = np.random.default_rng(seed).normal(size=(25, 4))
    start = k_svd(X, 6, s, n_iter=0)
    found = k_svd(X, 6, s, n_iter=n_iter)
    D, indices, weights, errors = twin.iterate(X, start.dictionary, s, n_iter)
    assume(len(np.unique(indices[weights != 0])) == 6)  # the twin leaves unused atoms where they are
    assert np.array_equal(found.indices, indices)
    np.testing.assert_allclose(found.dictionary, D, atol=1e-4)
    np.testing.assert_allclose(found.weights, weights, atol=1e-4)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-4)


@given(st.data())
def test_promises_on_whole_numbers_with_equal_rows_and_rows_of_zeros(data):
    k, dim = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    s, n = data.draw(st.integers(1, k)), data.draw(st.integers(k, 14))
    X = data.draw(hnp.arrays(np.int64, (n, dim), elements=st.integers(-2, 2)))
    check(X, k_svd(X, k, s, n_iter=6, seed=data.draw(st.integers(0, 9))), s)


def test_one_atom_becomes_the_first_singular_vector():
    X = np.random.default_rng(0).normal(size=(40, 3)) * [3, 2, 1]
    found = k_svd(X, 1, 1, n_iter=200)
    values = np.linalg.svd(X)[1]
    np.testing.assert_allclose(found.errors[-1], np.sum(values[1:] ** 2), rtol=1e-6)
    assert 3 < len(found.errors) < 200  # an iteration that does not lower the error is the last
    check(X, found, 1)


def test_a_planted_dictionary_is_approached():
    rng = np.random.default_rng(1)
    n, k = (600, 24) if COMPILED else (60, 8)
    atoms = rng.normal(size=(k, 8))
    X = np.array([rng.normal(size=2) @ atoms[rng.choice(k, 2, replace=False)] for _ in range(n)])
    found = k_svd(X, k, 2, n_iter=20)
    assert found.errors[-1] < 0.5 * found.errors[0]
    check(X, found, 2)


def test_an_unused_atom_goes_to_the_worst_represented_sample():
    X = np.repeat([[1.0, 0, 0], [-1.0, 0, 0], [0, 0.5, 0], [0, 0, 0.25]], [50, 50, 1, 1], axis=0)
    start = k_svd(X, 2, 1, n_iter=0)
    assert np.abs(start.dictionary[:, 0]).tolist() == [1, 1]  # one of the two is unused
    found = k_svd(X, 2, 1, n_iter=1)
    assert sorted(np.abs(found.dictionary).tolist()) == [[0, 1, 0], [1, 0, 0]]
    assert found.errors.tolist() == [0.3125, 0.0625]


def test_an_unused_atom_with_nothing_to_go_to_stays():
    X = np.repeat([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0], [0, 0, 0.5]], [20, 20, 20, 20, 1], axis=0)
    assert k_svd(X, 4, 1, n_iter=0).errors.tolist() == [0.25]  # two atoms are unused, one sample is badly off
    found = k_svd(X, 4, 1)
    assert found.errors.tolist() == [0.25, 0.0]
    check(X, found, 1)


def test_unused_atoms_get_distinct_samples_until_nothing_is_left_to_explain():
    X = np.array([[0, 3.0, 0], [0, 6.0, -0.0], [2.0, 0, 0], [1.0, 1.0, 0]], np.float32)
    atoms = np.tile(np.float32([0, 0, 1]), (4, 1))
    MODULE._replace(atoms, np.array([1, 2, 3]), X, np.array([1.0, 2.0, 3.0, 0.0]))
    assert atoms.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_zeros_alone():
    found = k_svd(np.zeros((5, 3)), 4, 2)
    assert found.errors.tolist() == [0.0]
    assert not found.weights.any()
    check(np.zeros((5, 3)), found, 2)


@pytest.mark.parametrize("size", [LARGEST / 8, 1e-30, 1e-44])
def test_every_finite_size_is_safe(size):
    X = np.random.default_rng(2).uniform(-1, 1, (20, 3)) * size
    check(X, k_svd(X, 5, 2, n_iter=4), 2)


def test_seed_threads_and_batches(monkeypatch):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400 if COMPILED else 40, 5))
    monkeypatch.setattr(MODULE, "_GRAIN", 1)
    expected = k_svd(X, 12, 3, n_iter=4, seed=7)
    assert len(expected.errors) == 5
    for threads in (1, 2, 5):
        _threads.set_num_threads(threads)
        assert all(same_bits(a, b) for a, b in zip(k_svd(X, 12, 3, n_iter=4, seed=7), expected))
    assert not np.array_equal(
        k_svd(X, 12, 3, n_iter=0, seed=8).dictionary, k_svd(X, 12, 3, n_iter=0, seed=7).dictionary
    )


def test_on_iteration_is_told_and_may_end_it():
    X, told = np.random.default_rng(4).normal(size=(30, 4)), []
    found = k_svd(X, 6, 2, n_iter=9, on_iteration=lambda *seen: told.append(seen) or len(told) == 3)
    assert told == list(enumerate(found.errors.tolist()))[1:]
    assert len(told) == 3
    assert all(same_bits(a, b) for a, b in zip(found, k_svd(X, 6, 2, n_iter=3)))


@pytest.mark.parametrize(
    ("X", "k", "s", "more", "error", "message"),
    [
        ([[1.0], [2.0]], 3, 1, {}, ValueError, "at least n_atoms = 3 rows, got 2; pass more rows or n_atoms=2"),
        (np.zeros((0, 2)), 1, 1, {}, ValueError, "at least n_atoms = 1 rows, got 0; pass more rows"),
        ([[np.nan]], 1, 1, {}, ValueError, "X must be finite"),
        ([1.0], 1, 1, {}, ValueError, "X must have shape"),
        ([["a"]], 1, 1, {}, TypeError, "X must be real numbers"),
        ([[1.0]], 0, 1, {}, ValueError, "n_atoms must be at least 1"),
        ([[1.0]], 1, 2, {}, ValueError, "n_nonzero must be between 1 and 1, got 2"),
        ([[1.0]], 1, 1, {"n_iter": -1}, ValueError, "n_iter must be at least 0"),
        ([[1.0]], 1, 1, {"seed": -1}, ValueError, "seed must be"),
        ([[1.0]], 1.0, 1, {}, TypeError, "n_atoms must be a whole number"),
    ],
)
def test_refused(X, k, s, more, error, message):
    with pytest.raises(error, match=message):
        k_svd(X, k, s, **more)
