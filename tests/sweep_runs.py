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

from bench import sweep_run  # noqa: E402

TINY = [
    *("--dataset", "synthetic", "--interactions", "300", "--vocab", "40", "--dim", "8", "--n-chunks", "2"),
    *("--epochs", "1", "--batch-size", "100", "--lr", "0.05"),
]


def environment() -> dict[str, str]:
    """For a process that runs `python -m bench` of this checkout with the cce_core under test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cce_core.__file__).parents[1]), str(ROOT)])}


def deadly(run: sweep_run.Run, data_dir: str | None) -> dict:
    """A run whose seed is 2 takes its process with it."""
    if "--seed 2" in " ".join(run.command):
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep_run.execute(run, data_dir)
