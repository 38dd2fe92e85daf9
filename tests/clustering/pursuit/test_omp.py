"""Orthogonal matching pursuit: against its definition, and with atoms and rows that are equal, zero or nearly collinear."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import LARGEST, same_bits
from reference import omp as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import omp

MODULE = sys.modules["cce_core.clustering.pursuit.omp"]  # the function has its name in the package


def check(X, D, s):
    """As the twin has it; where products are equal but for rounding, any of the atoms will do."""
    indices, weights = omp(X, D, s)
    assert (indices.dtype, weights.dtype) == (np.int32, np.float32)
    expected, exact = twin.omp(X, D, s, like=indices.tolist())
    assert np.array_equal(indices, expected)
    np.testing.assert_allclose(weights, exact, rtol=1e-5, atol=1e-6 * max(1.0, np.abs(exact).max(initial=0)))


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 40), st.integers(1, 9), st.data())
def test_equals_its_definition(seed, n, k, dim, data):
    s = data.draw(st.integers(1, k if COMPILED else min(k, 4)))
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(k, dim)) * rng.uniform(0.1, 10, (k, 1))
    check(rng.normal(size=(n, dim)), D, s)


@given(st.data())
def test_equals_its_definition_on_whole_numbers(data):
    k, dim = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    whole = st.integers(-2, 2)
    X = data.draw(hnp.arrays(np.int64, (4, dim), elements=whole))
    check(X, data.draw(hnp.arrays(np.int64, (k, dim), elements=whole)), data.draw(st.integers(1, k)))


def test_exhaustively_in_the_plane():
    points = list(itertools.product(range(-1, 2), repeat=2))
    for k in range(1, 4 if COMPILED else 3):
        for D in itertools.product(points, repeat=k):
            for s in range(1, k + 1):
                check(points[1:] if COMPILED else points[::3], D, s)


def test_among_equal_atoms_the_lowest_is_taken_and_no_other():
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(70, 5))
    D = np.concatenate([atoms, -2 * atoms, atoms])  # past the vectorised part, and in other blocks of it
    indices, weights = omp(rng.normal(size=(30, 5)), D, 4)
    assert indices.max() < 70
    assert (weights != 0).all()
    copies = omp([[1.0, 2.0]], [[3.0, 6.0]] * 3, 3)
    assert copies[0].tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(copies[1], [[1 / 3, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(("angle", "taken"), [(0.009, False), (0.011, True)])
def test_near_collinear_atoms_get_no_huge_weights(angle, taken):
    D = [[1, 0, 0], [np.cos(angle), np.sin(angle), 0], [0, 0, 1]]
    indices, weights = omp([[1.0, -0.1, 0.0]], D, 2)
    assert indices.tolist() == [[0, 1]]
    assert (weights[0, 1] != 0) == taken
    assert np.abs(weights).max() < 10.5
    check([[1.0, -0.1, 0.0]], D, 3)


def test_weights_are_bounded_among_many_collinear_atoms():
    rng = np.random.default_rng(1)
    D = np.ones(8) + 1e-3 * rng.normal(size=(50, 8))
    indices, weights = omp(rng.normal(size=(20, 8)), D, 6)
    assert np.abs(weights).max() < 100
    assert all(len(set(row)) == 6 for row in indices.tolist())


def test_rows_and_atoms_of_zeros():
    indices, weights = omp([[0.0, 0.0], [0.0, 5.0]], [[0, 0], [0, 2], [0, 0]], 3)
    assert indices.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert weights.tolist() == [[0, 0, 0], [2.5, 0, 0]]
    assert omp([[1.0]], [[0.0]], 1)[1].tolist() == [[0.0]]


def test_a_row_ends_where_no_atom_explains_a_millionth():
    indices, weights = omp([[4e-6, 4.0, 6e-6, 0.0, 3.0]], np.eye(5), 5)
    assert indices.tolist() == [[1, 4, 2, 0, 3]]
    np.testing.assert_allclose(weights, [[4, 3, 6e-6, 0, 0]], rtol=1e-6)


def test_products_that_float32_cannot_tell_apart_are_told_apart():
    rng = np.random.default_rng(5)
    base = rng.normal(size=8).astype(np.float32)
    D = base * (1 + rng.integers(-1, 2, (100, 8)) * 2.0**-22)
    check(base + 0.01 * rng.normal(size=(20, 8)), D, 1)
    check(1e-3 * rng.normal(size=(20, 8)), D, 1)


def test_powers_of_two_scale_the_weights_alone():
    rng = np.random.default_rng(3)
    X, D = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    indices, weights = omp(X, D, 3)
    for up, down in [(100, 20), (-80, 0), (0, -90), (-60, 60)]:
        scaled = omp(np.ldexp(X, up), np.ldexp(D, down), 3)
        assert same_bits(scaled[0], indices)
        assert same_bits(scaled[1], np.ldexp(weights, up - down))


def test_every_finite_number_is_safe():
    indices, weights = omp([[LARGEST, LARGEST], [1e-45, 0]], [[LARGEST, LARGEST], [1e-45, 0]], 1)
    assert indices.tolist() == [[0], [1]]
    assert weights.tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="row 1 needs a weight beyond float32 for atom 0; scale D"):
        omp([[1e-40], [1e30]], [[1e-40]], 1)


def test_threads_batches_and_layout_change_no_bit(monkeypatch):
    rng = np.random.default_rng(4)
    n, k = (700, 600) if COMPILED else (12, 20)
    X, D = rng.normal(size=(n, 7)), rng.normal(size=(k, 7))
    monkeypatch.setattr(MODULE, "_GRAIN", 1)
    expected = omp(X, D, 3)
    alone = [omp(X[i : i + 1], D, 3) for i in range(10)]
    assert all(same_bits(np.concatenate([a[j] for a in alone]), expected[j][:10]) for j in (0, 1))
    for threads, batch in [(1, 1), (2, 10**5), (3, 10**9), (7, 10**5)]:
        _threads.set_num_threads(threads)
        monkeypatch.setattr(MODULE, "_BATCH", batch)
        found = omp(np.asfortranarray(X), np.asfortranarray(D), 3)
        assert same_bits(found[0], expected[0])
        assert same_bits(found[1], expected[1])


def test_no_rows():
    indices, weights = omp(np.zeros((0, 3)), np.ones((2, 3)), 2)
    assert indices.shape == weights.shape == (0, 2)


@pytest.mark.parametrize(
    ("X", "D", "s", "error", "message"),
    [
        ([[np.nan]], [[1.0]], 1, ValueError, "X must be finite in float32, got nan"),
        ([[1.0]], [[np.inf]], 1, ValueError, "D must be finite"),
        ([[1.0]], [[1.0, 2.0]], 1, ValueError, "X must have 2 coordinates a point, got 1"),
        ([1.0], [[1.0]], 1, ValueError, "X must have shape"),
        ([[1.0]], np.zeros((0, 1)), 1, ValueError, "at least one atom"),
        ([[1.0]], [[1.0]], 2, ValueError, "n_nonzero must be between 1 and 1, got 2"),
        ([[1.0]], [[1.0]], 0, ValueError, "n_nonzero must be between"),
        ([[1.0]], [[1.0]], 1.0, TypeError, "n_nonzero must be a whole number"),
        ([["a"]], [[1.0]], 1, TypeError, "X must be real numbers"),
    ],
)
def test_refused(X, D, s, error, message):
    with pytest.raises(error, match=message):
        omp(X, D, s)
