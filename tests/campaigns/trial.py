"""How long a campaign lasts, the children that may crash in it, and the threads that work until it is over."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cce_core as cce

CAMPAIGN = os.environ.get("CCE_CAMPAIGN") == "1"
_MOST_NOTES = 25


def many(ci: int, campaign: int) -> int:
    """How often something is tried: in CI, or in a campaign."""
    return campaign if CAMPAIGN else ci


def stride(ci: int) -> int:
    """Every so many-th place is tried in CI, and every one in a campaign."""
    return 1 if CAMPAIGN else ci


class Tally(Counter[str]):
    """What was tried, and what was lost: counts and notes that several threads add to."""

    def __init__(self) -> None:
        super().__init__(lost=0)
        self._lock = threading.Lock()
        self.notes: list[str] = []
        self._kinds: set[str] = set()

    def add(self, name: str, n: int = 1) -> None:
        """Count n more."""
        with self._lock:
            self[name] += n

    def lose(self, *note: Any, kind: str | None = None) -> None:
        """Count something that must not happen, and note the first of each kind: by default, what differs in numbers alone."""
        text = " ".join(map(str, note))[:500]
        kind = re.sub(r"\d+", "", text) if kind is None else kind
        with self._lock:
            self["lost"] += 1
            if kind not in self._kinds and len(self.notes) < _MOST_NOTES:
                self._kinds.add(kind)
                self.notes.append(text)


def in_child(
    function: Callable[..., None], *args: Any, patience: float = 300, **environment: str
) -> tuple[dict[str, int], list[str]]:
    """Call a function of a test file in a process of its own, which may crash without the tests doing so.

    Args:
        function: at the top level of its file; takes a `Tally` and what JSON can hold.
        args: its arguments after the tally.
        patience: seconds, tenfold in a campaign, until the stacks of all threads are printed and the child ends.
        environment: variables to set.

    Returns:
        The tally's counts, and notes of what was lost: also that the child crashed, hung or raised, with its last words.
    """
    patience *= 10 if CAMPAIGN else 1
    path = [str(Path(__file__).parents[1]), str(Path(cce.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    task = [function.__code__.co_filename, function.__name__, json.dumps(args), str(patience)]
    done = subprocess.run(
        [sys.executable, "-c", "from campaigns.trial import child; child()", *task],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        timeout=patience + 60,
    )
    lines = done.stdout.splitlines()
    counts, notes = json.loads(lines[-1]) if lines and lines[-1].startswith("[{") else ({}, [])
    if done.returncode:
        counts["lost"] = counts.get("lost", 0) + 1
        notes.append(f"exit code {done.returncode}: {done.stdout[-1000:]}{done.stderr[-6000:]}")
    return counts, notes


def nothing_lost(counts: dict[str, int], notes: list[str]) -> None:
    """AssertionError if a trial lost anything, or tried nothing."""
    assert not notes, "\n".join(notes)
    assert not counts.get("lost"), f"{counts['lost']} were lost"
    assert any(counts.values()), "nothing was tried"


def child() -> None:
    """What runs in the child: the function, and at last the tally as a line of JSON, also if the function raised."""
    file, name, args, patience = sys.argv[1:]
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(patience), exit=True)
    tally = Tally()
    try:
        runpy.run_path(file)[name](tally, *json.loads(args))
    finally:
        print("\n" + json.dumps([tally, tally.notes]), flush=True)
        faulthandler.cancel_dump_traceback_later()


def together(jobs: list[Callable[[], Any]], until: Callable[[], bool]) -> None:
    """Call every job again and again, each in a thread of its own, until it is time, or one of them raises.

    Raises:
        AssertionError: what a job raised, with its stack.
    """
    over, errors = threading.Event(), []

    def work(job: Callable[[], Any]) -> None:
        try:
            while not over.is_set():
                job()
        except BaseException:
            errors.append(traceback.format_exc())
            over.set()

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    while not over.is_set() and not until():
        time.sleep(0.005)
    over.set()
    for thread in threads:
        thread.join()
    assert not errors, "\n".join(errors)


def after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def memory_folder() -> str | None:
    """A folder in memory for `tempfile`, where files are replaced thousands of times a second; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
