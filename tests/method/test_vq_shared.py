"""A clustered table in which ids that count little share a row, and the bits that they leave go into centroids for the others."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive_tables
from vq_tables import arrays, same

import cce_core as cce
from cce_core.learning.pointed import Ranked, left_by
from cce_core.method import get_method
from cce_core.method.checked import checked
from cce_core.storage.marks import entries

VOCAB, DIM = 1500, 6
VQ = get_method("vq")


def skewed(vocab=VOCAB, few=0.1, seed=0):
    """Counts of ids of which a few are met often, and the others hardly ever."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(vocab) < few, rng.integers(100, 1000, vocab), rng.integers(0, 2, vocab))


def clustered(seed=0, weights=None, num_bytes=VOCAB // 2, vocab=VOCAB, dim=DIM, **more):
    table = cce.make_table("vq", vocab, dim, num_bytes=num_bytes, **{"rank": 0, "seed": seed, **more})
    vectors = np.random.default_rng(seed).standard_normal((vocab, dim)).astype(np.float32)
    table.cluster(vectors=vectors, weights=skewed(vocab, seed=seed) if weights is None else weights)
    return table, vectors


@pytest.mark.parametrize(
    "more", [{}, {"rank": 2}, {"stages": 2, "codec": "float32", "num_bytes": 1500}, {"codec": "int4"}]
)
def test_rare_ids_share_a_row_and_the_table_is_its_definition(more, tmp_path):
    table, _ = clustered(**more)
    spec, counts, ids = table.spec, skewed(), np.arange(VOCAB)
    rows, pointed = VQ.split(spec)
    assert 0 < spec.option("bits") == rows.bit_length() - 1
    assert rows <= pointed < VOCAB
    assert (
        table.ledger().total
        == VQ.nbytes(spec)
        <= VQ.nbytes(VQ.served(VQ.reopened(spec)))
        <= more.get("num_bytes", VOCAB // 2)
    )
    own = entries(table.arrays()["pointers"], ids.astype(np.uint64)).view(np.int64) >= 0
    assert own.sum() == pointed
    assert counts[own].min() >= counts[~own].max() / 1.01  # weights are told apart by 8 bits
    read = {**table.parameters(), "memory": table.stored.decoded()}
    described = {"vocab": VOCAB, "inner": spec.rank or DIM, "n_chunks": 1, "sizes": spec.sizes, "keys": []}
    described |= {"options": dict(spec.options), "words": table.arrays()["pointers"]}
    some = ids[:: 1 if not more else 17]
    np.testing.assert_allclose(
        table.lookup(some), naive_tables.lookup("vq", some, read, **described), rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(table.lookup(ids[~own]), axis=0)) == 1
    h, m, w = table.factors()
    np.testing.assert_allclose(table.lookup(ids), h @ m @ w, rtol=1e-5, atol=1e-6)
    table.save(tmp_path / "t")
    for again in (cce.load(tmp_path / "t"), cce.load(tmp_path / "t", mmap=True), copy.deepcopy(table)):
        assert (again.spec, repr(again)) == (spec, repr(table))
        np.testing.assert_array_equal(again.lookup(ids), table.lookup(ids))
    assert f"sizes ({rows}, {pointed})" in repr(table)
    before = table.lookup(ids)
    cce.SGD(0.1).update(table, ids, np.ones((VOCAB, DIM)))
    assert (table.lookup(ids) != before).any(1).all()


def test_a_row_is_shared_only_where_that_leaves_less_over():
    even, _ = clustered(weights=np.ones(VOCAB))
    asked, _ = clustered(share=False)
    counted, _ = clustered(num_bytes=None, num_params=40 * DIM)
    assert [t.spec.option("bits") for t in (even, asked, counted)] == [0, 0, 0]
    assert counted.spec.sizes == (40, VOCAB)
    counts = skewed()

    def error(table, vectors):
        return counts @ np.square(table.lookup(np.arange(VOCAB)) - vectors).sum(1)

    shared = clustered()
    assert shared[0].spec.option("bits")
    assert error(*shared) < 0.5 * error(asked, shared[1])


def test_what_training_has_counted_decides_without_weights():
    table = cce.make_table("vq", VOCAB, DIM, num_bytes=VOCAB // 2, rank=0, seed=1)
    rng, optimizer = np.random.default_rng(0), cce.SGD(0.1)
    often = rng.permutation(VOCAB)[:100]
    for _ in range(40):
        optimizer.update(table, often, rng.standard_normal((100, DIM)))
    table.cluster()
    assert table.spec.option("bits")
    assert (entries(table.arrays()["pointers"], often.astype(np.uint64)).view(np.int64) >= 0).all()


def test_it_is_opened_and_clustered_again_within_the_same_bytes():
    table, _ = clustered()
    before, budget = table.lookup(np.arange(VOCAB)), VQ.nbytes(VQ.served(VQ.reopened(table.spec)))
    table.reopen()
    assert (table.spec.option("bits"), VQ.nbytes(VQ.served(table.spec))) == (0, budget)
    np.testing.assert_allclose(table.lookup(np.arange(VOCAB)), before, atol=0.02)
    table.cluster(weights=skewed(seed=3))
    assert 0 < table.ledger().total <= budget
    table.reopen()
    table.cluster(weights=np.ones(VOCAB))
    assert table.spec.option("bits") == 0


def test_equal_seeds_and_any_number_of_threads_give_equal_tables():
    tables = []
    for threads in (1, 3):
        cce.set_num_threads(threads)
        tables.append(clustered()[0])
    same(*map(arrays, tables))


def test_specs_that_no_clustering_makes_are_refused():
    table, _ = clustered()
    with pytest.raises(ValueError, match="bits is what cluster\\(\\) finds"):
        cce.make_table("vq", VOCAB, DIM, num_bytes=VOCAB, bits=4)
    with pytest.raises(ValueError, match="no ids fit"):
        checked(table.spec.with_option("bits", 12))
    with pytest.raises(ValueError, match="bits must be 0"):
        cce.make_table("vq", VOCAB, DIM, num_params=400, phase="codes", bits=3)
    with pytest.raises(TypeError, match="share must be True or False"):
        cce.make_table("vq", VOCAB, DIM, num_bytes=VOCAB, share=1)
    made = [spec for spec in VQ.clustered(VQ.reopened(table.spec)) if checked(spec)]
    assert table.spec in made
    assert all(VQ.nbytes(spec) <= VQ.nbytes(made[0]) for spec in made)


def test_what_may_be_held_bounds_the_choice_too():
    """Too little for a sample: every id has a pointer, as without a choice; in between the sample is smaller."""
    sizes = {}
    for max_bytes in (230_000, 900_000, 1 << 26):
        table = cce.make_table("vq", VOCAB, DIM, num_bytes=VOCAB // 2, rank=0, seed=0)
        vectors = np.random.default_rng(0).standard_normal((VOCAB, DIM)).astype(np.float32)
        report = table.cluster(vectors=vectors, weights=skewed(), max_bytes=max_bytes)
        assert report.scratch_bytes <= max_bytes + 8 * VOCAB
        sizes[max_bytes] = table.spec.option("bits")
    assert sizes[230_000] == 0 < sizes[900_000] <= sizes[1 << 26]


@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_first_are_those_that_count_most(vocab, seed, share):
    """Those alike in the first 16 bits in the order of ids."""
    weights = np.random.default_rng(seed).zipf(1.5, vocab).astype(np.float32) - 1
    keys, n = (weights.view(np.uint32) >> 16).astype(np.int64), 1 + int(share * (vocab - 1))
    ranked = Ranked(weights)
    expected = np.zeros(vocab, bool)
    expected[np.argsort(-keys, kind="stable")[:n]] = True
    np.testing.assert_array_equal(ranked.first(n), expected)
    edge, left, share = ranked.edge(n)
    assert edge == keys[expected].min()
    assert left == (keys[expected] == edge).sum() == round(share * (keys == edge).sum())


def test_more_centroids_leave_less_over():
    points = np.random.default_rng(0).standard_normal((3000, 3)).astype(np.float32)
    left = [left_by(points, k, seed=1) for k in (1, 2, 16, 40, 64, 100, 256, 300, 4000)]
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(np.square(points - points.mean(0)).sum(), rel=1e-5)
    assert left_by(points[:0], 5, seed=1) == left_by(np.repeat(points[:1], 9, 0), 4, seed=1) == 0.0
