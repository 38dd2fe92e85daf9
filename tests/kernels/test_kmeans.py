"""k-means on the device: the labels of the definition and of cce_core, ties and all; packed pointers; whole clusterings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, poisoned, tensor, torch
from reference import kmeans as reference

from cce_core.clustering import assign as cpu_assign
from cce_core.clustering import update as cpu_update
from cce_core.storage.packed import Packing
from cce_kernels import kmeans, packing

pytestmark = pytest.mark.triton
few = settings(max_examples=15, suppress_health_check=list(HealthCheck))
_ = poisoned


def points(n: int, d: int, seed: int = 0, grid: bool = False) -> np.ndarray:
    """Normal, or on a small grid, where distances tie."""
    rng = np.random.default_rng(seed + n + d)
    x = rng.integers(-2, 3, (n, d)) if grid else rng.normal(size=(n, d))
    return x.astype(np.float32)


@few
@given(st.integers(0, 300), st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_labels_are_those_of_the_definition_and_of_the_cpu(n, k, d, grid):
    x, c = points(n, d, 1, grid), points(k, d, 2, grid)
    labels, distances = kmeans.assign(tensor(x), tensor(c))
    for theirs in (reference.assign(x, c), cpu_assign(x, c)):
        np.testing.assert_array_equal(labels.cpu().numpy(), theirs[0])
        np.testing.assert_array_equal(distances.cpu().numpy(), theirs[1])


def test_ties_go_to_the_lowest_of_all_tiles(monkeypatch):
    """Equal centroids in every tile of 16, and points in several programs of 32."""
    monkeypatch.setattr(kmeans, "_POINTS", 32)
    monkeypatch.setattr(kmeans, "_CENTROIDS", 16)
    c = np.repeat(points(5, 3, grid=True), 20, 0)
    x = points(70, 3, 9, grid=True)
    labels, _ = kmeans.assign(tensor(x), tensor(c))
    assert set(labels.tolist()) <= {0, 20, 40, 60, 80}
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, c)[0])


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e25, 1e30])
def test_values_whose_squares_leave_float32(scale):
    x, c = points(50, 4) * np.float32(scale), points(9, 4, 3) * np.float32(scale)
    labels, distances = kmeans.assign(tensor(x), tensor(c))
    want = cpu_assign(x, c)
    np.testing.assert_array_equal(labels.cpu().numpy(), want[0])
    np.testing.assert_allclose(distances.cpu().numpy(), want[1], rtol=1e-6, atol=1e-45)


@few
@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 9), st.booleans(), st.booleans())
def test_means(n, k, d, weighted, deterministic):
    x, labels = points(n, d), np.random.default_rng(n).integers(0, k, n).astype(np.int32)
    weights = np.random.default_rng(k).random(n).astype(np.float32) if weighted and n else None
    got, counts = kmeans.update(
        tensor(x), tensor(labels), k, None if weights is None else tensor(weights), deterministic=deterministic
    )
    for want in (reference.update(x, labels, k, weights), cpu_update(x, labels, k, weights)):
        np.testing.assert_allclose(got.cpu().numpy(), want[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(counts.cpu().numpy(), want[1], rtol=1e-12)


@few
@given(st.integers(1, 120), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.booleans())
def test_whole_fits_are_the_twins(n, k, d, grid, weighted):
    """Empty clusters too: the start is drawn apart from the points."""
    x, start = points(n, d, 1, grid), points(k, d, 7, grid)
    weights = np.random.default_rng(k).integers(0, 3, n).astype(np.float32) if weighted else None
    if weights is not None:
        weights[0] = 1
    centroids, labels, inertia, made = kmeans.k_means(
        tensor(x), tensor(start), 6, None if weights is None else tensor(weights)
    )
    want = reference.kmeans(x, start, 6, weights)
    np.testing.assert_allclose(centroids.cpu().numpy(), want[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(labels.cpu().numpy(), want[1])
    np.testing.assert_allclose(inertia, reference.inertia(reference.assign(x, want[0])[1], weights), rtol=1e-6)
    assert 0 <= made <= 6


def test_starts_are_spread_out():
    """Ten far groups: each gets a point; of three distinct points, all three come before any comes again."""
    centres = np.arange(10)[:, None] * 1000.0
    x = (np.repeat(centres, 30, 0) + points(300, 1)).astype(np.float32)
    start = kmeans.spread_out(tensor(x), 10, seed=3).cpu().numpy()
    assert sorted((start[:, 0] / 1000).round().tolist()) == list(range(10))
    same = np.repeat(points(3, 2), 4, 0)
    drawn = kmeans.spread_out(tensor(same), 5, seed=1).cpu().numpy()
    assert len(np.unique(drawn[:3], axis=0)) == 3
    assert len(np.unique(drawn, axis=0)) == 3
    heavy = np.zeros(300, np.float32)
    heavy[40:43] = 1
    only = kmeans.spread_out(tensor(x), 3, seed=1, weights=tensor(heavy)).cpu().numpy()
    assert set(only[:, 0]) == set(x[40:43, 0])


@few
@given(st.integers(1, 300), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_packed_pointers(n, bits, seed):
    """Words as the CPU packs them, written in two goes, fields of any width; read in any order."""
    layout, rng = Packing(n, tuple(min(b, 31) for b in bits)), np.random.default_rng(seed)
    words, mine = layout.empty(), tensor(layout.empty())
    for field, b in enumerate(layout.bits):
        values = rng.integers(0, 2**b, n).astype(np.int32)
        layout.write(words, field, 0, values)
        cut = n // 3
        packing.write(layout, mine, field, 0, tensor(values[:cut]))
        packing.write(layout, mine, field, cut, tensor(values[cut:]))
        ids = rng.integers(0, n, 20)
        np.testing.assert_array_equal(packing.read(layout, mine, field, tensor(ids)).cpu().numpy(), values[ids])
    np.testing.assert_array_equal(mine.cpu().numpy(), words)


def test_assigned_and_packed_in_one_kernel():
    x, c = points(100, 4), points(37, 4, 1)
    layout = Packing(130, (6, 9, 6))
    words, mine = layout.empty(), tensor(layout.empty())
    labels, _ = kmeans.assign(tensor(x), tensor(c), pack=(layout, mine, 1, 17))
    layout.write(words, 1, 17, labels.cpu().numpy())
    np.testing.assert_array_equal(mine.cpu().numpy(), words)
    np.testing.assert_array_equal(labels.cpu().numpy(), cpu_assign(x, c)[0])


def test_what_callers_get_wrong():
    x = tensor(points(5, 2))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
            kmeans.assign(torch.full_like(x, bad), x)
    with pytest.raises(TypeError, match=r"X must be float32, got torch\.float64"):
        kmeans.assign(x.double(), x)
    with pytest.raises(ValueError, match=r"centroids must have shape \(3, 2\)"):
        kmeans.assign(x, tensor(points(3, 4)))
    with pytest.raises(ValueError, match="at least one centroid"):
        kmeans.assign(x, x[:0])
    wide = torch.zeros((1, 1), device=DEVICE).expand(1 << 16, 1 << 15)
    with pytest.raises(ValueError, match="must be contiguous"):
        kmeans.assign(wide[:1], wide)
    with pytest.raises(ValueError, match=r"X must have shape \(points, coordinates\)"):
        kmeans.assign(x[0], x)
    with pytest.raises(ValueError, match="labels must be int32"):
        kmeans.update(x, torch.zeros(5, dtype=torch.int64, device=DEVICE), 3)
    with pytest.raises(ValueError, match="at least one point"):
        kmeans.k_means(x[:0], x)


# Whole clusterings


def pair(codec: str = "float32", vocab: int = 300, method: str = "cce", **options):
    import cce_core as cce
    from cce_kernels.tables import Tables, from_table

    table = cce.make_table(method, vocab, 8, num_params=8 * 40, codec=codec, seed=2, **options)
    return table, Tables([(table.spec, from_table(table, DEVICE))])


def same_arrays(tables, table, names=("pointers", "keys", "generation")) -> None:
    for name in names:
        if name in table.arrays():
            np.testing.assert_array_equal(tables.arrays[0][name].cpu().numpy(), table.arrays()[name], err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_warm_clustering_is_that_of_the_cpu(codec, weighted):
    """From the second time on the start is given: the same sample, pointers, keys and memory as on the CPU."""
    from cce_kernels.cluster import cluster
    from cce_kernels.tables import Tables, from_table

    table, _ = pair(codec, rank=0)
    table.cluster(n_iter=5)
    table.parameters()["memory"][:] += np.random.default_rng(0).normal(size=table.layout.size).astype(np.float32)
    table.requantize()
    tables = Tables([(table.spec, from_table(table, DEVICE))])
    weights = np.random.default_rng(1).random(300).astype(np.float32) if weighted else None
    want = table.cluster(weights=weights, n_iter=5, points_per_centroid=8)
    got = cluster(
        tables, weights=None if weights is None else tensor(weights), n_iter=5, points_per_centroid=8, batch_size=128
    )
    same_arrays(tables, table)
    ids = np.arange(300)
    np.testing.assert_allclose(tables.lookup(tensor(ids)).cpu().numpy(), table.lookup(ids), rtol=1e-4, atol=1e-5)
    assert (got.generation, got.n_clusters, got.iterations, got.empty_clusters) == (
        want.generation, want.n_clusters, want.iterations, want.empty_clusters,
    )  # fmt: skip
    for name in ("inertia_before", "inertia_after", "column_entropy", "pair_entropy"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-5)
    assert tables.generations == [1]


def test_a_first_clustering():
    """Every id at its nearest centroid, the error lower than of the pointers at random; twice, the same bits."""
    from cce_kernels.cluster import cluster

    runs = []
    for _ in range(2):
        table, tables = pair(rank=4)
        before = table.lookup(np.arange(300))
        report = cluster(tables, n_iter=10)
        runs.append({name: array.clone() for name, array in tables.arrays[0].items()})
        assert report.inertia_after < report.inertia_before
        assert report.generation == 1
    assert all(torch.equal(runs[0][name].view(torch.uint8), runs[1][name].view(torch.uint8)) for name in runs[0])
    after = tables.lookup(tensor(np.arange(300))).cpu().numpy()
    assert np.square(after - before).sum() < np.square(before - before.mean(0)).sum()
    from cce_core.sketching import blocks
    from cce_core.sketching.layout import POINTER

    layout, inner = table.layout, blocks.lookup(table.group, np.arange(300, dtype=np.uint64))
    for chunk, column in enumerate(c for c in layout.columns if c.kind == POINTER):
        w = layout.width
        centroids = runs[0]["memory"].cpu().numpy()[column.base : column.base + column.rows * w].reshape(-1, w)
        labels = packing.read(table.method.packing(table.spec), runs[0]["pointers"], chunk, tensor(np.arange(300)))
        want, _ = cpu_assign(inner[:, chunk * w : (chunk + 1) * w], centroids)
        np.testing.assert_array_equal(labels.cpu().numpy(), want)


def test_pq_learns_from_vectors_and_others_are_refused():
    from cce_kernels.cluster import cluster

    _, tables = pair(method="pq")
    vectors = points(300, 8)
    cluster(tables, vectors=tensor(vectors), n_iter=10)
    error = np.square(tables.lookup(tensor(np.arange(300))).cpu().numpy() - vectors).sum()
    assert error < 0.5 * np.square(vectors - vectors.mean(0)).sum()
    with pytest.raises(ValueError, match="learns from a trained one"):
        cluster(tables)
    with pytest.raises(ValueError, match=r"vectors must have shape \(300, 8\)"):
        cluster(tables, vectors=tensor(vectors[:4]))
    with pytest.raises(ValueError, match="'ce' table is not clustered on the device"):
        cluster(pair(method="ce")[1])
    _, broken = pair(rank=0)
    kept = {name: array.clone() for name, array in broken.arrays[0].items()}
    broken.arrays[0]["memory"][5] = float("nan")
    with pytest.raises(ValueError, match="memory must be finite"):
        cluster(broken)
    assert torch.equal(broken.arrays[0]["pointers"].view(torch.int64), kept["pointers"].view(torch.int64))
    with pytest.raises(ValueError, match="weights must be at least 0 and not all 0"):
        cluster(pair(rank=0)[1], weights=torch.zeros(300, device=DEVICE))
