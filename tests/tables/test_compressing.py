"""`compress`: within the budget, near to the vectors, the same for one seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cce_core as cce
from cce_core.learning.targets import dealt_out
from cce_core.tables import compressing


def like_words(n=600, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) * (1 + np.arange(dim)) ** -0.7 @ np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return (x + 0.3 * rng.standard_normal(dim)).astype(np.float32)


def left(table, x):
    return np.square(table.lookup(np.arange(len(x))) - x).sum() / np.square(x - x.mean(0)).sum()


@pytest.mark.parametrize("ratio", [1, 2, 3, 8, 30])
def test_it_keeps_its_budget_and_more_bytes_are_nearer(ratio):
    x = like_words()
    table = cce.compress(x, ratio=ratio, seed=3)
    assert table.ledger().total <= x.nbytes / ratio
    assert left(table, x) <= {1: 0, 2: 1e-5, 3: 1e-4, 8: 0.03, 30: 0.35}[ratio]
    again = cce.compress(x, num_bytes=x.nbytes // ratio, seed=3)
    assert again.spec == table.spec
    np.testing.assert_array_equal(again.lookup(np.arange(600)), table.lookup(np.arange(600)))


@pytest.mark.parametrize(
    ("method", "options"),
    [("vq", {"rank": 0}), ("int8", {}), ("full", {}), ("ldim", {}), ("hash", {}), ("sparse", {}), ("pq", {"n_chunks": 6})],
)  # fmt: skip
def test_other_methods_learn_the_vectors_too(method, options):
    x = like_words(200)
    table = cce.compress(x, ratio={"int8": 3, "full": 1}.get(method, 6), method=method, **options)
    assert table.spec.method == method
    assert left(table, x) < {"full": 1e-12, "int8": 1e-3}.get(method, 0.9)


def test_rows_of_weight_0_are_not_learned_from_and_coded_all_the_same():
    x = like_words(300, 8)
    weights = np.ones(300)
    weights[7] = 0
    far = x.copy()
    far[7] += 0.01
    one, other = (cce.compress(v, ratio=6, method="pq", n_chunks=2, weights=weights) for v in (x, far))
    np.testing.assert_array_equal(one.parameters()["memory"], other.parameters()["memory"])
    assert np.square(one.lookup(7) - x[7]).sum() < np.square(x[7]).sum()


@given(n=st.integers(1, 400), dim=st.integers(1, 30), share=st.floats(0.01, 1.0), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_the_best_shape_is_within_its_budget_and_makes_a_table(n, dim, share, seed):
    covariance = np.cov(like_words(200, dim, seed).T).reshape(dim, dim)
    budget = max(1, int(4 * n * dim * share))
    shape = compressing.best_shape(n, budget, covariance)
    if shape is None:
        with pytest.raises(cce.BudgetError, match="the least that fits is"):
            cce.make_table("pq", n, dim, num_bytes=budget, n_chunks=1, codec="int8")
        return
    options = () if shape.rank == 0 else (shape.rank,)
    width = (shape.rank or dim) // shape.n_chunks
    assert width * shape.n_chunks == (options[0] if options else dim)
    table = cce.Table(cce.TableSpec("pq", n, dim, shape.rank, shape.n_chunks, (shape.rows,), 0, (), "int8"))
    assert table.ledger().total <= budget
    # more budget never promises less
    assert compressing.best_shape(n, 2 * budget, covariance).loss <= shape.loss * (1 + 1e-9)


@given(n_chunks=st.integers(1, 6), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_directions_are_dealt_out_evenly(n_chunks, width, seed):
    variances = np.sort(np.random.default_rng(seed).exponential(size=n_chunks * width) + 1e-3)[::-1]
    order = dealt_out(variances, n_chunks)
    assert sorted(order.tolist()) == list(range(n_chunks * width))
    products = np.log(variances[order]).reshape(n_chunks, width).sum(1)
    plain = np.log(variances).reshape(n_chunks, width).sum(1)
    assert np.ptp(products) <= np.ptp(plain) + 1e-9


@pytest.mark.parametrize(
    ("vectors", "options", "error", "message"),
    [
        (np.zeros((0, 3)), {}, ValueError, r"at least one row of one number, got shape \(0, 3\)"),
        (np.zeros(3), {}, ValueError, r"got shape \(3,\)"),
        ([["a"]], {}, TypeError, "vectors must be real numbers"),
        (np.full((9, 3), np.nan), {}, ValueError, r"vectors must be finite, got nan at \(0, 0\)"),
        (np.ones((9, 3)), {"ratio": 2, "num_bytes": 9}, ValueError, "give ratio or num_bytes, not both"),
        (np.ones((9, 3)), {"ratio": 0}, ValueError, "ratio must be above 0"),
        (np.ones((9, 3)), {"num_bytes": 3}, cce.BudgetError, "the least that fits is"),
        (np.ones((9, 3)), {"n_chunks": 3}, ValueError, "name a method for 'n_chunks'"),
        (np.ones((9, 3)), {"method": "nope"}, ValueError, "unknown method 'nope'"),
        (np.ones((9, 4)), {"method": "int8", "ratio": 1, "weights": np.ones(9)}, ValueError, "weights count nothing"),
        (np.ones((90, 4)), {"method": "pq", "ratio": 4, "weights": np.ones(9)}, ValueError, "weights must have shape"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(vectors, options, error, message):
    with pytest.raises(error, match=message):
        cce.compress(vectors, **options)
