"""`most_similar`: the same ids as a search of all decoded vectors, whatever method, metric and ties there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import vectors as twin

import cce_core as cce
from cce_core.tables import similarity

METRICS = ("cosine", "dot", "l2")


def trained(method, n=300, dim=12, seed=0, **options):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 4)) @ rng.standard_normal((4, dim)) + 0.3 * rng.standard_normal((n, dim))).astype(
        np.float32
    )
    table = cce.make_table(method, n, dim, seed=seed, **options)
    if table.method.learns:
        table.cluster(vectors=x)
    return table


TABLES = {
    "pq": lambda: trained("pq", num_bytes=900, n_chunks=4),
    "pq behind a rotation": lambda: cce.compress(np.random.default_rng(1).standard_normal((300, 12)) ** 3, ratio=4),
    "pq with int8 and a narrow rank": lambda: trained("pq", num_bytes=1500, n_chunks=2, rank=6, codec="int8"),
    "vq, many ties": lambda: trained("vq", num_bytes=700, rank=0),
    "vq of two stages": lambda: trained("vq", num_bytes=1500, rank=3, stages=2),
    "cce": lambda: trained("cce", num_bytes=1500, n_chunks=2, rank=0),
    "hash": lambda: trained("hash", num_params=120),
    "robe, which wraps": lambda: trained("robe", num_params=97),
    "int8": lambda: trained("int8"),
    "sparse": lambda: trained("sparse", num_bytes=3000),
    "tt": lambda: trained("tt", num_params=600),
}  # fmt: skip


def check(table, queries, k, metric, found, without):
    everything = table.lookup(np.arange(table.spec.vocab))
    for q, out in enumerate(without):
        ids, scores = twin.most_similar(everything, queries[q], k, metric, out)
        np.testing.assert_array_equal(found.ids[q], ids)
        np.testing.assert_array_equal(found.scores[q], scores)


@pytest.mark.parametrize("name", TABLES)
def test_the_same_ids_as_a_search_of_all_vectors(name):
    table = TABLES[name]()
    rng = np.random.default_rng(5)
    queries = np.concatenate([rng.standard_normal((3, 12)), np.zeros((1, 12))]).astype(np.float32)
    ids = np.array([7, 0, 299])
    for metric in METRICS:
        for k in (1, 10):
            check(table, queries, k, metric, cce.most_similar(table, queries, k, metric), [()] * 4)
        check(table, table.lookup(ids), 5, metric, cce.most_similar(table, ids, 5, metric), [(i,) for i in ids])
    one = cce.most_similar(table, 7, 299)
    check(table, table.lookup([7]), 299, "cosine", cce.most_similar(table, [7], 299), [(7,)])
    assert one.ids.shape == (299,)
    assert sorted(one.ids.tolist()) == [i for i in range(300) if i != 7]


@given(
    seed=st.integers(0, 999),
    metric=st.sampled_from(METRICS),
    k=st.integers(1, 60),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
@settings(max_examples=40)
def test_near_ties_and_rows_without_length_are_exact_too(seed, metric, k, scale):
    """Few different blocks, some of them 0, and others that differ in the last bits."""
    rng = np.random.default_rng(seed)
    table = cce.Table(cce.TableSpec("pq", 60, 6, 0, 2, (4,), seed))
    memory = table.parameters()["memory"]
    memory[:] = scale * rng.choice([0.0, 1.0, 1.0 + 2.0**-23, -1.0], memory.shape)
    query = rng.choice([0.0, 1.0, 3.0, -1.0], (2, 6)).astype(np.float32)
    check(table, query, k, metric, cce.most_similar(table, query, k, metric), [()] * 2)


def test_blocks_threads_and_batches_change_nothing(monkeypatch):
    table = TABLES["pq behind a rotation"]()
    queries = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    whole = cce.most_similar(table, queries, 7)
    monkeypatch.setattr(similarity, "_BLOCK", 64)
    monkeypatch.setattr(similarity, "_SPARE", 0)
    monkeypatch.setattr(similarity, "_GRAIN", 8)
    monkeypatch.setattr(similarity, "_BYTES", 4096)
    cce.set_num_threads(3)
    try:
        parts = cce.most_similar(table, queries, 7)
    finally:
        cce.set_num_threads(None)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_array_equal(whole.scores, parts.scores)


def test_codes_are_what_is_searched_where_there_are_some():
    kinds = {name: type(similarity._source(make(), similarity.COSINE)).__name__ for name, make in TABLES.items()}
    assert {name for name, kind in kinds.items() if kind == "_Codes"} >= {
        "pq",
        "pq behind a rotation",
        "vq, many ties",
        "hash",
    }
    assert kinds["tt"] == kinds["int8"] == kinds["sparse"] == "_Decoded"


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((np.zeros(5),), {}, ValueError, r"vectors of shape \(12,\) or \(n, 12\), got shape \(5,\)"),
        (([300],), {}, IndexError, "id 300 at position 0 is outside"),
        ((np.full(12, np.nan),), {}, ValueError, "queries must be finite"),
        (([1], 300), {}, ValueError, "k must be at most 299, the rows that are searched, got 300"),
        (([1], 0), {}, ValueError, "k must be at least 1"),
        (([1],), {"metric": "cos"}, ValueError, "metric must be one of cosine, dot, l2"),
        (([1],), {"without": [2]}, ValueError, "queries that are ids leave themselves out"),
        ((np.zeros(12),), {"without": [2]}, ValueError, r"without must have shape \(\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(args, options, error, message):
    with pytest.raises(error, match=message):
        cce.most_similar(TABLES["hash"](), *args, **options)


def test_other_things_than_tables_with_rows_are_refused():
    with pytest.raises(TypeError, match="table must be a table"):
        cce.most_similar(np.zeros((3, 2)), [1])
    with pytest.raises(ValueError, match="make it with a vocab"):
        cce.most_similar(cce.make_table("hash", None, 4, num_params=8), [1])
