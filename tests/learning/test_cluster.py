"""cluster(): it helps and never harms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.learning import codebooks


def arrays(table):
    return {k: v.copy() for k, v in {**table.parameters(), **table.buffers()}.items()}


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


def halves_of(table):
    """M and M' of every chunk, (chunks, rows, width) each."""
    rows, hashed, c = table.spec.sizes[0], table.spec.sizes[-1], table.spec.n_chunks
    both = table.parameters()["memory"].reshape(c, rows + hashed, -1)
    return both[:, :rows], both[:, rows:]


def pointers(table):
    """(vocab, chunks), read bit by bit."""
    rows, c = table.spec.sizes[0], table.spec.n_chunks
    bits, words = (rows - 1).bit_length(), table.buffers()["pointers"]
    return np.array(
        [[naive.pointer(words, i, c * bits, j * bits, bits) for j in range(c)] for i in range(table.spec.vocab)]
    )


@st.composite
def tables(draw):
    chunks, width = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4))
    vocab, rows = draw(st.integers(1, 80)), draw(st.integers(1, 40))
    budget = {"num_params": 2 * rows * chunks * width}
    if draw(st.booleans()):  # of a budget in bytes the hashed codebooks may have more rows
        budget = {"num_bytes": 8 * rows * chunks * width + 8 * chunks + draw(st.integers(16, 200))}
    table = cce.make_table(
        "cce", vocab, chunks * width, n_chunks=chunks, rank=0, seed=draw(st.integers(0, 99)), **budget
    )
    kind = draw(st.sampled_from(["normal", "equal", "few", "zero"]))
    memory = table.parameters()["memory"]
    if kind == "equal":
        memory[:] = 1.5
    elif kind == "few":
        memory[:] = np.round(memory * 4)
    elif kind == "zero":
        memory[:] = 0
    return table


@pytest.mark.parametrize("residual", [False, True])
@given(table=tables(), batch=st.integers(1, 90), generations=st.integers(1, 2))
def test_every_id_goes_to_its_nearest_centroid(residual, table, batch, generations):
    for _ in range(generations):
        before = table.lookup(np.arange(table.spec.vocab)).astype(np.float64)
        report = table.cluster(batch_size=batch, residual=residual)
    learned, fresh = halves_of(table)
    assigned = pointers(table)
    width = table.layout.width
    used = []
    for c in range(table.spec.n_chunks):
        x = before[:, c * width : (c + 1) * width]
        cost = np.square(x[:, None] - learned[c].astype(np.float64)).sum(2)
        mine = cost[np.arange(len(x)), assigned[:, c]]
        assert (mine <= cost.min(1) + 1e-5 * (1 + np.square(x).sum(1))).all()
        used.append(len(set(assigned[:, c])))
    assert report.empty_clusters == sum(table.spec.sizes[0] - n for n in used)
    assert np.isfinite(table.parameters()["memory"]).all()
    assert residual or not fresh.any()
    after = table.lookup(np.arange(table.spec.vocab))
    if not residual and table.spec.vocab <= table.spec.sizes[0]:
        np.testing.assert_allclose(after, before, atol=1e-5)  # a centroid for every id: nothing is lost
    assert report.inertia_after <= report.inertia_before * (1 + 1e-4) + 1e-6


@given(table=tables(), batch=st.integers(1, 90))
def test_batches_and_threads_change_nothing(table, batch):
    start = arrays(table)
    seen = []
    for size, threads in ((1 << 16, 1), (batch, 3)):
        twin = cce.Table(table.spec, {k: v.copy() for k, v in start.items()})
        cce.set_num_threads(threads)
        twin.cluster(batch_size=size, residual=False)
        seen.append(arrays(twin))
    assert same(*seen)


@given(tables())
def test_the_same_seed_gives_the_same_table(table):
    twin = cce.Table(table.spec, arrays(table))
    table.cluster()
    twin.cluster()
    assert same(arrays(table), arrays(twin))


def test_the_residual_is_the_mean_of_what_is_left():
    table = cce.make_table("cce", 60, 4, n_chunks=2, rank=0, num_params=8 * 8, seed=1)
    before = table.lookup(np.arange(60)).astype(np.float64)
    table.cluster()
    learned, fresh = halves_of(table)
    assigned = pointers(table)
    for c in range(2):
        left = before[:, 2 * c : 2 * c + 2] - learned[c][assigned[:, c]]
        bucket = np.array([naive.bucket(i, int(table.buffers()["keys"][c]), 8) for i in range(60)])
        for b in range(8):
            expected = left[bucket == b].mean(0) if (bucket == b).any() else np.zeros(2)
            np.testing.assert_allclose(fresh[c, b], expected, atol=1e-5)


def test_the_fresh_hash_is_another_one_and_the_generation_counts():
    table = cce.make_table("cce", 60, 8, num_params=256, seed=1)
    keys = [table.buffers()["keys"].copy()]
    for generation in (1, 2):
        report = table.cluster()
        assert report.generation == table.generation == generation
        keys.append(table.buffers()["keys"].copy())
    assert len({tuple(k) for k in keys}) == 3


def test_arrays_are_edited_in_place():
    table = cce.make_table("cce", 60, 8, num_params=256)
    held = {**table.parameters(), **table.buffers()}
    before = arrays(table)
    table.cluster()
    assert all(held[k] is v for k, v in {**table.parameters(), **table.buffers()}.items())
    assert not same(before, held)


def test_a_trained_table_is_kept_nearly_as_it_was():
    """Vectors that do lie in clusters are found again, from whatever half of the sketch they came."""
    table = cce.make_table("cce", 500, 8, n_chunks=4, rank=0, num_params=64 * 16, seed=2)
    learned, _ = halves_of(table)
    table.parameters()["memory"].reshape(4, 2, 64, 2)[:, 0] = np.round(learned * 20)
    table.parameters()["memory"].reshape(4, 2, 64, 2)[:, 1] *= 0.001
    before = table.lookup(np.arange(500))
    table.cluster()
    after = table.lookup(np.arange(500))
    assert np.square(after - before).sum() < 1e-3 * np.square(before - before.mean(0)).sum()


@pytest.mark.parametrize("fails_at", [1, 3, 7])
def test_interrupted_half_way_the_table_is_as_before(fails_at, monkeypatch):
    table = cce.make_table("cce", 300, 8, num_params=256, seed=3)
    before, calls = arrays(table), []
    whole = codebooks.assign

    def interrupted(*args):
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(codebooks, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.cluster(batch_size=100)
    assert len(calls) == fails_at
    assert same(before, arrays(table))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_memory_that_is_not_finite_is_refused(bad):
    table = cce.make_table("cce", 60, 8, num_params=256)
    table.parameters()["memory"][17] = bad
    before = arrays(table)
    with pytest.raises(ValueError, match=r"the memory must be finite, got (nan|inf) at \(17,\)"):
        table.cluster()
    after = arrays(table)
    assert all(np.array_equal(before[k], after[k], equal_nan=k == "memory") for k in before)


def test_a_sample_is_enough_and_weights_count():
    vocab = 3000
    table = cce.make_table("cce", vocab, 4, n_chunks=1, rank=0, num_params=8 * 8, seed=4)
    start = arrays(table)
    seen = np.zeros(vocab)
    seen[:10] = 1
    table.cluster(weights=seen, residual=False)
    first = np.square(table.lookup(np.arange(10)) - cce.Table(table.spec, start).lookup(np.arange(10))).sum()
    plain = cce.Table(table.spec, {k: v.copy() for k, v in start.items()})
    plain.cluster(residual=False)
    other = np.square(plain.lookup(np.arange(10)) - cce.Table(table.spec, start).lookup(np.arange(10))).sum()
    assert first < 0.5 * other  # ids that are seen are kept better than where all count alike
    for weights in (None, np.arange(vocab)):
        sampled = cce.Table(table.spec, {k: v.copy() for k, v in start.items()})
        report = sampled.cluster(weights=weights, points_per_centroid=20)
        assert report.inertia_after <= report.inertia_before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": np.ones(5)}, r"weights must have shape \(60,\)"),
        ({"weights": np.zeros(60)}, "not all 0"),
        ({"weights": -np.ones(60)}, "at least 0"),
        ({"weights": np.full(60, np.nan)}, "finite"),
        ({"n_iter": 0}, "n_iter must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"points_per_centroid": 0}, "points_per_centroid must be at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        cce.make_table("cce", 60, 8, num_params=256).cluster(**settings)


def test_a_table_that_learns_nothing_says_so():
    with pytest.raises(ValueError, match="'ce' does not learn its sketch"):
        cce.make_table("ce", 60, 8, num_params=256).cluster()


def test_the_report_reads_well():
    table = cce.make_table("cce", 400, 8, n_chunks=2, rank=0, num_params=16 * 16, seed=1)
    report = table.cluster()
    assert 0 < report.column_entropy <= math.log(16) + 1e-9
    assert report.column_entropy <= report.pair_entropy + 1e-9 <= 2 * math.log(16) + 1e-6
    assert report.n_clusters == 16
    assert len(report.iterations) == 2
    assert report.seconds > 0
    assert report.scratch_bytes == table.ledger().training["cluster"] > 0
    assert "cluster 1: inertia" in str(report)


def test_collapse_shows_in_the_entropies():
    table = cce.make_table("cce", 100, 8, n_chunks=2, rank=0, num_params=16 * 16)
    table.parameters()["memory"][:] = 1
    assert table.cluster().column_entropy == pytest.approx(0, abs=1e-9)


@pytest.mark.skipif(not COMPILED, reason="the plain-Python loops would take minutes")
def test_ten_thousand_ids_in_odd_batches():
    table = cce.make_table("cce", 10_007, 16, num_params=4096, seed=9, rank=4)
    twin = cce.Table(table.spec, arrays(table))
    table.cluster(batch_size=999, residual=False)
    twin.cluster(residual=False)
    assert same(arrays(table), arrays(twin))


@pytest.mark.skipif(not COMPILED, reason="two million ids in plain Python")
@pytest.mark.parametrize(("method", "params"), [("cce", 8), ("pq", 4)])
def test_ids_that_all_have_the_same_row_are_not_all_looked_at(method, params):
    """A spec may speak of 2^40 ids that take no byte."""
    table = cce.make_table(method, 2**40, 4, num_params=params, rank=0, n_chunks=1)
    assert table.cluster().generation == 1
    assert np.isfinite(table.lookup(np.arange(0, 2**40, 2**37))).all()
