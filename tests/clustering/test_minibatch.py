"""k-means over a stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmeans_problems import LARGEST, blobs, problems, same_bits
from reference import kmeans as twin

from cce_core import _threads
from cce_core.clustering import KMeans, MiniBatchKMeans, assign, minibatch


@given(problems(n_points=40), st.integers(1, 9), st.integers(0, 99))
def test_a_stream_equals_its_definition(problem, size, seed):
    x, start = problem
    weights = np.random.default_rng(seed).integers(0, 4, len(x)) + 0.5
    km = MiniBatchKMeans(len(start), init=start)
    for low in range(0, len(x), size):
        km.partial_fit(x[low : low + size], sample_weight=weights[low : low + size])
    batches = [(x[low : low + size], weights[low : low + size]) for low in range(0, len(x), size)]
    centroids, counts = twin.stream(batches, start)
    assert np.allclose(km.cluster_centers_, centroids, atol=1e-5)
    assert same_bits(km.counts_, counts)
    assert km.n_steps_ == len(batches)


def test_a_centroid_is_the_mean_of_what_it_has_seen():
    x = blobs(600, 4, 3, seed=1, apart=100.0)
    km = MiniBatchKMeans(4, init=KMeans(4, seed=1).fit(x).cluster_centers_)
    for low in range(0, 600, 50):
        km.partial_fit(x[low : low + 50])
    labels, _ = assign(x, km.cluster_centers_)
    assert np.allclose(km.cluster_centers_, [x[labels == c].mean(axis=0) for c in range(4)], atol=1e-4)
    assert km.counts_.tolist() == np.bincount(labels, minlength=4).tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_fit_comes_near_to_whole_k_means(weighted):
    x = blobs(3000, 10, 4, seed=2, apart=10.0)
    weights = np.random.default_rng(0).integers(0, 3, 3000) if weighted else None
    km = MiniBatchKMeans(10, batch_size=200, seed=1).fit(x, sample_weight=weights)
    labels, costs = assign(x, km.cluster_centers_)
    assert same_bits(km.labels_, labels)
    assert km.inertia_ == pytest.approx(twin.inertia(costs, weights))
    assert km.inertia_ < 1.3 * KMeans(10, n_init=3).fit(x, sample_weight=weights).inertia_
    assert km.n_steps_ == 45
    assert km.n_iter_ == 3


@pytest.mark.parametrize("scale", [1.0, 1e30, LARGEST / 40, 1e-42])
def test_numbers_of_any_size(scale):
    x = (np.round(blobs(60, 3, 2)) * np.float32(scale / 64)).astype(np.float32)
    km = MiniBatchKMeans(5, batch_size=7).fit(x)
    assert np.isfinite(km.cluster_centers_).all()
    assert km.labels_.min() >= 0
    assert km.labels_.max() < 5


def test_empty_clusters_get_points_and_few_points_are_enough():
    km = MiniBatchKMeans(3, init=[[0.0], [99.0], [98.0]]).partial_fit([[0.0], [1.0], [5.0], [9.0]])
    assert sorted(km.cluster_centers_.ravel().tolist()) == [0.5, 5.0, 9.0]
    km = MiniBatchKMeans(4).partial_fit([[2.0]])
    assert km.cluster_centers_.ravel().tolist() == [2.0] * 4
    km.partial_fit([[2.0], [7.0]])
    assert sorted(set(km.cluster_centers_.ravel().tolist())) == [2.0, 7.0]
    km = MiniBatchKMeans(3).fit(np.ones((9, 2)))
    assert km.inertia_ == 0


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    seen, plain = set(), minibatch.search
    monkeypatch.setattr(minibatch, "search", lambda *args: (seen.add(_threads.get_num_threads()), plain(*args)))
    x = blobs(9000, 30, 3, apart=2.0)
    fits = [MiniBatchKMeans(30, batch_size=4500, n_iter=1, n_threads=n).fit(x) for n in (1, 2, 3)]
    assert seen == {1, 2, 3}
    assert all(same_bits(fits[0].cluster_centers_, other.cluster_centers_) for other in fits[1:])


def test_a_stream_refuses():
    km = MiniBatchKMeans(2).partial_fit([[0.0, 1.0], [2.0, 3.0]])
    before = dict(vars(km))
    for x, message in (
        ([[0.0]], "expecting 2 features"),
        (np.zeros((0, 2)), "at least one"),
        ([[np.nan, 0]], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            km.partial_fit(x)
    assert all(vars(km)[name] is value for name, value in before.items())
    for arguments, message in (
        ({"batch_size": 0}, "batch_size"),
        ({"n_iter": 0}, "n_iter"),
        ({"n_threads": 0}, "n_threads"),
        ({"init": "best"}, "init must be one of"),
        ({"n_clusters": 0}, "n_clusters"),
    ):
        with pytest.raises(ValueError, match=message):
            MiniBatchKMeans(**{"n_clusters": 2} | arguments).fit([[0.0], [1.0]])
