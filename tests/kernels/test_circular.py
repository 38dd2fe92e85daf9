"""Circular k-means on the device: offsets, memories and whole clusterings of `cce_robe` as the CPU core has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, poisoned, tensor
from reference import circular as reference

import cce_core as cce
from cce_core.clustering import circular_assign, circular_k_means, circular_update
from cce_kernels import circular, kmeans
from cce_kernels.cluster import cluster
from cce_kernels.tables import Tables, from_table

pytestmark = pytest.mark.triton
few = settings(max_examples=15, suppress_health_check=list(HealthCheck))
_ = poisoned


def points(n: int, d: int, seed: int, grid: bool) -> np.ndarray:
    """Normal, or on a small grid, where distances tie."""
    rng = np.random.default_rng(seed + n + d)
    return (rng.integers(-2, 3, (n, d)) if grid else rng.normal(size=(n, d))).astype(np.float32)


@few
@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 40), st.booleans(), st.booleans())
def test_offsets_means_and_whole_fits(n, w, m, grid, weighted):
    """Windows wider than the memory too, which then pass over it more than once."""
    x, memory = points(n, w, 1, grid), points(m, 1, 2, grid)[:, 0]
    weights = np.random.default_rng(n).integers(0, 3, n).astype(np.float32) if weighted else None
    if weights is not None:
        weights[0] = 1
    there = tensor(x), tensor(memory), None if weights is None else tensor(weights)
    labels, costs = kmeans.assign(there[0], circular.windows(there[1], w))
    for got, want in zip((labels, costs), circular_assign(x, memory)):
        np.testing.assert_array_equal(got.cpu().numpy(), want)
    moved = circular.update(there[0], labels, there[1], there[2]).cpu().numpy()
    np.testing.assert_allclose(moved, circular_update(x, labels.cpu().numpy(), memory, weights), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moved, reference.update(x, labels.cpu().numpy(), memory, weights), rtol=1e-6, atol=1e-7)
    found, offsets, inertia, made = circular.k_means(there[0], there[1], 5, there[2])
    want = circular_k_means(x, memory, 5, weights)
    np.testing.assert_allclose(found.cpu().numpy(), want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(offsets.cpu().numpy(), want[1])
    np.testing.assert_allclose(inertia, want[2], rtol=1e-5, atol=1e-6)
    assert made == want[3]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"codec": "int8"}, {"rank": 4}], ids=str)
def test_a_clustering_is_that_of_the_cpu(options, weighted):
    """The start is always given: the same sample, pointers, keys and memory, over two generations."""
    table = cce.make_table("cce_robe", 300, 8, num_params=90, seed=2, **options)
    weights = np.random.default_rng(1).random(300).astype(np.float32) if weighted else None
    ids, more = np.arange(300), None if weights is None else tensor(weights)
    for generation in range(2):
        table.parameters()["memory"][:] += (
            np.random.default_rng(generation).normal(size=table.layout.size).astype(np.float32)
        )
        table.requantize()
        tables = Tables([(table.spec, from_table(table, DEVICE))])
        setting = {"n_iter": 4, "points_per_centroid": 3, "residual": generation == 0}
        want = table.cluster(weights=weights, **setting)
        got = cluster(tables, weights=more, batch_size=128, **setting)
        for name in ("pointers", "keys", "generation"):
            np.testing.assert_array_equal(tables.arrays[0][name].cpu().numpy(), table.arrays()[name], err_msg=name)
        np.testing.assert_allclose(tables.lookup(tensor(ids)).cpu().numpy(), table.lookup(ids), rtol=1e-4, atol=1e-4)
        assert (got.generation, got.n_clusters, got.iterations, got.empty_clusters) == (
            want.generation, want.n_clusters, want.iterations, want.empty_clusters,
        )  # fmt: skip
        for name in ("inertia_before", "inertia_after", "column_entropy", "pair_entropy"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, err_msg=name)
