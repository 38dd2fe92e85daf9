"""Dense and sparse CCE for least squares against their twins, and dense CCE against the theorem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import kmeans as kmeans_twin
from reference import least_squares as twin

from cce_core._jit import COMPILED
from cce_core.clustering import KMeans
from cce_core.theory import Fit, dense_cce, loss_bound, rho, sparse_cce

NOISES = ("plain", "shaped")
seeds = st.integers(0, 2**63)


def with_values(rng, n, d1, values):
    """X (n, d₁) with the given singular values; what is missing to min(n, d₁) is 0."""
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((d1, d1)))
    r = len(values)
    return (U[:, :r] * values) @ V[:, :r].T


@st.composite
def problems(draw, widest=8):
    """(X, Y, rank): any shape, any rank from 1, singular values within a factor of 10."""
    n, d1, d2 = draw(st.integers(1, 10)), draw(st.integers(1, widest)), draw(st.integers(1, 3))
    rank = draw(st.integers(1, min(n, d1)))
    rng = np.random.default_rng(draw(seeds))
    values = np.exp(rng.uniform(0, np.log(draw(st.sampled_from([1.0, 10.0]))), rank))
    return with_values(rng, n, d1, values), rng.standard_normal((n, d2)), rank


def losses(steps):
    return np.array([step.loss for step in steps])


def excess(X, Y, k, steps, noise, n_seeds):
    """(seeds, steps + 1): how much of the distance to the optimum is left, between 0 and 1."""
    fits = [dense_cce(X, Y, k, steps, noise=noise, seed=seed) for seed in range(n_seeds)]
    return np.array([(fit.losses - fit.optimum) / (fit.losses[0] - fit.optimum) for fit in fits])


# Dense CCE is its definition


def same_as_twin(X, Y, k, steps, seed, noise):
    fit, expected = dense_cce(X, Y, k, steps, noise=noise, seed=seed), twin.dense(X, Y, k, steps, seed, noise)
    size = float(np.sum(np.square(Y)))
    np.testing.assert_allclose(fit.losses, losses(expected), rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(X @ fit.T, X @ expected[-1].T, rtol=0, atol=2e-3 * size**0.5)
    assert (np.diff(fit.losses) <= 0).all()
    assert (fit.H @ fit.M == fit.T).all()
    np.testing.assert_allclose(twin.loss(X, fit.T, Y), fit.losses[-1], rtol=1e-9, atol=1e-9 * size)
    np.testing.assert_allclose(fit.bound, twin.bound(X, Y, k - Y.shape[1], steps, noise), rtol=1e-9, atol=1e-12 * size)
    assert fit.rho == pytest.approx(twin.rho(X, noise), rel=1e-9)
    return fit


@given(problems(), st.integers(1, 6), st.integers(0, 4), seeds, st.sampled_from(NOISES))
def test_dense_is_its_twin(problem, columns, steps, seed, noise):
    X, Y, rank = problem
    fit = same_as_twin(X, Y, Y.shape[1] + columns, steps, seed, noise)
    assert fit.rank == rank
    if steps and columns >= rank:  # as many columns of noise as X has: one step is enough
        np.testing.assert_allclose(fit.losses[1:], fit.optimum, rtol=1e-6, atol=1e-9 * fit.losses[0])


@pytest.mark.parametrize("noise", NOISES)
def test_every_matrix_of_two_by_two(noise):
    """All X of −1, 0 and 1 aside from zeros, all Y of 0 and 1, one and two columns of noise."""
    for entries in itertools.product([-1.0, 0.0, 1.0], repeat=4):
        X = np.reshape(entries, (2, 2))
        for y, k in itertools.product([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)], [2, 3]):
            if X.any():
                same_as_twin(X, np.array(y)[:, None], k, 2, 3, noise)


@pytest.mark.parametrize("noise", NOISES)
def test_every_shape(noise):
    rng = np.random.default_rng(5)
    for n, d1, d2, columns in itertools.product(range(1, 5), range(1, 5), range(1, 4), range(1, 4)):
        X, Y = rng.standard_normal((n, d1)), rng.standard_normal((n, d2))
        fit = same_as_twin(X, Y, d2 + columns, 2, n, noise)
        assert fit.H.shape == (d1, d2 + columns)
        assert fit.M.shape == (d2 + columns, d2)


@given(problems(), st.integers(1, 6), seeds, st.sampled_from(NOISES))
def test_the_loss_does_not_rise_without_our_help_either(problem, columns, seed, noise):
    """The twin keeps no earlier T. The solver is backward stable: its M is the best for A + E and Y + F instead of A = X·H
    and Y, ‖E‖ ≤ (p·ε + rcond)·‖A‖ and ‖F‖ ≤ p·ε·‖Y‖. Against M₀ = [I; 0], which repeats the step before, that makes

        ‖A·M − Y‖ ≤ ‖A·M₀ − Y‖ + (p·ε + rcond)·‖A‖·(‖M‖ + ‖M₀‖) + 2·p·ε·‖Y‖,

    and computing X·(H·M) adds p·ε·‖X‖·‖H‖·‖M‖. Here p is the sum of the sizes.
    """
    X, Y, _ = problem
    norm, d2 = np.linalg.norm, Y.shape[1]
    steps = twin.dense(X, Y, d2 + columns, 5, seed, noise)
    roundoff = sum(X.shape + Y.shape + (columns,)) * np.finfo(float).eps
    for before, after in itertools.pairwise(steps):
        A = X @ after.H
        slack = (roundoff + twin.RCOND) * norm(A) * (norm(after.M) + d2**0.5) + 2 * roundoff * norm(Y)
        slack += roundoff * norm(X) * norm(after.H) * norm(after.M)
        assert after.loss**0.5 <= before.loss**0.5 + slack


# Theorem 3.1

SEEDS = 200


@given(problems(), st.integers(1, 4), st.sampled_from(NOISES))
def test_the_mean_over_seeds_is_under_the_bound(problem, columns, noise):
    """What is left is between 0 and 1, so with a mean of b its variance is at most b·(1 − b): five deviations of the mean."""
    X, Y, _ = problem
    if np.linalg.norm(X.T @ Y) < 1e-6:
        return
    k = Y.shape[1] + columns
    left = excess(X, Y, k, 3, noise, SEEDS).mean(axis=0)
    most = (1 - rho(X, noise)) ** (columns * np.arange(4))
    assert (left <= most + 5 * np.sqrt(most * (1 - most) / SEEDS) + 1e-9).all()


def test_shaped_noise_reaches_its_rate_and_plain_noise_does_not():
    """With shaped noise the first step leaves (r − m)/r on average, exactly: a random subspace of m of r dimensions."""
    rng = np.random.default_rng(0)
    X, Y = with_values(rng, 12, 10, np.geomspace(1, 1e-2, 10)), rng.standard_normal((12, 1))
    shaped, plain = (excess(X, Y, 4, 8, noise, 1000) for noise in ("shaped", "plain"))
    deviation = shaped[:, 1].std() / 1000**0.5
    assert abs(shaped[:, 1].mean() - 7 / 10) < 4 * deviation < 0.03
    most = (1 - 3 / 10) ** np.arange(9)
    assert (shaped.mean(axis=0) <= most + 0.03).all()  # a rate even better than the theorem's (1 − 1/10)^3
    assert (most[1:] < (1 - rho(X, "shaped")) ** (3 * np.arange(1, 9))).all()
    assert plain.mean(axis=0)[8] > 3 * most[8] > 3 * shaped.mean(axis=0)[8]


def test_with_one_column_of_noise_the_bound_is_met_exactly():
    """Shaped noise, or equal singular values, m = 1: E of the first step is the bound, so no better one is to be had."""
    rng = np.random.default_rng(1)
    X, Y = with_values(rng, 9, 6, np.ones(6)), rng.standard_normal((9, 2))
    for noise in NOISES:
        left = excess(X, Y, 3, 1, noise, 1500)[:, 1]
        assert abs(left.mean() - 5 / 6) < 4 * left.std() / 1500**0.5 < 0.03


def test_an_exponent_that_counts_all_columns_is_refuted():
    """(1 − ρ)^(i·k) with k columns in all: the measured mean lies far above."""
    rng = np.random.default_rng(2)
    X, Y = with_values(rng, 12, 8, np.ones(8)), rng.standard_normal((12, 4))
    for noise in NOISES:
        left = excess(X, Y, 5, 4, noise, 400)
        wrong, right = (1 - 1 / 8) ** (np.arange(5) * 5), (1 - 1 / 8) ** (np.arange(5) * 1)
        margin = 5 * left.std(axis=0) / 400**0.5 + 1e-12
        assert (left.mean(axis=0) - margin > wrong)[1:].all()
        assert (left.mean(axis=0) - margin <= right).all()


def test_shaped_noise_points_everywhere_alike():
    """Cov(X·g) is the projection on the columns of X, whatever the singular values."""
    rng = np.random.default_rng(3)
    X = with_values(rng, 5, 4, np.array([10.0, 1.0, 0.1]))
    H = dense_cce(X, np.zeros((5, 1)), 40_001, 1, noise="shaped", seed=0).H
    seen = X @ H[:, 1:]
    U = np.linalg.svd(X)[0][:, :3]
    np.testing.assert_allclose(seen @ seen.T / 40_000, U @ U.T, atol=0.03)
    assert np.abs(np.linalg.svd(X)[2][3] @ H).max() < 1e-9  # nothing where X sees nothing


@given(problems(), st.integers(1, 9), st.integers(0, 5), st.sampled_from(NOISES))
def test_the_two_ways_to_count_columns(problem, columns, steps, noise):
    X, Y, rank = problem
    both = loss_bound(X, Y, Y.shape[1] + columns, steps, noise=noise)
    assert (both == loss_bound(X, Y, columns, steps, noise=noise, counting="noise")).all()
    np.testing.assert_allclose(both, twin.bound(X, Y, columns, steps, noise), rtol=1e-9, atol=1e-12 * np.sum(Y**2))
    assert both[0] == pytest.approx(np.sum(Y**2))
    assert 0 < rho(X) <= rho(X, "shaped") * (1 + 1e-12)
    assert rho(X, "shaped") == 1 / rank


# Sparse CCE is its definition


def k_means(T, clusters, seed):
    size = np.abs(T).max()
    return KMeans(clusters, n_iter=50, seed=seed).fit(T / size if size else T).labels_


few = 4 if COMPILED else 2


@given(problems(), st.integers(2, 9), st.integers(0, few), seeds, st.sampled_from(["count", "hash"]))
def test_sparse_is_its_twin(problem, k, steps, seed, sketch):
    X, Y, _ = problem
    size = float(np.sum(Y**2))
    fit = sparse_cce(X, Y, k, steps, sketch=sketch, seed=seed)
    # The clusters of what the library had before: rounding in the twin's T could put a row in another one.
    tables = iter([sparse_cce(X, Y, k, i, sketch=sketch, seed=seed).T for i in range(steps)])
    expected = twin.sparse(X, Y, k, steps, seed, lambda T, c, s: k_means(next(tables), c, s), sketch)
    np.testing.assert_allclose(fit.losses, losses(expected), rtol=0, atol=1e-6 * size)
    np.testing.assert_array_equal(fit.H.toarray(), expected[-1].H)
    np.testing.assert_allclose(X @ fit.T, X @ expected[-1].T, rtol=0, atol=2e-3 * size**0.5)
    assert fit.rho is None
    assert fit.bound is None
    assert (fit.losses >= fit.optimum * (1 - 1e-9) - 1e-12).all()


def test_sparse_on_every_small_shape():
    rng = np.random.default_rng(6)
    for n, d1, k in itertools.product(range(1, 4), range(1, 5), range(2, 7)):
        X, Y = rng.standard_normal((n, d1)), rng.standard_normal((n, 1))
        fit = sparse_cce(X, Y, k, 2, seed=k)
        H = fit.H.toarray()
        assert H.shape == (d1, k)
        assert (H[:, : k // 2].sum(axis=1) == 1).all()
        assert (np.abs(H[:, k // 2 :]).sum(axis=1) == 1).all()
        assert set(np.unique(H)) <= {-1.0, 0.0, 1.0}
        assert fit.losses[-1] == pytest.approx(twin.loss(X, fit.T, Y), abs=1e-12)


def test_sparse_clusters_the_rows_of_the_step_before():
    rng = np.random.default_rng(7)
    X, Y = rng.standard_normal((30, 20)), rng.standard_normal((30, 2))
    before, after = (sparse_cce(X, Y, 8, i, seed=1) for i in (3, 4))
    rows = (before.T / np.abs(before.T).max()).astype(np.float32)
    labels = after.H.toarray()[:, :4].argmax(axis=1)
    centroids, _ = kmeans_twin.update(rows, labels, 4)
    assert (kmeans_twin.assign(rows, centroids)[0] == labels).all()


def test_the_first_sparse_step_is_hashing_with_a_bias():
    rng = np.random.default_rng(8)
    X, Y = rng.standard_normal((30, 12)), rng.standard_normal((30, 2))
    H = sparse_cce(X, Y, 6, 1, seed=0).H.toarray()
    assert (H[:, :3].sum(axis=0) > 0).sum() == 1
    assert (sparse_cce(X, Y, 6, 1, sketch="hash", seed=0).H.toarray() >= 0).all()
    assert (H < 0).any()


def test_sparse_losses_may_rise_and_are_shown_as_they_came():
    rng = np.random.default_rng(9)
    X, Y = rng.standard_normal((40, 30)), rng.standard_normal((40, 3))
    rises = [np.diff(sparse_cce(X, Y, 8, 6, seed=seed).losses).max() for seed in range(6)]
    assert max(rises) > 0


# What is degenerate, and what is refused


def test_a_sketch_that_x_does_not_see():
    """X is 0 on sums over the two ids: a step without signs finds nothing to do, and says 0 rather than NaN."""
    fit = sparse_cce([[1.0, -1.0]], [[3.0]], 2, 2, sketch="hash", seed=0)
    assert fit.losses.tolist() == [9.0, 9.0, 9.0]
    assert not fit.T.any()


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_to_explain(noise):
    X = np.array([[1.0, 0.0], [0.0, 0.0]])
    for Y in (np.zeros((2, 1)), np.array([[0.0], [2.0]])):  # no target, and one that no column of X reaches
        fit = dense_cce(X, Y, 3, 3, noise=noise)
        assert (fit.losses == fit.losses[0]).all()
        np.testing.assert_allclose(fit.bound, fit.losses)
        assert (sparse_cce(X, Y, 2, 3).losses == fit.losses[0]).all()


def test_fewer_rows_than_columns_reach_the_target():
    """The paper's theorem as printed has ρ = 0 here; over the rank it is 1/3."""
    rng = np.random.default_rng(10)
    X, Y = with_values(rng, 3, 50, np.ones(3)), rng.standard_normal((3, 2))
    assert rho(X) == pytest.approx(1 / 3)
    fit = dense_cce(X, Y, 5, 2, seed=0)
    assert fit.losses[1] < 1e-20
    assert fit.bound[2] < fit.bound[1] < fit.bound[0]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("size_x", "size_y"), [(1e-59, 1e59), (1e59, 1e-59), (1e59, 1e59), (1e-59, 1e-59)])
def test_scales_do_not_matter(noise, size_x, size_y):
    rng = np.random.default_rng(11)
    X, Y = np.clip(rng.standard_normal((9, 6)), -2, 2), np.clip(rng.standard_normal((9, 2)), -2, 2)
    for run in (lambda *a: dense_cce(*a, 4, 3, noise=noise, seed=2), lambda *a: sparse_cce(*a, 4, 3, seed=2)):
        here, there = run(X, Y), run(size_x * X, size_y * Y)
        np.testing.assert_allclose(there.losses / size_y / size_y, here.losses, rtol=1e-7)


@pytest.mark.parametrize("spread", [1e4, 1e8, 1e12, 1e20])
@pytest.mark.parametrize("noise", NOISES)
def test_bad_condition_gives_numbers_and_never_a_rise(noise, spread):
    rng = np.random.default_rng(12)
    X, Y = with_values(rng, 12, 8, np.geomspace(1, 1 / spread, 8)), rng.standard_normal((12, 2))
    for seed in range(5):
        fit = dense_cce(X, Y, 5, 20, noise=noise, seed=seed)
        assert np.isfinite(fit.T).all()
        assert (np.diff(fit.losses) <= 0).all()
        assert fit.losses[-1] < 0.9 * fit.losses[0]
        if noise == "shaped" and spread <= 1e8:
            assert fit.losses[-1] == pytest.approx(fit.optimum, rel=1e-2)


ONES = np.ones((3, 2))


@pytest.mark.parametrize("run", [dense_cce, sparse_cce, loss_bound])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.full((3, 2), np.nan)}, ValueError, r"X must be finite, got nan at \(0, 0\)"),
        ({"Y": np.array([[1.0], [np.inf], [0.0]])}, ValueError, r"Y must be finite, got inf at \(1, 0\)"),
        ({"X": np.zeros((3, 2))}, ValueError, "X must have an entry other than 0"),
        ({"X": np.ones(3)}, ValueError, r"X must have two dimensions.*X\[:, None\]"),
        ({"Y": np.ones((3, 0))}, ValueError, r"Y must have two dimensions, none of them 0, got shape \(3, 0\)"),
        ({"X": np.ones((2, 2))}, ValueError, r"as many rows as each other, got \(2, 2\) and \(3, 1\)"),
        ({"X": ONES * 1j}, TypeError, "X must be real numbers, got complex128"),
        ({"X": 1e61 * ONES}, ValueError, "X's largest magnitude must be between 1e-60 and 1e\\+60, got 1e\\+61"),
        ({"Y": np.full((3, 1), 1e-61)}, ValueError, "Y's largest magnitude .* scale it, Y / 1e-61"),
        ({"k": 2.0}, TypeError, "k must be a whole number"),
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": None}, TypeError, "steps must be a whole number"),
    ],
)
def test_bad_input_is_refused(run, change, error, message):
    with pytest.raises(error, match=message):
        run(**{"X": ONES, "Y": np.ones((3, 1)), "k": 2, "steps": 1, **change})


def test_bad_arguments_are_refused():
    Y = np.ones((3, 2))
    for k in (1, 2):
        with pytest.raises(ValueError, match=rf"k must be above d₂ = 2.*got {k}.*take k = 3 or more"):
            dense_cce(ONES, Y, k, 1)
        with pytest.raises(ValueError, match="k must be above d₂ = 2"):
            loss_bound(ONES, Y, k, 1)
        assert loss_bound(ONES, Y, k, 1, counting="noise").shape == (2,)
    with pytest.raises(ValueError, match="k must be at least 1"):
        loss_bound(ONES, Y, 0, 1, counting="noise")
    with pytest.raises(ValueError, match="k must be at least 2"):
        sparse_cce(ONES, Y, 1, 1)
    with pytest.raises(ValueError, match="noise must be one of plain, shaped; got 'smart'"):
        dense_cce(ONES, Y, 3, 1, noise="smart")
    with pytest.raises(ValueError, match="noise must be one of"):
        rho(ONES, "smart")
    with pytest.raises(ValueError, match="counting must be one of all, noise"):
        loss_bound(ONES, Y, 3, 1, counting="some")
    with pytest.raises(ValueError, match="sketch must be one of count, hash"):
        sparse_cce(ONES, Y, 3, 1, sketch="dense")
    with pytest.raises(ValueError, match="seed must be"):
        dense_cce(ONES, Y, 3, 1, seed=-1)
    with pytest.raises(ValueError, match="only zeros"):
        rho(np.zeros((2, 2)))


# Runs repeat


@pytest.mark.parametrize("run", [dense_cce, sparse_cce])
def test_a_run_is_a_function_of_its_seed(run):
    rng = np.random.default_rng(13)
    X, Y = rng.standard_normal((20, 15)), rng.standard_normal((20, 2))
    kept = X.copy(), Y.copy()
    long = run(X, Y, 6, 5, seed=3)
    for steps in range(5):
        assert (run(X, Y, 6, steps, seed=3).losses == long.losses[: steps + 1]).all()
    assert (run(np.asfortranarray(X), Y[::-1][::-1], 6, 5, seed=3).losses == long.losses).all()
    assert (run(X, Y, 6, 5, seed=4).losses[1:] != long.losses[1:]).all()
    assert (kept[0] == X).all()
    assert (kept[1] == Y).all()
    whole = run(np.array([[1, 2], [3, 5]], np.int8), [[1], [2]], 2, 1)
    assert (whole.losses == run([[1.0, 2.0], [3.0, 5.0]], [[1.0], [2.0]], 2, 1).losses).all()


def test_a_fit_is_frozen():
    fit = dense_cce(ONES, np.ones((3, 1)), 2, 0)
    assert isinstance(fit, Fit)
    assert (fit.T == 0).all()
    assert not sparse_cce(ONES, np.ones((3, 1)), 2, 0).T.any()
    with pytest.raises(AttributeError):
        fit.losses = None
