"""One run of a sweep, in whichever process: examples/movielens.py's own job, and what is written down of it."""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bench.methods.sweep_rows import by_kind, digest

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


def movielens() -> Any:
    """The example as a module."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    import movielens

    return movielens


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
    import cce_core

    code = hashlib.sha256()
    house = Path(cce_core.__file__).parent
    for path in [*sorted(house.rglob("*.py")), ROOT / "examples" / "movielens.py"]:
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
    same = ("auc", "logloss", "best_epoch", "num_params", "ratio", "best_reachable_auc", "dataset")
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


def spelled(words: Sequence[str]) -> str:
    """The command line that makes a run."""
    return shlex.join(["python", "examples/movielens.py", *words])
