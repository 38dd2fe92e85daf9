"""One run of a sweep, in whichever process: examples/movielens.py's own job, and what is written down of it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import hashlib
import importlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from cce_core.tuning.rows import Writer, by_kind, digest, read

ROOT = Path(__file__).parents[2]
NOT_OF_THE_RUN = ("json", "save", "data_dir", "download", "threads")


class Run(NamedTuple):
    """What is to be run: `command` is all that its result depends on, the other two are for people."""

    label: str
    budget: str
    command: tuple[str, ...]

    @property
    def key(self) -> str:
        """What it is known by."""
        return digest(self.command)


def example_named(name: str) -> Any:
    """An example as a module."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def movielens() -> Any:
    """The example that sweeps run."""
    return example_named("movielens")


def command(args: argparse.Namespace) -> tuple[str, ...]:
    """The arguments that make this namespace: those that differ from the defaults, and the ones that every run names."""
    always = ("method", "dataset", "seed", "epochs", "num_bytes" if args.num_bytes else "ppd")
    words: list[str] = []
    for name, default in vars(movielens().parse([])).items():
        value = getattr(args, name)
        if name in NOT_OF_THE_RUN or (name == "ppd" and args.num_bytes):
            continue
        if name in always or value != default:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return tuple(words)


@functools.cache
def versions() -> dict[str, str]:
    """Everything that a result was made with; `code` is a digest of our own sources."""
    return versions_of("movielens.py")


def versions_of(*examples: str) -> dict[str, str]:
    """The same for runs of some examples, by their files' names."""
    import cce_core

    code = hashlib.sha256()
    house = Path(cce_core.__file__).parent
    for path in [*sorted(house.rglob("*.py")), *(ROOT / "examples" / name for name in examples)]:
        code.update(path.name.encode() + b"\0" + path.read_bytes())
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), platform.processor())
    return {
        "cce_core": cce_core.__version__,
        "code": code.hexdigest()[:12],
        "python": platform.python_version(),
        "processor": model or platform.machine(),
        **{name: metadata.version(name) for name in ("numpy", "numba", "scipy")},
    }


@functools.lru_cache(maxsize=1)
def data(dataset: str, data_dir: str | None, seed: int, interactions: int, vocab: int) -> Any:
    """The data set, kept for the next run; never another one in its place."""
    import cce_core as cce

    if dataset == "synthetic":
        return movielens().drawn(argparse.Namespace(seed=seed, interactions=interactions, vocab=vocab))
    return cce.datasets.load(dataset, data_dir=data_dir, seed=seed)


def load(args: argparse.Namespace) -> Any:
    """The data set that the arguments name; drawn ones and splits of interactions know the seed."""
    drawn = args.dataset.startswith("synthetic") or not movielens().rated(args.dataset)
    return data(args.dataset, args.data_dir, args.seed if drawn else 0, args.interactions, args.vocab)


def parsed(run: Run, data_dir: str | None = None) -> argparse.Namespace:
    """The run's command as the example reads it."""
    return movielens().parse([*run.command, *(["--data-dir", data_dir] if data_dir else [])])


def start_of(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What is known of a run before it is run."""
    last = 3 * args.epochs // 4 if args.last_cluster is None else args.last_cluster
    return {
        "run": run.key,
        "label": run.label,
        "budget": run.budget,
        "command": " ".join(run.command),
        "num_bytes": " ".join(map(str, args.num_bytes)) if args.num_bytes else None,
        "ppd": None if args.num_bytes or run.budget == "own" else args.ppd,
        "last_cluster": last,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{name: getattr(args, name) for name in ("dataset", "method", "dim", "n_chunks", "epochs", "batch_size", "lr", "seed")},
    }  # fmt: skip


def failure(run: Run, error: BaseException | str) -> dict[str, Any]:
    """The row of a run that gave no result."""
    from cce_core import BudgetError

    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    status = "does not fit" if isinstance(error, BudgetError) else "failed"
    return {**start_of(run, parsed(run)), **versions(), "status": status, "error": what[:500]}


def execute(run: Run, data_dir: str | None = None) -> dict[str, Any]:
    """Run it and give its row; an error becomes a row too."""
    import cce_core as cce

    try:
        args = parsed(run, data_dir)
        row = start_of(run, args)
        split = load(args)
        wall, cpu = time.perf_counter(), time.process_time()
        report = movielens().job(split, args, say=lambda _: None)
        if not report["logloss"] < float("inf"):
            return failure(run, "no epoch gave a finite log loss: a smaller --lr may help")
        row |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        return {**row, **versions(), "threads": cce.get_num_threads(), **result(report, split), "status": "ok"}
    except Exception as error:
        return failure(run, error)


def result(report: dict[str, Any], split: Any) -> dict[str, Any]:
    """The example's report as columns."""
    sizes = dict(report["bytes"])
    total, full, training = sizes.pop("stored"), sizes.pop("full"), sizes.pop("training")
    users, items = report["tables"]
    same = ("auc", "logloss", "best_epoch", "num_params", "train_bytes", "ratio", "best_reachable_auc", "dataset")
    return {
        **{name: report[name] for name in same},
        "bytes": total,
        "full_bytes": full,
        "bytes_by_kind": by_kind(sizes),
        "training_bytes_by_kind": by_kind(training),
        "cluster_seconds": float(sum(c["seconds"] for c in report["cluster"])),
        "clusterings": len(report["cluster"]),
        "train_rows": len(split.train),
        "valid_rows": len(split.valid),
        "user_rank": users["rank"],
        "item_rank": items["rank"],
        "codec": users["codec"],
    }


def training_bytes(args: argparse.Namespace) -> int:
    """The most bytes that a run holds while it trains, found by two batches of it: they depend on sizes alone."""
    split = load(args)
    some, few = slice(0, args.batch_size), slice(None, None, max(1, len(split.valid) // 1000))
    short = dataclasses.replace(split, train=split.train.take(some), valid=split.valid.take(few))
    quick = {"epochs": 2, "last_cluster": min(1, 1 if args.last_cluster is None else args.last_cluster)}
    report = movielens().job(short, argparse.Namespace(**{**vars(args), **quick}), say=lambda _: None)
    return int(report["train_bytes"])


def fill_training_bytes(folder: str | os.PathLike[str], data_dir: str | None = None) -> int:
    """Write down the training bytes of the rows of a folder that have none; returns how many those were.

    Raises:
        OSError: the folder has no rows, or they cannot be written; the data set is not at hand.
        ValueError: they are another program's.
    """
    from cce_core._progress import progress

    read(folder)
    with Writer(folder) as out:
        todo: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in out.rows:
            if row["status"] == "ok" and row["train_bytes"] is None:
                args = parsed(Run(row["label"], row["budget"] or "", tuple(row["command"].split())), data_dir)
                alike = command(argparse.Namespace(**{**vars(args), "seed": 1}))
                todo.setdefault(alike, []).append(row)
        with progress(len(todo), "training bytes", unit="run") as bar:
            for words, alike in todo.items():
                found = training_bytes(parsed(Run("", "", words), data_dir))
                for row in alike:
                    row["train_bytes"] = found
                bar.update()
        out.rewrite()
    return sum(map(len, todo.values()))


def spelled(words: Sequence[str]) -> str:
    """The command line that makes a run."""
    return shlex.join(["python", "examples/movielens.py", *words])


def command_line(row: dict[str, Any]) -> str:
    """The command line that makes a row's run."""
    return spelled(str(row["command"]).split())
