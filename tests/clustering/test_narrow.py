"""k-means of numbers wider than float32: behind offsets, of any scale, and with the errors that are promised."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmeans_problems import problems, same_bits
from reference import circular as circular_twin
from reference import kmeans as twin

from cce_core.clustering import (
    KMeans,
    MiniBatchKMeans,
    assign,
    circular_assign,
    circular_k_means,
    circular_update,
    k_means_plus_plus,
    narrow,
    update,
)

U = 2.0**-24
OFFSETS = st.sampled_from([0.0, 3.0, -1e4, 1e8, 1.6e9, -1e12, 1e12])
SHIFTS = st.integers(-(2**40), 2**40)


@st.composite
def groups(draw):
    """float64 points in clear groups, each coordinate behind an offset of its own; which group; the groups' scale."""
    d, k = draw(st.integers(1, 8)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    truth = np.concatenate([np.arange(k), rng.integers(0, k, draw(st.integers(1, 40)))])
    centres = rng.permuted(np.tile(np.arange(k), (d, 1)), axis=1).T * 40.0
    offset = np.array(draw(st.lists(OFFSETS, min_size=d, max_size=d)))
    return (centres[truth] + rng.normal(0, 1, (len(truth), d))) * scale + offset, truth, scale


def alike(labels, truth):
    """Whether two labellings are the same partition."""
    pairs = len(set(zip(labels.tolist(), truth.tolist())))
    return pairs == len(set(labels.tolist())) == len(set(truth.tolist()))


def check_groups(km, x, truth, scale, weights=None):
    """What holds of a fit of `groups`, whose offsets leave float64 no more than `grain`."""
    assert alike(km.predict(x), truth)
    assert km.cluster_centers_.dtype == np.float64
    distances, labels, inertia = twin.wide(x, km.cluster_centers_, weights)
    assert np.array_equal(km.predict(x), labels)
    assert km.transform(x).dtype == np.float64
    assert np.allclose(km.transform(x), distances, rtol=1e-6, atol=0)
    assert km.score(x, sample_weight=weights) == pytest.approx(-inertia, rel=1e-3)
    spacing = np.spacing(np.abs(x).max(axis=0))
    for c in np.unique(labels):
        mine, mass = x[labels == c], None if weights is None else weights[labels == c]
        origin = x.min(axis=0)
        mean = origin + np.average(mine - origin, axis=0, weights=mass)
        assert (
            np.abs(km.cluster_centers_[c] - mean) <= 8 * U * 160 * scale + 16 * spacing + 16 * U * abs_small(x)
        ).all()


def abs_small(x):
    """How far from 0 a coordinate is that is too near to it to be shifted; 0 for others."""
    far, reach = np.abs(x).max(axis=0), np.ptp(x, axis=0)
    return np.where(far <= 10 * reach, far, 0)


@given(groups(), st.sampled_from(["k-means++", "k-means||", "random", "given"]), st.booleans())
def test_groups_behind_offsets_are_told_apart(problem, init, weighted):
    x, truth, scale = problem
    k = truth.max() + 1
    start = x[[np.flatnonzero(truth == c)[0] for c in range(k)]] if init in ("given", "random") else init
    weights = np.where(np.arange(len(x)) < k, 1.0, np.arange(len(x)) % 3) if weighted else None
    km = KMeans(k, init=start, n_init=5).fit(x, sample_weight=weights)
    assert np.array_equal(km.labels_, km.predict(x))
    assert km.inertia_ == -km.score(x, sample_weight=weights)
    check_groups(km, x, truth, scale, weights)


@given(groups(), st.integers(1, 20))
def test_streams_behind_offsets(problem, size):
    x, truth, scale = problem
    k = truth.max() + 1
    start = x[[np.flatnonzero(truth == c)[0] for c in range(k)]]
    whole = MiniBatchKMeans(k, init=start, batch_size=len(x)).fit(x)
    assert np.array_equal(whole.labels_, whole.predict(x))
    stream = MiniBatchKMeans(k, init=start)
    for low, high in itertools.pairwise([0, *range(k, len(x), size), len(x)]):
        stream.partial_fit(x[low:high])
    for km in (whole, stream):
        check_groups(km, x, truth, scale)


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.longdouble, object])
def test_nanoseconds_since_1970(kind):
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 50)
    x = (1_600_000_000_000_000_000 + truth * 10**9 + rng.integers(0, 10**7, 150)).reshape(-1, 1)
    for km in (KMeans(3), MiniBatchKMeans(3, batch_size=40)):
        assert alike(km.fit(x.astype(kind)).labels_, truth)
        assert alike(km.predict(x), truth)
    small = (x[:, 0] // 10**9 - 1_599_999_000).astype(np.uint32).reshape(-1, 1)  # seconds: 1,000 to 1,002
    assert alike(KMeans(3).fit(small).labels_, truth)


@given(problems(n_points=8, n_centroids=4), st.data())
def test_an_offset_of_whole_numbers_changes_the_centroids_alone(problem, data):
    # Multiples of 840 have whole means over up to eight points, so all but distances is exact.
    x, start = problem[0] * 840, problem[1] * 840
    shift = np.array(data.draw(st.lists(SHIFTS, min_size=x.shape[1], max_size=x.shape[1])), np.int64)
    plain = KMeans(len(start), init=start).fit(x)
    for kind in (np.int64, np.float64):
        far = (x.astype(np.int64) + shift).astype(kind)
        moved = KMeans(len(start), init=start.astype(np.int64) + shift).fit(far)
        assert same_bits(moved.labels_, plain.labels_)
        assert np.array_equal(moved.cluster_centers_ - shift, plain.cluster_centers_)
        assert moved.inertia_ == plain.inertia_
        assert np.array_equal(moved.transform(far).astype(np.float32), plain.transform(x))
        seen = KMeans(len(start), seed=1).fit(far).cluster_centers_ - shift
        assert np.array_equal(seen, KMeans(len(start), seed=1).fit(x).cluster_centers_)


@given(problems(), SHIFTS, st.data())
def test_functions_take_no_harm_from_offsets(problem, far, data):
    x, centroids = problem
    shift = np.array(data.draw(st.lists(SHIFTS, min_size=x.shape[1], max_size=x.shape[1])), np.float64)
    labels, distances = assign(x, centroids)
    assert all(same_bits(a, b) for a, b in zip(assign(x + shift, centroids + shift), (labels, distances)))
    seen = labels.max() + 1
    means, counts = update(x, labels, seen + 1)
    moved, mass = update(x + shift, labels, seen + 1)
    assert same_bits(mass, counts)
    assert moved.dtype == np.float64
    assert (np.abs(moved - shift - means) <= 4 * U * 6 + np.spacing(np.abs(moved)))[counts > 0].all()
    assert not moved[seen].any()
    picked = k_means_plus_plus(x, len(centroids), seed=5)
    assert same_bits(k_means_plus_plus(x + shift, len(centroids), seed=5), picked)
    memory, wide = centroids.ravel(), x.astype(np.float64)
    offsets, costs = circular_assign(x, memory)
    assert all(
        same_bits(a, b) for a, b in zip(circular_assign(wide + far, memory.astype(np.float64) + far), (offsets, costs))
    )
    expected = circular_twin.update(x, offsets, memory, None)
    cells = circular_update(wide + far, offsets, memory.astype(np.float64) + far)
    assert (np.abs(cells - far - expected) <= 4 * U * 6 + np.spacing(np.abs(cells))).all()


def test_circular_k_means_behind_an_offset():
    rng = np.random.default_rng(3)
    true = rng.integers(-100, 100, 40) / 64.0
    x = circular_twin.windows(true, 6).astype(np.float64)[rng.integers(0, 40, 300)]
    start = true + 0.1 * rng.normal(size=40)
    for offset in (0.0, 1e6, 1e9):
        memory, labels, inertia, _ = circular_k_means(x + offset, start + offset, 50)
        assert np.allclose(memory - offset, true, rtol=0, atol=1e-5)
        again, costs = circular_assign(x + offset, memory)
        assert same_bits(labels, again)
        assert inertia == pytest.approx(costs.sum(dtype=np.float64))
    # A cell on which nothing lies keeps its value to the last bit.
    assert circular_update([[1e9 + 1.0]], [0], [0.0, 0.1, 1e9 + 0.3])[1:].tolist() == [0.1, 1e9 + 0.3]


def test_a_marker_and_points_of_no_weight_do_not_hide_an_offset():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 50)
    x = 1.6e9 + truth + rng.normal(0, 0.05, 100)
    with_marker = np.append(x, 0.0).reshape(-1, 1)
    assert alike(KMeans(3, n_init=3).fit(with_marker).labels_, np.append(truth, 2))
    padded, weights = np.append(np.zeros(500), x).reshape(-1, 1), np.repeat([0.0, 1.0], [500, 100])
    assert alike(KMeans(2).fit(padded, sample_weight=weights).labels_[500:], truth)
    km = KMeans(2).fit(x.reshape(-1, 1))
    assert alike(km.predict([[0.0], [1.6e9 - 1], [1.6e9 + 2]]), np.array([0, 0, 1]))
    late = MiniBatchKMeans(2, init=[[0.0], [1.0]], n_iter=5, batch_size=20).fit(x.reshape(-1, 1))  # far from all
    assert alike(late.labels_, truth)


@pytest.mark.parametrize("exponent", [-1000, -900, -140, -60, 60, 100])
@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_powers_of_two_change_no_label(exponent, shift):
    x = np.random.default_rng(1).integers(-40, 40, (60, 3)) / 64.0 + shift * 64
    plain, far = KMeans(4, seed=5).fit(x), np.ldexp(x, exponent)
    km = KMeans(4, seed=5).fit(far)
    assert same_bits(km.labels_, plain.labels_)
    assert same_bits(km.predict(far), plain.labels_)
    assert np.array_equal(km.cluster_centers_, np.ldexp(plain.cluster_centers_, exponent))
    assert km.inertia_ == pytest.approx(plain.inertia_ * 4.0**exponent, rel=1e-6)
    assert np.array_equal(km.transform(far), np.ldexp(plain.transform(x), exponent))
    stream = MiniBatchKMeans(4, init=far[:4]).partial_fit(far)
    same = MiniBatchKMeans(4, init=x[:4]).partial_fit(x)
    assert np.array_equal(stream.cluster_centers_, np.ldexp(same.cluster_centers_, exponent))


def test_what_float32_cannot_reach_is_refused():
    x = np.random.default_rng(1).normal(size=(30, 2))
    km = KMeans(2).fit(x)
    for call in (
        KMeans(2).fit,
        MiniBatchKMeans(2).fit,
        MiniBatchKMeans(2).partial_fit,
        km.predict,
        km.transform,
        km.score,
        lambda x: assign(x, [[0.0, 0.0]]),
        lambda x: k_means_plus_plus(x, 2),
        lambda x: circular_assign(x, [0.0]),
    ):
        with pytest.raises(ValueError, match=r"X must be finite in float32, got .* at \(\d+, \d\); scale it down"):
            call(x * 1e300)
        with pytest.raises(ValueError, match=r"got nan at \(2, 1\); drop or mend"):
            call(np.where(np.arange(60).reshape(30, 2) == 5, np.nan, x + 1e9))
    with pytest.raises(ValueError, match=r"1e-300 at most, which is 0 in float32; scale them up"):
        KMeans(2).fit(x, sample_weight=np.full(30, 1e-300))


def test_groups_too_far_apart_are_named():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, 3], 30)
    x = (np.array([0.0, 1.0, 1e12, 1e12 + 1])[truth] + rng.normal(0, 0.05, 120)).reshape(-1, 1)
    with pytest.warns(RuntimeWarning, match=r"X\[\d+\] and X\[\d+\] differ, but not in float32") as seen:
        KMeans(4, n_init=3).fit(x)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KMeans(2).fit(x[truth < 2] + 1e9)
        KMeans(3).fit([[0.1], [0.2], [0.7]])  # each point has a centroid
        KMeans(2).fit([[0.1], [0.1 + 1e-17], [0.1 + 2e-16], [0.7]])  # equal but for float64's own rounding
        KMeans(3).fit(np.full((9, 2), 1e9))
        KMeans(8).fit(rng.random((3000, 1)))


def test_blocks_leave_no_trace(monkeypatch):
    x = np.random.default_rng(2).normal(size=(300, 3)) + np.array([0, 1e9, 1e3])
    whole, tiny = KMeans(4).fit(x), KMeans(4).fit(np.ldexp(x, -900))
    monkeypatch.setattr(narrow, "_NUMBERS", 7)
    assert same_bits(KMeans(4).fit(x).cluster_centers_, whole.cluster_centers_)
    assert same_bits(KMeans(4).fit(np.ldexp(x, -900)).cluster_centers_, tiny.cluster_centers_)


def test_no_copy_in_float64_is_made():
    x = np.random.default_rng(2).normal(size=(500_000, 4)) + 1e9
    tracemalloc.start()
    narrow.narrowed(x[:9], X=x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.9 * x.nbytes  # half of it is the result


def test_the_type_of_centroids_is_that_of_the_data():
    x = np.random.default_rng(0).integers(-9, 9, (30, 2))
    for kind in (np.float16, np.float32, np.int8, np.uint8, np.int16, np.uint16, bool, ">f4"):
        for km in (KMeans(3), MiniBatchKMeans(3), MiniBatchKMeans(3, init="random")):
            km.fit(np.abs(x).astype(kind))
            assert km.cluster_centers_.dtype == np.float32
            assert km.transform(np.abs(x).astype(kind)).dtype == np.float32
    for kind in (np.float64, np.int32, np.uint32, np.int64, np.uint64, object, ">f8", np.longdouble):
        for km in (KMeans(3), KMeans(3, init=x[:3]), MiniBatchKMeans(3), MiniBatchKMeans(3, init="random")):
            assert km.fit(np.abs(x).astype(kind)).cluster_centers_.dtype == np.float64
    km = MiniBatchKMeans(3).partial_fit(x.astype(np.float32))
    assert km.partial_fit(x).partial_fit(x.astype(np.float32)).cluster_centers_.dtype == np.float64


def test_wide_centroids_serve_narrow_points_and_the_other_way_round():
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    km = KMeans(3).fit(x.astype(np.float64))
    assert np.array_equal(km.predict(x), km.labels_)
    near = KMeans(3, init=x[:3]).fit(x)
    assert np.array_equal(near.predict(x.astype(np.float64)), near.labels_)
    assert near.score(x.astype(np.float64)) == pytest.approx(-near.inertia_)
