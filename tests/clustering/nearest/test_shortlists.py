"""What is remembered from search to search: the same labels and distances as by the definition, however centroids move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmeans_problems import DIMS, blobs, problems, same_bits
from reference import kmeans as twin

from cce_core._jit import COMPILED
from cce_core.clustering.kmeans import _iterate
from cce_core.clustering.nearest import shortlists
from cce_core.clustering.nearest.shortlists import Nearest
from cce_core.clustering.nearest.tile_kernels import LANES
from cce_core.clustering.nearest.tiles import tile


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Lists from the second search on, for any sizes."""
    monkeypatch.setattr(shortlists, "_CALM", np.inf)
    monkeypatch.setattr(shortlists, "_NARROWEST", 1)
    monkeypatch.setattr(shortlists, "worth_listing", lambda n, d, k: d >= shortlists._NARROWEST)


def follow(x, steps, boxed=None):
    """Search for each of the centroids in turn; holds every result to the definition; what came of the lists."""
    tiles = tile(x, True)
    nearest = Nearest(tiles, len(steps[0]))
    nearest.boxed = nearest.boxed if boxed is None else boxed
    labels, costs = tiles.empty(np.int32), tiles.empty(np.float32)
    kept = []
    for centroids in steps:
        before, labels, costs = labels, np.full_like(labels, -7), np.full_like(costs, np.nan)
        nearest(centroids, before, labels, costs)
        got = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
        tiles.into(labels, got[0])
        tiles.into(costs, got[1])
        expected = twin.assign(x, centroids)
        assert same_bits(got[0], expected[0])
        assert same_bits(got[1], expected[1])
        if nearest.started:
            kept.append((nearest.work >= 0).mean())
    return kept


@given(problems(n_points=60, n_centroids=20), st.integers(0, 99), st.booleans())
def test_whole_numbers_where_ties_abound(problem, seed, boxed):
    x, centroids = problem
    rng = np.random.default_rng(seed)
    steps = [centroids]
    for share in (0.1, 0.0, 0.05, 0.5, 0.1):
        move = rng.integers(-1, 2, centroids.shape) * (rng.random((len(centroids), 1)) < share)
        steps.append(steps[-1] + move.astype(np.float32))
    follow(x, steps, boxed)


@given(DIMS, st.integers(1, 60), st.sampled_from([1e-6, 1e-3, 0.03, 0.3]), st.booleans(), st.integers(0, 99))
def test_small_steps_with_a_jump_now_and_then(d, k, size, boxed, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300 if COMPILED else 60, d)).astype(np.float32)
    steps = [rng.normal(size=(k, d)).astype(np.float32)]
    for recentre_tile in range(8):
        move = rng.normal(size=(k, d)) * size
        if recentre_tile % 3 == 1:
            move[rng.integers(0, k)] = rng.normal(size=d)
        steps.append((steps[-1] + move).astype(np.float32))
    follow(x, steps, boxed)


@pytest.mark.parametrize("d", [1, 3, 8])
@pytest.mark.parametrize("boxed", [False, True])
def test_lists_last_while_centroids_hardly_move(d, boxed):
    rng = np.random.default_rng(d)
    x = rng.normal(size=(800, d)).astype(np.float32)
    steps = [rng.normal(size=(40, d))]
    steps += [steps[0] + 1e-4 * rng.normal(size=(40, d)) for _ in range(6)]
    kept = follow(x, [step.astype(np.float32) for step in steps], boxed)
    assert kept[0] == 0
    assert min(kept[1:]) > 0.5


def test_more_runaways_than_lists_take_in():
    rng = np.random.default_rng(0)
    k = 2 * shortlists._RUNAWAYS
    x = rng.normal(size=(1500, 2)).astype(np.float32)
    start = rng.normal(size=(k, 2)).astype(np.float32)
    kept = []
    for many in (0, 1, shortlists._RUNAWAYS, shortlists._RUNAWAYS + 1):
        moved = start.copy()
        moved[:many] += 9  # away from all points, so that no point's distance to its centroid falls short
        kept.append(follow(x, [start, start + np.float32(1e-3), moved])[1])
    assert kept[0] > 0.9
    assert 0 < kept[2] <= kept[1] <= kept[0]
    assert kept[3] == 0


@pytest.mark.parametrize("late", [0, 29])
def test_a_runaway_that_comes_to_lie_on_another_centroid(late):
    rng = np.random.default_rng(3)
    x, start = rng.normal(size=(320, 2)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    start[late] = 50
    moved = start + np.float32(1e-3)
    moved[late] = 50
    onto = moved.copy()
    onto[late] = moved[15]
    kept = follow(x, [start, moved, onto])
    assert kept[-1] > 0.5


def test_lists_that_have_no_room_are_drawn_up_again():
    rng = np.random.default_rng(1)
    k, d = 300, 3  # far from everything, all centroids are as near as the nearest
    x = (rng.normal(size=(4 * LANES, d)) * 1e3).astype(np.float32)
    steps = [(rng.normal(size=(k, d)) * 0.1).astype(np.float32)]
    for _ in range(3):
        steps.append((steps[-1] + rng.normal(size=(k, d))).astype(np.float32))
    assert max(follow(x, steps)) == 0


def test_lists_older_than_what_is_remembered():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200 if COMPILED else 50, 2)).astype(np.float32)
    start = rng.normal(size=(30, 2)).astype(np.float32)
    kept = follow(x, [start, start + np.float32(1e-3)] * (shortlists._KEPT // 2 + 2))
    assert [share == 1 for share in kept[: shortlists._KEPT]] == [False] + [True] * (shortlists._KEPT - 1)
    assert kept[shortlists._KEPT] == 0  # drawn up at the first, forgotten now
    assert kept[shortlists._KEPT + 1] == 1


@pytest.mark.parametrize("d", [2, 4, 7, 20] if COMPILED else [3])
@pytest.mark.parametrize("apart", [0.0, 30.0])
def test_a_whole_fit_searches_as_without(d, apart, monkeypatch):
    n, k = (3000, 60) if COMPILED else (200, 8)
    x = blobs(n, 20, d, seed=d, apart=apart)
    tiles, fits = tile(x, True), []
    for narrowest in (1, 99):
        monkeypatch.setattr(shortlists, "_NARROWEST", narrowest)
        fits.append(_iterate(tiles, np.empty(0, np.float32), x[:k].copy(), 30, 0.0, None))
    assert fits[0][3] > (5 if COMPILED else 1)
    assert fits[0][2:] == fits[1][2:]
    assert all(same_bits(a, b) for a, b in zip(fits[0][:2], fits[1][:2]))
