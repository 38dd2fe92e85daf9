"""Codecs: what is stored is what was meant, within half a step; and tables that train behind one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import codec as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.learning.codebooks import Learner
from cce_core.storage.codec import BLOCK, CODECS, codec

ROUNDED = CODECS[1:]
sizes = st.integers(1, 3 * BLOCK + 1)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_of_the_smallest_floats_are_those_of_what_they_stand_for(name):
    """Some are so small that their scale is 0."""
    for k in range(1, 200):
        codes, scales = codec(name).encode(np.array([k, -k], np.float32) * np.float32(2.0**-149))
        again, _ = codec(name).encode(codec(name).decode(codes, scales, 2))
        np.testing.assert_array_equal(again, codes)


@given(name=st.sampled_from(CODECS), data=st.data())
def test_a_float_comes_back_within_half_a_step(name, data):
    scale = data.draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
    values = data.draw(hnp.arrays(np.float32, sizes, elements=st.floats(-1, 1, width=32))) * np.float32(scale)
    codes, scales = codec(name).encode(values)
    back = codec(name).decode(codes, scales, values.size)
    expected, half = naive.rounded(name, values)
    slack = 1e-6 * np.abs(values).max() + 1e-37
    assert (np.abs(back - values.astype(np.float64)) <= half * (1 + 1e-5) + slack).all()
    nearer = np.abs(back - expected) > 2 * half + slack  # at a tie either neighbour is right
    assert not nearer.any()
    again, _ = codec(name).encode(back)
    if name != "int4":
        np.testing.assert_array_equal(again, codes)


@given(
    name=st.sampled_from(CODECS),
    values=hnp.arrays(np.float32, sizes, elements=finite),
    key=st.none() | st.integers(0, 9),
)
@example(name="int8", values=np.full(1, np.finfo(np.float32).max, np.float32), key=None)
@example(name="bfloat16", values=np.full(1, np.finfo(np.float32).min, np.float32), key=3)
@example(name="int4", values=np.full(1, np.float32(1e-45)), key=None)
def test_finite_stays_finite(name, values, key):
    codes, scales = codec(name).encode(values, key)
    assert np.isfinite(codec(name).decode(codes, scales, values.size)).all()


@pytest.mark.parametrize("name", ROUNDED)
def test_stochastic_rounding_is_right_in_the_mean(name):
    values = np.linspace(-1, 1, BLOCK).astype(np.float32)
    runs = 400 if COMPILED else 60
    mean = np.zeros(BLOCK)
    for key in range(runs):
        codes, scales = codec(name).encode(values, key)
        mean += codec(name).decode(codes, scales, BLOCK) / runs
    _, half = naive.rounded(name, values)
    assert (np.abs(mean - values) <= 2 * half * 5 * 0.5 / runs**0.5 + 1e-6).all()  # five standard deviations of a coin
    nearest, scales = codec(name).encode(values)
    assert (
        np.abs(codec(name).decode(nearest, scales, BLOCK) - values).max() > np.abs(mean - values).max()
        or name == "bfloat16"
    )


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_what_the_arrays_take_and_the_sizing_is_its_inverse(name):
    kept = codec(name)
    for size in range(1, 2 * BLOCK + 3):
        codes, scales = kept.encode(np.ones(size, np.float32))
        assert codes.nbytes + scales.nbytes == kept.nbytes(size)
        assert kept.nbytes(kept.floats_within(kept.nbytes(size))) <= kept.nbytes(size)
        assert kept.floats_within(kept.nbytes(size)) >= size
        assert kept.nbytes(kept.floats_within(size) + 1) > size or kept.floats_within(size) % 2


@pytest.mark.parametrize("name", ROUNDED)
def test_codes_do_not_depend_on_the_number_of_threads(name):
    values = np.random.default_rng(0).standard_normal(70_001 if COMPILED else 700, np.float32)
    seen = []
    for threads in (1, 3):
        cce.set_num_threads(threads)
        codes, scales = codec(name).encode(values, 7)
        seen.append((codes, scales, codec(name).decode(codes, scales, values.size)))
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)


# Tables behind a codec


def descend(table, steps=300, lr=0.02):
    """Train the vectors of 8 ids towards fixed targets; the mean square that is left."""
    targets = np.random.default_rng(1).standard_normal((8, table.spec.dim)) / 4
    optimizer, ids = cce.Adam(lr), np.arange(8)
    for _ in range(steps):
        seen = table.forward(ids)
        optimizer.update(table, seen, seen.vectors - targets)
    return float(np.square(table.lookup(ids) - targets).mean())


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("rounding", ["straight-through", "stochastic"])
def test_a_table_trains_behind_a_codec(name, rounding):
    steps = 300 if COMPILED else 100
    table = cce.make_table("full", 8, 16, codec=name, rounding=rounding, seed=1)
    left = descend(table, steps)  # of a mean square of 1/16
    assert left < {"bfloat16": 1e-3, "int8": 1e-3, "int4": 1e-2}[name] * (1 if rounding == "straight-through" else 4)
    held = table.ledger().training.get("values", 0)
    assert held == (4 * 8 * 16 if rounding == "straight-through" else 0)


def test_less_than_a_step_is_not_lost():
    """Updates far below a quarter of a code add up, with either rounding."""
    for rounding in ("straight-through", "stochastic"):
        table = cce.make_table("full", 8, 16, codec="int4", rounding=rounding)
        ids, before = np.arange(8), table.lookup(np.arange(8)).mean()
        optimizer = cce.SGD(1e-3)
        for _ in range(100):
            optimizer.step(table, table.backward(ids, np.ones((8, 16))))
        assert table.lookup(ids).mean() == pytest.approx(before - 0.1, abs=0.02)


@pytest.mark.parametrize("method", ["full", "ce", "robe", "cce", "hemb"])
@pytest.mark.parametrize("name", CODECS)
def test_files_keep_the_codes(method, name, tmp_path):
    budget = {} if method == "full" else {"num_bytes": 3000}
    table = cce.make_table(method, 50, 8, codec=name, seed=2, **budget)
    cce.SGD(0.1).step(table, table.backward([1, 2], np.ones((2, 8))))
    table.save(tmp_path / "t.safetensors")
    for mmap in (False, True):
        again = cce.load(tmp_path / "t.safetensors", mmap=mmap)
        np.testing.assert_array_equal(again.lookup(np.arange(50)), table.lookup(np.arange(50)))
        assert again.ledger().total == table.ledger().total
    with pytest.raises(ValueError, match="mapped read-only"):
        cce.SGD(0.1).step(again, again.backward([1], np.ones((1, 8))))


@pytest.mark.parametrize("name", ROUNDED)
def test_a_table_behind_a_codec_clusters(name):
    table = cce.make_table("cce", 60, 8, num_params=1024, codec=name, rank=0, seed=1)
    twin = cce.make_table("cce", 60, 8, num_params=1024, codec=name, rank=0, seed=1)
    twin.parameters()
    before = table.lookup(np.arange(60))
    for t in (table, twin):
        t.cluster()
    after = table.lookup(np.arange(60))
    np.testing.assert_array_equal(after, twin.lookup(np.arange(60)))
    assert np.square(after - before).mean() < 0.5 * np.square(before).mean()
    np.testing.assert_allclose(twin.parameters()["memory"], twin.stored.decoded(), atol=0.05)
    for t in (table, twin):  # what was learned is what is trained on
        cce.SGD(0.0).update(t, [1, 2], np.ones((2, 8)))
        np.testing.assert_allclose(t.lookup(np.arange(60)), after, atol=0.02 if name == "int4" else 2e-3)


@pytest.mark.parametrize("method", ["cce", "hemb", "int8"])
def test_looking_up_and_clustering_hold_no_trained_values(method):
    table = cce.make_table(method, 60, 8, codec="int8", **({} if method == "int8" else {"num_params": 1024}))
    table.lookup([1, 2])
    if method == "cce":
        table.cluster()
    table.sketch_matrix()
    assert table.stored.training_bytes == 0


def test_values_that_were_changed_are_settled():
    table = cce.make_table("int8", 4, 8)
    table.parameters()["memory"][:] = 0.5
    assert not (table.lookup([0, 1, 2, 3]) == 0.5).all()
    table.requantize()
    np.testing.assert_allclose(table.lookup([0, 1, 2, 3]), 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
def test_stochastic_rounding_keeps_no_float_values_that_a_later_step_rounds_anew(name):
    """Neither a collection, nor whoever asked for the values before `cluster`, leaves any that the codes don't say."""
    table = cce.make_table("cce", 60, 8, num_params=512, codec=name, rank=4, rounding="stochastic", seed=1)
    cce.Collection([table]).lookup(np.zeros((1, 1), int))
    assert table.stored.training_bytes == 0
    table.parameters()
    table.cluster()
    np.testing.assert_array_equal(table.parameters()["memory"], table.stored.decoded())


@pytest.mark.parametrize("rounding", ["straight-through", "stochastic"])
def test_values_that_are_asked_for_while_a_clustering_ends_are_the_new_ones(rounding, monkeypatch):
    table = cce.make_table("cce", 60, 8, num_params=512, codec="bfloat16", rank=0, rounding=rounding, seed=1)
    change, asking = Learner.change, threading.Thread(target=table.parameters)

    def then_asked(learner):
        out = change(learner)
        asking.start()
        asking.join(0.2)
        return out

    monkeypatch.setattr(Learner, "change", then_asked)
    table.cluster()
    asking.join()
    at_most = 2.0**-8 * np.abs(table.stored.decoded())  # of bfloat16, where exact values are kept
    assert (np.abs(table.parameters()["memory"] - table.stored.decoded()) <= at_most).all()
