"""Threads of our own over compiled loops that have released the GIL.

Numba's threading layers each have a trap (two OpenMP processes spin each other to a halt, a fork after a parallel region
dies, `workqueue` aborts under Python threads). A plain pool has none: it is safe under Python threads, it is made anew
after a fork, and idle threads sleep. A call costs about 30 µs, so small work stays on the caller's thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_chosen: int | None = None
# Who runs the slices of large calls, as `team(kernel, slices, args)`: where that gives None, and without one, the pool does.
# Each thread of Python has its own: an operator sets it and puts back what it found, while others do so beside it.
team: contextvars.ContextVar[Callable[..., list[Any] | None] | None] = contextvars.ContextVar("cce_team", default=None)
_here: contextvars.ContextVar[int | None] = contextvars.ContextVar("cce_threads", default=None)


@functools.cache
def _default() -> int:
    """`CCE_NUM_THREADS`, else `OMP_NUM_THREADS`, else the cores this process may use over `LOCAL_WORLD_SIZE`."""
    for name in ("CCE_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores // int(ranks)) if ranks.isdigit() and int(ranks) > 0 else cores


def get_num_threads() -> int:
    """How many threads a large call uses.

    Returns:
        What `set_num_threads` was given; else `CCE_NUM_THREADS` or `OMP_NUM_THREADS`; else the cores that this process
        may use, shared among the `LOCAL_WORLD_SIZE` processes of this machine where a launcher has set that.

    Example:
        >>> import cce_core as cce
        >>> cce.set_num_threads(2)
        >>> cce.get_num_threads()
        2
        >>> cce.set_num_threads(None)
    """
    here = _here.get()
    if here is not None:
        return here
    return _chosen if _chosen is not None else _default()


@contextlib.contextmanager
def using(n: int | None) -> Iterator[None]:
    """`n` threads for what is called within, on this thread of Python alone; None changes nothing."""
    token = _here.set(_here.get() if n is None else n)
    try:
        yield
    finally:
        _here.reset(token)


def set_num_threads(n: int | None) -> None:
    """Set how many threads a large call uses, in this process; None goes back to the environment's word.

    Results never depend on it: threads own slices of the output, and sums are taken in a fixed order.

    Args:
        n: at least 1, or None.

    Raises:
        ValueError: n is below 1.
        TypeError: n is not a whole number.

    Example:
        >>> import cce_core as cce
        >>> cce.set_num_threads(0)
        Traceback (most recent call last):
        ...
        ValueError: the number of threads must be at least 1, got 0
        >>> cce.set_num_threads(None)
    """
    global _chosen
    if n is not None:
        try:
            n = operator.index(None if isinstance(n, bool) else n)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"the number of threads must be a whole number, got {n!r} of type {type(n).__name__}"
            ) from None
    if n is not None and n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _chosen = None if n is None else int(n)


def _forget() -> None:
    """In a forked child the pool's threads are gone: begin without one."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="cce"), size
        return _pool


def _wait(futures: list[Future[Any]]) -> None:
    """Wait to the end; an interrupt that comes meanwhile is raised then."""
    came: KeyboardInterrupt | None = None
    while True:
        try:
            wait(futures)
            break
        except KeyboardInterrupt as interrupt:
            came = interrupt
    if came is not None:
        raise came


def parallel_for(kernel: Callable[..., Any], n: int, min_chunk: int, *args: Any, align: int = 1) -> Any:
    """Call `kernel(start, stop, *args)` over slices that cover [0, n), one a thread.

    Args:
        kernel: a compiled function whose writes for one slice touch nothing that another slice writes.
        n: how many items there are; nothing is called for 0.
        min_chunk: fewest items that make another thread worth waking.
        args: passed through.
        align: every slice but the last starts and ends at a multiple of this.

    Returns:
        What the first slice gave that did not give 0 or None; otherwise what the last gave.
    """
    if n < 2 * min_chunk:  # small work first: it is there that every microsecond shows
        return kernel(0, n, *args) if n > 0 else None
    parts = min(n // max(1, min_chunk), get_num_threads())
    if parts <= 1 or sys.is_finalizing():  # at the end of Python no thread can be woken
        return kernel(0, n, *args) if n > 0 else None
    step = -(-n // (parts * align)) * align
    slices = [(start, min(start + step, n)) for start in range(0, n, step)]
    whose = team.get()
    given = None if whose is None else whose(kernel, slices, args)
    if given is None:
        given = _pooled(kernel, slices, args)
    return next((one for one in given if one), given[-1])


def _pooled(kernel: Callable[..., Any], slices: list[tuple[int, int]], args: tuple[Any, ...]) -> list[Any]:
    """The slices on the pool, the first one here."""
    futures = [_executor(len(slices)).submit(kernel, *one, *args) for one in slices[1:]]
    try:
        first = kernel(*slices[0], *args)
    finally:
        _wait(futures)  # also when interrupted: no thread may go on writing into arrays that the caller has given up
    return [first, *(future.result() for future in futures)]


def beside(n: int, call: Callable[..., Any], *args: Any) -> list[Future[Any]]:
    """Have `call(*args)` called n times by the pool's threads, each as soon as one is free, without waiting for any.

    What it computes may not depend on whether they come. At the end of Python none does.
    """
    futures: list[Future[Any]] = []
    with contextlib.suppress(RuntimeError):  # of a pool that takes nothing any more
        futures.extend(_executor(n + 1).submit(call, *args) for _ in range(0 if sys.is_finalizing() else n))
    return futures


def map_threads(call: Callable[[int], Any], n: int, workers: int, ended: threading.Event) -> None:
    """`call(i)` for each i below n, on so many threads of its own, each of which has its share of the others.

    Worker w takes w, w + workers, …, the caller's thread being the first. Whatever stops one of them, an interrupt too,
    sets `ended`, which `call` is to look at now and then; it is raised when all have come to their end. (An interrupt
    in the very start of a thread does not wait for that one.)

    Args:
        call: does its work for one i.
        n: how many there are.
        workers: at least 1; with 1 all is done in order, with all threads.
        ended: not yet set.
    """
    if workers <= 1:
        for i in range(n):
            call(i)
        return
    share = max(1, get_num_threads() // workers)

    def work(first: int) -> None:
        try:
            with using(share):
                for i in range(first, n, workers):
                    if not ended.is_set():
                        call(i)
        except BaseException:
            ended.set()
            raise

    futures: list[Future[Any]] = []
    pool = ThreadPoolExecutor(workers - 1, thread_name_prefix="cce-chunk")
    try:
        futures.extend(pool.submit(work, w) for w in range(1, workers))
        work(0)
        wait(futures)
    except BaseException:
        ended.set()
        raise
    finally:
        _wait(futures)
        pool.shutdown()
    for future in futures:
        future.result()
