"""Tensor trains and deep hashes on the device: vectors and gradients of cce_core and of the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, poisoned, tensor, torch
from reference import dhe as reference_dhe
from reference import tt as reference_tt

import cce_core as cce
from cce_core.method.deep_hash import encode as cpu_encode
from cce_kernels import dhe, trains
from cce_kernels.tables import from_table

pytestmark = pytest.mark.triton
few = settings(max_examples=8, suppress_health_check=list(HealthCheck))
_ = poisoned


def agree(module, table, ids) -> None:
    arrays = from_table(table, DEVICE)
    got = module.lookup(table.spec, arrays, tensor(ids))
    want = table.lookup(ids)
    assert tuple(got.shape) == want.shape
    np.testing.assert_allclose(got.cpu().numpy(), want, rtol=2e-4, atol=2e-5)
    grads = np.random.default_rng(0).normal(size=want.shape).astype(np.float32)
    slopes = module.backward(table.spec, arrays, tensor(ids), tensor(grads))
    expected = table.backward(ids, grads, dense=True)
    assert set(slopes) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(slopes[name].cpu().numpy(), values, rtol=1e-3, atol=1e-4)


@few
@given(st.integers(2, 4), st.sampled_from([1, 6, 16]), st.lists(st.integers(0, 99), max_size=20))
def test_trains(cores, dim, ids):
    table = cce.make_table("tt", 100, dim, num_params=900, cores=cores, seed=1)
    agree(trains, table, np.array(ids, np.int32))
    train = reference_tt.cores([table.arrays()[f"core{k}"] for k in range(cores)], 100, dim, table.spec.sizes)
    got = trains.lookup(table.spec, from_table(table, DEVICE), tensor(np.array(ids, np.int64)))
    np.testing.assert_allclose(got.cpu().numpy(), reference_tt.lookup(ids, train), rtol=1e-4, atol=1e-5)


@few
@given(st.sampled_from(["uniform", "gaussian"]), st.integers(1, 3), st.lists(st.integers(0, 99), max_size=12))
def test_deep_hashes(transform, depth, ids):
    table = cce.make_table("dhe", 100, 6, num_params=700, transform=transform, depth=depth, seed=3)
    agree(dhe, table, np.array(ids, np.int64).reshape(-1, 1))
    got = dhe.encode(table.spec, tensor(np.array(ids, np.int64))).cpu().numpy()
    want = cpu_encode(table.spec, np.array(ids, np.uint64))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)
    some = ids[:3]
    twin = reference_dhe.lookup(some, table.arrays(), 3, depth, transform)
    mine = dhe.lookup(table.spec, from_table(table, DEVICE), tensor(np.array(some, np.int64)))
    np.testing.assert_allclose(mine.cpu().numpy(), twin, rtol=1e-3, atol=1e-4)


def test_many_hashes_and_unbounded_ids():
    """More hashes than a tile is wide, and words of all 64 bits."""
    table = cce.make_table("dhe", None, 4, num_params=5000, n_hashes=600, depth=1)
    ids = np.array([0, -1, 2**62, -(2**63)])
    got = dhe.encode(table.spec, tensor(ids)).cpu().numpy()
    np.testing.assert_allclose(got, cpu_encode(table.spec, ids.view(np.uint64)), rtol=1e-6, atol=2e-6)


def test_what_callers_get_wrong():
    for module, method in ((trains, "tt"), (dhe, "dhe")):
        table = cce.make_table(method, 50, 4, num_params=700)
        arrays = from_table(table, DEVICE)
        for bad in (50, -1):
            with pytest.raises(IndexError, match=f"id {bad} at place 1 must be between 0 and 49"):
                module.lookup(table.spec, arrays, tensor(np.array([3, bad])))
        clamped = module.lookup(table.spec, arrays, tensor(np.array([60])), check=False)
        np.testing.assert_allclose(clamped.cpu().numpy()[0], table.lookup(49), rtol=1e-4, atol=1e-5)
        with pytest.raises(TypeError, match="ids must be an integer tensor"):
            module.lookup(table.spec, arrays, torch.ones(3, device=DEVICE))
        with pytest.raises(ValueError, match="grads must have shape"):
            module.backward(table.spec, arrays, tensor(np.array([3])), torch.ones(1, 5, device=DEVICE))
        other = cce.make_table("ce", 50, 4, num_params=100)
        with pytest.raises(ValueError, match=r"use cce_kernels\.tables"):
            module.lookup(other.spec, from_table(other, DEVICE), tensor(np.array([3])))
