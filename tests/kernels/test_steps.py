"""Optimisers on the device: the parameters that cce_core's own have after the same steps; codes of every codec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import CODECS, DEVICE, METHODS, make, poisoned, tensor, torch
from reference import optimizers

import cce_core as cce
from cce_core.storage.codec import codec as get_codec
from cce_kernels import codecs, steps
from cce_kernels.tables import Tables, from_table

pytestmark = pytest.mark.triton
few = settings(max_examples=10, suppress_health_check=list(HealthCheck))
_ = poisoned
RULES = {
    "sgd": lambda: cce.SGD(0.3),
    "momentum": lambda: cce.SGD(0.3, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda: cce.Adagrad(0.2),
    "rowwise": lambda: cce.Adagrad(0.2, rowwise=True),
    "adamw": lambda: cce.AdamW(0.1, weight_decay=0.1),
    "lazy": lambda: cce.Adam(0.1, lazy=True),
}


def near(got: torch.Tensor, want: np.ndarray) -> None:
    np.testing.assert_allclose(got.cpu().numpy().reshape(-1), np.asarray(want).reshape(-1), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("rule", RULES)
def test_one_parameter_against_the_formulas(rule):
    """Whole gradients, and of touched rows alone; rows of 5 floats."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=35).astype(np.float32)
    grads = [rng.normal(size=35).astype(np.float32) for _ in range(3)]
    touched = [np.array([0, 3, 6]), np.array([3, 1]), np.array([], np.int64)]
    sparse = [np.where(np.isin(np.arange(35) // 5, rows), g, 0) for g, rows in zip(grads, touched)]
    formula = {
        "sgd": lambda g, _: optimizers.sgd(first, g, 0.3),
        "momentum": lambda g, _: optimizers.sgd(first, g, 0.3, 0.9, 0.01),
        "adagrad": lambda g, _: optimizers.adagrad(first, g, 0.2),
        "rowwise": lambda g, _: optimizers.adagrad(first, g, 0.2, unit=5),
        "adamw": lambda g, _: optimizers.adamw(first, g, 0.1, weight_decay=0.1),
        "lazy": lambda g, on: optimizers.adamw(first, g, 0.1, weight_decay=0.0, touched=on),
    }[rule]
    p, state = tensor(first), steps.State()
    for g in grads:
        steps.step(RULES[rule](), p, tensor(g), 5, state)
    near(p, formula(grads, None))
    p, state = tensor(first), steps.State()
    for g, rows in zip(grads, touched):
        steps.step(RULES[rule](), p, (tensor(rows), tensor(g.reshape(7, 5)[rows])), 5, state)
    near(p, formula(sparse, [np.isin(np.arange(35) // 5, rows) for rows in touched]))
    assert state.step == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("method", "options"), [METHODS[i] for i in (0, 7, 9, 10, 13, 14, 15, 19)])
def test_training_is_that_of_the_cpu(method, options, rule):
    """Three steps, whole gradients and touched units as each rule takes them; every parameter."""
    table = make(method, 60, 12, seed=1, **options)
    device = Tables([(table.spec, from_table(table, DEVICE))])
    trainer, optimizer = steps.Trainer(device, RULES[rule]()), RULES[rule]()
    rng = np.random.default_rng(2)
    for _ in range(3):
        ids, grads = rng.integers(0, 60, 20), rng.normal(size=(20, 12)).astype(np.float32)
        optimizer.update(table, ids, grads)
        trainer.update(tensor(ids), tensor(grads))
    for name, want in table.parameters().items():
        near(device.arrays[0][name], want)


@pytest.mark.parametrize("large", [False, True])
def test_small_and_large_memories_take_their_own_ways(monkeypatch, large):
    """Whole gradients where a batch touches most of the memory, touched units where it does not: the same result."""
    seen = []
    plain = Tables.backward
    monkeypatch.setattr(Tables, "backward", lambda *a, **k: seen.append(k["touched"]) or plain(*a, **k))
    table = make("full", 4000 if large else 40, 8)
    device = Tables([(table.spec, from_table(table, DEVICE))])
    trainer, optimizer = steps.Trainer(device, cce.Adagrad(0.1, rowwise=True)), cce.Adagrad(0.1, rowwise=True)
    ids, grads = np.arange(30) % 7, np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    for _ in range(2):
        optimizer.update(table, ids, grads)
        trainer.update(tensor(ids), tensor(grads))
    assert seen == [large, large]
    near(device.arrays[0]["memory"], table.parameters()["memory"])
    assert trainer.state_bytes() == 4 * table.spec.vocab


@pytest.mark.parametrize("rounding", ["straight-through", "stochastic"])
@pytest.mark.parametrize("codec", CODECS[1:])
def test_behind_codecs(codec, rounding):
    table = cce.make_table("cce", 60, 8, num_params=640, rank=0, codec=codec, rounding=rounding, seed=4)
    device = Tables([(table.spec, from_table(table, DEVICE))])
    trainer, optimizer = steps.Trainer(device, cce.SGD(0.5)), cce.SGD(0.5)
    rng = np.random.default_rng(2)
    for _ in range(3):  # one id in each batch: no sum has an order, so the bits are the same
        ids, grads = rng.integers(0, 60, 1), rng.normal(size=(1, 8)).astype(np.float32)
        optimizer.update(table, ids, grads)
        trainer.update(tensor(ids), tensor(grads))
    for name in ("memory", "scales"):
        if name in table.arrays():
            np.testing.assert_array_equal(device.arrays[0][name].cpu().numpy(), table.arrays()[name])
    held = {"float32": 4.0, "int4": 0.5}.get(codec if rounding == "stochastic" else "float32", 0)
    assert trainer.state_bytes() == held * table.layout.size


@few
@given(st.sampled_from(CODECS), st.integers(0, 200), st.none() | st.integers(0, 2**64 - 1), st.integers(0, 99))
def test_codes_have_the_same_bits(name, size, key, seed):
    codec, rng = get_codec(name), np.random.default_rng(seed)
    values = (rng.normal(size=size) * 10.0 ** rng.integers(-38, 38)).astype(np.float32)
    values[: size // 5] = 0
    if size > 3:
        values[3] = np.finfo(np.float32).max
    codes, scales = codec.encode(values, key)
    mine, theirs = tensor(np.full_like(codes, 7)), tensor(np.full_like(scales, np.nan))
    codecs.encode_into(codec, tensor(values), mine, theirs, key)
    np.testing.assert_array_equal(mine.cpu().numpy(), codes)
    np.testing.assert_array_equal(theirs.cpu().numpy(), scales)
    np.testing.assert_array_equal(
        codecs.decode(codec, mine, theirs, size).cpu().numpy(), codec.decode(codes, scales, size)
    )


def test_plain_sgd_adds_into_the_memories_of_many_tables(monkeypatch):
    monkeypatch.setattr(Tables, "backward", None)
    several = [make("cce", 60, 8, rank=0), make("robe", 50, 12), make("full", 9, 4)]
    device = Tables([(t.spec, from_table(t, DEVICE)) for t in several])
    ids = np.array([[1, 2, 2], [3, 3, 49], [8, 0, 8]])
    grads = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    steps.Trainer(device, cce.SGD(0.5)).update(tensor(ids.T), tensor(grads))
    left = 0
    for k, table in enumerate(several):
        cce.SGD(0.5).update(table, ids[k], grads[:, left : left + table.spec.dim])
        near(device.arrays[k]["memory"], table.parameters()["memory"])
        left += table.spec.dim
    before = [arrays["memory"].clone() for arrays in device.arrays]
    ids[2, 2] = 9
    with pytest.raises(IndexError, match="table 2: id 9 at position 2"):
        steps.Trainer(device, cce.SGD(0.5)).update(tensor(ids.T), tensor(grads))
    assert all(torch.equal(a, arrays["memory"]) for a, arrays in zip(before, device.arrays))


def test_what_callers_get_wrong():
    table = make("ce", 50, 4)
    device = Tables([(table.spec, from_table(table, DEVICE))])
    with pytest.raises(TypeError, match="optimizer must be an SGD, Adagrad, Adam or AdamW of cce_core, got str"):
        steps.Trainer(device, "sgd")
    with pytest.raises(ValueError, match="parameter must be one of memory; got 'wrong'"):
        steps.Trainer(device, cce.SGD(0.5)).step([{"wrong": tensor(np.ones(3, np.float32))}])
    with pytest.raises(ValueError, match="one dict for each of 1 tables, got 2"):
        steps.Trainer(device, cce.SGD(0.5)).step([{}, {}])


def test_clipping_is_refused_and_not_left_out():
    p = torch.ones(4)
    with pytest.raises(ValueError, match="max_norm"):
        steps.step(cce.SGD(0.1, max_norm=1.0), p, torch.ones(4), 2, steps.State())
    assert (p == 1).all()
