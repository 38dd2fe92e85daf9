"""python -m bench sweep: what is planned, what is written, and that a kill, a failure or a broken file loses nothing."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sweep_runs import TINY, deadly, environment

from bench.methods import sweep, sweep_run
from cce_core._jit import COMPILED
from cce_core.tuning import gmf, pool
from cce_core.tuning import rows as sweep_rows


@pytest.fixture
def here(monkeypatch):
    """Runs in threads of this process: no second interpreter, no second start of Numba."""
    monkeypatch.setattr(pool, "processes", ThreadPoolExecutor)


def command(out, *words):
    return [*TINY, "--out", str(out), "--workers", "2", *map(str, words)]


def planned(out, *words):
    return sweep.planned(*sweep.arguments(command(out, *words)))


# The plan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16", [16]),
        ("16,64,16", [16, 64]),
        ("2^4..2^7", [16, 32, 64, 128]),
        ("4^2..4^4,7", [16, 64, 256, 7]),
        ("2^0..2^2", [1, 2, 4]),
        ("3^0", [1]),
    ],
)
def test_budgets(text, expected):
    assert sweep.numbers(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "0", "2^5..2^4", "2^2..3^4", "16..64", "1^1..1^9", "2^50", "-4", "16,,64", "1.5"]
)
def test_bad_budgets_are_refused_and_named(text):
    with pytest.raises(argparse.ArgumentTypeError, match="2\\^4|budget"):
        sweep.numbers(text)


def test_seeds():
    assert sweep.seeds("3") == [1, 2, 3]
    assert sweep.seeds("5,7") == [5, 7]
    for text in ("0", "", "-1", "a", "1,,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected how many"):
            sweep.seeds(text)


def test_all_methods_are_there_and_the_rivals_that_people_forget():
    import cce_core as cce

    assert {m.name for m in cce.methods()} | {"narrow-int8"} <= set(sweep.methods("all"))
    assert sweep.methods("cce:rank=0:codec=int8") == {
        "cce:rank=0:codec=int8": ["--method", "cce", "--rank", "0", "--codec", "int8"]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nope"], "unknown method 'nope'; there are full"),
        (["--methods", "cce:x=1"], "with one of rank"),
        (["--methods", "cce:rank"], "got 'rank'"),
        (["--methods", "cce:rank=two"], "invalid rank value"),
        (["--budgets", "16..64"], "2^4..2^12"),
        (["--seeds", "0"], "such as 3"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--equal-bytes", "nope"], "unknown method"),
        (["--seed", "1"], "--seed is the sweep's own business"),
        (["--ppd=16"], "--ppd is the sweep's own business"),
        (["--no-such-thing"], "unrecognized arguments: --no-such-thing"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--dataset", "nope"], "ml-100k"),
        (["--dataset", "ml-20m", "--data-dir", "/nowhere"], "ml-20m"),
        (["--scheduler", "tcp://127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, capsys, monkeypatch):
    if "--scheduler" in arguments:
        pytest.importorskip("distributed")
    monkeypatch.delenv("CCE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        code = sweep.main(["--methods", "hash", *command(tmp_path / "out"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]


def test_every_run_is_planned_once_and_known_by_its_command(tmp_path):
    runs = planned(tmp_path, "--methods", "full,hash,ldim,ldim:rank=1,hash", "--budgets", "64,128", "--seeds", 2)
    assert len({run.key for run in runs}) == len(runs) == (1 + 3 * 2) * 2
    once = planned(tmp_path, "--methods", "full,hash,ldim,ldim:rank=1", "--budgets", "64,128", "--seeds", 2)
    assert once == runs
    for run in runs:
        args = sweep_run.parsed(run)
        assert sweep_run.command(args) == run.command  # nothing is lost on the way
        assert args.dim == 8
        assert args.interactions == 300
    # a default spelled out is the same run; where the data lies, and how many threads, make no other run of it
    again = planned(tmp_path, "--methods", "hash", "--budgets", "64", "--data-dir", "/elsewhere", "--last-cluster", 0)
    assert again[0].key not in {run.key for run in runs}  # --last-cluster 0 is not the default
    again = planned(tmp_path, "--methods", "hash", "--budgets", "64", "--data-dir", "/elsewhere", "--vocab", 40)
    assert again[0].key in {run.key for run in runs}


def test_sizes_in_bytes_alone_bring_no_budgets_in_parameters(tmp_path):
    def budgets(*words):
        return sorted({run.budget for run in planned(tmp_path, "--methods", "hash,full", *words)})

    assert budgets("--bytes", "2^10,2000") == ["1024 bytes a table", "2000 bytes a table", "own"]
    assert budgets("--bytes", "2^10", "--budgets", "64") == ["1024 bytes a table", "own", "ppd 64"]
    assert budgets("--ratios", "4,10") == ["256 bytes of both tables", "640 bytes of both tables", "own"]
    assert budgets() == ["own", "ppd 1024", "ppd 16", "ppd 256", "ppd 64"]


def test_ratios_are_of_each_tables_own_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "shape_of", lambda _: argparse.Namespace(n_users=30, n_items=50))
    (run,) = planned(tmp_path, "--methods", "hash", "--ratios", "10", "--seeds", 1)
    assert sweep_run.parsed(run).num_bytes == [96, 160]  # 4 · 8 · 30 / 10 and 4 · 8 · 50 / 10


def test_equal_bytes_gives_the_others_what_the_method_takes(tmp_path):
    runs = planned(tmp_path, "--methods", "hash,narrow-int8", "--equal-bytes", "cce", "--budgets", "32", "--seeds", 1)
    rows = {(run.label, run.budget): sweep_run.execute(run) for run in runs}
    assert {label for label, _ in rows} == {"hash", "narrow-int8", "cce"}
    allowed = rows["cce", "ppd 32"]["bytes"]
    for label in ("hash", "narrow-int8"):
        row = rows[label, "bytes of cce at 32"]
        assert row["status"] == "ok"
        assert row["bytes"] <= allowed
        assert row["bytes"] == sum(int(part.split("=")[1]) for part in row["bytes_by_kind"].split())
    assert rows["hash", "bytes of cce at 32"]["bytes"] > 0.9 * allowed
    assert rows["narrow-int8", "bytes of cce at 32"]["codec"] == "int8"


# The rows


def test_a_sweep_and_its_rows(tmp_path, capsys, here):
    words = command(tmp_path / "out", "--methods", "cce,ldim,full,pq", "--budgets", "4,64", "--seeds", 2)
    assert sweep.main(words) == 0
    rows = sweep_rows.read(tmp_path / "out")
    too_small = {(row["label"], row["budget"]) for row in rows if row["status"] == "does not fit"}
    assert ("ldim", "ppd 4") in too_small
    assert all(budget == "ppd 4" for _, budget in too_small)
    assert f"{14 - 2 * len(too_small)} ok, {2 * len(too_small)} does not fit, 0 failed" in capsys.readouterr().out
    for row in rows:
        done = row["status"] == "ok"
        assert (row["error"] is None) == done
        assert done or "the least that fits" in row["error"]
        assert not done or (
            0 < row["auc"] <= 1 and row["dataset"] == "synthetic-300-of-40" and row["train_rows"] == 300
        )
        assert all(
            row[name] for name in ("numpy", "numba", "scipy", "python", "cce_core", "code", "started", "processor")
        )
        assert row["epochs"] == 1
        assert row["budget"] == ("own" if row["label"] == "full" else f"ppd {row['ppd']}")
    # the command in a row makes the very same result
    row = next(row for row in rows if row["label"] == "cce" and row["status"] == "ok")
    run = sweep_run.Run("cce", "", tuple(row["command"].split()))
    again = sweep_run.execute(run)
    assert run.key == row["run"]
    assert (again["auc"], again["logloss"], again["bytes"]) == (row["auc"], row["logloss"], row["bytes"])
    # and all of it again is nothing new
    before = (tmp_path / "out" / sweep_rows.NAME).read_bytes()
    assert sweep.main(words) == 0
    assert "14 runs" in (out := capsys.readouterr().out)
    assert "0 of them new" in out
    assert (tmp_path / "out" / sweep_rows.NAME).read_bytes() == before
    # more seeds: only they are run, and the old rows stay in front
    assert sweep.main([*words[:-1], "3"]) == 0
    assert "7 of them new" in capsys.readouterr().out
    assert (tmp_path / "out" / sweep_rows.NAME).read_bytes().startswith(before)


def test_a_sweep_of_interactions_of_ones_own(tmp_path, here, capsys):
    path = tmp_path / "my visits.csv"
    path.write_text("".join(f"{k % 20},{k * k % 30}\n" for k in range(300)))
    words = [
        "--dataset",
        str(path),
        "--dim",
        "8",
        "--n-chunks",
        "2",
        "--epochs",
        "1",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    words += [
        "--methods",
        "full:weight_decay=0.5,hash:rank=2:codec=int8:rounding=stochastic",
        "--budgets",
        "8",
        "--seeds",
    ]
    assert sweep.main([*words, "2"]) == 0
    rows = sweep_rows.read(tmp_path / "out")
    assert [(row["status"], row["dataset"], row["lr"], row["batch_size"]) for row in rows] == [
        ("ok", path.name, 0.005, 2048)
    ] * 4
    assert [row["train_rows"] for row in rows] == [540] * 4
    first, second = (
        sweep_run.load(argparse.Namespace(**{**vars(sweep_run.movielens().parse(words[:2])), "seed": s}))
        for s in (1, 2)
    )
    assert (first.valid.users != second.valid.users).any()  # each seed has a split of its own
    assert sweep.main([*words, "3"]) == 0
    assert "2 of them new" in capsys.readouterr().out


def test_failures_are_rows_and_not_fatal(tmp_path, capsys, here, monkeypatch):
    words = command(tmp_path, "--methods", "hash,tt,cce:n_chunks=3", "--budgets", "64", "--seeds", 1)
    assert sweep.main(words) == 1
    rows = {row["label"]: row for row in sweep_rows.read(tmp_path)}
    assert {label: row["status"] for label, row in rows.items()} == {
        "hash": "ok",
        "tt": "ok",
        "cce:n_chunks=3": "failed",
    }
    assert "not divisible" in rows["cce:n_chunks=3"]["error"]
    assert "cce:n_chunks=3, ppd 64, seed 1: ValueError" in capsys.readouterr().err
    assert sweep.main(words) == 1  # known to have failed: not run again
    assert "0 of them new" in capsys.readouterr().out
    assert sweep.main([*words, "--retry"]) == 1
    assert "1 of them new" in capsys.readouterr().out
    assert len(sweep_rows.read(tmp_path)) == 3
    # rows of another version of the code are said, and run again when asked
    monkeypatch.setattr(sweep_run, "versions", lambda: {"code": "another", "cce_core": "9"})
    sweep.main(words)
    assert "3 rows were made by another version" in capsys.readouterr().out
    sweep.main([*words, "--retry"])
    assert "3 of them new" in capsys.readouterr().out
    assert {row["code"] for row in sweep_rows.read(tmp_path)} == {"another"}


def test_a_run_that_diverges_is_a_failure_and_never_a_nan(tmp_path, monkeypatch):
    run = planned(tmp_path, "--methods", "hash", "--budgets", "64", "--seeds", 1)[0]
    monkeypatch.setattr(gmf, "logloss", lambda *_: float("nan"))
    monkeypatch.setattr(gmf, "auc", lambda *_: float("nan"))
    row = sweep_run.execute(run)
    assert row["status"] == "failed"
    assert "--lr" in row["error"]


def test_a_worker_that_dies_costs_its_own_run_alone(tmp_path):
    runs = planned(tmp_path, "--methods", "hash", "--budgets", "64", "--seeds", 4)
    rows = list(pool.over_processes(runs, deadly, sweep_run.failure, 2))
    assert sorted((row["seed"], row["status"]) for row in rows) == [(1, "ok"), (2, "failed"), (3, "ok"), (4, "ok")]
    assert next(row for row in rows if row["seed"] == 2)["error"] == pool.DIED
    assert {row["threads"] for row in rows if row["status"] == "ok"} == {1}


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, how):
    words = [sys.executable, "-m", "bench", "sweep", *command(tmp_path / "out", "--methods", "hash,full")]
    n_seeds, epochs = ("24", "40") if COMPILED else ("9", "3")
    words += ["--budgets", "16,32", "--seeds", n_seeds, "--epochs", epochs]
    total = 3 * int(n_seeds)
    path = tmp_path / "out" / sweep_rows.NAME
    process = subprocess.Popen(
        words, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not path.exists() or path.read_text().count("\n") < 4):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    workers = children(process.pid)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in err
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)  # nobody trains on for a sweep that is gone
    before = path.read_bytes()
    n = len(sweep_rows.read(tmp_path / "out"))
    assert 3 <= n < total
    assert before.endswith(b"\n")
    with path.open("ab") as file:
        file.write(b"0123456789ab,hash,ppd")  # as a power cut would leave it
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar where there is no terminal
    assert f"{total} runs in {path}, {total - n} of them new: {total} ok" in done.stdout
    assert path.read_bytes().startswith(before)
    assert path.read_text().count("\n") == 1 + total
    assert len({row["run"] for row in sweep_rows.read(tmp_path / "out")}) == total


def test_a_folder_is_one_sweeps_and_one_data_sets(tmp_path, here, capsys):
    words = command(tmp_path, "--methods", "hash", "--budgets", "64", "--seeds", 1)
    with sweep_rows.Writer(tmp_path):
        assert sweep.main(words) == 2
        assert "another sweep is writing" in capsys.readouterr().err
    assert sweep.main(words) == 0
    assert sweep.main([*words, "--vocab", "41"]) == 2
    assert "holds rows of synthetic 300 40" in capsys.readouterr().err
    assert len(sweep_rows.read(tmp_path)) == 1


def test_processes_have_ended_before_a_sweep_has_and_an_interrupt_does_not_wait():
    """Else Python's end meets an executor that is closing, and says so in a traceback."""
    waits = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            waits.append(wait)
            super().shutdown(wait=wait, **options)

    assert sorted(pool.through(Pool, 2, [1, 2, 3], lambda job: job, None)) == [1, 2, 3]
    assert waits == [True]
    late = pool.through(Pool, 2, [0.0, 0.5], lambda job: time.sleep(job) or job, None)
    assert next(late) == 0.0
    late.close()
    assert waits == [True, False]


def test_training_bytes_are_the_most_that_was_held_and_are_found_for_rows_without(tmp_path, here):
    """Written down with a run; and a run of two batches finds the same, for every way to learn a table."""
    words = command(tmp_path, "--methods", "full,hash,cce,vq,pq", "--ratios", "3", "--seeds", 1, "--epochs", 3)
    assert sweep.main([*words, "--weight-decay", "0.1"]) == 0
    path = tmp_path / sweep_rows.NAME
    rows = {row["label"]: row for row in sweep_rows.read(tmp_path)}
    whole = {label: row["train_bytes"] for label, row in rows.items()}
    # AdamW's two moments, dense gradients: four times what is stored
    assert whole["full"] == 4 * rows["full"]["bytes"]
    assert 3 * rows["hash"]["bytes"] < whole["hash"] <= 4 * rows["hash"]["bytes"]
    assert whole["vq"] > 10 * rows["vq"]["bytes"]  # it has rows first, and clusters them
    assert whole["pq"] > whole["full"]  # its teacher
    before = path.read_text()
    at = before.splitlines()[0].split(",").index("train_bytes")
    cut = [line.split(",") for line in before.splitlines()]
    path.write_text("".join(",".join(fields[:at] + fields[at + 1 :]) + "\n" for fields in cut))
    assert {row["train_bytes"] for row in sweep_rows.read(tmp_path)} == {None}
    assert sweep_run.fill_training_bytes(tmp_path) == 5
    assert {row["label"]: row["train_bytes"] for row in sweep_rows.read(tmp_path)} == whole
    assert path.read_text() == before
    assert sweep_run.fill_training_bytes(tmp_path) == 0


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", "/proc/nowhere"):
        assert sweep.main(command(out, "--methods", "hash", "--budgets", "64")) == 2
        err = capsys.readouterr().err
        assert str(out) in err
        assert err.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="let a sweep write there"):
        sweep_rows.read(tmp_path / "none")


# A cluster


def test_a_cluster_of_two_worker_processes(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    words = command(tmp_path, "--methods", "hash,cce,ldim,cce:n_chunks=3", "--budgets", "32,64", "--seeds", 2)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        assert sweep.main([*words, "--scheduler", cluster.scheduler_address]) == 1
        rows = sweep_rows.read(tmp_path)
        assert len(rows) == 16
        assert {row["status"] for row in rows if row["label"] == "cce:n_chunks=3"} == {"failed"}
        assert [row["status"] for row in rows].count("ok") == 12
        assert sweep.main([*words, "--scheduler", cluster.scheduler_address]) == 1
        assert "0 of them new" in capsys.readouterr().out
    run = next(row for row in rows if row["label"] == "cce")
    again = sweep_run.execute(sweep_run.Run("cce", "", tuple(run["command"].split())))
    assert again["auc"] == run["auc"]


def test_the_runner_knows_both_commands(tmp_path):
    for name in ("sweep", "plot"):
        done = subprocess.run(
            [sys.executable, "-m", "bench", name, "--help"],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert f"python -m bench {name}" in done.stdout
    assert os.listdir(tmp_path) == []
