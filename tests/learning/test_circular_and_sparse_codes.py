"""Learning windows of a circular memory (cce_robe) and sparse codes (sparse, sparse2)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce


def arrays(table):
    return {k: v.copy() for k, v in {**table.parameters(), **table.buffers()}.items()}


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


@given(
    chunks=st.sampled_from([1, 2, 4]), width=st.integers(1, 4), m=st.integers(4, 40), vocab=st.integers(1, 60),
    seed=st.integers(0, 99), batch=st.integers(1, 80), residual=st.booleans(),
)  # fmt: skip
def test_every_chunk_goes_to_its_nearest_window(chunks, width, m, vocab, seed, batch, residual):
    dim = chunks * width
    table = cce.make_table("cce_robe", vocab, dim, n_chunks=chunks, num_params=2 * max(m, width), seed=seed)
    (m,) = table.spec.sizes
    before = table.lookup(np.arange(vocab)).astype(np.float64)
    report = table.cluster(batch_size=batch, residual=residual)
    learned = table.parameters()["memory"][:m].astype(np.float64)
    windows = learned[(np.arange(m)[:, None] + np.arange(width)) % m]
    if not residual:
        assert not table.parameters()["memory"][m:].any()
        after = table.lookup(np.arange(vocab)).astype(np.float64)
        for c in range(chunks):
            part = slice(c * width, (c + 1) * width)
            least = np.square(before[:, None, part] - windows).sum(2).min(1)
            np.testing.assert_allclose(np.square(before[:, part] - after[:, part]).sum(1), least, rtol=1e-3, atol=1e-5)
    assert report.inertia_after <= report.inertia_before * (1 + 1e-4) + 1e-6
    assert np.isfinite(table.parameters()["memory"]).all()
    assert report.generation == table.generation == 1


@pytest.mark.parametrize("method", ["cce_robe", "sparse", "sparse2"])
def test_batches_threads_and_runs_change_nothing(method):
    seen = []
    for batch, threads in ((1 << 16, 1), (7, 3), (7, 3)):
        cce.set_num_threads(threads)
        table = cce.make_table(method, 60, 8, num_params=300, seed=1)
        table.cluster(batch_size=batch, residual=False)
        seen.append(arrays(table))
    if method != "sparse2":  # there, hashed weights are sums over batches
        assert same(seen[0], seen[1])
    assert same(seen[1], seen[2])


@given(seed=st.integers(0, 99), atoms=st.sampled_from([1, 2]))
def test_rows_made_of_few_atoms_are_found_again(seed, atoms):
    rng = np.random.default_rng(seed)
    dictionary = np.eye(8)
    chosen = np.array([rng.choice(8, atoms, replace=False) for _ in range(120)])
    x = np.zeros((120, 8))
    for t in range(atoms):
        x += dictionary[chosen[:, t]] * rng.choice([-1.0, 1.0, 2.0], (120, 1))
    table = cce.make_table("sparse", 120, 8, num_params=8 * 8 + 16, n_atoms=atoms, weight_bits=4, seed=seed)
    report = table.cluster(vectors=x)
    left = np.square(table.lookup(np.arange(120)) - x).sum() / np.square(x).sum()
    assert left < 0.25  # K-SVD finds a local minimum
    assert report.inertia_after <= report.inertia_before
    assert report.inertia_after == pytest.approx(
        np.square(table.lookup(np.arange(120)) - x).sum(1).mean(), rel=1e-3, abs=1e-5
    )


def test_hashed_weights_are_the_means_of_those_they_stand_for():
    x = np.random.default_rng(0).standard_normal((60, 8))
    table = cce.make_table("sparse2", 60, 8, num_params=2 * 8 * 12, n_atoms=1, seed=3)
    table.cluster(vectors=x)
    rows = table.parameters()["memory"].reshape(-1, 8).astype(np.float64)
    weights = table.parameters()["weights"]
    got = table.lookup(np.arange(60))
    direction = got / np.linalg.norm(got, axis=1, keepdims=True)
    assert np.isfinite(direction).all()
    assert len(rows) == 12
    assert weights.shape == (96,)
    assert np.square(got - x).sum() < np.square(x).sum()


@pytest.mark.parametrize("method", ["cce_robe", "sparse", "sparse2"])
def test_all_equal_vectors_and_zeros_are_safe(method):
    for x in (np.zeros((40, 8)), np.ones((40, 8))):
        table = cce.make_table(method, 40, 8, num_params=300, seed=1)
        table.cluster(vectors=x)
        got = table.lookup(np.arange(40))
        assert np.isfinite(got).all()
        if method != "sparse2":  # whose ids share their weights
            np.testing.assert_allclose(got, x, atol=0.3)


@pytest.mark.parametrize("method", ["cce_robe", "sparse", "sparse2"])
def test_an_error_half_way_changes_nothing(method):
    teacher = cce.make_table("full", 50, 8)
    teacher.parameters()["memory"][-1] = np.nan
    table = cce.make_table(method, 50, 8, num_params=300)
    before = arrays(table)
    with pytest.raises(ValueError, match="vectors must be finite"):
        table.cluster(vectors=teacher, batch_size=10)
    assert same(before, arrays(table))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_atoms": 0}, "n_atoms must be between 1 and 64"),
        ({"n_atoms": 9}, "n_atoms 9 must be at most the vector's 8 floats"),
        ({"weight_bits": 0}, "weight_bits must be between 1 and 12"),
        ({"vocab": None}, "needs a vocab"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cce.make_table("sparse", **{"vocab": 50, "dim": 8, "num_params": 300, **options})
