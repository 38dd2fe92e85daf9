"""examples/dlrm.py and examples/movielens_torch.py as their users run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cce_core._jit import COMPILED

pytest.importorskip("torch")

from cce_core.datasets import SyntheticCriteo

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not COMPILED, reason="tens of thousands of rows take hours uncompiled"),
]

SMALL = ("--rows", 6000, "--valid-rows", 1000, "--batch-size", 256, "--vocab", 3000, "--threads", 1)


def command(script, *arguments):
    return [sys.executable, "-u", str(EXAMPLES / script), *map(str, arguments)]


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "full"),
        ("--method", "full", "--sparse"),
        ("--method", "cce"),
        ("--method", "cce", "--sparse", "--epochs", "3", "--num-bytes", "600000"),
        ("--method", "hash", "--ratio", "50"),
        ("--method", "int8"),
        ("--method", "tiered", "--ratio", "50"),
        ("--method", "tiered", "--ratio", "50", "--cluster-bytes", "60000"),
    ],
)
def test_dlrm_on_synthetic_rows(run, tmp_path, more):
    done = run("dlrm.py", *SMALL, *more, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["bytes_before"] == 26 * 3000 * 16 * 4
    assert 0 < report["best_bce"] < report["bce"] < 2
    assert 0.4 < report["auc"] < report["best_auc"] < 1
    expected = {"full": [], "hash": [], "int8": [], "tiered": [], "cce": ["step", 1, 3, 5, 7, 8, 10, 12, 14, 16]}[
        more[1]
    ]
    if "--epochs" in more:
        expected = ["epoch", 1, 2]
        assert report["bytes_after"] <= 600_000
    elif more[1] == "cce":
        assert report["share"] < 1 / 8.48
    if "--cluster-bytes" in more:
        assert report["bytes_after"] <= 60_000 < report["unclustered"]["bytes"]
        assert "before clustering" in done.stdout
    assert report["clustered_after"] == expected
    for words in ("BCE", "AUC", "bytes before", "bytes after"):
        assert f"  {words} " in done.stdout


def test_dlrm_on_a_file(run, tmp_path):
    SyntheticCriteo(3000, vocab=3000, seed=2).write(tmp_path / "train.txt")
    small = ("--data", tmp_path / "train.txt", "--vocab", 2000, "--batch-size", 256, "--threads", 1)
    done = run("dlrm.py", *small, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train.txt: 2,572 training and 428 validation rows")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows"] == 2572
    assert "best_auc" not in report
    with open(tmp_path / "train.txt", "ab") as file:
        file.write(b"1\t2\n")
    done = run("dlrm.py", *small, "--rows", 3001, "--valid-rows", 5)
    assert done.returncode == 2
    assert "train.txt, line 3001, column 2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("dlrm.py", ["--method", "nope"], "--method nope: the methods are full"),
        ("dlrm.py", ["--ratio", "1000000"], "tables.0.*min_rows= or skip="),
        ("dlrm.py", ["--cluster-bytes", "9"], "--cluster-bytes is for --method tiered"),
        ("dlrm.py", ["--method", "tiered", "--cluster-bytes", "9"], "9 bytes are too few for a 'tiered' table"),
        ("dlrm.py", ["--epochs", "0"], "--epochs must be at least 1"),
        ("dlrm.py", ["--data", "/nowhere/train.txt"], "/nowhere/train.txt"),
        ("dlrm.py", ["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        ("movielens_torch.py", ["--method", "nope"], "the methods are"),
        ("movielens_torch.py", ["--ppd", "1"], "the least that fits is"),
        ("movielens_torch.py", ["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(run, script, arguments, message):
    import re

    done = run(script, *(SMALL if script == "dlrm.py" else ()), *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1


@pytest.mark.parametrize("script", ["dlrm.py", "movielens_torch.py"])
def test_ctrl_c_ends_with_130(script):
    environment = {**os.environ, "CCE_DATA": "nowhere", "XDG_CACHE_HOME": "nowhere"}
    environment.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "cce_core" / "numba"))
    small = SMALL if script == "dlrm.py" else ("--batch-size", 4096, "--threads", 1)
    process = subprocess.Popen(
        command(script, *small, "--epochs", 10_000),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and not process.stdout.readline().startswith("epoch   2"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("method", ["cce", "full", "pq", "int8"])
def test_movielens_by_torch_is_movielens(run, tmp_path, method):
    """The same tables, the same batches, the same optimiser: the first epoch's losses agree."""
    small = ("--method", method, "--epochs", 2, "--batch-size", 4096, "--ppd", 64, "--threads", 1)
    mine = run("movielens_torch.py", *small, "--json", tmp_path / "mine.json", "--save", tmp_path / "tables")
    theirs = run("movielens.py", *small, "--json", tmp_path / "theirs.json")
    assert (mine.returncode, theirs.returncode) == (0, 0), mine.stderr + theirs.stderr
    mine, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("mine", "theirs"))
    assert mine["num_params"] == theirs["num_params"]
    assert mine["bytes"]["stored"] == theirs["bytes"]["stored"]
    assert mine["auc"] == pytest.approx(theirs["auc"], abs=0.02)
    assert mine["logloss"] == pytest.approx(theirs["logloss"], abs=0.02)
    assert len(mine["cluster"]) == len(theirs["cluster"])
    assert sorted(os.listdir(tmp_path / "tables")) == ["items.safetensors", "users.safetensors"]
