"""python -m bench stream: what it plans, its rows, that it goes on where it was, and the table of it."""

from __future__ import annotations

import pytest

from bench.methods import stream
from cce_core._jit import COMPILED
from cce_core.tuning import pool
from cce_core.tuning import rows as sweep_rows

pytestmark = pytest.mark.skipif(not COMPILED, reason="thousands of rows in plain Python take minutes")
SMALL = ("--rows", "4000", "--window", "1000", "--batch-size", "100", "--dim", "8")


@pytest.fixture
def here(monkeypatch):
    """Runs within this process."""
    monkeypatch.setattr(pool, "over_processes", lambda jobs, run, *_: pool.here(jobs, run))


def planned(tmp_path, *words):
    return stream.plan(stream.arguments([*SMALL, "--out", str(tmp_path), *words]))


def test_budgets_are_shares_of_what_the_dictionary_takes(tmp_path):
    runs = planned(tmp_path, "--methods", "dict,hash,tiered", "--shares", "1,10", "--seeds", "2")
    assert [(run.label, run.budget) for run in runs[:5]] == [
        ("dict", "own"), ("hash", "1 %"), ("tiered", "1 %"), ("hash", "10 %"), ("tiered", "10 %"),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == len(runs) == 10
    found = stream.execute(runs[0])
    assert found["bytes"] == found["full_bytes"] == stream.dictionary_bytes(4000, 8, 1)
    assert runs[3].command[-2:] == ("--num-bytes", str(found["bytes"] // 10))


def test_runs_rows_and_the_table(tmp_path, here, capsys):
    words = [*SMALL, "--methods", "dict,tiered,hash", "--shares", "20", "--seeds", "2", "--out", str(tmp_path)]
    assert stream.main(words) == 0
    table = capsys.readouterr().out
    rows = sweep_rows.read(tmp_path)
    assert [row["status"] for row in rows] == ["ok"] * 6
    for row in rows:
        assert row["bytes"] <= (row["full_bytes"] if row["label"] == "dict" else int(row["num_bytes"]))
        assert 0.5 < row["auc"] < row["best_reachable_auc"]
        assert row["train_rows"] == 4000
    assert table.count("*") == 1  # the best of the one budget
    auc = sum(row["auc"] for row in rows if row["label"] == "hash") / 2
    assert f"| `hash` | {auc:.4f}" in table
    before = (tmp_path / sweep_rows.NAME).read_bytes()
    assert stream.main(words) == 0  # nothing new
    assert (tmp_path / sweep_rows.NAME).read_bytes() == before
    assert stream.main(["--table", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == 2 * table
    again = stream.execute(stream.Run("hash", "20 %", tuple(rows[-1]["command"].split())))
    assert {name: again[name] for name in ("run", "auc", "logloss")} == {
        n: rows[-1][n] for n in ("run", "auc", "logloss")
    }


def test_what_fails_is_a_row_and_what_is_wrong_is_said(tmp_path, here, capsys):
    words = [*SMALL, "--methods", "nope,tiered", "--shares", "0.0001", "--out", str(tmp_path)]
    assert stream.main(words) == 1
    rows = {row["label"]: row for row in sweep_rows.read(tmp_path)}
    assert rows["nope"]["status"] == "failed"
    assert "the methods are dict, cafe" in rows["nope"]["error"]
    assert rows["tiered"]["status"] == "does not fit"
    assert stream.main([*words, "--retry"]) == 1
    for bad in (["--shares", "0"], ["--shares", "x"], ["--rows", "0"]):
        with pytest.raises(SystemExit):
            stream.main([*SMALL, "--out", str(tmp_path), *bad])
    assert stream.main(["--table", "--out", str(tmp_path / "none")]) == 2
    assert "let a sweep write there" in capsys.readouterr().err
