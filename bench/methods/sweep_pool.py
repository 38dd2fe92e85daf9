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

from bench.methods.sweep_run import Run, execute, failure

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


def over_processes(
    runs: list[Run], data_dir: str | None, workers: int, threads: int = 1, run: Callable[..., Any] = execute
) -> Iterator[dict[str, Any]]:
    """Rows in the order that they are done; a run that kills its process costs its own row alone."""
    if runs:
        with environment(**dict.fromkeys(THREADS, str(threads))):
            yield from through(lambda n: processes(n), min(workers, len(runs)), runs, data_dir, run)


def over_cluster(
    runs: list[Run], data_dir: str | None, scheduler: str, run: Callable[..., Any] = execute
) -> Iterator[dict[str, Any]]:
    """The same over a Dask cluster, whose workers were started in a checkout like this one."""
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("--scheduler needs Dask: pip install -e '.[dask]'") from None
    with Client(scheduler, timeout="5s") as client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise OSError(f"the cluster at {scheduler} has no workers: start some with dask worker {scheduler}")
        # As many again wait at the workers, so that none idles while a row travels.
        yield from through(lambda _: client.get_executor(pure=False), 2 * threads, runs, data_dir, run)


def through(
    make: Callable[[int], Executor], n: int, runs: list[Run], data_dir: str | None, run: Callable[..., Any]
) -> Iterator[dict[str, Any]]:
    """At most `n` runs at a time through an executor; where it breaks, those in flight go on one by one."""
    waiting, flying, suspects = deque(runs), dict[Future[Any], Run](), list[Run]()
    pool = make(n)
    try:
        while waiting or flying:
            while waiting and len(flying) < n and not suspects:
                try:
                    flying[pool.submit(run, waiting[0], data_dir)] = waiting[0]
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
                    yield alone(make, one, data_dir, run)
                pool, suspects = make(n), []
    finally:
        for future in flying:
            future.cancel()
        # Where all is done it may take its time: Python's own end can't bear an executor that is still closing.
        pool.shutdown(wait=not flying)


def alone(make: Callable[[int], Executor], one: Run, data_dir: str | None, run: Callable[..., Any]) -> Any:
    """A run in an executor of its own."""
    with make(1) as pool:
        try:
            return pool.submit(run, one, data_dir).result()
        except BrokenExecutor:
            return failure(one, DIED)
