"""Optimisers against their formulas, with dense and with sparse gradients, and across a clustering."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import optimizers as naive

import cce_core as cce

STEPS = 4


def make(method="ce", seed=0, rank=0):
    budget = {} if method == "full" else {"num_params": 256}
    return cce.make_table(method, 40, 8, n_chunks=2, rank=rank, seed=seed, **budget)


def history(table, seed):
    """A few batches of ids, and their gradients both ways."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(STEPS):
        ids, g = rng.integers(0, 40, 6), rng.standard_normal((6, 8))
        out.append((table.backward(ids, g), table.backward(ids, g, dense=True)))
    return out


CASES = {
    "sgd": (lambda: cce.SGD(0.1), lambda p, g, **k: naive.sgd(p, g, 0.1)),
    "momentum": (lambda: cce.SGD(0.1, momentum=0.9), lambda p, g, **k: naive.sgd(p, g, 0.1, 0.9)),
    "decay": (lambda: cce.SGD(0.1, weight_decay=0.1), lambda p, g, **k: naive.sgd(p, g, 0.1, 0, 0.1)),
    "adagrad": (lambda: cce.Adagrad(0.1), lambda p, g, **k: naive.adagrad(p, g, 0.1)),
    "rowwise": (lambda: cce.Adagrad(0.1, rowwise=True), lambda p, g, unit, **k: naive.adagrad(p, g, 0.1, unit=unit)),
    "adam": (lambda: cce.Adam(0.1), lambda p, g, **k: naive.adamw(p, g, 0.1, weight_decay=0)),
    "adamw": (lambda: cce.AdamW(0.1, (0.8, 0.99), 1e-6, 0.2), lambda p, g, **k: naive.adamw(p, g, 0.1, (0.8, 0.99), 1e-6, 0.2)),
    "lazy": (
        lambda: cce.AdamW(0.1, lazy=True),
        lambda p, g, touched, **k: naive.adamw(p, g, 0.1, touched=touched),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["full", "ce", "robe", "cce"])
@pytest.mark.parametrize("dense", [False, True])
@given(seed=st.integers(0, 2**32))
def test_steps_follow_the_formula(case, method, dense, seed):
    ours, formula = CASES[case]
    table = make(method, seed)
    steps = history(table, seed)
    start = table.parameters()["memory"].copy()
    unit = table.block_sizes()["memory"]
    touched = []
    for sparse, _ in steps:
        on = np.zeros((start.size // unit, unit), bool)
        on[sparse["memory"].index] = True
        touched.append(np.ones(start.shape, bool) if dense else on.reshape(-1))
    optimizer = ours()
    for step in steps:
        optimizer.step(table, step[dense])
    expected = formula(start, [d["memory"] for _, d in steps], unit=unit, touched=touched)
    np.testing.assert_allclose(table.parameters()["memory"], expected, rtol=2e-4, atol=2e-5)


def test_the_projection_is_trained_too():
    table = make(rank=4)
    before = table.parameters()["projection"].copy()
    gradient = table.backward([1, 2], np.ones((2, 8)))
    cce.SGD(0.5).step(table, gradient)
    np.testing.assert_allclose(table.parameters()["projection"], before - 0.5 * gradient["projection"], rtol=1e-6)


def test_clustering_drops_the_state_of_the_memory_and_keeps_that_of_the_projection():
    table, twin = make("cce", rank=4), make("cce", rank=4)
    old = cce.Adam(0.1)
    for t in (table, twin):
        old.step(t, t.backward([1, 2], np.ones((2, 8))))
        t.cluster()
    projection = old._states[table][1]["projection"]
    assert projection.step == 1
    np.testing.assert_array_equal(table.parameters()["memory"], twin.parameters()["memory"])
    old.step(table, table.backward([3], np.ones((1, 8))))
    cce.Adam(0.1).step(twin, twin.backward([3], np.ones((1, 8))))  # knows nothing of the past
    np.testing.assert_array_equal(table.parameters()["memory"], twin.parameters()["memory"])
    assert projection.step == 2
    assert old._states[table][1]["memory"].step == 1


def test_state_goes_with_its_table():
    optimizer, table = cce.Adam(), make()
    optimizer.step(table, table.backward([1], np.ones((1, 8))))
    assert optimizer.state_bytes(table) == 2 * 4 * table.num_params
    assert table.ledger().training["optimiser"] == optimizer.state_bytes(table)
    del table
    gc.collect()
    assert len(optimizer._states) == 0


WAYS = {
    **{f"protocol {p}": lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in (0, pickle.HIGHEST_PROTOCOL)},
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["sgd", "momentum", "rowwise", "adam", "lazy"])
@pytest.mark.parametrize("order", ["table first", "optimizer first", "in a dict", "collection"])
def test_table_and_optimizer_go_on_bit_for_bit_after_a_copy(case, way, order):
    """Mid-training, with state behind; the originals go on beside them, and neither moves the other."""
    table, optimizer = make("cce", rank=4), CASES[case][0]()
    both = cce.Collection([table])
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 40, 6), rng.standard_normal((6, 8)).astype(np.float32)) for _ in range(4)]
    for ids, g in batches[:2]:
        optimizer.update(table, ids, g)
    if order == "table first":
        again, other = WAYS[way]((table, optimizer))
    elif order == "optimizer first":
        other, again = WAYS[way]((optimizer, table))
    elif order == "in a dict":
        held = WAYS[way]({"optimizer": optimizer, "more": [{"table": table}]})
        other, again = held["optimizer"], held["more"][0]["table"]
    else:
        optimizer.update(both, batches[0][0][:, None], batches[0][1])  # something prepared for compiled loops
        other, again = WAYS[way]((optimizer, both))
        again = again.tables[0]
    gc.collect()
    assert other.state_bytes(again) == optimizer.state_bytes(table)
    for t, o in ((again, other), (table, optimizer)):
        for ids, g in batches[2:]:
            o.update(t, ids, g)
            o.update(cce.Collection([t]), ids[:, None], g)
    for name, array in table.parameters().items():
        np.testing.assert_array_equal(again.parameters()[name], array)
    assert other.state_of(again, "memory").step == optimizer.state_of(table, "memory").step


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_alone_is_copied_with_its_settings(case, way):
    """A pickle's tables go when nobody holds them; those of a copy in the same process are still there."""
    table, optimizer = make(), CASES[case][0]()
    optimizer.update(table, [1, 2], np.ones((2, 8)))
    other = WAYS[way](optimizer)
    gc.collect()
    assert other.constants(3) == optimizer.constants(3)
    assert (other.lr, other.max_norm, other.updates_all()) == (
        optimizer.lr,
        optimizer.max_norm,
        optimizer.updates_all(),
    )
    assert len(other._states) == (way == "deepcopy")
    assert other.state_bytes(table) == (optimizer.state_bytes(table) if way == "deepcopy" else 0)
    fresh = make()
    other.update(fresh, [1, 2], np.ones((2, 8)))
    assert other.state_of(fresh, "memory").step == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    table, optimizer = make(rank=4), cce.Adam()
    before = {k: v.copy() for k, v in table.parameters().items()}
    gradient = table.backward([1], np.ones((1, 8)), dense=True)
    gradient["projection"][0, 0] = bad
    with pytest.raises(ValueError, match="gradient of projection must be finite"):
        optimizer.step(table, gradient)
    for name, array in table.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_gradients_are_refused():
    table, optimizer = make(), cce.SGD(0.1)
    with pytest.raises(ValueError, match="no parameter 'weights'"):
        optimizer.step(table, {"weights": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="must have shape"):
        optimizer.step(table, {"memory": np.zeros(3, np.float32)})
    other = cce.make_table("ce", 40, 8, n_chunks=2, num_params=512)
    with pytest.raises(ValueError, match="must have 256 floats"):
        optimizer.step(table, other.backward([1], np.ones((1, 8))))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: cce.SGD(-1), lambda: cce.SGD(0.1, momentum=2), lambda: cce.Adam(betas=(1.0, 0.9)),
        lambda: cce.AdamW(eps=0), lambda: cce.Adagrad(float("nan")), lambda: cce.AdamW(weight_decay=-1),
    ],
)  # fmt: skip
def test_hyperparameters_are_checked(wrong):
    with pytest.raises(ValueError, match="must be"):
        wrong()


def test_results_do_not_depend_on_the_number_of_threads():
    seen = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        table = cce.make_table("full", 3000, 32, seed=1)
        optimizer = cce.AdamW(0.1)
        for seed in range(2):
            g = np.random.default_rng(seed).standard_normal((50, 32))
            optimizer.step(table, table.backward(np.arange(50), g))
        seen.append(table.parameters()["memory"])
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
