"""examples/movielens.py as its users run it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "movielens.py"
pytestmark = pytest.mark.skipif(not COMPILED, reason="tens of thousands of rows in plain Python take hours")


def test_without_the_data_it_trains_on_a_synthetic_set_and_says_so(run, tmp_path):
    words = ("--epochs", 2, "--ppd", 64, "--json", tmp_path / "r.json", "--save", tmp_path / "tables")
    done = run("movielens.py", *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ml-100k: not on this machine")
    assert "synthetic-ml-100k" in lines[0]
    assert sum(line.startswith("epoch") for line in lines) == 2
    assert done.stderr == ""
    report = json.loads((tmp_path / "r.json").read_text())
    keys = ("dataset", "method", "num_params", "bytes", "ratio", "auc", "logloss", "epochs", "seconds", "cluster")
    assert all(key in report for key in keys)
    assert report["dataset"] == "synthetic-ml-100k"
    assert 0.55 < report["auc"] < report["best_reachable_auc"]
    assert len(report["cluster"]) == 2  # after the first epoch, both tables
    tables = [cce.load(tmp_path / "tables" / f"{name}.safetensors") for name in ("users", "items")]
    assert sum(t.ledger().total for t in tables) == report["bytes"]["stored"]
    assert sum(t.num_params for t in tables) == report["num_params"] <= 2 * 64 * 32


@pytest.mark.parametrize("method", [m.name for m in cce.methods()])
def test_every_method_runs(run, method):
    done = run("movielens.py", "--method", method, "--epochs", 1, "--batch-size", 4096, "--ppd", 64)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "the methods are full, ldim"),
        (["--dataset", "nope"], "ml-100k"),
        (["--ppd", "1"], "the least that fits is"),
        (["--dim", "30"], "not divisible by n_chunks 4"),
        (["--lr", "-1"], "lr must be at least 0"),
        (["--num-bytes", "5"], "the least that fits is"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["--save", "/proc/nowhere"], "nowhere"),
        (["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(run, arguments, message):
    done = run("movielens.py", "--epochs", 1, "--batch-size", 8192, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1


def interactions(path, n_users=60, n_items=50, separator=","):
    """A file of pairs: users and items of one of two groups each meet."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(n_users, size=4000), rng.integers(n_items, size=4000)
    items += (users + items) % 2
    path.write_text("".join(f"{u}{separator}{i}\n" for u, i in zip(users, items)))
    return path


def test_interactions_of_ones_own(run, tmp_path):
    path = interactions(tmp_path / "my visits.csv")
    done = run(
        "movielens.py",
        "--dataset",
        path,
        "--method",
        "full",
        "--batch-size",
        64,
        "--epochs",
        6,
        "--json",
        tmp_path / "r.json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert done.stdout.startswith("my visits.csv: 7,200 training and 800 validation rows\n")
    aucs = [float(line.split("AUC")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert report["auc"] == pytest.approx(max(aucs), abs=1e-4)
    assert report["last_auc"] == pytest.approx(aucs[-1], abs=1e-4)
    assert f"{report['auc']:.4f}  (epoch {report['best_epoch']}; {report['last_auc']:.4f} at the last)" in done.stdout
    assert report["auc"] > 0.7  # no item is met by more than chance: without the groups it is 0.5
    assert (report["arguments"]["lr"], report["arguments"]["weight_decay"]) == (0.005, 0.5)


@pytest.mark.parametrize("name", ["gowalla", "book-crossing"])
def test_sets_of_interactions_are_found_and_have_settings_of_their_own(run, tmp_path, name):
    done = run("movielens.py", "--dataset", name, "--epochs", 1, data=tmp_path)
    assert done.returncode == 2
    assert f"{name} is not on this machine" in done.stderr
    assert "never downloaded" in done.stderr
    (tmp_path / name).mkdir()
    interactions(tmp_path / name / "interactions.tsv", separator="\t")
    done = run(
        "movielens.py",
        "--dataset",
        name,
        "--epochs",
        1,
        "--method",
        "full",
        "--json",
        tmp_path / "r.json",
        data=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["dataset"] == name
    assert report["arguments"]["batch_size"] == {"gowalla": 4096, "book-crossing": 2048}[name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dataset", "ml-100k"], (1e-3, 1e-2, None)),
        (["--dataset", "ml-100k", "--method", "vq"], (2e-3, 0.5, None)),
        (["--dataset", "visits.csv"], (5e-3, 1e-2, None)),
        (["--dataset", "visits.csv", "--method", "int8"], (5e-3, 0.5, None)),
        (["--dataset", "visits.csv", "--method", "pq"], (5e-3, 0.5, None)),
        (["--dataset", "visits.csv", "--method", "rvq"], (5e-3, 0.5, 0)),
        (["--dataset", "visits.csv", "--method", "vq", "--rank", "4"], (1e-2, 0.05, 4)),
        (["--dataset", "visits.csv", "--method", "vq", "--lr", "1", "--weight-decay", "2"], (1.0, 2.0, 0)),
    ],
)
def test_each_method_has_settings_of_its_own(monkeypatch, words, expected):
    monkeypatch.syspath_prepend(ROOT / "examples")
    args = importlib.import_module("movielens").parse(words)
    assert (args.lr, args.weight_decay, args.rank) == expected


def test_a_data_file_that_is_torn_is_one_clear_line(run, tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("1\t2\t5\t100\n1\t3\t")
    done = run("movielens.py", "--epochs", 1, data=tmp_path)
    assert done.returncode == 2
    assert "u.data" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_what_was_saved_is_whole(tmp_path):
    folder = tmp_path / "tables"
    command = [sys.executable, "-u", str(SCRIPT), "--epochs", "10000", "--save", str(folder)]
    command += ["--batch-size", "4096"]
    environment = {**os.environ, "CCE_DATA": "nowhere", "XDG_CACHE_HOME": str(tmp_path)}
    environment.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "cce_core" / "numba"))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not process.stdout.readline().startswith("epoch   3"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    for name in ("users", "items"):
        cce.load(folder / f"{name}.safetensors")
    assert sorted(os.listdir(folder)) == ["items.safetensors", "users.safetensors"]


@pytest.mark.skipif(
    not (Path(os.environ.get("CCE_DATA") or "nowhere") / "ml-100k" / "u.data").exists(),
    reason="MovieLens 100K is not at hand (CCE_DATA names the folder that holds ml-100k/u.data)",
)
def test_cce_learns_movielens(run, tmp_path):
    done = run("movielens.py", "--ppd", 64, "--json", tmp_path / "r.json", data=os.environ["CCE_DATA"])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["dataset"] == "ml-100k"
    assert (report["epochs"], report["arguments"]["batch_size"], report["arguments"]["lr"]) == (20, 256, 0.001)
    assert report["auc"] > 0.80  # the plain hashed table has 0.6 at this size
    assert report["ratio"] > 10
    assert np.isfinite(report["logloss"])
