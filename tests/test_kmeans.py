"""k-means: the two kernels against their definitions, the driver against plain Lloyd, starts, and hard data."""

from __future__ import annotations

import collections
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import kmeans as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import KMeans, NotFittedError, assign, k_means_plus_plus, lloyd, random_points, update
from cce_core.clustering import init as starts

DIMS = st.sampled_from([1, 1, 2, 3, 4, 5, 8, 16, 17, 33] if COMPILED else [1, 1, 2, 3, 5])
LARGEST = np.finfo(np.float32).max


@st.composite
def problems(draw, n_points=24, n_centroids=11, side=3, dims=DIMS):
    """Points and centroids with whole coordinates, so few of them that ties and duplicates are common."""
    d = draw(dims)
    n, k = draw(st.integers(1, n_points)), draw(st.integers(1, n_centroids))
    whole = st.integers(-side, side)
    return (
        draw(hnp.arrays(np.int64, (n, d), elements=whole)).astype(np.float32),
        draw(hnp.arrays(np.int64, (k, d), elements=whole)).astype(np.float32),
    )


def blobs(n, k, d, seed=0, apart=20.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, apart, (k, d))
    return (centres[rng.integers(0, k, n)] + rng.normal(0, 1, (n, d))).astype(np.float32)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


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
        ([0.0, 1.0], 2, None, TypeError, "integers"),
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


# Lloyd's iteration


@given(problems(), st.integers(0, 6))
def test_equals_lloyd_with_refilled_clusters_on_whole_numbers(problem, n_iter):
    x, start = problem
    km = KMeans(len(start), init=start, n_iter=n_iter).fit(x)
    centroids, labels = twin.kmeans(x, start, n_iter)
    assert same_bits(km.cluster_centers_, centroids)
    assert same_bits(km.labels_, labels)


@given(problems(), st.data())
def test_weighted_equals_the_weighted_twin(problem, data):
    x, start = problem
    weights = data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, 3)))
    assume(weights.any())
    km = KMeans(len(start), init=start, n_iter=4).fit(x, sample_weight=weights)
    centroids, labels = twin.kmeans(x, start, 4, weights)
    assert same_bits(km.cluster_centers_, centroids)
    assert same_bits(km.labels_, labels)


@pytest.mark.parametrize(("d", "k"), [(1, 7), (2, 5), (8, 6)])
def test_equals_plain_lloyd(d, k):
    x = np.round(blobs(200, k, d, seed=d, apart=3.0) * 4)
    start = np.unique(x, axis=0)[:: max(1, len(np.unique(x, axis=0)) // k)][:k]
    steps = []
    for n_iter in (0, 1, 2, 3, 5, 50):
        km = KMeans(k, init=start, n_iter=n_iter).fit(x)
        centroids, labels = twin.lloyd(x, start, n_iter)
        assert len(np.unique(labels)) == k, "an empty cluster: this data does not test the plain iteration"
        assert same_bits(km.cluster_centers_, centroids)
        assert same_bits(km.labels_, labels)
        steps.append(km.n_iter_)
    assert steps[:4] == [0, 1, 2, 3]
    assert steps[5] < 50  # it stops where nothing changes


@given(problems(n_centroids=6), st.integers(0, 3), st.sampled_from(["k-means++", "random", "given"]))
def test_what_holds_for_every_fit(problem, seed, init):
    x, start = problem
    k, seen = len(start), []
    km = KMeans(k, init=start if init == "given" else init, seed=seed)
    assert km.fit(x, on_iteration=lambda step, inertia: seen.append((step, inertia))) is km
    assert [step for step, _ in seen] == list(range(1, km.n_iter_ + 1))
    inertias = [inertia for _, inertia in seen]
    assert all(b <= a for a, b in itertools.pairwise(inertias))
    labels, costs = assign(x, km.cluster_centers_)
    assert same_bits(km.labels_, labels)
    assert km.inertia_ == pytest.approx(twin.inertia(costs), rel=1e-12)
    assert km.inertia_ == (inertias[-1] if inertias else km.inertia_)
    assert km.cluster_centers_.dtype == np.float32
    assert km.cluster_centers_.shape == start.shape
    assert np.isfinite(km.cluster_centers_).all()
    assert km.n_features_in_ == x.shape[1]
    assert same_bits(km.predict(x), km.labels_)
    distinct = len(np.unique(x, axis=0))
    if init != "given" and k >= distinct:
        assert km.inertia_ == 0


@pytest.mark.parametrize("d", [1, 4])
def test_inertia_never_rises_where_sums_are_rounded(d):
    n = 3000 if COMPILED else 150
    x = np.random.default_rng(d).normal(1000, 1e-3, (n, d))  # few digits left: rounding decides near the end
    seen = []
    km = KMeans(16, n_iter=100).fit(x, on_iteration=lambda _, inertia: seen.append(inertia))
    assert all(b <= a for a, b in itertools.pairwise(seen))
    assert km.inertia_ == seen[-1]


def test_an_iteration_that_raises_the_inertia_is_undone(monkeypatch):
    from cce_core.clustering import kmeans

    x, true_total, calls = blobs(40, 4, 2), kmeans._total, []

    def rising(costs, weights):
        calls.append(true_total(costs, weights) if len(calls) < 3 else 1e9)
        return calls[-1]

    monkeypatch.setattr(kmeans, "_total", rising)
    km = KMeans(4, init=x[:4], n_iter=20).fit(x)
    expected, labels = twin.kmeans(x, x[:4], 2)
    assert km.n_iter_ == 2
    assert km.inertia_ == calls[2]
    assert same_bits(km.cluster_centers_, expected)
    assert same_bits(km.labels_, labels)


def test_empty_clusters_get_the_costliest_distinct_points():
    x = [[0.0], [1.0], [1.0], [9.0], [9.0], [5.0], [6.0]]
    # All points go to the centroid at 0. The costliest is a 9; the other 9 is its like, so the second is 6.
    moved = KMeans(3, init=[[0.0], [100.0], [100.0]], n_iter=1).fit(x).cluster_centers_
    assert moved[1:].tolist() == [[9.0], [6.0]]
    km = KMeans(3, init=[[0.0], [100.0], [100.0]]).fit(x)
    assert len(set(km.labels_.tolist())) == 3
    moved = KMeans(3, init=[[9.0], [99.0], [98.0]], n_iter=1).fit([[9.0], [0.0], [-0.0], [3.0]]).cluster_centers_
    assert moved[1:].tolist() == [[0.0], [3.0]]  # 0 and -0 are alike


def test_a_refill_never_empties_another_cluster():
    # Both points of the cluster at 50 cost more than any other, yet one must stay; weight 0 does not count as staying.
    x = np.array([[0.0], [1.0], [40.0], [60.0], [55.0]])
    km = KMeans(4, init=[[0.0], [50.0], [900.0], [901.0]], n_iter=1).fit(x, sample_weight=[1, 1, 1, 1, 0])
    assert sorted(km.cluster_centers_.ravel().tolist()) == [0.0, 1.0, 40.0, 60.0]


@pytest.mark.parametrize("init", ["k-means++", "random", "given"])
@pytest.mark.parametrize(
    "x",
    [
        [[3.0, 4.0]],
        [[1.0, 1.0]] * 9,
        [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
        [[1e30, -1e30], [-1e30, 1e30], [0.0, 1e30]],
        [[LARGEST, -LARGEST], [-LARGEST, LARGEST], [LARGEST, LARGEST]],
        [[1e-45, 0.0], [0.0, 1e-45], [4e-45, 4e-45]],
        [[0.0, -0.0], [-0.0, 0.0]],
    ],
)
@pytest.mark.parametrize("line", [False, True])
def test_hard_data_gives_finite_centroids_and_labels_in_range(x, init, line):
    x = np.array(x, np.float32)[:, : 1 if line else 2]
    start = np.resize(x[::-1], (5, x.shape[1])) if init == "given" else init
    km = KMeans(5, init=start).fit(x)
    assert np.isfinite(km.cluster_centers_).all()
    assert np.isfinite(km.inertia_)
    assert km.inertia_ == 0  # no more than five distinct points: each has a centroid
    assert km.labels_.min() >= 0
    assert km.labels_.max() < 5
    assert np.array_equal(km.cluster_centers_[km.labels_], x)


@pytest.mark.parametrize("exponent", [-120, 100])
def test_a_fit_is_the_same_at_every_scale(exponent):
    x = blobs(60, 4, 3)
    plain = KMeans(4, seed=5).fit(x)
    scaled = KMeans(4, seed=5).fit(np.ldexp(x, exponent))
    assert same_bits(scaled.labels_, plain.labels_)
    assert scaled.inertia_ == plain.inertia_ * 4.0**exponent
    assert np.array_equal(scaled.cluster_centers_, np.ldexp(plain.cluster_centers_, exponent))


# Weights, permutations, translations, threads


def test_weights_are_repeated_points():
    x, rng = np.round(blobs(50, 5, 3) * 8), np.random.default_rng(2)
    weights = rng.integers(0, 4, len(x))
    positive = np.flatnonzero(weights)
    start = x[positive[:5]]
    weighted = KMeans(5, init=start).fit(x, sample_weight=weights)
    repeated = KMeans(5, init=start).fit(np.repeat(x, weights, axis=0))
    assert same_bits(weighted.cluster_centers_, repeated.cluster_centers_)
    assert same_bits(np.repeat(weighted.labels_, weights), repeated.labels_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-12)


def test_points_of_weight_zero_are_labelled_and_move_nothing():
    x = np.array([[0.0], [1.0], [10.0], [11.0], [7.0], [1e6]], np.float32)
    weights = [1, 1, 1, 1, 0, 0]
    for init in ("k-means++", "random", [[0.0], [10.0]]):
        km = KMeans(2, init=init, seed=3).fit(x, sample_weight=weights)
        assert sorted(km.cluster_centers_.ravel().tolist()) == [0.5, 10.5]
        assert same_bits(km.labels_, assign(x, km.cluster_centers_)[0])
        assert km.inertia_ == 1.0


def test_weights_of_any_size_are_safe():
    x = blobs(30, 3, 2)
    for weight in (1e-45, 1e-30, 1e30, LARGEST):
        km = KMeans(3, init=x[:3]).fit(x, sample_weight=np.full(30, weight))
        plain = KMeans(3, init=x[:3]).fit(x)
        assert same_bits(km.labels_, plain.labels_)
        assert np.allclose(km.cluster_centers_, plain.cluster_centers_, rtol=1e-6)
        assert km.inertia_ == pytest.approx(plain.inertia_ * float(np.float32(weight)), rel=1e-6)


@pytest.mark.parametrize("d", [1, 3])
def test_permuted_centroids_give_permuted_clusters(d):
    x, order = blobs(80, 6, d, seed=4), np.random.default_rng(1).permutation(6)
    plain = KMeans(6, init=x[:6]).fit(x)
    permuted = KMeans(6, init=x[:6][order]).fit(x)
    assert same_bits(permuted.cluster_centers_, plain.cluster_centers_[order])
    assert np.array_equal(order[permuted.labels_], plain.labels_)


@given(problems(n_points=8, n_centroids=4), st.integers(-5000, 5000))
def test_translation_by_whole_numbers_moves_the_centroids_alone(problem, shift):
    # Multiples of 840 have whole means over up to eight points: only distances are rounded, the same after the shift.
    x, start = problem[0] * 840, problem[1] * 840
    plain = KMeans(len(start), init=start).fit(x)
    moved = KMeans(len(start), init=start + shift).fit(x + shift)
    assert same_bits(moved.labels_, plain.labels_)
    assert np.array_equal(moved.cluster_centers_, plain.cluster_centers_ + np.float32(shift))
    assert moved.inertia_ == plain.inertia_


@pytest.mark.parametrize("d", [1, 3])
def test_the_number_of_threads_changes_no_bit(d, monkeypatch):
    n, k = (30_000, 40) if COMPILED else (12_500, 4)  # several blocks of sums
    for module, name in ((lloyd, "_GRAIN"), (lloyd, "_LINE_GRAIN"), (starts, "_GRAIN")):
        monkeypatch.setattr(module, name, 1)
    slices = collections.defaultdict(set)

    def watched(kernel, name):
        def call(start, stop, *args):
            slices[name].add(start)
            kernel(start, stop, *args)

        return call

    kernels = ("_assign_line" if d == 1 else "_assign_tiles", "_add_up")
    for name in kernels:
        monkeypatch.setattr(lloyd, name, watched(getattr(lloyd, name), name))
    rng = np.random.default_rng(0)
    x, results = rng.normal(size=(n, d)).astype(np.float32), []
    weights = np.exp(rng.normal(0, 10, n))  # of many sizes, so that even float64 sums depend on their order
    _, swapped = update(x, np.zeros(n, int), 1, weights)
    assert not same_bits(swapped, update(x[::-1], np.zeros(n, int), 1, weights[::-1])[1])
    for threads in (1, 2, 3):
        _threads.set_num_threads(threads)
        slices.clear()
        km = KMeans(k, n_iter=3 if COMPILED else 1, seed=1).fit(x, sample_weight=weights)
        picked = k_means_plus_plus(x, k, sample_weight=weights)
        _, counts = update(x, km.labels_, k, weights)
        results.append((km.labels_, km.cluster_centers_, np.array([km.inertia_]), counts, picked))
        assert all(len(slices[name]) >= threads for name in kernels), "the work was not cut: this tests nothing"
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other))


# Starts


@given(problems(dims=st.sampled_from([1, 2, 3])), st.integers(0, 2**64 - 1), st.data())
def test_k_means_plus_plus_equals_its_definition_on_whole_numbers(problem, seed, data):
    x, k = problem[0], len(problem[1])
    weights = data.draw(st.none() | hnp.arrays(np.int64, len(x), elements=st.integers(0, 3)))
    assume(weights is None or weights.any())
    picked = k_means_plus_plus(x, k, sample_weight=weights, seed=seed)
    assert picked.dtype == np.int64
    assert picked.tolist() == twin.spread(x, k, starts._uniforms(k, seed), weights)
    heavy = x if weights is None else x[weights > 0]
    assert len(np.unique(x[picked], axis=0)) == min(k, len(np.unique(heavy, axis=0)))
    assert weights is None or weights[picked].all()


def test_k_means_plus_plus_draws_across_blocks():
    n = 3 * starts._BLOCK + 5
    x = np.zeros((n, 2), np.float32)
    x[[7, starts._BLOCK, n - 1]] = [[1, 0], [0, 1], [1, 1]]
    for seed in range(5):
        assert {7, starts._BLOCK, n - 1} <= set(k_means_plus_plus(x, 4, seed=seed).tolist())


def test_k_means_plus_plus_draws_in_proportion():
    x, runs = [[0.0], [1.0], [3.0]], 3000 if COMPILED else 150
    counts = np.zeros((3, 3))
    for seed in range(runs):
        first, second = k_means_plus_plus(x, 2, seed=seed)
        counts[first, second] += 1
    expected = runs / 3 * np.array([[0, 1 / 10, 9 / 10], [1 / 5, 0, 4 / 5], [9 / 13, 4 / 13, 0]])
    drawn = expected > 0
    assert (counts[~drawn] == 0).all()
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 20.5  # chi-squared, 5 degrees: p = 0.001


def test_random_points_draw_in_proportion_to_weight():
    runs = 3000 if COMPILED else 600
    drawn = [random_points([[0.0]] * 4, 1, sample_weight=[1, 2, 0, 5], seed=seed)[0] for seed in range(runs)]
    counts, expected = np.bincount(drawn, minlength=4), runs * np.array([1, 2, 0, 5]) / 8
    assert counts[2] == 0
    assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 13.8  # 2 degrees: p = 0.001


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 2**64 - 1))
def test_random_points_are_distinct_until_none_is_left(n, k, seed):
    picked = random_points(np.zeros((n, 2)), k, seed=seed).tolist()
    assert len(picked) == k
    assert len(set(picked)) == min(n, k)
    assert set(picked) <= set(range(n))
    assert all(a == b for a, b in zip(picked, picked[n:]))  # repeated in turn


@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 4)), st.integers(1, 30))
def test_lowest_is_the_head_of_a_stable_sort(values, m):
    assert starts.lowest(values, m).tolist() == sorted(range(len(values)), key=lambda i: (values[i], i))[:m]


def test_seeds_differ_and_repeat():
    x = blobs(200, 20, 2)
    for draw in (k_means_plus_plus, random_points):
        assert np.array_equal(draw(x, 5, seed=3), draw(x, 5, seed=3))
        assert not np.array_equal(draw(x, 5, seed=3), draw(x, 5, seed=4))
    assert same_bits(KMeans(5, seed=3).fit(x).cluster_centers_, KMeans(5, seed=3).fit(x).cluster_centers_)


def test_the_best_of_several_starts_wins():
    x = blobs(60, 8, 2, seed=1)
    inertias = []
    best = KMeans(8, init="random", n_init=6, n_iter=3, seed=9).fit(x)
    for run in range(6):
        start = x[random_points(x, 8, seed=starts.run_seed(9, run))]
        inertias.append(KMeans(8, init=start, n_iter=3).fit(x).inertia_)
    assert len(set(inertias)) > 1
    assert best.inertia_ == min(inertias)


def test_k_means_plus_plus_finds_far_clusters_that_random_points_miss():
    x = blobs(400, 16, 2, seed=2, apart=200.0)
    spread = KMeans(16, seed=0).fit(x).inertia_
    assert spread < 0.5 * KMeans(16, init="random", seed=0).fit(x).inertia_


def test_starts_refuse():
    with pytest.raises(ValueError, match="at least one point"):
        k_means_plus_plus(np.zeros((0, 2)), 1)
    with pytest.raises(ValueError, match="k must be"):
        random_points([[0.0]], 0)
    with pytest.raises(ValueError, match="seed"):
        random_points([[0.0]], 1, seed=-1)
    with pytest.raises(ValueError, match="zeros only"):
        k_means_plus_plus([[0.0]], 1, sample_weight=[0.0])


# The driver's manners


def test_a_callback_sees_each_iteration_and_may_stop():
    x = blobs(100, 8, 2)
    km = KMeans(8, init=x[:8]).fit(x, on_iteration=lambda step, _: step == 2)
    assert km.n_iter_ == 2
    assert same_bits(km.cluster_centers_, KMeans(8, init=x[:8], n_iter=2).fit(x).cluster_centers_)


def test_a_fit_that_is_interrupted_leaves_the_object_as_it_was():
    x = blobs(100, 8, 2)
    km = KMeans(8).fit(x)
    before = dict(vars(km))

    def interrupt(step, inertia):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        km.fit(x + 1, on_iteration=interrupt)
    assert all(vars(km)[name] is value for name, value in before.items())


def test_tol_stops_early():
    x = np.random.default_rng(0).normal(size=(400 if COMPILED else 100, 2))
    full, coarse = KMeans(12, n_iter=200).fit(x), KMeans(12, n_iter=200, tol=0.05).fit(x)
    assert coarse.n_iter_ < full.n_iter_ < 200
    assert coarse.inertia_ >= full.inertia_


def test_the_start_is_not_written_to_and_not_kept():
    x, start = blobs(50, 4, 2), blobs(4, 4, 2, seed=9)
    before = start.copy()
    km = KMeans(4, init=start, n_iter=0).fit(x)
    assert same_bits(start, before)
    assert not np.shares_memory(km.cluster_centers_, start)


@given(problems())
def test_transform_gives_distances(problem):
    x, start = problem
    km = KMeans(len(start), init=start, n_iter=0).fit(x)
    assert np.allclose(km.transform(x), np.sqrt(twin.distances(x, start)), rtol=1e-6)


def test_transform_of_large_numbers_is_finite():
    km = KMeans(1, init=[[-1e30, 0.0]], n_iter=0).fit([[0.0, 0.0]])
    assert km.transform([[1e30, 0.0]])[0, 0] == pytest.approx(2e30)
    km = KMeans(1, init=[[-LARGEST]], n_iter=0).fit([[0.0]])
    assert km.transform([[LARGEST]])[0, 0] == LARGEST


def test_scikit_learns_protocol():
    init = np.zeros((3, 2))
    km = KMeans(3, init=init, n_init=2, n_iter=7, tol=0.1, seed=5)
    params = km.get_params(deep=False)
    assert set(params) == set(inspect.signature(KMeans).parameters)
    clone = type(km)(**params)
    assert all(clone.get_params()[name] is value for name, value in params.items())  # stored as given, unchecked
    assert km.set_params(n_clusters=4, seed=6) is km
    assert (km.n_clusters, km.seed) == (4, 6)
    with pytest.raises(ValueError, match="parameter must be one of n_clusters, init"):
        km.set_params(seed=7, clusters=1)
    assert km.seed == 6
    assert repr(KMeans(3)) == "KMeans(n_clusters=3, init='k-means++', n_init=1, n_iter=25, tol=0.0, seed=0)"
    assert "<array>" in repr(km)
    KMeans(-1, init="none", tol="x")  # fit checks, the constructor does not
    x = blobs(20, 3, 2)
    fitted = KMeans(3)
    assert not [name for name in vars(fitted) if name.endswith("_")]
    assert same_bits(fitted.fit_predict(x, None), fitted.labels_)
    assert same_bits(fitted.fit(x, y="ignored").labels_, KMeans(3).fit_predict(x, sample_weight=np.ones(20)))


def test_a_method_before_fit_says_so():
    for call in (KMeans().predict, KMeans().transform):
        with pytest.raises(NotFittedError, match="call fit first"):
            call([[0.0]])
    assert issubclass(NotFittedError, ValueError)
    assert issubclass(NotFittedError, AttributeError)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, "n_clusters must be"),
        ({"n_clusters": 2.0}, TypeError, "n_clusters must be a whole number"),
        ({"n_init": 0}, ValueError, "n_init"),
        ({"n_iter": -1}, ValueError, "n_iter"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"tol": np.nan}, ValueError, "tol"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"init": "best"}, ValueError, "init must be one of k-means\\+\\+, random; got 'best'"),
        ({"init": np.zeros((3, 2))}, ValueError, "init must hold n_clusters = 2 centroids, got 3"),
        ({"init": np.zeros((2, 3))}, ValueError, "init must have 2 coordinates a point, got 3"),
        ({"init": np.full((2, 2), np.inf)}, ValueError, "init must be finite"),
        ({"init": None}, TypeError, "init must be real numbers"),
    ],
)
def test_fit_refuses_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        KMeans(**{"n_clusters": 2} | arguments).fit([[0.0, 1.0], [2.0, 3.0]])


def test_fit_and_predict_refuse_data():
    with pytest.raises(ValueError, match="at least one point"):
        KMeans().fit(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="finite"):
        KMeans().fit([[np.nan, 0.0]])
    with pytest.raises(ValueError, match="zeros only"):
        KMeans().fit([[0.0, 0.0]], sample_weight=[0])
    km = KMeans(1).fit([[0.0, 0.0]])
    with pytest.raises(ValueError, match="X must have 2 coordinates"):
        km.predict([[0.0]])
    with pytest.raises(ValueError, match="finite"):
        km.transform([[np.inf, 0.0]])
