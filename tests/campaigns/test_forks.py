"""Children that are forked while other threads look up, train, cluster, save, compile, or load compiled code."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaigns.trial import CAMPAIGN, Tally, many, memory_folder, together

import cce_core as cce

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

VOCAB, DIM = 5000, 8
IDS = np.arange(VOCAB)
PATIENCE = 20


def _forked(work: Callable[[], bool], tally: Tally, what: str) -> None:
    """Does `work` in a forked child, which must end in time, and well."""
    pid = os.fork()
    if pid == 0:
        # The parent's watch is no more, and may not be asked for anew.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(PATIENCE)
        try:
            os._exit(0 if work() else 3)
        finally:
            os._exit(4)
    _, status = os.waitpid(pid, 0)
    tally.add("forks")
    if status:
        tally.lose(what, "ended with", os.waitstatus_to_exitcode(status), "(-14: it hung)")


def while_compiling(tally: Tally, wait: float) -> None:
    """A thread's first steps and clusterings, so that it compiles or loads compiled code, and after a while a fork."""
    busy = cce.make_table("cce", VOCAB, DIM, num_params=12_000, seed=1)
    table, optimizer = cce.make_table("full", VOCAB, DIM, seed=1), cce.Adam(0.01)

    def learn() -> None:
        seen = busy.forward(IDS)
        optimizer.update(busy, seen, seen.vectors)
        busy.cluster(n_iter=2)

    def step() -> bool:
        seen = table.forward(IDS)
        cce.Adam(0.01).update(table, seen, seen.vectors)
        return bool(np.isfinite(table.lookup(IDS)).all())

    def fork() -> bool:
        time.sleep(wait)
        _forked(step, tally, f"a child forked {wait} s after work began")
        return True

    together([learn], fork)


def beside_everything(tally: Tally, forks: int) -> None:
    """Forks beside threads that do all there is to do with one table and with others; each child does all of it, too."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        shared = cce.make_table("cce", VOCAB, DIM, num_params=12_000, seed=1)
        still = cce.make_table("cce", VOCAB, DIM, num_params=12_000, codec="int8", seed=2)
        truth, optimizer, grads = still.lookup(IDS), cce.SGD(1e-4), np.ones((VOCAB, DIM), np.float32)

        def work() -> bool:
            same = np.array_equal(still.lookup(IDS), truth)
            optimizer.update(shared, IDS, grads)
            shared.cluster(n_iter=1)
            shared.save(Path(folder, "of a child"))
            return same and np.array_equal(cce.load(Path(folder, "of a child")).lookup(IDS), shared.lookup(IDS))

        def fork() -> bool:
            time.sleep(0.003 * (tally["forks"] % 7))
            _forked(work, tally, "a child")
            return tally["forks"] >= forks or tally["lost"] > 2

        jobs = [
            lambda: still.lookup(IDS),
            lambda: shared.lookup(IDS),
            lambda: optimizer.update(still, IDS, np.zeros((VOCAB, DIM), np.float32)),
            lambda: shared.cluster(n_iter=1),
            lambda: shared.save(Path(folder, "of the parent")),
        ]
        work()  # compiles
        together(jobs, fork)


def test_a_child_forked_while_another_thread_compiles(campaign):
    for k in range(many(4, 100)):
        campaign(while_compiling, 0.02 + 0.05 * (k % 16 if CAMPAIGN else 3 * k))


def test_a_child_forked_beside_everything(campaign):
    campaign(beside_everything, many(10, 1000))
