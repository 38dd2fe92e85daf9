"""The benchmark of the GPU: its programs run and agree, at small sizes under the interpreter; nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kernel_tables import INTERPRETED

pytestmark = pytest.mark.triton


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    if not INTERPRETED:
        pytest.skip("at these sizes under the interpreter alone; `python -m bench gpu` does the rest")
    from bench.speed import gpu

    yield gpu
    for name in [name for name in sys.modules if name == "bench" or name.startswith("bench.")]:
        del sys.modules[name]


def test_every_case_runs_and_is_checked(gpu, monkeypatch):
    rows = [*gpu.lookups("cpu", 5000, 300, 32, 1, 1e9, "none"), *gpu.assignments("cpu", 3000, 50, 8, 1, 1e9, "none")]
    assert [row.name for row in rows] == ["forward", "forward", "train", "module", "module", "assign"]
    assert rows[0].nbytes == 300 * (8 + 4 * 12 // 8 + 4 * 32)
    assert {"ours_p20_s", "ours_p50_s", "ours_p80_s", "bytes", "copy_fraction", "gpu", "ratio"} <= set(
        rows[0].as_json()
    )
    monkeypatch.setattr("cce_kernels.kmeans.assign", lambda x, c, **_: (x[:, 0].int() * 0, None))
    with pytest.raises(AssertionError, match="labels are not those of cce_core; nothing is timed"):
        list(gpu.assignments("cpu", 3000, 50, 8, 1, 1e9, "none"))


def test_the_examples_model_takes_the_same_steps(gpu):
    """On the device as on the CPU, from the same tables: scores of three batches, and after them of all rows."""
    import numpy as np

    import cce_core as cce

    gpu.gpu_auc  # noqa: B018 - it puts the examples on the path
    from movielens import GMF, make_tables, parse

    args = parse([])
    split = cce.datasets.load("synthetic-ml-100k", seed=0)
    ours, theirs = GMF(*make_tables(split, args), cce.AdamW(lr=1e-2)), make_tables(split, args)
    device = gpu.gpu_auc.model_on("cpu", *theirs, 1e-2)
    for low in range(0, 600, 200):
        part = slice(low, low + 200)
        pairs = np.stack([split.train.users[part], split.train.items[part]], axis=1)
        batch = pairs, split.train.labels[part]
        np.testing.assert_allclose(device.step(*batch), ours.step(*batch), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(device.score(split.valid), ours.score(split.valid), rtol=1e-3, atol=1e-3)


def test_a_module_that_missed_the_kernels_is_not_timed(gpu, monkeypatch):
    monkeypatch.setattr("cce_core.adapters.torch.operators.cuda.kernels", lambda: None)
    rows = gpu.lookups("cpu", 5000, 300, 32, 1, 1e9, "none")
    assert [next(rows).name for _ in range(3)] == ["forward", "forward", "train"]
    with pytest.raises(AssertionError, match="has not found the kernels; nothing is timed"):
        next(rows)


def test_a_trial_runs_all_and_a_case_that_fails_is_a_row(gpu, monkeypatch, tmp_path):
    """The command itself; what was measured is kept."""
    import json

    from bench import __main__ as command

    def broken(*_):
        yield from ()
        raise RuntimeError("no such thing")

    monkeypatch.setattr(gpu.gpu_auc, "run", broken)
    monkeypatch.setattr(
        sys, "argv", ["bench", "gpu", "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]
    )
    assert command.main() == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    each = ["forward", "forward", "train", "module", "module"]
    assert [row["name"] for row in rows] == ["copy", *each, *each, "assign", "failed"]
    assert rows[-1]["error"] == "RuntimeError: no such thing"
    assert all(str(row["ours_s"]) == "nan" for row in rows[1:-1])
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + len(rows)


def test_without_a_gpu_it_says_so(gpu, capsys, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert list(gpu.run(True)) == []
    assert capsys.readouterr().out == "gpu: torch finds no GPU here: nothing is timed\n"
