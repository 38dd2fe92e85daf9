"""Learning a table from given vectors: product quantisation, and CCE from a source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce


def arrays(table):
    return {k: v.copy() for k, v in {**table.parameters(), **table.buffers()}.items()}


@given(chunks=st.sampled_from([1, 2, 4]), width=st.integers(1, 4), vocab=st.integers(1, 60), seed=st.integers(0, 99))
def test_as_many_rows_as_ids_lose_nothing(chunks, width, vocab, seed):
    dim = chunks * width
    x = np.random.default_rng(seed).standard_normal((vocab, dim), np.float32)
    # With its pointers it outgrows the full table.
    table = cce.Table(cce.TableSpec("pq", vocab, dim, 0, chunks, (vocab,), seed))
    report = table.cluster(vectors=x)
    np.testing.assert_allclose(table.lookup(np.arange(vocab)), x, atol=1e-5)
    assert report.inertia_after <= 1e-9


@given(rows=st.integers(1, 12), seed=st.integers(0, 99), source=st.sampled_from(["array", "table"]))
def test_every_chunk_goes_to_its_nearest_row(rows, seed, source):
    teacher = cce.make_table("full", 50, 8, seed=seed)
    x = teacher.lookup(np.arange(50)).astype(np.float64)
    table = cce.make_table("pq", 50, 8, n_chunks=2, num_params=8 * rows, seed=seed)
    table.cluster(vectors=teacher if source == "table" else x)
    got, codebooks = table.lookup(np.arange(50)), table.parameters()["memory"].reshape(2, rows, 4)
    for c in range(2):
        cost = np.square(x[:, None, 4 * c : 4 * c + 4] - codebooks[c]).sum(2)
        mine = np.square(x[:, 4 * c : 4 * c + 4] - got[:, 4 * c : 4 * c + 4]).sum(1)
        np.testing.assert_allclose(mine, cost.min(1), rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 99), method=st.sampled_from(["pq", "cce"]))
def test_with_a_rank_the_projection_is_learned_too(seed, method):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 8)) + rng.standard_normal(8)  # a plane
    table = cce.make_table(method, 40, 8, n_chunks=2, rank=2, num_params=24 + 4 * 40, seed=seed)
    assert table.spec.sizes == (40,)
    table.cluster(vectors=x, residual=False)
    np.testing.assert_allclose(table.lookup(np.arange(40)), x, atol=1e-3)


def test_codebooks_are_trained_on_and_pointers_stay():
    table = cce.make_table("pq", 50, 8, num_params=64, seed=1)
    table.cluster(vectors=cce.make_table("full", 50, 8, seed=2))
    before = arrays(table)
    cce.Adam(0.1).update(table, [1, 2], np.ones((2, 8)))
    after = arrays(table)
    np.testing.assert_array_equal(before["pointers"], after["pointers"])
    assert not np.array_equal(before["memory"], after["memory"])


NAN = np.zeros((50, 8))
NAN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (NAN, ValueError, r"vectors must be finite, got nan at \(3, 2\)"),
        (np.zeros((49, 8)), ValueError, r"vectors must have shape \(50, 8\), got \(49, 8\)"),
        (np.full((50, 8), "a"), TypeError, "vectors must be real numbers"),
        (cce.make_table("full", 50, 4), ValueError, "a table of vocab 50 and dim 8, got 50 and 4"),
        (cce.make_table("hash", None, 8, num_params=80), ValueError, "a table of vocab 50 and dim 8, got None and 8"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_and_nothing_is_changed(vectors, error, message):
    table = cce.make_table("pq", 50, 8, num_params=64, seed=1)
    before = arrays(table)
    with pytest.raises(error, match=message):
        table.cluster(vectors=vectors)
    after = arrays(table)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_a_source_with_nan_is_refused_half_way_too():
    teacher = cce.make_table("full", 50, 8)
    teacher.parameters()["memory"][-1] = np.nan
    table = cce.make_table("pq", 50, 8, num_params=64)
    before = arrays(table)
    with pytest.raises(ValueError, match="vectors must be finite"):
        table.cluster(vectors=teacher, batch_size=10, points_per_centroid=1)
    assert all(np.array_equal(before[k], v) for k, v in arrays(table).items())
