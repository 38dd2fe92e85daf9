"""The nearest-centroid search that leaves most centroids out: the same labels and distances as without, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kmeans_problems import DIMS, blobs, problems, same_bits
from reference import kmeans as twin

from cce_core._jit import COMPILED
from cce_core.clustering.nearest import search as searching
from cce_core.clustering.nearest.label_kernels import _add_tile_plain, _apart_plain, add_tile, apart
from cce_core.clustering.nearest.search import search
from cce_core.clustering.nearest.tile_kernels import (
    LANES,
    TURN,
    _argmin_exact_plain,
    _argmin_expanded_plain,
    _argmin_named_plain,
    _below_plain,
    _recentre_tile_plain,
    argmin_exact,
    argmin_expanded,
    argmin_named,
    below,
    recentre_tile,
)
from cce_core.clustering.nearest.tiles import FAN, tile

# Tiles


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 250, 1000])
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("arranged", [False, True])
def test_tiles_hold_every_point_once(n, d, arranged):
    rng = np.random.default_rng(n)
    x = np.round(rng.normal(size=(n, d)) * 2).astype(np.float32)  # many are equal
    tiles = tile(x, arranged)
    places = np.arange(n) if tiles.order is None else tiles.order
    assert sorted(places.tolist()) == list(range(n))
    rows = tiles.points.transpose(0, 2, 1).reshape(-1, d)
    assert same_bits(rows[:n], x[places])
    assert (rows[n:] == rows[n - 1]).all()
    assert same_bits(tiles.rows(n - 1), x[places[n - 1]])
    out = np.empty(n, np.int64)
    values = rng.integers(0, 99, n)
    tiles.into(np.append(tiles.back(values), np.zeros(len(rows) - n, int)), out)
    assert same_bits(out, values)


@pytest.mark.parametrize("kind", ["normal", "equal", "far", "signed zeros"])
def test_boxes_hold_their_points(kind):
    n, d = 1200, 3
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    x = {"normal": x, "equal": x[:1].repeat(n, 0), "far": x * np.float32(1e-4) + 1000, "signed zeros": x * 0}[kind]
    tiles = tile(x, True)
    assert len(tiles.firsts) > 1
    ends = [*tiles.firsts[1:], len(tiles.mids)]
    for level, (first, end) in enumerate(zip(tiles.firsts, ends)):
        assert end - first == -(-len(tiles.points) // FAN**level)
        for box in range(end - first):
            held = tiles.points[box * FAN**level : (box + 1) * FAN**level].astype(np.float64)
            apart = np.abs(held - tiles.mids[first + box].astype(np.float64)[:, None]).max(axis=(0, 2))
            assert (apart <= tiles.halves[first + box] * (1 + 2.0**-23)).all()


def test_arranged_points_lie_close_together():
    x = np.random.default_rng(1).normal(size=(4096, 2)).astype(np.float32)
    loose, close = tile(x, False), tile(x, True)
    assert np.ptp(close.points, axis=2).mean() < 0.2 * np.ptp(loose.points, axis=2).mean()


# The inner loops


@given(st.integers(1, 9), st.integers(1, 21), st.integers(0, 99))
def test_the_inner_loops_equal_their_plain_twins(d, k, seed):
    rng = np.random.default_rng(seed)
    here = rng.integers(-4, 5, (d, LANES)).astype(np.float32)
    centroids = np.full((d + 1, k + TURN), np.inf, np.float32)
    centroids[:, :k] = rng.integers(-4, 5, (d + 1, k))
    rows = np.full((k + 1, d), np.inf, np.float32)
    rows[:k] = centroids[:d, :k].T
    names = np.append(np.flatnonzero(rng.random(k) < 0.7), np.full(TURN, k)).astype(np.int32)
    names = names if len(names) > TURN else np.append(0, names).astype(np.int32)
    limits = rng.integers(-20, 20, LANES).astype(np.float32)
    got, expected = [], []
    for plain, out in ((False, got), (True, expected)):
        floats, words = np.full((2, LANES), np.nan, np.float32), np.full(LANES, -7, np.int32)
        _run_scan(plain, here, centroids[:d], k, floats[0], words)
        out += [floats[0].copy(), words.copy()]
        centroids[:d, k:] = 0.0
        _run_sift(plain, here, centroids, k, floats[0], words, floats[1])
        out += [*floats.copy(), words.copy()]
        found = np.full(k + TURN, -7, np.int32)
        count = _run_within(plain, here, centroids, k, limits, found)
        out += [np.array([count]), found[:count].copy()]
        centroids[:d, k:] = np.inf
        _run_named(plain, here, rows, names, len(names) - TURN, floats[0], words)
        out += [floats[0].copy(), words.copy()]
    assert all(same_bits(a, b) for a, b in zip(got, expected))


@given(st.integers(1, 19), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_loops_that_follow_the_definition_have_the_bits_of_their_plain_twins(d, k, seed, ones):
    rng = np.random.default_rng(seed)
    here, mid = rng.normal(size=(d, LANES)).astype(np.float32), rng.normal(size=d).astype(np.float32)
    centroids = rng.normal(size=(k + 1, d)).astype(np.float32)
    which = rng.integers(0, k, LANES).astype(np.int32)
    weights = np.ones(LANES, np.float32) if ones else rng.random(LANES).astype(np.float32)
    got, expected = [], []
    for plain, out in ((False, got), (True, expected)):
        turned, floats = np.full((d + 1, LANES), -7, np.float32), np.full((2, LANES), np.nan, np.float32)
        sums = np.full((k, d + 1), 0.1)
        (_recentre_tile_plain if plain else _turn_built)(here, mid, turned, floats[0])
        (_apart_plain if plain else _apart_built)(here, centroids, which, floats[1])
        (_add_tile_plain if plain else _add_built)(here, which, weights, sums)
        out += [turned, floats, sums]
    assert all(same_bits(a, b) for a, b in zip(got, expected))
    by_hand = np.full((k, d + 1), 0.1)
    for i in range(LANES):
        for j in range(d + 1):
            by_hand[which[i], j] += float(weights[i]) * (float(here[j, i]) if j < d else 1.0)
    assert same_bits(sums, by_hand)


def _turn_built(here, mid, turned, lengths):
    recentre_tile(here, mid, turned, lengths)


def _apart_built(here, centroids, which, now):
    apart(here, centroids, which, now)


def _add_built(here, labels, weights, sums):
    add_tile(here, labels, weights, sums)


def _scan_built(here, centroids, count, best, which):
    argmin_exact(here, centroids, count, best, which)


def _sift_built(here, centroids, count, best, which, second):
    argmin_expanded(here, centroids, count, best, which, second)


def _named_built(here, rows, names, count, best, which):
    argmin_named(here, rows, names, count, best, which)


def _within_built(here, centroids, count, limits, out):
    return below(here, centroids, count, limits, out)


if COMPILED:
    from cce_core._jit import jit

    _scan_built, _sift_built, _named_built, _within_built = map(
        jit, (_scan_built, _sift_built, _named_built, _within_built)
    )
    _turn_built, _apart_built, _add_built = map(jit, (_turn_built, _apart_built, _add_built))


def _run_scan(plain, *args):
    (_argmin_exact_plain if plain else _scan_built)(*args)


def _run_sift(plain, *args):
    (_argmin_expanded_plain if plain else _sift_built)(*args)


def _run_named(plain, *args):
    (_argmin_named_plain if plain else _named_built)(*args)


def _run_within(plain, *args):
    return (_below_plain if plain else _within_built)(*args)


# The search


def holds(x, centroids):
    """Every way of searching finds the twin's labels and distances."""
    labels, costs = twin.assign(x, centroids)
    for arranged in (False, True):
        tiles = tile(x, arranged)
        for way in ("as it is", "narrowed, scanned", "narrowed, sifted", "all scanned", "all sifted"):
            found, apart = np.full_like(tiles.empty(np.int32), -7), np.full_like(tiles.empty(np.float32), np.nan)
            with pytest.MonkeyPatch.context() as patch:
                if way != "as it is":
                    patch.setattr(searching, "FEW", 0)
                    patch.setattr(searching, "worth_sifting", lambda d, k, boxed, way=way: "sifted" in way)
                    patch.setattr(searching, "worth_narrowing", lambda n, d, k, way=way: "narrowed" in way)
                search(tiles, centroids, found, apart)
            got = np.empty_like(labels), np.empty_like(costs)
            tiles.into(found, got[0])
            tiles.into(apart, got[1])
            assert same_bits(got[0], labels), way
            assert same_bits(got[1], costs), way


@given(problems(n_points=80, n_centroids=30))
def test_whole_numbers_where_ties_abound(problem):
    holds(*problem)


@given(st.data(), DIMS, st.integers(1, 20), st.sampled_from([1.0, 2.0**13, 2.0**-13]))
def test_where_sums_are_rounded(data, d, k, spread):
    numbers = st.floats(-spread, spread, width=32) | st.sampled_from([0.0, -0.0, np.float32(spread)])
    x = data.draw(hnp.arrays(np.float32, (40, d), elements=numbers))
    x[0] = spread
    holds(x, data.draw(hnp.arrays(np.float32, (k, d), elements=numbers)))


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 17] if COMPILED else [2, 5])
@pytest.mark.parametrize("kind", ["normal", "far", "tiny steps", "powers", "clumps"])
def test_many_centroids(d, kind):
    n, k = (700, 150) if COMPILED else (150, 30)
    rng = np.random.default_rng(d)
    x, c = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    if kind == "far":  # few digits left: most distances are rounded to a few values
        x, c = x * 1e-4 + 1000, c * 1e-4 + 1000
    elif kind == "tiny steps":  # centroids in pairs that differ in their last digits
        c = np.repeat(c[::2], 2, axis=0) * (1 + rng.integers(-2, 3, (len(c[::2]) * 2, d)) * 2.0**-23)
    elif kind == "powers":
        x, c = x * 2.0 ** rng.integers(-60, 20, (n, 1)), c * 2.0 ** rng.integers(-60, 20, (k, 1))
    elif kind == "clumps":
        x, c = blobs(n, 5, d), blobs(k, 5, d)
    holds(x.astype(np.float32), c.astype(np.float32))


@pytest.mark.parametrize("d", [2, 6])
def test_points_half_way_between_centroids(d):
    # Both centroids of a pair are as far in exact numbers: rounding alone decides, in every coordinate another way.
    rng = np.random.default_rng(d)
    k = 40 if COMPILED else 10
    c = rng.normal(size=(k, d)).astype(np.float32)
    pairs = rng.integers(0, k, (12 * k, 2))
    x = ((c[pairs[:, 0]].astype(np.float64) + c[pairs[:, 1]]) / 2).astype(np.float32)
    holds(x, c)
    holds(c[pairs[:, 0]], c)  # and points that are centroids


def test_centroids_are_left_out():
    """The bounds are of use: of many centroids in the plane, a tile looks at few."""
    n, k = (5000, 200) if COMPILED else (1500, 60)
    tiles = tile(np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32), True)
    columns = searching.in_columns(np.random.default_rng(1).normal(size=(k, 2)).astype(np.float32))
    kept, scratch = np.empty_like(columns), np.empty_like(columns)
    names, places = np.empty((2, columns.shape[1]), np.int32)
    counts = [
        searching.narrow(
            columns, np.arange(columns.shape[1], dtype=np.int32), k, tiles.mids[box], tiles.halves[box],
            np.float32(np.inf), np.float32(0), kept, names, scratch[0], scratch[1], places,
        )
        for box in range(tiles.firsts[1])
    ]  # fmt: skip
    assert np.mean(counts) < 0.15 * k
