"""Circular k-means: assign, update and the iteration against their definitions, also where windows go round."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import LARGEST, same_bits
from reference import circular as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import assign, circular, circular_assign, circular_k_means, circular_update


@st.composite
def problems(draw):
    """Points and a memory of whole numbers, so that ties are common, and a stride; windows may be wider than the memory."""
    n, w, m = draw(st.integers(1, 12)), draw(st.integers(1, 7)), draw(st.integers(1, 20))
    whole = st.integers(-3, 3)
    X = draw(hnp.arrays(np.int64, (n, w), elements=whole)).astype(np.float32)
    return X, draw(hnp.arrays(np.int64, m, elements=whole)).astype(np.float32), draw(st.integers(1, m))


def weights_of(data, n):
    weights = data.draw(st.none() | hnp.arrays(np.int64, n, elements=st.integers(0, 3)))
    assume(weights is None or weights.any())
    return weights


@given(problems(), st.sampled_from([1, 5, 16, 1 << 16]))
def test_assign_equals_its_definition_however_few_windows_are_laid_out(problem, laid_out):
    X, memory, stride = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circular, "_LAID_OUT", laid_out)
        labels, distances = circular_assign(X, memory, stride=stride)
    expected, costs = twin.assign(X, memory, stride)
    assert same_bits(labels, expected)
    assert same_bits(distances, costs)


@given(problems(), st.data())
def test_update_equals_its_definition(problem, data):
    X, memory, _ = problem
    weights = weights_of(data, len(X))
    labels = data.draw(hnp.arrays(np.int64, len(X), elements=st.integers(0, len(memory) - 1)))
    before = memory.copy()
    assert same_bits(circular_update(X, labels, memory, weights), twin.update(X, labels, memory, weights))
    assert same_bits(memory, before)


@given(problems(), st.integers(0, 5), st.data())
def test_k_means_equals_its_definition(problem, n_iter, data):
    X, start, stride = problem
    weights = weights_of(data, len(X))
    memory, labels, inertia, made = circular_k_means(X, start, n_iter, weights, stride)
    expected, offsets, total = twin.k_means(X, start, n_iter, weights, stride)
    assert same_bits(memory, expected)
    assert same_bits(labels, offsets)
    assert inertia == pytest.approx(total, rel=1e-12)
    assert made <= n_iter


def test_exhaustively_on_small_sizes():
    rng = np.random.default_rng(0)
    for m, w in itertools.product(range(1, 6), range(1, 8)):  # w > m: a window goes round more than once
        X, memory = rng.integers(-2, 3, (4, w)).astype(np.float32), rng.integers(-2, 3, m)
        for stride in range(1, m + 1):
            labels, distances = circular_assign(X, memory, stride=stride)
            expected, costs = twin.assign(X, memory, stride)
            assert same_bits(labels, expected)
            assert same_bits(distances, costs)
            found = circular_k_means(X, memory, 3, None, stride)
            assert same_bits(found[0], twin.k_means(X, memory, 3, None, stride)[0])


def test_many_windows_have_the_bits_of_assign():
    rng = np.random.default_rng(1)
    n, w, m = (200, 16, 9000) if COMPILED else (5, 4, 70)
    X, memory = rng.normal(size=(n, w)).astype(np.float32), rng.normal(size=m).astype(np.float32)
    labels, distances = circular_assign(X, memory)
    expected, costs = assign(X, twin.windows(memory, w))
    assert same_bits(labels, expected)
    assert same_bits(distances, costs)


def test_blocks_of_sums_are_exact():
    # Enough coordinates for several blocks; whole numbers, so that any order of sums gives the same.
    n, w, m = 20_000, 8, 50
    rng = np.random.default_rng(2)
    X, labels = rng.integers(-1000, 1000, (n, w)).astype(np.float32), rng.integers(0, m, n)
    cells = (labels[:, None] + np.arange(w)) % m
    exact = np.bincount(cells.ravel(), X.ravel(), m) / np.bincount(cells.ravel(), minlength=m)
    assert same_bits(circular_update(X, labels, np.zeros(m)), exact.astype(np.float32))


def test_weights_count_as_repeats_and_cells_without_any_stay():
    X, weights = np.array([[1.0, 2.0], [4.0, 5.0], [9.0, 9.0]]), [2, 1, 0]
    moved = circular_update(X, [4, 4, 1], [7.0] * 5, weights)
    assert moved.tolist() == [3.0, 7.0, 7.0, 7.0, 2.0]
    assert same_bits(moved, circular_update(X[[0, 0, 1]], [4, 4, 4], [7.0] * 5))


def test_data_cut_from_a_memory_is_found_again():
    rng = np.random.default_rng(3)
    true = rng.normal(size=40).astype(np.float32)
    X = twin.windows(true, 6)[rng.integers(0, 40, 300)]
    memory, _, inertia, _ = circular_k_means(X, true + 0.1 * rng.normal(size=40), 50)
    assert inertia < 1e-9
    np.testing.assert_allclose(memory, true, atol=1e-5)


def test_inertia_never_rises_and_threads_change_no_bit():
    rng = np.random.default_rng(4)
    n, m = (20_000, 500) if COMPILED else (40, 30)
    X, start, told = rng.normal(size=(n, 4)), rng.normal(size=m), []
    expected = circular_k_means(X, start, 8, on_iteration=lambda *seen: told.append(seen))
    falls = [inertia for _, inertia in told]
    assert falls == sorted(falls, reverse=True)
    assert told[-1] == (expected[3], expected[2])
    for threads in (1, 2, 5):
        _threads.set_num_threads(threads)
        found = circular_k_means(X, start, 8)
        assert same_bits(found[0], expected[0])
        assert same_bits(found[1], expected[1])
        assert found[2:] == expected[2:]


def test_it_ends_where_told():
    rng = np.random.default_rng(5)
    X, start = rng.normal(size=(50, 3)), rng.normal(size=20)
    assert circular_k_means(X, start, 9, on_iteration=lambda step, _: step == 2)[3] == 2
    assert circular_k_means(X, start, 9, tol=1.0)[3] == 1
    settled = circular_k_means(X, start, 500)
    assert settled[3] < 500
    assert circular_k_means(X, settled[0], 9)[3] == 0


@pytest.mark.parametrize("exponent", [-140, -60, 60, 120])
def test_powers_of_two_change_no_offset(exponent):
    rng = np.random.default_rng(6)
    X, memory = rng.integers(-3, 4, (9, 3)).astype(np.float32), rng.integers(-3, 4, 11).astype(np.float32)
    labels, distances = circular_assign(np.ldexp(X, exponent), np.ldexp(memory, exponent))
    expected, costs = twin.assign(X, memory)
    assert same_bits(labels, expected)
    exact = np.minimum(np.ldexp(costs.astype(float), 2 * exponent), LARGEST)
    assert np.array_equal(distances, exact.astype(np.float32))
    moved, _, inertia, _ = circular_k_means(np.ldexp(X, exponent), np.ldexp(memory, exponent), 1)
    plain = circular_k_means(X, memory, 1)
    np.testing.assert_allclose(moved, np.ldexp(plain[0], exponent), rtol=1e-6, atol=1e-44)
    assert inertia == pytest.approx(plain[2] * 4.0**exponent)


def test_no_points():
    labels, distances = circular_assign(np.zeros((0, 3)), [1.0, 2.0])
    assert (labels.shape, distances.shape) == ((0,), (0,))
    assert circular_update(np.zeros((0, 3)), [], [1.0, 2.0]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("X", "memory", "more", "error", "message"),
    [
        ([[np.nan]], [1.0], {}, ValueError, "X must be finite"),
        ([[1.0]], [np.inf], {}, ValueError, "memory must be finite"),
        ([1.0], [1.0], {}, ValueError, "X must have shape"),
        ([[1.0]], [[1.0]], {}, ValueError, "memory must have shape .* use memory.reshape\\(-1\\)"),
        ([[1.0]], [], {}, ValueError, "memory must have shape"),
        ([[1.0]], [1.0], {"stride": 2}, ValueError, "stride must be between 1 and 1, got 2"),
        ([[1.0]], [1.0], {"stride": 0}, ValueError, "stride must be"),
        ([[1.0]], [1.0], {"stride": 1.0}, TypeError, "stride must be a whole number"),
        ([["a"]], [1.0], {}, TypeError, "X must be real numbers"),
    ],
)
def test_refused_by_assign_and_k_means(X, memory, more, error, message):
    with pytest.raises(error, match=message):
        circular_assign(X, memory, **more)
    with pytest.raises(error, match=message):
        circular_k_means(X, memory, **more)


@pytest.mark.parametrize(
    ("labels", "weights", "error", "message"),
    [
        ([0, 2], None, IndexError, "labels must be between 0 and 1, got 2 at 1"),
        ([-1, 0], None, IndexError, "got -1 at 0"),
        ([0.0, 1.0], None, TypeError, "integers"),
        ([0], None, ValueError, "labels must have shape \\(2,\\)"),
        ([0, 0], [1, -1], ValueError, "not be negative"),
        ([0, 0], [0, 0], ValueError, "zeros only"),
        ([0, 0], [1], ValueError, "sample_weight must have shape"),
    ],
)
def test_refused_by_update(labels, weights, error, message):
    with pytest.raises(error, match=message):
        circular_update([[1.0], [2.0]], labels, [1.0, 2.0], weights)


def test_refused_by_k_means_alone():
    for X, more, message in [
        (np.zeros((0, 2)), {}, "at least one point"),
        ([[1.0]], {"n_iter": -1}, "n_iter must be at least 0"),
        ([[1.0]], {"tol": -1.0}, "tol must be at least 0"),
        ([[1.0]], {"sample_weight": [0.0]}, "zeros only"),
    ]:
        with pytest.raises(ValueError, match=message):
            circular_k_means(X, [1.0], **more)
