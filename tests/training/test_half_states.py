"""States in bfloat16 against their formulas in float64; and the learning rate that a projection has of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import optimizers as naive

import cce_core as cce
from cce_core._jit import COMPILED

VOCAB, DIM = 40, 8
BETAS = (0.8, 0.9)
CASES = {
    "adagrad": (
        lambda: cce.Adagrad(0.1, rowwise=True, state_dtype="bfloat16"),
        lambda p, g, touched: naive.adagrad(p, g, 0.1, unit=DIM),
    ),
    "adam": (
        lambda: cce.AdamW(0.1, BETAS, 1e-6, 0.2, rowwise=True),
        lambda p, g, touched: naive.adamw(p, g, 0.1, BETAS, 1e-6, 0.2, unit=DIM),
    ),
    "lazy": (
        lambda: cce.Adam(0.1, BETAS, lazy=True, rowwise=True),
        lambda p, g, touched: naive.adamw(p, g, 0.1, BETAS, weight_decay=0, touched=touched, unit=DIM),
    ),
}


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 2**32))
def test_steps_follow_the_formula_within_what_bfloat16_can_say(case, seed):
    ours, formula = CASES[case]
    rng, optimizer = np.random.default_rng(seed), ours()
    table = cce.make_table("full", VOCAB, DIM, seed=seed)
    start, dense, touched = table.parameters()["memory"].copy(), [], []
    for _ in range(4):
        ids, g = rng.integers(0, VOCAB, 6), rng.standard_normal((6, DIM))
        dense.append(table.backward(ids, g, dense=True)["memory"])
        touched.append(np.repeat(np.isin(np.arange(VOCAB), ids), DIM))
        optimizer.step(table, table.backward(ids, g))
    expected = formula(start, dense, touched)
    moved = np.abs(expected - start).max()
    assert np.abs(table.parameters()["memory"] - expected).max() <= 4 * 2.0**-7 * moved


def test_squares_below_a_256th_of_their_sum_still_add_up():
    """Rounded to nearest, 2,000 squares of 1/500 would leave 1 as it is; they make 5 of it."""
    steps, rows = (2000, 200) if COMPILED else (100, 20)
    table = cce.make_table("full", rows, 1)
    optimizer, ids = cce.Adagrad(0.1, rowwise=True, state_dtype="bfloat16"), np.arange(rows)
    optimizer.step(table, table.backward(ids, np.ones((rows, 1))))
    for _ in range(steps):
        optimizer.step(table, table.backward(ids, np.full((rows, 1), 500**-0.5)))
    halves = optimizer.state_of(table, "memory").arrays["squares"][:rows]
    squares = (halves.astype(np.uint32) << 16).view(np.float32)
    assert squares.mean() == pytest.approx(1 + steps / 500, rel=0.02)
    assert np.unique(squares).size > 1  # each row draws for itself


@pytest.mark.parametrize("vocab", [1, 2, 7])
def test_two_bytes_a_number(vocab):
    table = cce.make_table("full", vocab, 3)
    for optimizer, rows, floats in ((CASES["adagrad"][0](), 1, 0), (CASES["adam"][0](), 1, 3)):
        optimizer.step(table, table.backward([0], np.ones((1, 3))))
        even = sum(n + n % 2 for n in (rows * vocab, floats * vocab))
        assert optimizer.state_bytes(table) == 2 * even
    with pytest.raises(ValueError, match="goes with rowwise=True"):
        cce.Adagrad(state_dtype="bfloat16")
    with pytest.raises(ValueError, match="state_dtype"):
        cce.Adagrad(rowwise=True, state_dtype="float16")


def test_large_gradients_leave_no_nan():
    for make, _ in CASES.values():
        table = cce.make_table("full", 4, 2)
        optimizer = make()
        for size in (1e30, 1e-30, 1.0):
            optimizer.step(table, table.backward([1, 2], np.full((2, 2), size)))
        assert np.isfinite(table.lookup(np.arange(4))).all()


RATED = {
    "sgd": lambda **more: cce.SGD(0.5, **more),
    "momentum": lambda **more: cce.SGD(0.5, momentum=0.9, **more),
    "adagrad": lambda **more: cce.Adagrad(0.5, **more),
    "row-wise": lambda **more: cce.Adagrad(0.5, rowwise=True, **more),
    "adam": lambda **more: cce.Adam(0.5, **more),
    "adamw": lambda **more: cce.AdamW(0.5, weight_decay=0.1, rowwise=True, **more),
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", RATED)
def test_a_projection_has_the_rate_that_it_is_given(kind, together):
    """The memory moves as at its own rate, the projection as if the other were the rate of all."""
    ids, g = np.array([[1], [2], [1]]), np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    both, one, other = RATED[kind](projection_lr=0.02), RATED[kind](), RATED[kind]()
    other.lr = 0.02
    tables = [cce.make_table("full", 9, 8, rank=3, seed=1) for _ in range(3)]
    for table, optimizer in zip(tables, (both, one, other)):
        if together:
            optimizer.update(cce.Collection([table]), ids, g)
        else:
            optimizer.update(table, ids[:, 0], g)
    for name, twin in (("memory", tables[1]), ("projection", tables[2])):
        np.testing.assert_array_equal(tables[0].parameters()[name], twin.parameters()[name])
    assert not np.array_equal(tables[0].parameters()["projection"], tables[1].parameters()["projection"])
    with pytest.raises(ValueError, match="projection_lr"):
        RATED[kind](projection_lr=-1.0)
