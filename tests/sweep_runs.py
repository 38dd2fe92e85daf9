"""What the tests of sweeps share: a sweep of seconds, its environment, and runs that go wrong. Imported by workers too."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import cce_core

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: cce_core is the one under test, bench and examples are the checkout's

from bench.methods import sweep_run  # noqa: E402
from cce_core.tuning import rows  # noqa: E402

TINY = [
    *("--dataset", "synthetic", "--interactions", "300", "--vocab", "40", "--dim", "8", "--n-chunks", "2"),
    *("--epochs", "1", "--batch-size", "100", "--lr", "0.05"),
]


def environment() -> dict[str, str]:
    """For a process that runs `python -m bench` of this checkout with the cce_core under test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cce_core.__file__).parents[1]), str(ROOT)])}


def deadly(run: sweep_run.Run) -> dict:
    """A run whose seed is 2 takes its process with it."""
    if "--seed 2" in " ".join(run.command):
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep_run.execute(run)


def invented(label: str, seed: int, ppd: int, **changes) -> dict:
    """A row as a finished run would leave it, with figures that are easy to work out by hand."""
    auc = {"full": 0.84, "cce": 0.80, "ldim": 0.70}.get(label, 0.60) + ppd / 10_000 + seed / 1000
    words = f"--method {label.split(':')[0]} --ppd {ppd} --epochs 20 --seed {seed} --dataset ml-100k"
    row = {
        "run": rows.digest([label, *words.split()]), "label": label, "seed": seed,
        "budget": "own" if label == "full" else f"ppd {ppd}",
        "status": "ok", "auc": auc, "logloss": 1 - auc, "best_epoch": 7, "num_params": 64 * ppd,
        "bytes": 256 * ppd + (1000 if label == "cce" else 0), "full_bytes": 330_880, "train_bytes": 1000 * ppd,
        "bytes_by_kind": f"memory={256 * ppd}",
        "user_rank": 4, "item_rank": 2, "epochs": 20, "seconds": 2.5, "dataset": "ml-100k", "command": words, "code": "c0de",
        "cce_core": "0.1.0",
    } | changes  # fmt: skip
    return dict.fromkeys(rows.COLUMNS) | row


def fill(folder, made) -> Path:
    """A sweep's folder with these rows."""
    with rows.Writer(folder) as out:
        for row in made:
            out.add(row)
    return Path(folder)


def some(labels=("full", "cce", "hash", "ldim")) -> list[dict]:
    """Three budgets and two seeds of each label; the full table once."""
    return [
        invented(label, seed, budget)
        for label in labels
        for budget in ((1292,) if label == "full" else (16, 64, 256))
        for seed in (1, 2)
    ]
