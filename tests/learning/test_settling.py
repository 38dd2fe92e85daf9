"""Clustering of tables whose ids earn rows, and training on: against a dict of who has settled, and a naive weighted merge."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from reference import tiered as naive
from tiered_tables import DIM, NAMES, asked, made, same, stream, train, trained, whole

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.learning import settling


def known(table, batches):
    """(table, its ids, their vectors) of all that were met, and of some that were not."""
    for t, name in enumerate(NAMES if isinstance(table, cce.Collection) else [0]):
        ids = np.unique(np.concatenate([ids[:, t] for ids in batches] + [np.arange(10**6, 10**6 + 20)]))
        yield t, ids, table[name] if isinstance(table, cce.Collection) else table


# The definition


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("rank", "codec"), [(0, "float32"), (2, "float32"), (2, "int8")])
def test_owners_point_to_the_nearest_centroid_and_all_others_stay(many, rank, codec):
    table, batches = trained(many, rank=rank, codec=codec), stream(8 if COMPILED else 4)
    state = whole(table)
    before = {t: (view.lookup(ids), state.owners.find(ids, t)) for t, ids, view in known(table, batches)}
    counts, n_before = state.owners.counts.copy(), state.owners.map.occupied().sum()
    report = table.cluster(bits=3, keep=0.25)
    assert (report.settled, report.left_out, report.bits, report.generation) == (n_before, 0, 3, 1)
    assert report.inertia_after < 0.5 * report.inertia_before
    own, settled, n_kept = state.owners.map.n_slots, state.owners.settled, 0
    values = state.stored.read_rows(np.arange(state.layout.n_units), rank or DIM, exact=False)
    for t, ids, view in known(table, batches):
        x, rows = before[t]
        centroids = values[own + 8 * t : own + 8 * t + 8]
        if rank:
            w = state.arrays()["projection"][t * (rank + 1) : (t + 1) * (rank + 1)]
            centroids = centroids @ w[:-1] + w[-1]
        now, had, has = view.lookup(ids), rows >= 0, state.owners.find(ids, t) >= 0
        pointed = settled.pointers(state.owners.map.names(ids, t)) >= 0
        assert (pointed == had).all(), "every owner has settled, and nobody else"
        tolerance = 1e-6 if codec == "float32" else 0.02 * np.abs(x).max()
        np.testing.assert_allclose(now[~had], x[~had], atol=tolerance)
        np.testing.assert_allclose(now[has], x[has], atol=tolerance)
        apart = np.square(x[had & ~has][:, None] - centroids[None]).sum(2)
        np.testing.assert_allclose(np.square(now - x).sum(1)[had & ~has], apart.min(1), atol=1e-5)
        n_kept += has.sum()
        if has.any():  # those that count most, but for those whose buckets were full
            assert counts[rows[has]].mean() > counts[rows[had & ~has]].mean()
    assert report.kept == n_kept == int(0.25 * own)


@pytest.mark.parametrize("weighted", [False, True])
def test_centroids_are_the_weighted_means_of_those_that_point_to_them(weighted):
    table, batches = trained(), stream(8 if COMPILED else 4)
    ((_, ids, view),) = known(table, batches)
    rows = table.owners.find(ids)
    ids, x, rows = ids[rows >= 0], view.lookup(ids)[rows >= 0], rows[rows >= 0]
    (n,) = table.spec.sizes
    given = np.random.default_rng(0).random(n) if weighted else None
    weights = (np.maximum(table.owners.counts, 1) if given is None else given)[rows]
    names, distinct = np.unique(table.owners.map.names(ids), return_index=True)
    table.cluster(bits=2, keep=0, weights=given, n_iter=200)
    at = table.owners.settled.rows_of(names)
    values = table.stored.read_rows(np.arange(table.layout.n_units), DIM)[table.spec.sizes[0] :]
    for c in range(4):
        mine = distinct[at == c]
        assert len(mine)
        np.testing.assert_allclose(values[c], np.average(x[mine], 0, weights[mine]), atol=1e-5)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("fold", [True, False])
def test_training_goes_on_as_the_definition_says(many, fold):
    """Centroids learn from all that point to them; settled ids and newcomers earn rows, and lose them to what they had."""
    table = trained(many, fold=fold, bits=16)
    table.cluster(num_bytes=2000, bits=3, keep=0)
    state, tables = whole(table), 2 if many else 1
    owners, (own, buckets, *_) = state.owners, table.spec.sizes
    there = owners.settled.identities()
    there = there[there > 0]
    rows = dict(zip(there.tolist(), (own + owners.settled.rows_of(there)).tolist()))
    sizes = owners.sketch.width, owners.policy, state.stored.master().reshape(-1, DIM).copy(), 16, 3, fold, tables
    twin = naive.Tiered(own, *sizes, settled=rows, centroids=8 * tables, n_buckets=buckets)
    for _ in range(owners.now):
        twin.owners.sketch.step()
    twin.owners.sketch.mass, twin.owners.now = owners.sketch.mass, owners.now
    optimiser, again, lost = cce.SGD(0.1), 0, 0
    for ids in stream(20 if COMPILED else 5, seed=1):
        grads = (
            np.random.default_rng(int(ids.sum() % 2**32)).standard_normal((len(ids), DIM * tables)).astype(np.float32)
        )
        expected = np.hstack([twin.lookup(ids[:, t].tolist(), t) for t in range(tables)])
        np.testing.assert_allclose(table.lookup(asked(table, ids)), expected, rtol=1e-4, atol=1e-5)
        optimiser.update(table, table.forward(asked(table, ids)), grads)
        changes = twin.step_all(
            [ids[:, t].tolist() for t in range(tables)], [grads[:, DIM * t :][:, :DIM] for t in range(tables)], 0.1
        )
        again += sum(change[0] in rows for change in changes)
        lost += sum(change[3] in rows for change in changes)
        assert owners.map.words.tolist() == twin.owners.map.words()
        assert owners.counts.tolist() == twin.owners.counts
        assert owners.sketch.mass == twin.owners.sketch.mass
        np.testing.assert_allclose(state.stored.master().reshape(-1, DIM), twin.values, rtol=1e-4, atol=1e-5)
    assert again
    assert lost or not COMPILED


def test_those_who_own_rows_settle_again_beside_those_that_have_settled():
    table = trained(num_bytes=1500)
    first = table.cluster(bits=4)
    settled = set(table.export()["keys"].tolist())
    train(table, stream(10, seed=2))
    owners = set(table.owners.map.identities(np.flatnonzero(table.owners.map.occupied())).tolist())
    assert owners - settled, "newcomers have rows"
    ids = np.arange(1, 30)
    before = table.lookup(ids)
    second = table.cluster(bits=5)
    assert second.generation == 2
    assert second.settled == len(settled | owners) > first.settled
    assert {int(k) for k in table.owners.settled.identities() if k} == settled | owners
    assert np.square(table.lookup(ids) - before).mean() < 0.2 * np.square(before).mean()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_id_has_a_row_again_once_it_is_reopened(many, rank, tmp_path):
    table, batches = trained(many, rank=rank), stream(8 if COMPILED else 4)
    spec, full = table.spec, table.ledger().total
    optimiser = train(table, stream(2, seed=4), cce.Adagrad(0.1, rowwise=True))
    table.cluster(num_bytes=2000, bits=3)
    train(table, stream(6, seed=1), optimiser)
    before = [(t, ids, view.lookup(ids), table.owners.find(ids, t)) for t, ids, view in known(table, batches)]
    settled = [table.owners.settled.pointers(table.owners.map.names(ids, t)) >= 0 for t, ids, *_ in before]
    counts, state = table.owners.counts.copy(), whole(table)
    squares = optimiser.states_of_memory(state)[0].copy()
    seen = table.forward(asked(table, batches[0]))
    table.reopen()
    assert (table.spec, table.ledger().total, state.phase) == (spec, full, None)
    for (t, ids, x, rows), pointed in zip(before, settled):
        now = table.owners.find(ids, t)
        assert (now[rows >= 0] >= 0).all(), "owners come first"
        assert not (now >= 0)[~pointed & (rows < 0)].any()
        left = pointed & (now < 0)  # both buckets are full
        assert table.owners.map.identities(table.owners.map.candidates(ids[left], t).reshape(-1)).all()
        np.testing.assert_allclose(
            (table[NAMES[t]] if many else table).lookup(ids)[~left], x[~left], rtol=1e-6, atol=1e-6
        )
        assert table.owners.counts[now[rows >= 0]].tolist() == counts[rows[rows >= 0]].tolist()
        assert (table.owners.counts[now[pointed & (rows < 0) & ~left]] == 1).all()
        kept = optimiser.states_of_memory(state)[0]
        np.testing.assert_array_equal(kept[now[rows >= 0]], squares[rows[rows >= 0]])
    with pytest.raises(ValueError, match="a table was clustered since this forward pass"):
        table.backward(seen, np.ones_like(seen.vectors))
    with pytest.raises(ValueError, match="there is nothing to reopen: no ids have settled"):
        table.reopen()
    table.save(tmp_path / "t")
    same(cce.load(tmp_path / "t"), table)
    other = copy.deepcopy(table)
    for one in (table, other):
        train(one, stream(2, seed=6))
        assert one.cluster().generation == 3
    same(table, other)


# Bytes


@pytest.mark.parametrize(("many", "rank", "bits", "eviction"), [(False, 0, 16, "lfu_decay"), (True, 2, 32, "lru")])
def test_a_budget_is_kept_and_the_least_is_named(many, rank, bits, eviction, tmp_path):
    table = trained(many, rank=rank, codec="int8", bits=bits, eviction=eviction, grace=4 * many)
    with pytest.raises(cce.BudgetError, match="100 bytes are too few for a 'tiered' table with settled ids") as error:
        table.cluster(num_bytes=100)
    least = int(str(error.value).split("the least that fits is ")[1].split()[0].replace(",", ""))
    with pytest.raises(cce.BudgetError):
        table.cluster(num_bytes=least - 1)
    found = []
    for budget in (least, least + 100, least + 300, (least + table.ledger().total) // 2, table.ledger().total):
        other = copy.deepcopy(table)
        report = other.cluster(num_bytes=budget)
        assert other.ledger().total <= budget
        assert other.ledger().total == sum(array.nbytes for array in other.arrays().values())
        assert report.settled + report.left_out == table.owners.map.occupied().sum()
        assert other.stats().max_capacity == report.own_rows
        other.save(tmp_path / "t")
        same(cce.load(tmp_path / "t"), other)
        found.append((report.left_out, report.inertia_after, -report.own_rows))
    assert found[0][0] > 0
    assert found[-1][0] == 0
    assert found[-1][2] < found[-2][2], "what is left is own rows"


def test_who_is_left_out_counts_least():
    table, batches = trained(num_bytes=3000), stream(8)
    ((_, ids, _),) = known(table, batches)
    rows = table.owners.find(ids)
    ids, counts = ids[rows >= 0], table.owners.counts[rows[rows >= 0]].astype(int)
    report = table.cluster(num_bytes=800)
    assert report.left_out > 10
    there = table.owners.settled.pointers(table.owners.map.names(ids)) >= 0
    assert counts[there].min() >= counts[~there].max() - 1
    assert counts[there].mean() > counts[~there].mean()


# What is promised


@pytest.mark.parametrize("where", ["KMeans", "assign", "another"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_the_table_as_it_was(where, error, monkeypatch):
    table = trained()
    before = copy.deepcopy(table)

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(settling, where, fails)
    with pytest.raises(error):
        table.cluster(bits=2)
    same(table, before)
    monkeypatch.undo()
    train(table, stream(1, seed=9))
    assert str(table.cluster(bits=2)).startswith("cluster 1: ")


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
def test_threads_change_nothing():
    found = []
    for threads in (1, 2, 8):
        cce.set_num_threads(threads)
        table = made(True, num_bytes=60_000, rank=2, codec="int8")
        train(table, stream(3, 20_000))
        table.cluster(num_bytes=30_000, points_per_centroid=8)
        train(table, stream(2, 20_000, 1))
        found.append([array.tobytes() for array in table.arrays().values()])
    assert found[0] == found[1] == found[2]


def test_a_smaller_working_set_is_kept_to():
    table = trained()
    reports = [
        copy.deepcopy(table).cluster(bits=2, **more) for more in ({}, {"points_per_centroid": 3}, {"batch_size": 7})
    ]
    assert reports[0].inertia_after == pytest.approx(reports[2].inertia_after)
    assert reports[1].inertia_after < reports[1].inertia_before
    with pytest.raises(ValueError, match="max_bytes must be at least") as error:
        table.cluster(bits=2, max_bytes=1000)
    least = int(str(error.value).split("at least ")[1].split()[0].replace(",", ""))
    assert table.cluster(bits=2, max_bytes=least).scratch_bytes < reports[0].scratch_bytes


# Bad input


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_bytes": 0}, ValueError, "num_bytes must be at least 1"),
        ({"bits": 0}, ValueError, "bits must be between 1 and 16"),
        ({"keep": 1.5}, ValueError, "keep must be"),
        ({"weights": [1.0]}, ValueError, r"weights must have shape \(\d+,\)"),
        ({"weights": "counts"}, TypeError, "weights must be"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1"),
        ({"vectors": 3}, TypeError, "vectors"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings, error, message):
    table = trained()
    before = copy.deepcopy(table)
    with pytest.raises(error, match=message):
        table.cluster(**settings)
    same(table, before)


def test_nothing_to_cluster_and_numbers_that_are_none():
    with pytest.raises(ValueError, match="no id has a row yet, so there is nothing to cluster: train the table first"):
        made().cluster()
    table = trained()
    with pytest.raises(ValueError, match="at least 0 and not all 0"):
        table.cluster(weights=np.zeros(table.spec.sizes[0]))
    table.arrays()["memory"][0] = np.nan
    with pytest.raises(ValueError, match="the rows must be finite"):
        table.cluster()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 6])
def test_fewer_rows_that_are_found_by_hash_are_means_of_those_before(many, after):
    """Each of the hashes that it serves, of which an old row had the same share as any other."""
    table = trained(many, num_bytes=5000)
    state, tables = whole(table), 2 if many else 1
    made = settling._Settling(state, None, None, 3)
    n = state.n_shared // tables
    made.shared = after
    assert n > 6
    into, of, part = made._fewer()
    cells = np.arange(n * made.shared)  # as many evenly spaced hashes
    expected = np.zeros((made.shared, n))
    np.add.at(expected, (cells * made.shared // len(cells), cells * n // len(cells)), 1)
    found = np.zeros((tables, made.shared, tables, n))
    found[into // made.shared, into % made.shared, of // n, of % n] = part
    for t in range(tables):
        np.testing.assert_array_equal(found[t, :, t], expected)
    assert found.sum() == tables * expected.sum()
