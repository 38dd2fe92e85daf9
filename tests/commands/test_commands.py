"""The command `cce` as a shell runs it: what it prints, what it leaves, and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cce_core
from cce_core import tuning
from cce_core.__main__ import main
from cce_core.tuning import pool, rows

pytest.importorskip("typer", reason="Typer is not installed (the extra `cli`)")
pytest.importorskip("polars", reason="Polars is not installed (the extra `data`)")


@pytest.fixture
def visits(tmp_path):
    """Users and items of one of two groups each meet; the ids are words."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(30, size=1500), rng.integers(40, size=1500)
    items += (users + items) % 2
    path = tmp_path / "visits.csv"
    path.write_text("who;what\n" + "".join(f'"user {u}";item-{i}\n' for u, i in zip(users, items)))
    return path


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_sweep_says_what_to_take_and_its_command_trains_it(visits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pool, "over_processes", lambda jobs, run, failure, n: pool.here(jobs, run))
    monkeypatch.chdir(tmp_path)
    words = ["sweep", visits.name, "--user", "who", "--item", "what", "--dim", 8, "--epochs", 2, "--seeds", 1]
    words += ["--methods", "hash,vq:rank=2:lr=0.05", "--budgets", "900", "--out", "out"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert re.search(r"users +30\n", out)
    results = tuning.Results.read(tmp_path / "out")
    assert {row["status"] for row in results.rows} == {"ok"}
    assert str(results) in out
    page = (tmp_path / "out" / "index.html").read_text()
    command = re.search(r'"command":"(cce train [^"]*vq:rank=2[^"]*)"', page)[1]
    assert "page: " in out
    code, out, err = run(capsys, *command.split()[1:])
    assert (code, err) == (0, "")
    trained = next(row for row in results.rows if row["label"] == "vq:rank=2" and row["share"] == 1)
    assert f"AUC {trained['auc']:.4f}, log loss {trained['logloss']:.4f}" in out
    assert f"{trained['bytes']:,} bytes stored" in out
    # what was saved answers for the ids of the file
    table = cce_core.load(tmp_path / "tables" / "users.safetensors")
    code, out, _ = run(capsys, "lookup", "tables/users.safetensors", "user 7", "user 12")
    names = sorted(f"user {k}" for k in range(30))
    for line, name in zip(out.splitlines(), ("user 7", "user 12"), strict=True):
        found, *floats = line.split("\t")
        assert found == name
        assert np.array(floats, float) == pytest.approx(table.lookup(names.index(name)), rel=1e-5)
    code, out, _ = run(capsys, "inspect", "tables/users.safetensors")
    assert repr(table) in out
    assert str(table.ledger()) in out
    digest = re.search(r"digest +([0-9a-f]{16})", out)[1]
    table.parameters()["projection"][0, 0] += 1
    table.save(tmp_path / "tables" / "users.safetensors")
    assert digest not in run(capsys, "inspect", "tables/users.safetensors")[1]
    assert run(capsys, "lookup", "tables/users.safetensors", "nobody")[0] == 2


@pytest.mark.parametrize("rank", [0, 2])
def test_how_many_ids_share_a_row_is_counted(tmp_path, capsys, rank):
    table = cce_core.make_table("hash", 1000, 4, num_params=100, rank=rank)
    table.save(tmp_path / "t.safetensors")
    counts = np.bincount(table.sketch_matrix()[:, : table.spec.sizes[0]].indices, minlength=table.spec.sizes[0])
    assert counts.sum() == 1000
    code, out, _ = run(capsys, "inspect", tmp_path / "t.safetensors")
    assert code == 0
    assert f"ids per row: most {counts.max():,}, median {np.median(counts):,.0f}, least {counts.min():,}" in out


def test_tables_with_one_memory_are_inspected(tmp_path, capsys):
    cce_core.make_collection("tiered", ["user", "item"], 8, num_bytes=2000).save(tmp_path / "both.safetensors")
    code, out, _ = run(capsys, "inspect", tmp_path / "both.safetensors")
    assert (code, out.startswith("<tiered collection: 2 tables")) == (0, True)
    code, _, err = run(capsys, "lookup", tmp_path / "both.safetensors", "3")
    assert code == 2
    assert "holds 2 tables with one memory" in err


def test_errors_are_one_line_and_two(visits, tmp_path, capsys):
    data = (str(visits), "--user", "who", "--item", "what")
    cce_core.make_table("hash", 10, 4, num_params=16).save(tmp_path / "t.safetensors")
    for words, message in [
        (["nope"], "No such command 'nope'"),
        (["sweep"], "Missing argument 'DATA'"),
        (["sweep", tmp_path / "none.csv"], "none.csv"),
        (["sweep", visits, "--user", "who", "--item", "thing"], "has no column 'thing'; it has 'who', 'what'"),
        (["sweep", *data, "--label", "x", "--implicit"], "give one"),
        (["sweep", *data, "--above", "3"], "--above is a bound"),
        (["sweep", *data, "--budgets", "many"], "whole numbers of bytes"),
        (["sweep", *data, "--methods", "nope"], "unknown method 'nope'"),
        (["sweep", *data, "--epochs", "0"], "epochs"),
        (["train", *data, "--save", tmp_path / "x", "--num-bytes", "3"], "least that fits"),
        (["inspect", visits], "visits.csv"),
        (["lookup", tmp_path / "t.safetensors", "word"], "ids must be whole numbers"),
        (["lookup", tmp_path / "t.safetensors", "99"], "99"),
    ]:
        code, _, err = run(capsys, *words)
        assert code == 2, words
        assert err.count("\n") == 1, err
        assert err.startswith("cce: error: ")
        assert message in err
    assert not (tmp_path / "sweep" / rows.NAME).exists()


def test_ctrl_c_is_130_and_without_typer_it_says_what_to_install(visits, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "sweep", stopped)
    code, _, err = run(capsys, "sweep", visits, "--user", "who", "--item", "what")
    assert (code, err) == (130, "\ninterrupted\n")
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = run(capsys, "methods")
    assert (code, err) == (2, "cce: error: the command needs Typer: pip install 'cce-core[cli]'\n")


def test_methods_and_help_and_the_demo(tmp_path, capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert all(f"\n{m.name} " in f"\n{out}" for m in cce_core.methods())
    assert "cce-lean" in out
    code, out, err = run(capsys, "demo", "--rows", 1000, "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    assert "Your two tables take 256 KB." in out
    assert (tmp_path / "demo" / "index.html").exists()
    done = subprocess.run(
        [sys.executable, "-m", "cce_core"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(cce_core.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    for name in ("sweep", "train", "inspect", "lookup", "methods", "demo"):
        assert re.search(rf"^ +{name} ", done.stdout, re.MULTILINE), done.stdout
