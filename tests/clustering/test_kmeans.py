"""k-means: the driver against plain Lloyd, and hard data."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import LARGEST, blobs, problems, same_bits
from reference import kmeans as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import KMeans, assign, k_means_plus_plus, lloyd, update
from cce_core.clustering import kmeans as driver
from cce_core.clustering.nearest import search as searching
from cce_core.clustering.nearest import shortlists
from cce_core.clustering.nearest import tiles as tiling

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
    assert KMeans(k, init=km.cluster_centers_).fit(x).n_iter_ == 0


@pytest.mark.parametrize(("d", "k"), [(1, 60), (2, 150), (4, 150), (8, 120), (20, 100)] if COMPILED else [(3, 9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_assign_and_update_again_and_again(d, k, weighted):
    # Bit for bit, where sums are rounded too: lists and boxes leave no trace. It sums the points in the tiles' order.
    rng = np.random.default_rng(d)
    x = rng.normal(size=(6000 if COMPILED else 150, d)).astype(np.float32)
    weights = rng.random(len(x)).astype(np.float32) if weighted else None
    start, steps = x[:k], 12 if COMPILED else 3
    km = KMeans(k, init=start, n_iter=steps).fit(x, sample_weight=weights)
    arranged = searching.worth_narrowing(len(x), d, k) or shortlists.worth_listing(len(x), d, k)
    order = tiling.tile(x, True).order if arranged else np.arange(len(x))
    rows, mass = x[order], None if weights is None else weights[order]
    labels, _ = assign(rows, start)
    for _ in range(steps):
        centroids, counts = update(rows, labels, k, mass)
        assert counts.all(), "an empty cluster: this data does not test the plain iteration"
        labels, costs = assign(rows, centroids)
    assert km.n_iter_ == steps
    assert same_bits(km.cluster_centers_, centroids)
    assert same_bits(km.labels_[order], labels)
    assert km.inertia_ == pytest.approx(twin.inertia(costs, mass), rel=1e-12)


def fitted(km):
    return km.cluster_centers_.tobytes(), km.labels_.tobytes(), km.inertia_, km.n_iter_


@given(problems(n_points=60), st.integers(0, 8), st.sampled_from([0.0, 0.05, 1.0]), st.booleans(), st.data())
def test_iterations_in_one_call_are_iterations(problem, n_iter, tol, rounded, data):
    """A fit without lists is made in few compiled calls: the same bits as an iteration a call, or a part."""
    x, start = problem
    if rounded:
        x, start = x * np.float32(0.1), start * np.float32(0.3)
    weights = data.draw(st.none() | hnp.arrays(np.int64, len(x), elements=st.integers(0, 3)))
    assume(weights is None or weights.any())
    km, seen = KMeans(len(start), init=start, n_iter=n_iter, tol=tol), ([], [])
    at_once = fitted(km.fit(x, sample_weight=weights))
    one_by_one = fitted(km.fit(x, sample_weight=weights, on_iteration=lambda *what: seen[0].append(what)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlists.Nearest, "plain", False)
        as_large = fitted(km.fit(x, sample_weight=weights, on_iteration=lambda *what: seen[1].append(what)))
    assert at_once == one_by_one == as_large
    assert seen[0] == seen[1]
    assert [step for step, _ in seen[0]] == list(range(1, km.n_iter_ + 1))


def test_several_blocks_of_sums_in_one_call(monkeypatch):
    n, k = (20_000, 12) if COMPILED else (9000, 2)
    x = blobs(n, k, 3, seed=2)
    weights = np.random.default_rng(0).random(n)
    seen = []
    for plain in (True, False):
        monkeypatch.setattr(shortlists.Nearest, "plain", plain)
        seen.append(fitted(KMeans(k, init=x[:k], n_iter=6 if COMPILED else 2).fit(x, sample_weight=weights)))
    assert lloyd.blocks_of(n, k) > 1
    assert seen[0] == seen[1]


@given(problems(n_centroids=6), st.integers(0, 3), st.sampled_from(["k-means++", "k-means||", "random", "given"]))
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
    # Few digits left: rounding decides near the end.
    x = np.random.default_rng(d).normal(1000, 1e-3, (n, d)).astype(np.float32)
    seen = []
    km = KMeans(16, n_iter=100).fit(x, on_iteration=lambda _, inertia: seen.append(inertia))
    assert all(b <= a for a, b in itertools.pairwise(seen))
    assert km.inertia_ == seen[-1]


def test_an_iteration_that_raises_the_inertia_is_undone(monkeypatch):
    x, true_total, calls = blobs(40, 4, 2), driver.total, []

    def rising(n, costs, weights):
        calls.append(true_total(n, costs, weights) if len(calls) < 3 else 1e9)
        return calls[-1]

    monkeypatch.setattr(driver, "total", rising)
    monkeypatch.setattr(shortlists.Nearest, "plain", False)
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


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random", "given"])
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
    for module, name in (
        (searching, "_GRAIN"),
        (lloyd, "_LINE_GRAIN"),
        (lloyd, "_SUM_GRAIN"),
        (shortlists, "_GRAIN"),
        (tiling, "_GRAIN"),
        (tiling, "_FILL_GRAIN"),
    ):
        monkeypatch.setattr(module, name, 1)
    slices = collections.defaultdict(set)

    def watched(kernel, name):
        def call(start, stop, *args):
            slices[name].add(start)
            kernel(start, stop, *args)

        return call

    kernels = {
        "search_some": searching,
        "add_up": lloyd,
        "_assign_line" if d == 1 else "_fill": lloyd if d == 1 else tiling,
    }
    for name, module in kernels.items():
        monkeypatch.setattr(module, name, watched(getattr(module, name), name))
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
        labels, costs = assign(x, km.cluster_centers_)
        results.append((km.labels_, km.cluster_centers_, np.array([km.inertia_]), counts, picked, labels, costs))
        assert all(len(slices[name]) >= threads for name in kernels), "the work was not cut: this tests nothing"
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other))
