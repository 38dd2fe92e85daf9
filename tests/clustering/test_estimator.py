"""k-means: where it starts, when it stops, scikit-learn's protocol, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import LARGEST, blobs, problems, same_bits
from reference import kmeans as twin

from cce_core import _threads
from cce_core._jit import COMPILED
from cce_core.clustering import KMeans, NotFittedError, k_means_plus_plus, random_points
from cce_core.clustering import seeding as starts
from cce_core.clustering.nearest.tiles import tile

# Starts


@given(
    problems(dims=st.sampled_from([1, 2, 3, 6]), n_points=60), st.integers(0, 2**64 - 1), st.integers(1, 4), st.data()
)
def test_k_means_plus_plus_equals_its_definition_on_whole_numbers(problem, seed, trials, data):
    x, k = problem[0], len(problem[1])
    weights = data.draw(st.none() | hnp.arrays(np.int64, len(x), elements=st.integers(0, 3)))
    assume(weights is None or weights.any())
    picked = k_means_plus_plus(x, k, sample_weight=weights, seed=seed, trials=trials)
    assert picked.dtype == np.int64
    order = tile(x, True).order  # it draws from the points in this order
    uniforms = starts._uniforms(1 + trials * (k - 1), seed)
    expected = twin.spread(x[order], k, uniforms, None if weights is None else weights[order], trials)
    assert picked.tolist() == order[expected].tolist()
    heavy = x if weights is None else x[weights > 0]
    assert len(np.unique(x[picked], axis=0)) == min(k, len(np.unique(heavy, axis=0)))
    assert weights is None or weights[picked].all()


def test_k_means_plus_plus_draws_across_tiles():
    n = 3 * 512 + 5
    x = np.zeros((n, 2), np.float32)
    x[[7, 512, n - 1]] = [[1, 0], [0, 1], [1, 1]]
    for seed in range(5):
        for trials in (1, 3):
            assert {7, 512, n - 1} <= set(k_means_plus_plus(x, 4, seed=seed, trials=trials).tolist())


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


@pytest.mark.parametrize("d", [1, 2, 5])
def test_k_means_plus_plus_leaves_out_tiles_without_a_trace(d, monkeypatch):
    # Sums of whole numbers are exact: what is drawn may not depend on which tiles were looked at.
    rng = np.random.default_rng(d)
    x = rng.integers(-200, 200, (3000 if COMPILED else 400, d)).astype(np.float32)
    tiles, none = tile(x, True), np.empty(0, np.float32)
    wide = dataclasses.replace(tiles, halves=np.full_like(tiles.halves, 1e9))  # boxes that reach everywhere
    for trials in (1, 3):
        picked = starts.spread_places(tiles, 40, none, 7, trials)
        assert len(set(picked.tolist())) == 40
        assert same_bits(picked, starts.spread_places(wide, 40, none, 7, trials))


def test_greedy_draws_start_lower():
    x = np.random.default_rng(0).normal(size=(1000 if COMPILED else 200, 2))
    costs = [
        np.mean(
            [KMeans(20, init=x[k_means_plus_plus(x, 20, seed=s, trials=t)], n_iter=0).fit(x).inertia_ for s in range(8)]
        )
        for t in (1, 4)
    ]
    assert costs[1] < 0.9 * costs[0]


@pytest.mark.parametrize("d", [1, 3])
def test_parallel_starts(d):
    x = blobs(2000 if COMPILED else 300, 12, d, seed=d, apart=200.0)
    tiles, weights = tile(x, True), np.ones(len(x), np.float32)
    weights[::3] = 0
    picked = starts.parallel_places(tiles, 12, tiles.back(weights), 5)
    assert picked.shape == (12,)
    assert tiles.back(weights)[picked].all()
    assert same_bits(picked, starts.parallel_places(tiles, 12, tiles.back(weights), 5))
    assert not np.array_equal(picked, starts.parallel_places(tiles, 12, tiles.back(weights), 6))
    spread = KMeans(12, init="k-means||").fit(x).inertia_
    assert spread < 0.5 * KMeans(12, init="random").fit(x).inertia_
    assert spread < 2 * KMeans(12, init="k-means++").fit(x).inertia_


def test_large_data_starts_in_parallel(monkeypatch):
    x = blobs(200, 5, 3)
    assert same_bits(KMeans(5).fit(x).cluster_centers_, KMeans(5, init="k-means++").fit(x).cluster_centers_)
    parallel = KMeans(5, init="k-means||", n_iter=0).fit(x).cluster_centers_
    assert not same_bits(KMeans(5, n_iter=0).fit(x).cluster_centers_, parallel)
    monkeypatch.setattr(starts, "_LARGE", 0)
    assert same_bits(KMeans(5, n_iter=0).fit(x).cluster_centers_, parallel)
    flat = [KMeans(5, init=init, n_iter=0).fit(x[:, :2]).cluster_centers_ for init in ("k-means++", "k-means||")]
    assert not same_bits(*flat)


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
    full, coarse = (KMeans(12, init="random", n_iter=200, tol=tol).fit(x) for tol in (0.0, 0.05))
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
    km = KMeans(1, init=[[-1e30, 0.0]], n_iter=0).fit(np.zeros((1, 2), np.float32))
    assert km.transform(np.array([[1e30, 0.0]], np.float32))[0, 0] == pytest.approx(2e30)
    km = KMeans(1, init=[[-LARGEST]], n_iter=0).fit(np.zeros((1, 1), np.float32))
    assert km.transform(np.array([[LARGEST]]))[0, 0] == LARGEST
    assert km.transform([[float(LARGEST)]])[0, 0] == 2 * float(LARGEST)  # float64 holds it


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


def test_the_number_of_threads_of_a_fit_is_its_own():
    x, seen = blobs(50, 3, 2), []
    before = _threads.get_num_threads()
    km = KMeans(3, n_threads=5).fit(x, on_iteration=lambda *_: seen.append(_threads.get_num_threads()))
    assert set(seen) == {5}
    assert _threads.get_num_threads() == before
    assert same_bits(km.labels_, KMeans(3).fit(x).labels_)
    with pytest.raises(ZeroDivisionError):
        KMeans(3, n_threads=5).fit(x, on_iteration=lambda *_: 1 / 0)
    assert _threads.get_num_threads() == before


def test_a_small_fit_depends_neither_on_order_nor_on_how_weights_are_split():
    x, rng = blobs(80, 6, 3, apart=4.0), np.random.default_rng(1)
    weights = rng.integers(0, 4, 80)
    weighted = KMeans(7, seed=3).fit(x, sample_weight=weights)
    repeated = KMeans(7, seed=3).fit(rng.permutation(np.repeat(x, weights, axis=0)))
    assert np.allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-6)
    assert same_bits(weighted.fit_transform(x, sample_weight=weights), weighted.transform(x))


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
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1"),
        ({"n_threads": 1.5}, TypeError, "n_threads"),
        ({"init": "best"}, ValueError, "init must be one of k-means\\+\\+, k-means\\|\\|, random; got 'best'"),
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
    with pytest.raises(ValueError, match="X has 1 features, but KMeans is expecting 2 features as input"):
        km.predict([[0.0]])
    with pytest.raises(ValueError, match="finite"):
        km.transform([[np.inf, 0.0]])
