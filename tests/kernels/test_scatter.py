"""Gradients on the device: those of the CPU core and of the definition, by atomic additions and in a fixed order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, METHODS, decoded, described, make, poisoned, tables, tensor, torch
from reference import tables as reference

from cce_core.sketching.gradient import SparseGradient
from cce_kernels import lookup as kernel
from cce_kernels import ordered
from cce_kernels.tables import Tables, from_table

pytestmark = pytest.mark.triton
few = settings(max_examples=10, suppress_health_check=list(HealthCheck))
_ = poisoned
LINEAR = [m for m in METHODS if m[1].get("combine") != "mul"]


def on(*of) -> Tables:
    return Tables([(table.spec, from_table(table, DEVICE)) for table in of])


def near(got, want, scale=1.0) -> None:
    """Equal up to the order of the sums."""
    np.testing.assert_allclose(
        got.cpu().numpy().reshape(-1), np.asarray(want).reshape(-1), rtol=1e-4, atol=2e-5 * scale
    )


def gradients(n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(n + dim).normal(size=(n, dim)).astype(np.float32)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method(method, options, deterministic):
    codec = {"cce": "bfloat16", "hemb": "int8"}.get(method, "float32")
    table = make(method, 60, 12, codec, seed=5, **options)
    ids = np.random.default_rng(0).integers(0, 60, 70)
    grads = gradients(70, 12)
    device = on(table)
    (got,), slopes = device.backward(tensor(ids), tensor(grads), deterministic=deterministic)
    want = table.backward(ids, grads, dense=True)
    assert slopes is None
    assert set(got) == set(want)
    for name, values in want.items():
        near(got[name], values, 5)
    twin = reference.backward(table.spec.method, ids, grads, decoded(table), **described(table))
    for name in want:
        near(got[name], twin[name], 5)


@few
@given(data=st.data())
def test_any_table_and_any_ids(data):
    table = data.draw(tables())
    ids = np.array(data.draw(st.lists(st.integers(0, 39), max_size=30)), np.int64)
    grads, device = gradients(len(ids), table.spec.dim), on(table)
    want = table.backward(ids, grads, dense=True)
    for deterministic in (False, True):
        (got,), _ = device.backward(
            tensor(ids), tensor(grads), deterministic=deterministic, seen=device.forward(tensor(ids))
        )
        for name, values in want.items():
            near(got[name], values, 10)


def spread(grads, ids, offsets, mode, factors, padding):
    """The gradient of each id's vector in its bag."""
    out = np.zeros((len(ids), grads.shape[1]), np.float32)
    for b in range(len(offsets) - 1):
        mine = [n for n in range(offsets[b], offsets[b + 1]) if padding is None or ids[n] != padding]
        for n in mine:
            out[n] = grads[b] * (1 if factors is None else factors[n]) / (len(mine) if mode == "mean" else 1)
    return out


@few
@given(data=st.data())
def test_bags_of_many_tables(data):
    several = data.draw(st.lists(tables(LINEAR), min_size=1, max_size=3))
    bags = data.draw(st.integers(0, 4))
    lengths = [[data.draw(st.integers(0, 5)) for _ in range(bags)] for _ in several]
    offsets = [np.cumsum([0, *row]) for row in lengths]
    ids = [np.array([data.draw(st.integers(0, 8)) for _ in range(ends[-1])], np.int64) for ends in offsets]
    mode, padding = data.draw(st.sampled_from(["sum", "mean"])), data.draw(st.none() | st.just(2))
    weigh = mode == "sum" and data.draw(st.booleans())
    weights = [gradients(len(one) + k, 1)[k:, 0] for k, one in enumerate(ids)] if weigh else None
    device = on(*several)
    grads = gradients(bags, sum(device.dims))
    given = {"mode": mode, "padding_id": padding, "weights": [tensor(one) for one in weights] if weights else None}
    flat, ends = [tensor(one) for one in ids], [tensor(one) for one in offsets]
    for deterministic in (False, True):
        got, _ = device.backward(flat, tensor(grads), ends, deterministic=deterministic, **given)
        left = 0
        for k, table in enumerate(several):
            dim = table.spec.dim
            each = spread(
                grads[:, left : left + dim], ids[k], offsets[k], mode, weights[k] if weights else None, padding
            )
            want = table.backward(ids[k], each, dense=True)
            for name, values in want.items():
                if name != "projection":  # its bias counts a bag that is all padding for nothing: tested below
                    near(got[k][name], values, 10)
            left += dim


def test_bias_of_bags():
    """One bias for each id that counts, times its factor; one for a mean, none for an empty bag."""
    table = make("cce", 40, 8, rank=4)
    ids, offsets = np.array([1, 2, 2, 3, 5]), np.array([0, 2, 2, 5])
    grads, factors = gradients(3, 8), np.array([1, 2, 3, 4, 5], np.float32)
    for mode, of, counts in (("sum", factors, [3, 0, 12]), ("mean", None, [1, 0, 1])):
        (got,), _ = on(table).backward(
            tensor(ids), tensor(grads), tensor(offsets), mode=mode, weights=None if of is None else tensor(of)
        )
        near(got["projection"][-1], np.array(counts) @ grads)


def test_slopes_are_the_gradient_of_the_factors():
    for table in (make("cce", 40, 8, rank=0), make("hemb", 40, 12, weights="concat"), make("cce", 40, 8, rank=4)):
        ids, offsets = np.array([1, 2, 2, 3, 5]), np.array([0, 2, 2, 5])
        factors, device = np.array([1, 2, 3, -4, 5], np.float32), on(table)
        grads = gradients(3, table.spec.dim)
        _, slopes = device.backward(tensor(ids), tensor(grads), tensor(offsets), weights=tensor(factors), slopes=True)
        want = np.einsum("nd,nd->n", table.lookup(ids), grads[[0, 0, 2, 2, 2]])
        near(slopes, want)  # with the bias's share
        _, slopes = device.backward(
            tensor(ids), tensor(grads), tensor(offsets), weights=tensor(factors), slopes=True, padding_id=2
        )
        near(slopes, want * (ids != 2))


@pytest.mark.parametrize(("method", "options"), LINEAR)
def test_touched_units_alone(method, options):
    table = make(method, 300, 12, **options)
    ids = np.array([4, 4, 299, 31])
    grads = gradients(4, 12)
    (got,), _ = on(table).backward(tensor(ids), tensor(grads), touched=True)
    for name, want in table.backward(ids, grads).items():
        if isinstance(want, SparseGradient):
            order = np.argsort(want.index)
            index, values = got[name]
            np.testing.assert_array_equal(index.cpu().numpy(), want.index[order])
            near(values, want.values[order])
        else:
            near(got[name], want)


def test_one_hot_id_is_summed_in_pieces():
    """300 additions to each block: three pieces, then one; and a long bag."""
    table = make("ce", 50, 4)
    ids, grads, device = np.zeros(300, np.int64), gradients(300, 4), on(table)
    assert 4 * ordered.PIECE < 300
    runs = [device.backward(tensor(ids), tensor(grads), deterministic=True)[0][0]["memory"] for _ in range(2)]
    assert torch.equal(*runs)
    near(runs[0], table.backward(ids, grads, dense=True)["memory"], 10)


def test_fixed_order_is_torchs_word(monkeypatch):
    seen = []
    plain = ordered.run
    monkeypatch.setattr(ordered, "run", lambda *a: seen.append(1) or plain(*a))
    device, ids, grads = on(make("ce", 50, 4)), tensor(np.arange(3)), tensor(gradients(3, 4))
    device.backward(ids, grads)
    assert not seen
    torch.use_deterministic_algorithms(True)
    try:
        device.backward(ids, grads)
        assert len(seen) == 1
        device.backward(ids, grads, deterministic=False)
        assert len(seen) == 1
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
def test_whole_and_broken_tiles(monkeypatch, n):
    monkeypatch.setattr(kernel, "TILE", 128)
    monkeypatch.setattr("cce_kernels.scatter.TILE", 128)
    monkeypatch.setattr(ordered, "TILE", 128)
    monkeypatch.setattr(ordered, "_SUMS", 16)
    table = make("cce", 1000, 8, rank=0)
    ids, grads, device = np.arange(n) * 19, gradients(n, 8), on(table)
    for deterministic in (False, True):
        (got,), _ = device.backward(tensor(ids), tensor(grads), deterministic=deterministic)
        near(got["memory"], table.backward(ids, grads, dense=True)["memory"])


def test_sums_of_runs_exhaustively(monkeypatch):
    """All keys of up to 5 additions to 3 places, one of them nowhere, in pieces of 2."""
    values = tensor(np.arange(1, 11, dtype=np.float64))
    nowhere = ordered.NOWHERE
    monkeypatch.setattr(ordered, "PIECE", 2)
    for n in range(6):
        for keys in list(itertools.product([0, 1, nowhere], repeat=n))[:: 7 if n == 5 else 3]:
            of = torch.tensor(keys, dtype=torch.int64, device=DEVICE)
            index, sums = ordered.sum_runs(of, 2 * torch.arange(n, device=DEVICE), None, values, 2)
            mine = {k: [i for i, key in enumerate(keys) if key == k] for k in {*keys} - {nowhere}}
            want = {k: [float(sum(2 * i + 1 + j for i in at)) for j in (0, 1)] for k, at in mine.items()}
            assert dict(zip(index.tolist(), sums.tolist())) == want


def test_what_callers_get_wrong():
    device, ids = on(make("ce", 50, 4)), tensor(np.arange(3))
    with pytest.raises(ValueError, match=r"grads must have shape \(3, 4\), got \(3, 5\)"):
        device.backward(ids, tensor(gradients(3, 5)))
    with pytest.raises(TypeError, match=r"grads must be float32, got torch\.float64"):
        device.backward(ids, tensor(gradients(3, 4)).double())
    with pytest.raises(IndexError, match="id 50 at position 2 .* from 0 to 49"):
        device.backward(tensor(np.array([0, 1, 50])), tensor(gradients(3, 4)))
    (got,), _ = device.backward(tensor(np.array([0, 1, 50])), tensor(gradients(3, 4)), check=False)
    near(got["memory"], make("ce", 50, 4).backward([0, 1], gradients(3, 4)[:2], dense=True)["memory"])
    with pytest.raises(ValueError, match="sums by atomic additions"):
        device.backward(ids, tensor(gradients(3, 4)), slopes=True, deterministic=True)
