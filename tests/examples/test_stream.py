"""examples/stream.py as its users run it, and the rivals that it brings along."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.hot_sketch import Buckets

from cce_core._jit import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="thousands of rows in plain Python take minutes")
SMALL = ("--rows", 6000, "--window", 2000, "--batch-size", 100, "--num-bytes", 20_000, "--dim", 8)


def rows():
    """The example's module of who keeps rows."""
    folder = str(Path(__file__).parents[2] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("stream_rows")


METHODS = (
    "tiered",
    "tiered:rank=2:lead=1",
    "dict",
    "cafe",
    "cafe:rank=2:codec=int8:rounding=stochastic",
    "hash",
    "cce",
)


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_learns_within_its_bytes_and_is_judged_before_it_learns(run, tmp_path, method):
    done = run("stream.py", *SMALL, "--method", method, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [w["rows"] for w in report["windows"]] == [2000, 4000, 6000]
    assert 0.5 < report["auc"] < report["best_auc"]
    assert report["best_logloss"] < report["logloss"] < 0.72
    assert 0 < report["stored"] <= report["peak"]
    assert report["held"] >= report["stored"]
    if method.startswith("dict"):
        stream = importlib.import_module("stream").ClickStream(6000, seed=1).block(0, 6000)
        n = len(np.unique(stream.users)) + len(np.unique(stream.items)) + 2 * method.endswith("prior=True")
        assert report["stored"] == n * (4 * 8 + 8)
    else:
        assert report["peak"] <= 20_000
    assert done.stdout.count(" MiB ") == 3


@pytest.mark.parametrize("method", ["tiered", "dict", "dict:prior=True", "cafe", "cce:cluster_every=25"])
@pytest.mark.parametrize("strings", [(), ("--strings",)], ids=["words", "strings"])
def test_a_run_that_was_saved_goes_on_with_the_same_bits(run, tmp_path, method, strings):
    """Saved within a window, and gone on with there."""
    small, file = (*SMALL[2:], "--method", method, *strings), tmp_path / "run"
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert run("stream.py", "--rows", 6000, *small, "--json", whole).returncode == 0
    assert run("stream.py", "--rows", 3100, *small, "--save", file).returncode == 0
    done = run("stream.py", "--rows", 6000, *small, "--resume", file, "--json", parts)
    assert done.returncode == 0, done.stderr
    measured = ("rows", "auc", "logloss", "best_auc", "best_logloss", "stored")
    a, b = (
        [[w[name] for name in measured] for w in json.loads(path.read_text())["windows"]] for path in (whole, parts)
    )
    assert a == b


def test_what_is_wrong_is_said(run, tmp_path):
    for words, message in (
        (("--method", "nope"), "the methods are dict, cafe, hash"),
        (("--method", "hash:rank"), "expected such as hash:rank=4"),
        (("--method", "tiered:lr=-1"), "lr must be at least 0"),
        (("--num-bytes", 5), "the least that fits is"),
        (("--method", "cafe", "--num-bytes", 5), "too few"),
        (("--resume", tmp_path / "nowhere"), "nowhere"),
        (("--rows", 0), "--rows must be at least 1"),
    ):
        done = run("stream.py", *SMALL, *words)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("error:") == 1
    assert run("stream.py", *SMALL[2:], "--rows", 100, "--method", "dict", "--save", tmp_path / "run").returncode == 0
    done = run("stream.py", *SMALL, "--method", "hash", "--resume", tmp_path / "run")
    assert done.returncode == 2
    assert "it was made with --method dict, and not hash" in done.stderr
    (tmp_path / "other").write_bytes(b"not a pickle")
    assert run("stream.py", *SMALL, "--resume", tmp_path / "other").returncode == 2


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100)), max_size=12, unique_by=lambda pair: pair[0]),
        max_size=6,
    ),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_the_sketch_equals_its_twin(batches, n, seed):
    """Batches of different ids at once, or one id after the other: the same slots, scores and lost rows."""
    sketch, twin, row = rows().HotSketch(4 * n, seed), Buckets(n), 0
    for batch in batches:
        # Of a batch those that are there come first.
        there = {word: sketch.find(np.array([word], np.uint64))[0] >= 0 for word, _ in batch}
        batch = sorted(batch, key=lambda pair: not there[pair[0]])
        ids = np.array([word for word, _ in batch], np.uint64)
        lost = sketch.add(ids, np.array([score for _, score in batch], np.float32)).tolist()
        buckets, keys = sketch.places(ids)
        wanted = [twin.add(b, k, s) for b, k, (_, s) in zip(buckets.tolist(), keys.tolist(), batch, strict=True)]
        assert sorted(lost) == sorted(r for r in wanted if r is not None)
        for b in range(n):
            assert sketch.keys[b].tolist() == [slot[0] or 0 for slot in twin.slots[b]]
            assert sketch.scores[b].tolist() == [slot[1] for slot in twin.slots[b]]
        for word in ids[:2]:  # some are given rows, to be lost later
            slot = int(sketch.find(np.array([word]))[0])
            if slot >= 0 and sketch.rows.reshape(-1)[slot] < 0:
                sketch.rows.reshape(-1)[slot] = twin.slots[slot // 4][slot % 4][2] = row
                row += 1


def test_cafes_rows_have_one_owner_each_and_begin_as_the_shared_ones(run):
    """Through steps with a decay in each: no row is free and owned, or owned twice."""
    rng = np.random.default_rng(0)
    for options in ({}, {"rank": 2, "codec": "int8", "rounding": "stochastic"}):
        keeper = rows().Cafe(8, 3000, 1, lr=0.0, period=1, decay=0.5, **options)
        for _ in range(60):
            users, items = rng.zipf(1.3, (2, 20)).astype(np.uint64)
            before = keeper.forward(users, items).copy()
            keeper.learn(rng.standard_normal(before.shape).astype(np.float32))
            owned = keeper.sketch.rows[keeper.sketch.rows >= 0].tolist()
            assert sorted(owned + keeper.free) == list(range(keeper.n_own))
            after = keeper.forward(users, items)
            # Without a step of their own, rows that were given away are copies, to the precision of the codec.
            np.testing.assert_allclose(after, before, atol=0.05 if options else 0)
        assert owned
