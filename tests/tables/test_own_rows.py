"""What can be asked of tables that give rows to ids, against what a model of exact counts and owners knows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.tables import Plan

DIM = 4


def table_of(num_bytes=900, **more):
    return cce.make_table("tiered", None, DIM, num_bytes=num_bytes, **{"rank": 2, "seed": 1, **more})


def collection_of(num_bytes=1500, **more):
    return cce.make_collection("tiered", ["user", "item"], DIM, num_bytes=num_bytes, **{"rank": 2, "seed": 1, **more})


def train(table, ids):
    seen = table.forward(ids)
    cce.SGD(0.1).update(table, seen, np.cos(seen.vectors))


@pytest.mark.parametrize("many", [False, True])
def test_stats_are_what_was_met_and_who_has_rows(many):
    """Counted beside the table, by hand."""
    table, rng = collection_of(lead=1) if many else table_of(lead=1), np.random.default_rng(0)
    tables = 2 if many else 1
    met, hits, owned = np.zeros((3, tables), int)
    for _ in range(12 if COMPILED else 4):
        ids = rng.zipf(1.4, (30, tables)) % 2**40
        met += 30
        hits += [(table.owners.find(ids[:, t], t) >= 0).sum() for t in range(tables)]
        train(table, ids if many else ids[:, 0])
    stats = table.stats()
    owned = [(table.owners.map.tables() == t).sum() for t in range(tables)]
    assert stats.met.tolist() == met.tolist()
    assert stats.hits.tolist() == hits.tolist()
    assert (stats.inserts - stats.evictions).tolist() == stats.own_rows.tolist() == owned
    assert stats.hit_rate == hits.sum() / met.sum()
    assert stats.table_usage_ratio == table.owners.map.load
    assert stats.eviction_rate < stats.insert_rate
    assert "hit rate" in str(stats)
    assert ("user" in str(stats)) == many
    before = stats.met.tolist()
    table.lookup(ids if many else ids[:, 0])
    table.forward(ids if many else ids[:, 0])
    assert table.stats().met.tolist() == before, "lookups count nothing"


def test_explanations_say_what_it_takes():
    """An id that is met as often as was said has a row then, and not before."""
    table = table_of(num_bytes=400, lead=2)
    (n,) = table.spec.sizes
    for ids in np.arange(6 * n).reshape(-1, 4):
        train(table, ids)
    assert table.owners.map.load == 1.0
    newcomer = 10**9
    told = table.explain(newcomer)
    assert not told.own
    assert told.row >= n
    assert told.wanted == table.owners.counts[table.owners.map.candidates(newcomer)].min() + 2
    assert told.shares_with > 0
    for _ in range(20):
        before = table.explain(newcomer)
        if before.own:
            break
        assert before.count < before.wanted
        train(table, [newcomer])
        assert table.explain(newcomer).own == (before.count + 1 >= before.wanted)
        told = before
    assert before.row == table.owners.find(newcomer)
    assert before.wanted is None
    assert "own row" in str(before)
    assert f"takes {told.wanted}" in str(told)


@pytest.mark.parametrize("eviction", ["lfu_decay", "lru"])
def test_an_export_has_the_vectors_of_lookups(eviction):
    table, both, ids = table_of(eviction=eviction), collection_of(eviction=eviction), np.arange(15)
    train(table, ids)
    train(both, np.stack([ids, -ids], 1))
    for one, name, asked, lookup in (
        (table, 0, ids, table.lookup),
        (both, "user", ids, both["user"].lookup),
        (both, "item", -ids, both["item"].lookup),
    ):
        found, everyone = one.export([*asked, 10**6], name), one.export(table=name)
        np.testing.assert_array_equal(found["values"], lookup([*asked, 10**6]))
        assert found["rows"][-1] == -1
        assert found["freqs"][:-1].min() >= 1
        assert (found["versions"][:-1][found["rows"][:-1] >= 0] == (0 if eviction == "lru" else -1)).all()
        own = found["rows"][found["rows"] >= 0]
        assert sorted(set(own)) == everyone["rows"].tolist()
        by_row = dict(zip(found["rows"], found["values"]))
        np.testing.assert_array_equal(everyone["values"], [by_row[row] for row in everyone["rows"]])
        assert len(set(everyone["keys"].tolist())) == len(own)
        assert everyone["keys"].all()


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_who_is_erased_is_forgotten(codec):
    """Its row is free, holds nothing of it, and is given to others; all others are as before."""
    both = collection_of(codec=codec)
    ids = np.stack([np.arange(20), np.arange(20)], 1)
    for _ in range(3):
        train(both, ids)
    rows = both.owners.find([3, 4], 0)
    others = both.lookup(ids)
    (gradients,) = both.backward(ids, np.ones((20, 2 * DIM)))
    assert both.erase([3, 3, 4, 99], "user").tolist() == [True, False, True, False]
    assert both.erase([], "user").tolist() == []
    for i, row in zip((3, 4), rows):
        told = both.explain(i, "user")
        assert not told.own
        at = both.shared.stored.read_rows(np.array([told.row, row]), both.shared.layout.unit)
        np.testing.assert_allclose(at[0], at[1], atol=0 if codec == "float32" else 0.02)
        assert both.owners.counts[row] == 0
    left = [i for i in range(20) if i not in (3, 4)]
    np.testing.assert_allclose(both.lookup(ids)[left], others[left], atol=0 if codec == "float32" else 0.05)
    with pytest.raises(ValueError, match="rows that the table may have given to other ids"):
        cce.SGD(0.1).step(both.shared, gradients)
    train(both, np.tile([[3, 3]], (9, 1)))
    assert both.explain(3, "user").own


def test_erasing_from_a_mapped_table_is_refused(tmp_path):
    table = table_of()
    train(table, [1, 2])
    table.save(tmp_path / "t")
    mapped = cce.load(tmp_path / "t", mmap=True)
    with pytest.raises(ValueError, match="mapped read-only"):
        mapped.erase([1])
    assert mapped.explain(1).own
    assert type(mapped) is type(table)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.lists(st.integers(150, 900), min_size=1, max_size=3))
def test_a_plan_is_what_counting_gives(ids, budgets):
    found = cce.plan(ids, DIM, num_bytes=budgets, rank=0)
    half = len(ids) // 2
    early, later = ids[:half], ids[half:]
    for k, budget in enumerate(budgets):
        (n,) = cce.make_table("tiered", None, DIM, num_bytes=budget, rank=0).spec.sizes
        owners = sorted(sorted(set(early)), key=lambda i: -early.count(i))[:n]
        best = sorted((ids.count(i) for i in set(ids)), reverse=True)[:n]
        assert found.own_rows[k] == n
        assert found.served[k] == pytest.approx(sum(i in owners for i in later) / len(later))
        assert found.at_best[k] == pytest.approx(sum(best) / len(ids))


def test_a_plan_of_many_tables_has_a_table_and_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    found = cce.plan(rng.zipf(1.3, (2000, 3)) % 2**40, 16)
    assert isinstance(found, Plan)
    assert (np.diff(found.served) >= 0).all()
    assert found.at_best[-1] == 1.0
    assert (found.served <= found.at_best + 0.05).all()
    both = cce.make_collection("tiered", 3, 16, num_bytes=int(found.num_bytes[4]))
    assert both.spec.sizes[0] == found.own_rows[4]
    assert "at best" in str(found)
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "plan.svg")
    assert "served" in (tmp_path / "plan.svg").read_text()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: table_of().explain([1, 2]), TypeError, "id must be one integer"),
        (lambda: table_of().explain("a"), TypeError, "hash strings with cce_core.hash_strings"),
        (lambda: table_of().erase([1], "user"), KeyError, "there is no table 'user'; the tables are 0"),
        (lambda: collection_of().erase([1.5], "user"), TypeError, "ids must be integers"),
        (lambda: cce.plan([1], 8), ValueError, "a sample needs ids"),
        (lambda: cce.plan(["a", "b"], 8), TypeError, "hash strings with cce_core.hash_strings"),
        (lambda: cce.plan([1, 2], 8, num_bytes=[9]), cce.BudgetError, "9 bytes are too few"),
    ],
)
def test_bad_input_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
