"""k-means' two kernels, assign and update, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import DIMS, LARGEST, problems, same_bits
from reference import kmeans as twin

from cce_core._jit import COMPILED
from cce_core.clustering import assign, update

# assign


@given(problems())
def test_assign_equals_its_definition_on_whole_numbers(problem):
    labels, distances = assign(*problem)
    expected, costs = twin.assign(*problem)
    assert same_bits(labels, expected)
    assert same_bits(distances, costs)


@given(st.data(), DIMS, st.integers(1, 9), st.sampled_from([1.0, 2.0**13, 2.0**-13]))
def test_assign_equals_its_definition_bit_for_bit_where_sums_are_rounded(data, d, k, spread):
    numbers = st.floats(-spread, spread, width=32) | st.sampled_from([0.0, -0.0, np.float32(spread)])
    centroids = data.draw(hnp.arrays(np.float32, (k, d), elements=numbers))
    x = data.draw(hnp.arrays(np.float32, (7, d), elements=numbers))
    x[0] = spread  # so that nothing is scaled
    labels, distances = assign(x, centroids)
    expected, costs = twin.assign(x, centroids)
    assert same_bits(labels, expected)
    assert same_bits(distances, costs)


def test_assign_exhaustively_on_a_line():
    points = np.arange(-1, 4, 0.5)[:, None]
    for k in range(1, 5 if COMPILED else 4):
        for centroids in itertools.product(range(4), repeat=k):
            centroids = np.array(centroids, float)[:, None]
            labels, distances = assign(points, centroids)
            expected, costs = twin.assign(points, centroids)
            assert same_bits(labels, expected)
            assert same_bits(distances, costs)


def test_assign_exhaustively_in_the_plane():
    points = np.array(list(itertools.product(np.arange(-0.5, 2, 0.5), repeat=2)))
    for k in range(1, 4 if COMPILED else 3):
        for centroids in itertools.product(itertools.product(range(2), repeat=2), repeat=k):
            labels, _ = assign(points, np.array(centroids))
            assert same_bits(labels, twin.assign(points, np.array(centroids))[0])


def test_on_a_line_distances_that_round_to_the_same_are_ties():
    # From 2^30 away all of these are equally far in float32: the lowest index wins, not the nearest in exact numbers.
    centroids = np.array([[3.0], [1.0], [0.0], [2.0], [0.5], [0.25]], np.float32)
    x = np.array([[2.0**24], [-(2.0**24)], [2.0**30], [0.6], [2.5]], np.float32)
    assert len(set(twin.distances(x, centroids)[2])) == 1
    assert same_bits(assign(x, centroids)[0], twin.assign(x, centroids)[0])


@pytest.mark.parametrize("shape", ["even", "clumps", "far", "equal", "powers"])
def test_on_a_line_with_many_centroids(shape):
    rng = np.random.default_rng(3)
    k, n = (700, 1500) if COMPILED else (60, 100)
    c = {
        "even": np.linspace(-1, 1, k),
        "clumps": np.repeat([0.0, 1.0, 1.0 + 2**-22, 5.0], k)[:k] + rng.normal(0, 1e-7, k),
        "far": np.concatenate([rng.normal(0, 1e-3, k - 1), [1e6]]),
        "equal": np.full(k, 0.75),
        "powers": 2.0 ** -np.linspace(0, 100, k),
    }[shape]
    c = rng.permutation(c).astype(np.float32)[:, None]
    x = np.concatenate([rng.normal(0, 1, n), c[:40, 0], np.nextafter(c[:40, 0], np.float32(9)), [1e7, -1e7]])
    x = x.astype(np.float32)[:, None]
    labels, distances = assign(x, c)
    expected, costs = twin.assign(x, c)
    assert same_bits(labels, expected)
    assert same_bits(distances, costs)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 65, 129])
@pytest.mark.parametrize("d", [1, 3])
def test_every_size_of_a_last_tile(n, d):
    rng = np.random.default_rng(n)
    x, centroids = rng.normal(size=(n, d)), rng.normal(size=(6, d))
    labels, distances = np.full(n + 1, -7, np.int32), np.full(n + 1, np.nan, np.float32)  # poisoned, and a guard behind
    assign(x, centroids, out=(labels[:n], distances[:n]))
    expected, costs = twin.assign(x, centroids)
    assert same_bits(labels[:n], expected)
    assert same_bits(distances[:n], costs)
    assert labels[n] == -7
    assert np.isnan(distances[n])


@given(problems(), st.sampled_from([-140, -100, -60, 60, 100, 125]), st.booleans())
def test_scaling_by_a_power_of_two_changes_no_label(problem, exponent, read_only):
    x, centroids = problem
    scaled = np.ldexp(x, exponent)
    scaled.flags.writeable = not read_only
    labels, distances = assign(scaled, np.ldexp(centroids, exponent))
    assert same_bits(labels, twin.assign(*problem)[0])
    exact = np.ldexp(twin.assign(*problem)[1].astype(np.float64), 2 * exponent)
    assert np.array_equal(distances, np.minimum(exact, LARGEST).astype(np.float32))


def test_every_finite_number_is_safe():
    labels, distances = assign([[LARGEST], [-LARGEST]], [[-LARGEST], [LARGEST]])
    assert labels.tolist() == [1, 0]
    assert distances.tolist() == [0, 0]
    labels, distances = assign([[1e30, -1e30]], [[-1e30, 1e30]])
    assert distances[0] == LARGEST
    labels, _ = assign([[1e-45], [3e-45]], [[3e-45], [1e-45]])
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8, np.uint64, ">f4"])
def test_assign_takes_any_real_type_and_layout(kind):
    x = np.asfortranarray(np.arange(24).reshape(8, 3)[::-1]).astype(kind)
    centroids = np.array([[1, 2, 3], [20, 21, 22]])
    assert same_bits(assign(x, centroids)[0], twin.assign(x.astype(np.float32), centroids)[0])


@pytest.mark.parametrize(
    ("x", "centroids", "error", "message"),
    [
        ([[np.nan]], [[0.0]], ValueError, "X must be finite in float32, got nan at \\(0, 0\\)"),
        ([[0.0, 1.0], [0.0, -np.inf]], [[0.0, 0.0]], ValueError, "got -inf at \\(1, 1\\)"),
        ([[1e39]], [[0.0]], ValueError, "X must be finite in float32, got 1e\\+39"),
        ([[0.0]], [[np.nan]], ValueError, "centroids must be finite"),
        ([0.0], [[0.0]], ValueError, "X.reshape\\(-1, 1\\)"),
        ([[0.0]], [[0.0, 1.0]], ValueError, "X must have 2 coordinates a point, got 1"),
        (np.zeros((3, 0)), np.zeros((3, 0)), ValueError, "at least one coordinate"),
        ([[0.0]], np.zeros((0, 1)), ValueError, "at least one centroid"),
        ([["a"]], [[0.0]], TypeError, "X must be real numbers"),
        ([[1j]], [[0.0]], TypeError, "X must be real numbers"),
        ([[True]], [[0.0]], TypeError, "X must be real numbers"),
    ],
)
def test_assign_refuses(x, centroids, error, message):
    with pytest.raises(error, match=message):
        assign(x, centroids)


def test_assign_refuses_a_wrong_out():
    x, c = np.zeros((3, 2)), np.zeros((1, 2))
    with pytest.raises(TypeError, match="pair"):
        assign(x, c, out=np.zeros(3))
    for labels, distances in [(np.zeros(3), np.zeros(3, np.float32)), (np.zeros(2, np.int32), np.zeros(2, np.float32))]:
        with pytest.raises(ValueError, match="int32 labels"):
            assign(x, c, out=(labels, distances))
    with pytest.raises(ValueError, match="contiguous"):
        assign(x, c, out=(np.zeros(6, np.int32)[::2], np.zeros(3, np.float32)))


# update


@given(st.data(), problems())
def test_update_equals_its_definition(data, problem):
    x, k = problem[0], len(problem[1])
    labels = data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, k - 1)))
    weights = data.draw(st.none() | hnp.arrays(np.int64, len(x), elements=st.integers(0, 3)))
    assume(weights is None or weights.any())
    centroids, counts = update(x, labels, k, weights)
    expected, masses = twin.update(x, labels, k, weights)
    assert same_bits(centroids, expected)
    assert same_bits(counts, masses)


def test_update_sums_blocks_in_float64():
    n, k = 3 * 4096, 3  # three blocks
    rng = np.random.default_rng(0)
    x, labels = rng.integers(-(2**23), 2**23, (n, 2)).astype(np.float32), rng.integers(0, k, n)
    centroids, counts = update(x, labels, k)
    exact = np.array([x[labels == c].astype(np.int64).sum(0) / (labels == c).sum() for c in range(k)])
    assert np.array_equal(centroids, exact.astype(np.float32))
    assert counts.tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize(
    ("labels", "k", "weights", "error", "message"),
    [
        ([0, 2], 2, None, IndexError, "labels must be between 0 and 1, got 2 at 1"),
        ([-1, 0], 2, None, IndexError, "got -1 at 0"),
        ([0.0, 1.0], 2, None, TypeError, "labels must be integers"),
        ([0], 2, None, ValueError, "labels must have shape \\(2,\\)"),
        ([0, 0], 0, None, ValueError, "k must be"),
        ([0, 0], 1, [1, -1], ValueError, "not be negative, got -1 at 1"),
        ([0, 0], 1, [0, 0], ValueError, "zeros only"),
        ([0, 0], 1, [1, np.nan], ValueError, "finite"),
        ([0, 0], 1, [1], ValueError, "sample_weight must have shape \\(2,\\)"),
        ([0, 0], 1, ["a", "b"], TypeError, "real numbers"),
    ],
)
def test_update_refuses(labels, k, weights, error, message):
    with pytest.raises(error, match=message):
        update([[0.0], [1.0]], labels, k, weights)
