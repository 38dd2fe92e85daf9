"""The logistic loss of dot products against its formula and its finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.training import logistic_dot


def loss(u, v, y):
    s = (u * v).sum(1)
    return np.mean(np.logaddexp(0, s) - y * s)


@given(n=st.integers(1, 9), d=st.integers(1, 40), data=st.data())
def test_gradients_are_those_of_the_loss(n, d, data):
    u, v = (data.draw(strategies.float32_arrays((n, d), -2, 2)).astype(np.float64) for _ in range(2))
    y = data.draw(strategies.float32_arrays((n,), 0, 1))
    a, b = u.astype(np.float32), v.astype(np.float32)
    scores = logistic_dot(a, b, y)
    np.testing.assert_allclose(scores, (u * v).sum(1), rtol=1e-5, atol=1e-4)
    slope = (1 / (1 + np.exp(-(u * v).sum(1))) - y)[:, None] / n
    np.testing.assert_allclose(a, slope * v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(b, slope * u, rtol=1e-4, atol=1e-5)
    step, (i, j) = 1e-4, (n - 1, d - 1)
    more, less = u.copy(), u.copy()
    more[i, j] += step
    less[i, j] -= step
    assert a[i, j] == pytest.approx((loss(more, v, y) - loss(less, v, y)) / (2 * step), abs=1e-4)


def test_scores_beyond_any_exponential_are_safe():
    u, v = np.full((2, 4), 1e4, np.float32), np.full((2, 4), 1e4, np.float32)
    v[1] *= -1
    scores = logistic_dot(u, v, [1.0, 0.0])
    np.testing.assert_array_equal(scores, np.float32([4e8, -4e8]))
    assert not u.any()
    assert not v.any()


def test_results_do_not_depend_on_the_number_of_threads():
    n = 5000 if COMPILED else 100
    rng = np.random.default_rng(0)
    u, v, y = rng.standard_normal((n, 32), np.float32), rng.standard_normal((n, 32), np.float32), rng.random(n)
    seen = []
    for threads in (1, 3):
        cce.set_num_threads(threads)
        a, b = u.copy(), v.copy()
        seen.append((logistic_dot(a, b, y), a, b))
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_pairs_are_no_scores():
    assert logistic_dot(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), []).shape == (0,)


U, W = np.ones((2, 3), np.float32), np.ones((2, 6), np.float32)


@pytest.mark.parametrize(
    ("u", "v", "labels", "error", "message"),
    [
        (U.astype(float), U, [1, 0], TypeError, "u must be a float32 array"),
        (U, [[1.0]], [1, 0], TypeError, "v must be a float32 array"),
        (U, np.ones((2, 4), np.float32), [1, 0], ValueError, "same shape"),
        (U, U, [1, 0], ValueError, "overlap"),
        (W[:, :3], W[:, 2:5], [1, 0], ValueError, "overlap"),
        (W[::-1, :3], W[::-1, 3:], [1, 0], ValueError, "side by side"),
        (np.broadcast_to(U[:1], (2, 3)), U.copy(), [1, 0], ValueError, "writeable"),
        (U, U.copy()[:, ::-1], [1, 0], ValueError, "side by side"),
        (U, U.copy(), [1], ValueError, r"labels must have shape \(2,\)"),
        (U, U.copy(), [1, np.nan], ValueError, "labels must be finite"),
        (U, U.copy(), np.array([np.inf, 1], np.float32), ValueError, r"labels must be finite, got inf at \(0,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(u, v, labels, error, message):
    with pytest.raises(error, match=message):
        logistic_dot(u, v, labels)
    assert (U == 1).all()
    assert (W == 1).all()


def test_the_columns_of_one_matrix():
    rows, labels = np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32), np.array([1, 0, 1, 1, 0])
    u, v = rows[:, :4].copy(), rows[:, 5:9].copy()
    scores = logistic_dot(u, v, labels)
    kept = rows[:, [4, 9]].copy()
    np.testing.assert_array_equal(logistic_dot(rows[:, :4], rows[:, 5:9], labels), scores)
    np.testing.assert_array_equal(rows[:, :4], u)
    np.testing.assert_array_equal(rows[:, 5:9], v)
    np.testing.assert_array_equal(rows[:, [4, 9]], kept)
