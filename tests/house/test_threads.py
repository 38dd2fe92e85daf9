"""The pool of threads: slices cover exactly, errors come through, forks and many callers are safe; bars are silent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cce_core import _threads
from cce_core._jit import COMPILED, jit
from cce_core._progress import progress
from cce_core._threads import get_num_threads, parallel_for, set_num_threads


def slices_of(n, min_chunk, align=1):
    """The slices that a kernel was called with, in order."""
    seen = []
    parallel_for(lambda start, stop: seen.append((start, stop)), n, min_chunk, align=align)
    return sorted(seen)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_slices_cover_exactly(threads):
    set_num_threads(threads)
    for n in range(26 if COMPILED else 18):
        for min_chunk in (0, 1, 2, 7, 100):
            for align in (1, 2, 3, 8):
                slices = slices_of(n, min_chunk, align)
                case = (n, min_chunk, align, slices)
                assert [i for start, stop in slices for i in range(start, stop)] == list(range(n)), case
                assert len(slices) <= threads, case
                assert all(start < stop for start, stop in slices), case
                assert all(start % align == 0 for start, _ in slices), case
                # Another thread is woken only where each has a grain's worth.
                assert len(slices) <= max(1, n // max(1, min_chunk)), case


def test_nothing_is_called_for_nothing():
    assert slices_of(0, 1) == slices_of(-3, 1) == []


def test_small_work_stays_on_the_callers_thread():
    set_num_threads(4)
    seen = []
    parallel_for(lambda start, stop: seen.append(threading.current_thread()), 10, 100)
    assert seen == [threading.current_thread()]


def test_large_work_is_shared():
    """All slices are alive at once: each waits for the others."""
    set_num_threads(3)
    meeting = threading.Barrier(3, timeout=60)
    seen = []

    def kernel(start, stop):
        meeting.wait()
        seen.append((start, stop))

    parallel_for(kernel, 9, 1)
    assert sorted(seen) == [(0, 3), (3, 6), (6, 9)]


def test_an_interrupt_while_waiting_still_waits_for_every_thread(monkeypatch):
    set_num_threads(2)
    whole, calls, done = _threads.wait, [], []

    def interrupted(futures):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return whole(futures)

    def kernel(start, stop):
        if start:
            time.sleep(0.2)
        done.append(start)

    monkeypatch.setattr(_threads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parallel_for(kernel, 2, 1)
    assert sorted(done) == [0, 1]


@pytest.mark.parametrize("wrong", [True, 1.5, "2"])
def test_the_number_of_threads_is_a_whole_number(wrong):
    with pytest.raises(TypeError, match="the number of threads must be a whole number"):
        set_num_threads(wrong)


def test_arguments_are_passed_through():
    set_num_threads(2)
    out = np.zeros(10, np.int64)

    def kernel(start, stop, x, factor, y):
        y[start:stop] = x[start:stop] * factor

    parallel_for(kernel, 10, 1, np.arange(10), 3, out)
    np.testing.assert_array_equal(out, 3 * np.arange(10))


@jit
def _square(start, stop, x, out):
    for i in range(start, stop):
        out[i] = x[i] * x[i]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_compiled_kernel(threads):
    set_num_threads(threads)
    x = np.arange(1000.0)
    out = np.full(1000, np.nan)
    parallel_for(_square, 1000, 10, x, out)
    np.testing.assert_array_equal(out, x * x)


@pytest.mark.parametrize("bad", range(3))
def test_an_error_in_any_slice_comes_through(bad):
    set_num_threads(3)
    done = []

    def kernel(start, stop):
        if start // 10 == bad:
            raise ArithmeticError(f"slice {start}")
        done.append(start)

    with pytest.raises(ArithmeticError, match=f"slice {bad * 10}"):
        parallel_for(kernel, 30, 10)
    assert sorted(done) == [start for start in (0, 10, 20) if start != bad * 10]  # the others were waited for
    assert slices_of(30, 10) == [(0, 10), (10, 20), (20, 30)]  # and the pool still works


def test_no_slice_runs_on_after_an_error():
    """The caller gives up its arrays when `parallel_for` raises: by then no thread may be writing."""
    set_num_threads(2)
    release, finished = threading.Event(), []

    def kernel(start, stop):
        if start == 0:
            threading.Timer(0.05, release.set).start()
            raise KeyboardInterrupt
        release.wait(60)
        finished.append(start)

    with pytest.raises(KeyboardInterrupt):
        parallel_for(kernel, 2, 1)
    assert finished == [1]


def test_many_callers_at_once():
    """Python threads share the pool, while it grows."""
    x = np.arange(300.0)
    wrong = []

    def caller(size):
        for _ in range(10):
            out = np.zeros(300)
            set_num_threads(size)
            parallel_for(_square, 300, 10, x, out)
            if not np.array_equal(out, x * x):
                wrong.append(size)

    callers = [threading.Thread(target=caller, args=(size,)) for size in (1, 2, 3, 4, 5, 6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(120)
    assert wrong == []
    assert not any(thread.is_alive() for thread in callers)


def python(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("CCE_NUM_THREADS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, CORES),
        ({"CCE_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "6"}, 6),
        ({"CCE_NUM_THREADS": "5", "OMP_NUM_THREADS": "6"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # nested levels: the first is ours
        ({"OMP_NUM_THREADS": " 3 "}, 3),
        ({"CCE_NUM_THREADS": "0", "OMP_NUM_THREADS": "6"}, 6),
        ({"CCE_NUM_THREADS": "many"}, CORES),
        ({"CCE_NUM_THREADS": "-2"}, CORES),
        ({"LOCAL_WORLD_SIZE": "1"}, CORES),
        ({"LOCAL_WORLD_SIZE": "100000"}, 1),
        ({"LOCAL_WORLD_SIZE": "0"}, CORES),
        ({"LOCAL_WORLD_SIZE": "100000", "OMP_NUM_THREADS": "3"}, 3),
    ],
)
def test_threads_from_the_environment(environment, expected):
    code = "from cce_core._threads import get_num_threads, set_num_threads as put; "
    code += "print(get_num_threads()); put(9); print(get_num_threads()); put(None); print(get_num_threads())"
    assert python(code, **environment).split() == [str(expected), "9", str(expected)]


def test_what_was_set_wins():
    set_num_threads(4)
    assert get_num_threads() == 4
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"number of threads must be at least 1, got {bad}"):
            set_num_threads(bad)
    assert get_num_threads() == 4
    set_num_threads(None)
    assert get_num_threads() == _threads._default()


FORK = """
import os, signal
import numpy as np
from cce_core.hashing import mix_hash
from cce_core._threads import set_num_threads
set_num_threads(3)
ids = np.arange(200_000 if {compiled} else 70_000)
before = mix_hash(ids, 1000)
child = os.fork()
signal.alarm(60)  # a child that hangs fails the test
if child == 0:
    os._exit(0 if np.array_equal(mix_hash(ids, 1000), before) else 3)
_, status = os.waitpid(child, 0)
again = mix_hash(ids, 1000)
print(os.waitstatus_to_exitcode(status), np.array_equal(again, before))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    assert python(FORK.format(compiled=COMPILED)) == "0 True"


# Progress bars

BAR = """
import sys, time
from cce_core._progress import progress
with progress(3, "work", show={show}, delay=0.0) as bar:
    for _ in range(3):
        time.sleep(0.12)
        bar.update()
    assert bar.n == {counted}
"""


def bar_output(show, counted):
    code = BAR.format(show=show, counted=counted)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(("n", "workers"), [(0, 1), (5, 1), (5, 2), (3, 3), (7, 4)])
def test_side_by_side_does_each_once(n, workers):
    ended, seen = threading.Event(), []
    set_num_threads(4)
    _threads.map_threads(lambda i: seen.append((i, get_num_threads(), threading.get_ident())), n, workers, ended)
    assert sorted(i for i, _, _ in seen) == list(range(n))
    assert {share for _, share, _ in seen} <= {4 // workers}
    assert len({thread for _, _, thread in seen}) <= workers
    mine = [i for i, _, thread in seen if thread == threading.get_ident()]
    assert mine == list(range(0, n, workers))
    assert not ended.is_set()
    assert get_num_threads() == 4


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_side_by_side_ends_together(fails):
    ended, running = threading.Event(), threading.Barrier(3)

    def call(i):
        running.wait(30)
        if i == fails:
            raise KeyboardInterrupt if i == 0 else ValueError
        assert ended.wait(30)

    with pytest.raises(KeyboardInterrupt if fails == 0 else ValueError):
        _threads.map_threads(call, 6, 3, ended)
    assert not [t for t in threading.enumerate() if t.name.startswith("cce-chunk")]


def test_a_bar_is_silent_when_piped():
    assert bar_output(None, 0) == ("", "")


def test_a_bar_shows_on_request_and_never_on_stdout():
    out, err = bar_output(True, 3)
    assert out == ""
    assert "work" in err


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, "work", delay=60) as bar:
        assert not bar.disable
    with progress(2, "work", show=False) as bar:
        assert bar.disable
