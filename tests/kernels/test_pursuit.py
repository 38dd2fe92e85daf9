"""Sparse codes on the device: the atoms and weights of the CPU core's pursuit, and clusterings of `sparse` and `sparse2`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, poisoned, tensor

import cce_core as cce
from cce_core.clustering import omp as cpu_omp
from cce_kernels import pursuit
from cce_kernels.cluster import cluster
from cce_kernels.tables import Tables, from_table

pytestmark = pytest.mark.triton
few = settings(max_examples=30, suppress_health_check=list(HealthCheck))
_ = poisoned


@few
@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 8), st.booleans(), st.data())
def test_codes_are_the_cores(n, k, dim, grid, data):
    """Rows of zeros, equal atoms, atoms of length 0, rows that end early; on a grid, where products tie."""
    s = data.draw(st.integers(1, k))
    rng = np.random.default_rng(n + 31 * k)
    x, atoms = (
        (rng.integers(-2, 3, size) if grid else rng.normal(size=size)).astype(np.float32)
        for size in ((n, dim), (k, dim))
    )
    if data.draw(st.booleans()):
        x[: n // 3], atoms[: k // 3] = 0, atoms[-1]
    index, weights = pursuit.omp(tensor(x), tensor(atoms), s)
    want, factors = cpu_omp(x, atoms, s)
    if not grid:  # ties of rounded products may go either way, and then the codes differ, not what they are worth
        np.testing.assert_array_equal(index.cpu().numpy(), want)
        np.testing.assert_allclose(weights.cpu().numpy(), factors, rtol=1e-4, atol=1e-5)
    assert all(len(set(row)) == s for row in index.tolist())
    index, weights = index.cpu().numpy(), weights.cpu().numpy()
    for got, mine in ((index, weights), (want, factors)):
        left = x - np.einsum("ns,nsd->nd", mine, atoms[got])
        for row, chosen, used in zip(left, got, mine):
            assert np.abs(atoms[chosen[used != 0]] @ row).max(initial=0) < 1e-3  # nothing more to gain from those taken


def test_the_lowest_of_equal_atoms_is_taken():
    """Also where the product of rows and atoms rounds the same sum in several ways."""
    rng = np.random.default_rng(0)
    x, atom = rng.normal(size=(200, 5)).astype(np.float32), rng.normal(size=(1, 5)).astype(np.float32)
    for k in (9, 17, 33, 100):
        index, weights = pursuit.omp(tensor(x), tensor(np.repeat(atom, k, 0)), 2)
        assert index.tolist() == [[0, 1]] * 200
        assert not weights[:, 1].any()


def test_blocks_of_rows_and_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    x, atoms = (tensor(rng.normal(size=size).astype(np.float32)) for size in ((50, 6), (9, 6)))
    whole = pursuit.omp(x, atoms, 3)
    monkeypatch.setattr(pursuit, "_AT_ONCE", 70)
    assert all((a == b).all() for a, b in zip(pursuit.omp(x, atoms, 3), whole))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", ["sparse", "sparse2"])
def test_a_clustering_is_that_of_the_cpu(method, weighted):
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(12, 8))[rng.integers(0, 12, 300)] + 0.1 * rng.normal(size=(300, 8))).astype(np.float32)
    weights = rng.random(300).astype(np.float32) if weighted else None
    table = cce.make_table(method, 300, 8, num_params=30 * 8, seed=2)
    tables = Tables([(table.spec, from_table(table, DEVICE))])
    setting = {"n_iter": 3, "points_per_centroid": 4}
    want = table.cluster(vectors=vectors, weights=weights, **setting)
    more = None if weights is None else tensor(weights)
    got = cluster(tables, vectors=tensor(vectors), weights=more, batch_size=128, **setting)
    for name in ("pointers", "keys", "generation"):
        if name in table.arrays():
            np.testing.assert_array_equal(tables.arrays[0][name].cpu().numpy(), table.arrays()[name], err_msg=name)
    for name, values in table.parameters().items():
        np.testing.assert_allclose(tables.arrays[0][name].cpu().numpy(), values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (got.iterations, got.empty_clusters) == (want.iterations, want.empty_clusters)
    for name in ("inertia_before", "inertia_after", "column_entropy", "pair_entropy"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, err_msg=name)
    with pytest.raises(ValueError, match="learns from a trained one"):
        cluster(tables)
