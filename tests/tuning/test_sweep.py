"""tuning.sweep: which trials are run, what a model of one's own is given, and that processes and restarts change nothing."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from cce_core import datasets, tuning
from cce_core.tuning import pool, rows, trial
from cce_core.tuning.portrait import portrait
from cce_core.tuning.sweep import FINALISTS, LEAST

GOOD = {"hash": 0.5, "ldim": 0.7, "rhemb": 0.6, "robe": 0.4, "ce": 0.3, "full": 0.9}


def split(n=900, seed=1):
    return datasets.Synthetic(n, 30, 50, dim=4, seed=seed).split(300)


class Called:
    """A training that learns nothing and knows what each method is worth; it remembers how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, tables, budget, seed, share, settings):
        method = tables["a"].method.name
        self.calls.append((method, budget, seed, share, settings.get("lr")))
        stored = sum(table.ledger().total for table in tables.values())
        assert budget is None or stored <= budget
        return GOOD[method] + 0.01 * settings.get("lr", 0) + seed / 1000 + (0 if budget is None else budget / 1e6)


def test_candidates_are_halved_and_the_best_have_all_seeds():
    train = Called()
    methods = ["hash", "ldim:lr=1", "ldim:lr=3", "ldim:lr=2", "rhemb", "robe", "ce:n_chunks=2"]
    budgets = [2000, 1000]
    results = tuning.sweep(
        {"a": 60, "b": 30},
        train=train,
        budgets=budgets,
        methods=methods,
        full=["full:lr=1", "full:lr=2"],
        dim=8,
        share=0.2,
    )
    short = [c for c in train.calls if c[3] == 0.2]
    assert len(short) == 2 * len(methods) + 2
    assert {seed for _, _, seed, _, _ in short} == {1}
    whole = collections.Counter((m, b, lr) for m, b, _, share, lr in train.calls if share == 1)
    wanted = {(m, b, lr): n for b in budgets for m, lr, n in (("ldim", 3.0, 3), ("rhemb", None, 3), ("hash", None, 1))}
    assert whole == {**wanted, ("full", None, 2.0): 3}  # of five methods three, of these two with all seeds
    assert (LEAST, FINALISTS) == (3, 2)
    assert {p.label for line in results.points.values() for p in line} == {"full", "ldim", "rhemb", "hash"}
    assert [p.x("bytes") < 2000 for p in results.points["ldim"]] == [True, True]
    assert results.points["ldim"][0].mean("score") == pytest.approx(0.7 + 0.03 + 0.002 + 0.001)
    assert [p.label for p in results.frontier()] == ["ldim", "ldim"]
    full = 4 * 8 * 90
    said = results.recommend(loss=0.2)
    assert str(said).startswith(f"Your two tables take {full / 1000:.1f} KB. ldim at ")
    assert "loses 0.189 score. Means of 3 seeds." in str(said)
    assert len(results.table()) == 3 * 2 + 1
    # the budget is shared as the full tables' bytes are
    runner = trial.Runner({"a": 60, "b": 30}, 8, 1, 1, None, train)
    made = runner.tables(trial.Trial(tuning.candidate("hash"), 2400, 1, 1.0, ()))
    assert 700 < made["b"].ledger().total <= 800 < 1500 < made["a"].ledger().total <= 1600
    # and everything goes at once where the first round is the whole training
    again = Called()
    tuning.sweep({"a": 60, "b": 30}, train=again, budgets=[2000], methods=methods, full=None, dim=8, share=1.0, seeds=1)
    assert len(again.calls) == len(methods)


def test_methods_that_learn_from_a_trained_table_are_given_one_that_was_trained_here():
    target = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    seen = []

    def train(tables, seed):
        table = tables["words"]
        seen.append(table.method.name)
        if table.method.name == "full":
            table.parameters()["memory"][:] = target.reshape(table.parameters()["memory"].shape)
        return -float(np.square(table.lookup(np.arange(60)) - target).mean())

    results = tuning.sweep(
        {"words": 60}, train=train, budgets=[1500], methods="pq:n_chunks=2,hash", full=None, dim=8, seeds=1
    )
    assert seen[:2] == ["full", "pq"]
    best = {label: line[0].mean("score") for label, line in results.points.items()}
    assert best["pq:n_chunks=2"] > -0.3 > -1.0 > best["hash"]
    assert results.points["pq:n_chunks=2"][0].x("train_bytes") > 4 * 8 * 60


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda tables: "high", "could not convert"),
        (lambda tables: {"accuracy": 1.0}, "train must return a number or some of auc, logloss, score"),
        (lambda tables: float("nan"), "score a number"),
        (lambda tables: 1 / 0, "ZeroDivisionError"),
        (lambda tables: 1.0, r"must call cluster\(\) of tables in phase 'rows'"),
    ],
)
def test_what_is_wrong_with_a_training_is_said(measure, message):
    method = "vq:rank=2" if "phase" in message else "hash"
    with pytest.raises(ValueError, match=f"no run gave a result.*{message}"):
        tuning.sweep({"a": 60}, train=measure, budgets=[400], methods=method, full=None, dim=8, seeds=1)


def test_bad_input_is_refused_before_anything_is_run(tmp_path):
    def never(tables):
        raise AssertionError

    for error, message, changes in [
        (ValueError, "unknown method 'nope'", {"methods": "nope"}),
        (ValueError, "'colour' is none of rank", {"methods": "hash:colour=2"}),
        (ValueError, "lr must be a float, got 'fast'", {"methods": "hash:lr=fast"}),
        (ValueError, "full has no budget", {"methods": "full"}),
        (ValueError, "a budget must be", {"budgets": [0]}),
        (ValueError, "share must be above 0", {"share": 0}),
        (ValueError, "seeds must be", {"seeds": 0}),
        (TypeError, "train must be", {"train": 3}),
        (TypeError, "data must be a Split", {"train": None}),
        (ValueError, "at least one table", {"data": {}}),
    ]:
        given = {"data": {"a": 60}, "train": never, "dim": 8, "out": tmp_path / "out"} | changes
        data = given.pop("data")
        with pytest.raises(error, match=message):
            tuning.sweep(data, **given)
    assert not (tmp_path / "out" / rows.NAME).exists()


METHODS = ["hash", "vq:rank=2:lr=0.05", "pq:n_chunks=1"]
SMALL = {"budgets": [1200], "methods": METHODS, "dim": 8, "epochs": 4, "seeds": 2, "show": False}


def figures(results):
    return {
        row["run"]: (row["label"], row["auc"], row["logloss"], row["bytes"], row["train_bytes"]) for row in results.rows
    }


def test_processes_and_restarts_change_nothing(tmp_path, monkeypatch):
    """One after the other in memory; in two processes into a file; and the same again, where nothing is left to do."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(pool, "processes", ThreadPoolExecutor)  # the same way of data, without new interpreters
    alone = tuning.sweep(split(), **SMALL)
    assert {row["status"] for row in alone.rows} == {"ok"}
    assert dict(alone.portrait)["users"] == "30"
    both = tuning.sweep(split(), out=tmp_path, workers=2, **SMALL)
    assert figures(both) == figures(alone)
    text = (tmp_path / rows.NAME).read_bytes()
    assert figures(tuning.sweep(split(), out=tmp_path, **SMALL)) == figures(alone)
    assert (tmp_path / rows.NAME).read_bytes() == text
    read = tuning.Results.read(tmp_path)
    assert figures(read) == figures(alone)
    assert str(read) == str(alone)
    assert 'make_table(\\"vq\\", 30, 8, num_bytes=450, rank=2)' in alone.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == alone.to_html()
    with pytest.raises(ValueError, match="holds rows of .*: give every data set a folder of its own"):
        tuning.sweep(split(seed=2), out=tmp_path, **SMALL)


def test_a_runner_travels_without_its_data_and_finds_them(tmp_path):
    import pickle

    data = split(n=20_000)
    runner = trial.Runner({"users": 30, "items": 50}, 8, 1, 64, data, None)
    with runner.spill():
        text = pickle.dumps(runner)
        assert len(text) < 3000
        there = pickle.loads(text).data()
    assert (there.train.users == data.train.users).all()
    assert (there.valid.labels == data.valid.labels).all()


def test_the_portrait_is_counted():
    users, items = np.array([0, 0, 0, 1]), np.array([2, 2, 1, 2])
    part = datasets.Interactions(users, items, np.ones(4, np.float32))
    found = dict(portrait(datasets.Split("x", part, part.take(slice(0, 2)), 4, 3)))
    assert found["users: met at most once"] == "75%"
    assert found["items: rows of the top 1 %"] == "75%"
    assert (found["users"], found["items"], found["rows to judge by"]) == ("4", "3", "2")
