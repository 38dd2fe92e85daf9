"""Runs of a sweep over processes of this machine, or over a Dask cluster: an executor either way."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for
from typing import Any

from cce_core._progress import progress
from cce_core.tuning.rows import Memory, Writer

Rows = Iterator[dict[str, Any]]
THREADS = ("CCE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
DIED = "the process that ran it died: killed, perhaps for want of memory"


def follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that does, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_workers() -> None:
    """Stop all of our processes now."""
    for child in multiprocessing.active_children():
        child.terminate()


@contextlib.contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Environment variables for the processes that are started within."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, text in before.items():
            os.environ.pop(name, None) if text is None else os.environ.update({name: text})


def processes(n: int) -> Executor:
    """Fresh interpreters that stay for many runs: no fork of threads, no second start of Numba."""
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), initializer=follow_parent)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_processes(
    jobs: list[Any], run: Callable[..., Any], failure: Callable[..., Any], workers: int, threads: int = 1
) -> Rows:
    """Rows in the order that they are done; a job that kills its process costs its own row alone.

    Args:
        jobs: what is to be run; each can be pickled, as `run` can.
        run: (job) → row, in a worker.
        failure: (job, error) → row, here, for a job that gave none.
        workers: processes, at most.
        threads: of each.
    """
    if jobs:
        with environment(**dict.fromkeys(THREADS, str(threads))):
            yield from through(lambda n: processes(n), min(workers, len(jobs)), jobs, run, failure)


def over_cluster(jobs: list[Any], run: Callable[..., Any], failure: Callable[..., Any], scheduler: str) -> Rows:
    """The same over a Dask cluster, whose workers were started where what `run` needs can be imported."""
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("a scheduler needs Dask: pip install -e '.[dask]'") from None
    with Client(scheduler, timeout="5s") as client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise OSError(f"the cluster at {scheduler} has no workers: start some with dask worker {scheduler}")
        # As many again wait at the workers, so that none idles while a row travels.
        yield from through(lambda _: client.get_executor(pure=False), 2 * threads, jobs, run, failure)


def here(jobs: list[Any], run: Callable[..., Any]) -> Rows:
    """The same in this process, one after the other."""
    yield from map(run, jobs)


def through(
    make: Callable[[int], Executor], n: int, jobs: list[Any], run: Callable[..., Any], failure: Callable[..., Any]
) -> Rows:
    """At most `n` jobs at a time through an executor; where it breaks, those in flight go on one by one."""
    waiting, flying, suspects = deque(jobs), dict[Future[Any], Any](), list[Any]()
    pool = make(n)
    try:
        while waiting or flying:
            while waiting and len(flying) < n and not suspects:
                try:
                    flying[pool.submit(run, waiting[0])] = waiting[0]
                except BrokenExecutor:
                    break
                waiting.popleft()
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                one = flying.pop(future)
                try:
                    yield future.result()
                except BrokenExecutor:
                    suspects.append(one)
                except Exception as error:  # what the executor itself has to say, such as a worker lost thrice
                    yield failure(one, error)
            if suspects and not flying:  # all in flight broke with it: one of them is to blame
                pool.shutdown(wait=False)
                for one in suspects:
                    yield alone(make, one, run, failure)
                pool, suspects = make(n), []
    finally:
        for future in flying:
            future.cancel()
        # Where all is done it may take its time: Python's own end can't bear an executor that is still closing.
        pool.shutdown(wait=not flying)


def alone(make: Callable[[int], Executor], one: Any, run: Callable[..., Any], failure: Callable[..., Any]) -> Any:
    """A job in an executor of its own."""
    with make(1) as pool:
        try:
            return pool.submit(run, one).result()
        except BrokenExecutor:
            return failure(one, DIED)


def complete(
    out: Writer | Memory,
    jobs: list[Any],
    rows: Callable[[list[Any]], Rows],
    again: frozenset[str] | set[str] = frozenset(),
    on_row: Callable[[dict[str, Any], Any], Any] = lambda row, bar: None,
    description: str = "sweep",
    show: bool | None = None,
) -> list[dict[str, Any]]:
    """Run those jobs that the file has no row of, and write each row as it comes; returns the last row of every job.

    Args:
        out: the open file.
        jobs: all of them; each is known by its `key`.
        rows: runs some of them.
        again: keys of jobs to run though they have a row.
        on_row: is given each new row, and the bar.
        description: of the bar.
        show: whether there is one; None shows it on a terminal.
    """
    ours = {job.key for job in jobs}
    have = {row["run"]: row for row in out.rows if row["run"] in ours and row["run"] not in again}
    todo = [job for job in jobs if job.key not in have]
    with progress(len(jobs), description, unit="run", show=show, delay=0) as bar:
        bar.update(len(jobs) - len(todo))
        for row in rows(todo):
            have[row["run"]] = out.add(row)
            bar.set_postfix_str(f"{row['label']} {row['budget']}", refresh=False)
            bar.update()
            on_row(row, bar)
    return [have[job.key] for job in jobs]
