"""Backward pass and step of many tables in one call, against table by table; and the clipping of gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core._jit import COMPILED

VOCAB = 19
KINDS = {
    "cce": lambda k: cce.make_table("cce", VOCAB, 8, num_params=120, n_chunks=2, rank=0, seed=k),
    "cce projected": lambda k: cce.make_table("cce", VOCAB, 12, num_params=160, n_chunks=2, rank=4, seed=k),
    "ldim": lambda k: cce.make_table("ldim", VOCAB, 6, num_params=120, seed=k),
    "full": lambda k: cce.make_table("full", VOCAB, 5, seed=k),
    "robe": lambda k: cce.make_table("robe", VOCAB, 8, num_params=19, n_chunks=2, seed=k),
    "bloom": lambda k: cce.make_table("bloom", VOCAB, 4, num_params=24, seed=k),
    "int8": lambda k: cce.make_table("full", VOCAB, 8, codec="int8", seed=k),
    "hemb": lambda k: cce.make_table("hemb", VOCAB, 4, num_params=60, seed=k),
    "dhe": lambda k: cce.make_table("dhe", VOCAB, 4, num_params=400, seed=k),
}
PLAIN = ("cce", "cce projected", "ldim", "full", "robe", "bloom")
OPTIMISERS = {
    "sgd": lambda: cce.SGD(0.1),
    "momentum": lambda: cce.SGD(0.1, momentum=0.9),
    "adagrad": lambda: cce.Adagrad(0.1),
    "row-wise": lambda: cce.Adagrad(0.1, rowwise=True),
    "adam": lambda: cce.Adam(0.1),
    "adamw": lambda: cce.AdamW(0.1, weight_decay=0.1),
    "lazy": lambda: cce.AdamW(0.1, weight_decay=0.1, lazy=True),
    "row-wise bfloat16": lambda: cce.Adagrad(0.1, rowwise=True, state_dtype="bfloat16", projection_lr=0.03),
    "row-wise adam": lambda: cce.AdamW(0.1, weight_decay=0.1, rowwise=True, projection_lr=0.03),
    "lazy row-wise adam": lambda: cce.Adam(0.1, lazy=True, rowwise=True),
    "clipped": lambda: cce.Adam(0.1, max_norm=0.5),
}


def values(table):
    return {name: array.copy() for name, array in {**table.parameters(), **table.buffers()}.items()}


def same(tables, twins, tolerance=1e-5):
    for table, twin in zip(tables, twins):
        for name, array in values(table).items():
            np.testing.assert_allclose(array, values(twin)[name], rtol=tolerance, atol=tolerance)


def plain_loop(optimizer, tables, seen_ids, grads):
    """One table after the other, as a user would without a collection; `clipped` needs the norm over all of them."""
    gradients, left = [], 0
    for t, table in enumerate(tables):
        right = left + table.spec.dim
        gradients.append(table.backward(seen_ids[:, t], grads[:, left:right], dense=optimizer.updates_all()))
        left = right
    if optimizer.max_norm is not None:
        flat = [np.ravel(getattr(g, "values", g)) for own in gradients for g in own.values()]
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in flat))
        if norm > optimizer.max_norm:
            gradients, left = [], 0
            for t, table in enumerate(tables):
                right, scale = left + table.spec.dim, optimizer.max_norm / norm
                part = (grads[:, left:right] * scale).astype(np.float32)
                gradients.append(table.backward(seen_ids[:, t], part, dense=optimizer.updates_all()))
                left = right
    return gradients


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
    st.sampled_from(sorted(OPTIMISERS)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
)
def test_a_step_of_a_collection_is_a_step_of_each_table(kinds, name, seed, n):
    together, apart = OPTIMISERS[name](), OPTIMISERS[name]()
    tables, twins = ([KINDS[kind](k) for k, kind in enumerate(kinds)] for _ in range(2))
    both, rng = cce.Collection(tables), np.random.default_rng(seed)
    stepper = OPTIMISERS[name]()
    stepper.max_norm = None
    for turn in range(3):
        ids = rng.integers(0, VOCAB, (n, len(kinds)))
        grads = rng.standard_normal((n, both.dim)).astype(np.float32)
        together.update(both, both.forward(ids) if turn % 2 else ids, grads)
        gradients = plain_loop(apart, twins, ids, grads)
        for twin, own in zip(twins, gradients):
            stepper.step(twin, own)
        same(tables, twins, 2e-4)
        if turn == 1:
            for table, twin in zip(tables, twins):
                if table.method.learns:
                    table.cluster(n_iter=2), twin.cluster(n_iter=2)
                    for array, other in zip(table.arrays().values(), twin.arrays().values()):
                        other[...] = array  # rounding may have led them apart


@given(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3), st.sampled_from(sorted(OPTIMISERS)), st.data())
def test_bags_are_updated_by_their_plain_gradients(kinds, name, data):
    tables, twins = ([KINDS[kind](k) for k, kind in enumerate(kinds)] for _ in range(2))
    both, other = cce.Collection(tables), cce.Collection(twins)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths = [rng.integers(0, 4, 6) for _ in kinds]
    ids = [rng.integers(0, VOCAB, own.sum()) for own in lengths]
    weights = [rng.standard_normal(len(own)).astype(np.float32) for own in ids] if data.draw(st.booleans()) else None
    mode = "sum" if weights is not None else data.draw(st.sampled_from(["sum", "mean", "max"]))
    seen = both.forward(ids, None, weights, mode, lengths=lengths, padding_id=2)
    grads = rng.standard_normal(seen.vectors.shape).astype(np.float32)
    optimizer = OPTIMISERS[name]()
    gradients = other.backward(other.forward(ids, None, weights, mode, lengths=lengths, padding_id=2), grads)
    optimizer.apply_gradients(list(zip(twins, gradients)))
    OPTIMISERS[name]().update(both, seen, grads)
    same(tables, twins, 2e-4)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_results_do_not_depend_on_the_threads(name):
    n, found = (9_000 if COMPILED else 200), []
    rng = np.random.default_rng(0)
    ids, grads = rng.integers(0, VOCAB, (n, 4)), rng.standard_normal((n, 8 + 12 + 8 + 4)).astype(np.float32)
    for threads in (1, 2, 5):
        cce.set_num_threads(threads)
        tables = [KINDS[kind](k) for k, kind in enumerate(("cce", "cce projected", "robe", "bloom"))]
        both, optimizer = cce.Collection(tables), OPTIMISERS[name]()
        for _ in range(2):
            optimizer.update(both, both.forward(ids), grads)
        found.append([values(table) for table in tables])
    cce.set_num_threads(None)
    for other in found[1:]:
        for own, its in zip(found[0], other):
            for key in own:
                np.testing.assert_array_equal(own[key], its[key])


@pytest.mark.parametrize("width", [3, 4, 5])
def test_no_unit_is_split_between_two_threads(width):
    """Tables of 19 rows: half of their floats is the middle of a row."""
    rng, found = np.random.default_rng(width), []
    ids, grads = rng.integers(0, VOCAB, (300, 2)), rng.standard_normal((300, width + 6)).astype(np.float32)
    for threads in (1, 2, 3, 7):
        cce.set_num_threads(threads)
        tables = [cce.make_table("full", VOCAB, width, seed=0), KINDS["ldim"](1)]
        cce.Adam(0.1).update(cce.Collection(tables), ids, grads)
        found.append([values(table) for table in tables])
    cce.set_num_threads(None)
    for other in found[1:]:
        for own, its in zip(found[0], other):
            for key in own:
                np.testing.assert_array_equal(own[key], its[key])


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_bad_gradient_changes_nothing(name, bad):
    tables = [KINDS[kind](k) for k, kind in enumerate(("cce", "cce projected", "full"))]
    both, optimizer = cce.Collection(tables), OPTIMISERS[name]()
    ids, grads = np.zeros((300, 3), int), np.ones((300, both.dim), np.float32)
    optimizer.update(both, ids, grads)
    before, states = [values(table) for table in tables], [optimizer.state_bytes(table) for table in tables]
    grads[:, -1] = bad  # 300 times 3e38 is infinity
    with pytest.raises(ValueError, match="finite"):
        optimizer.update(both, ids, grads)
    for table, old in zip(tables, before):
        for key, array in values(table).items():
            np.testing.assert_array_equal(array, old[key])
    assert states == [optimizer.state_bytes(table) for table in tables]
    again = [KINDS[kind](k) for k, kind in enumerate(("cce", "cce projected", "full"))]
    other, twin = cce.Collection(again), OPTIMISERS[name]()
    for _ in range(2):  # the step that failed was not counted
        twin.update(other, ids, np.ones((300, both.dim), np.float32))
    optimizer.update(both, ids, np.ones((300, both.dim), np.float32))
    same(tables, again, 0)


def test_large_gradients_that_do_not_overflow_are_taken():
    table = KINDS["full"](0)
    both, before = cce.Collection([table]), table.lookup([0])
    cce.SGD(1e-36).update(both, np.zeros((1, 1), int), np.full((1, 5), 3e38, np.float32))
    np.testing.assert_allclose(before - table.lookup([0]), 300, rtol=1e-3)


def test_the_state_is_shared_with_steps_of_a_single_table():
    table, twin = KINDS["cce"](0), KINDS["cce"](0)
    both, optimizer, other = cce.Collection([table]), cce.Adam(0.1), cce.Adam(0.1)
    ids, grads = np.array([[1], [2]]), np.ones((2, 8), np.float32)
    for turn in range(4):
        if turn % 2:
            optimizer.update(both, ids, grads)
        else:
            optimizer.update(table, ids[:, 0], grads)
        other.update(twin, ids[:, 0], grads)
    same([table], [twin])
    assert optimizer.state_bytes(table) == other.state_bytes(twin) == 2 * 4 * table.num_params


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_a_mapped_table_is_refused_before_another_one_moves(name, tmp_path):
    KINDS["full"](0).save(tmp_path / "t")
    both = cce.Collection([KINDS["cce"](1), cce.load(tmp_path / "t", mmap=True)])
    before = values(both.tables[0])
    with pytest.raises(ValueError, match="read-only"):
        OPTIMISERS[name]().update(both, np.zeros((1, 2), int), np.ones((1, both.dim), np.float32))
    for key, array in values(both.tables[0]).items():
        np.testing.assert_array_equal(array, before[key])
    assert both.lookup(np.zeros((1, 2), int)).shape == (1, both.dim)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_a_copied_optimiser_has_a_state_of_its_own(name):
    """What was prepared for compiled loops holds addresses of the first one's arrays: a copy prepares its own."""
    table, twin = KINDS["cce projected"](0), KINDS["cce projected"](0)
    both, other = cce.Collection([table]), cce.Collection([twin])
    ids, grads = np.array([[1], [2]]), np.ones((2, 12), np.float32)
    first, straight = OPTIMISERS[name](), OPTIMISERS[name]()
    first.update(both, ids, grads)
    straight.update(other, ids, grads)
    kept = {key: array.copy() for key, array in values(table).items()}
    copied = copy.deepcopy(first)
    copied.update(both, ids, grads)  # must not move the state of `first`
    for key in kept:
        table.arrays()[key][...] = kept[key]
    table.requantize()
    first.update(both, ids, grads)
    straight.update(other, ids, grads)
    same([table], [twin], 0)


@pytest.mark.parametrize("make", [cce.SGD, cce.Adagrad, cce.Adam, cce.AdamW])
def test_clipping_means_the_norm_of_the_summed_gradient(make):
    table = cce.make_table("full", 5, 2, seed=0)
    twin = cce.make_table("full", 5, 2, seed=0)
    ids, grads = [1, 1, 3], np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 8.0]], np.float32)  # summed: 6 and 8, norm 10
    make(0.1, max_norm=5.0).update(table, ids, grads)
    make(0.1).update(twin, ids, grads / 2)
    same([table], [twin])
    make(0.1, max_norm=5.0).step(table, table.backward(ids, grads))
    make(0.1).step(twin, twin.backward(ids, grads / 2))
    same([table], [twin])
    for wrong in (0, -1, np.nan):
        with pytest.raises(ValueError, match="max_norm"):
            make(0.1, max_norm=wrong)
