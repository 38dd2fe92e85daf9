"""Slices on torch's own threads: each runs once, what they raise is raised, and where they can't run, the pool takes over."""

import ctypes
import operator
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import cce_core as cce
from cce_core import _threads

torch = pytest.importorskip("torch")
from cce_core.adapters.torch.operators import openmp  # noqa: E402

LIBRARY = openmp._runtime()
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(LIBRARY is None, reason="torch's OpenMP runtime is not to be found here"),
]


@pytest.fixture
def ours():
    """A team of two threads, and what was there before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    mine = openmp.Team(LIBRARY)
    token = _threads.team.set(mine)
    cce.set_num_threads(2)
    yield mine
    _threads.team.reset(token)
    torch.set_num_threads(threads)
    cce.set_num_threads(None)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_every_slice_runs_once_and_gives_what_it_gave(ours, n):
    seen, lock = [], threading.Lock()

    def kernel(start, stop, factor):
        with lock:
            seen.append((start, stop))
        return factor * start

    for _ in range(50):
        seen.clear()
        given = _threads.parallel_for(kernel, n, 1, 7)
        assert sorted(seen) == [(0, -(-n // 2)), (-(-n // 2), n)]
        assert given == 7 * -(-n // 2)


def test_threads_of_torch_run_them(ours):
    """Two slices that wait for each other end only where two threads run them, none of which is the pool's."""
    both = threading.Barrier(2, timeout=30)
    names = set()

    def kernel(start, stop):
        both.wait()
        names.add(threading.get_ident())

    _threads.parallel_for(kernel, 2, 1)
    pool = {t.ident for t in threading.enumerate() if t.name.startswith("cce")}
    assert len(names) == 2
    assert not names & pool
    assert threading.get_ident() in names


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", [0, 1])
def test_what_a_slice_raises_is_raised_when_all_have_ended(ours, error, where):
    ended = []

    def kernel(start, stop):
        if start == where:
            raise error("it went wrong")
        ended.append(start)

    with pytest.raises(error, match="it went wrong"):
        _threads.parallel_for(kernel, 2, 1)
    assert ended in ([], [1 - where])
    assert _threads.parallel_for(lambda start, stop: 5, 2, 1) == 5  # and the next call is none the worse


def test_slices_that_never_ran_are_no_result(ours, monkeypatch):
    monkeypatch.setattr(ours, "parallel", lambda region, data, size, flags: None)
    with pytest.raises(RuntimeError, match="CCE_TEAM=0"):
        _threads.parallel_for(lambda start, stop: 1, 2, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_what_a_handler_raises_before_a_slice_begins_is_raised(ours, error, monkeypatch):
    """Another thread has taken all slices, and a signal is there when this one enters: no line of `region` runs."""

    def handler(number, frame):
        raise error("by the handler")

    # A signal's arrival; its handler runs with the next line of Python.
    signalled = ctypes.pythonapi.PyErr_SetInterruptEx

    def parallel(region, data, size, flags):
        region(None)
        list(map(operator.call, [signalled, region], [signal.SIGUSR1, None]))  # without a line of Python between

    noise, seen = [], []
    monkeypatch.setattr(ours, "parallel", parallel)
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(error, match="by the handler"):
            _threads.parallel_for(lambda start, stop: seen.append(start), 2, 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [0, 1]
    assert not noise


def test_other_things_that_nobody_raises_are_still_reported(ours):
    class Odd:
        def __del__(self):
            raise ValueError("in a finaliser")

    noise, hook = [], sys.unraisablehook
    sys.unraisablehook = noise.append
    try:
        _threads.parallel_for(lambda start, stop: Odd() and None, 2, 1)
    finally:
        sys.unraisablehook = hook
    assert [str(report.exc_value) for report in noise] == ["in a finaliser"] * 2


def test_other_threads_and_too_few_of_torch_leave_it_to_the_pool(ours):
    def kernel(start, stop):
        return threading.current_thread().name

    found = []
    thread = threading.Thread(target=lambda: found.append(ours(kernel, [(0, 1), (1, 2)], ())))
    thread.start()
    thread.join()
    assert found == [None]
    assert ours(kernel, [(0, 1), (1, 2), (2, 3)], ()) is None
    torch.set_num_threads(1)
    assert ours(kernel, [(0, 1), (1, 2)], ()) is None
    assert _threads.parallel_for(lambda start, stop: stop, 2, 1) == 1


def test_lookups_and_gradients_have_the_same_bits(ours):
    table = cce.make_table("cce", 1000, 32, num_params=64 * 32, seed=0)
    rng = np.random.default_rng(0)
    ids, grads = rng.integers(0, 1000, 20_000), rng.standard_normal((20_000, 32)).astype(np.float32)

    def both():
        return table.lookup(ids), table.backward(table.forward(ids), grads, dense=True)["memory"]

    on_team = both()
    _threads.team.set(None)
    in_pool = both()
    cce.set_num_threads(1)
    for alone in (both(), in_pool):
        assert all(np.array_equal(a, b) for a, b in zip(on_team, alone))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_without(ours):
    _threads.parallel_for(lambda start, stop: None, 2, 1)
    child = os.fork()
    if child == 0:
        _threads.team.set(openmp.TEAM)  # as an operator there would
        right = _threads.parallel_for(lambda start, stop: stop, 2, 1) == 1
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("setting", "there"), [("", True), ("0", False)])
def test_operators_use_it_unless_they_are_told_not_to_and_the_core_alone_never_does(setting, there):
    code = """
import torch, cce_core as cce
from cce_core import _threads
from cce_core.adapters.torch import Embedding, FusedAdam
from cce_core.adapters.torch.operators import openmp
torch.set_num_threads(2), cce.set_num_threads(2)
calls = []
if openmp.TEAM is not None:
    parallel = openmp.TEAM.parallel
    openmp.TEAM.parallel = lambda *args: calls.append(1) or parallel(*args)
emb, ids = Embedding(1000, 32, method="cce", num_params=64 * 32, seed=0), torch.arange(40_000) % 1000
emb.table.lookup(ids.numpy())
alone = len(calls)
out = emb(ids)
forward = len(calls)
out.sum().backward()
print(openmp._runtime() is not None, openmp.TEAM is not None, alone, forward > 0, len(calls) > forward, _threads.team.get())
"""
    env = {**os.environ, "CCE_TEAM": setting}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", str(there), "0", str(there), str(there), "None"]


def test_operators_that_overlap_leave_the_core_to_itself(monkeypatch):
    """One of another thread begins while ours runs, and ends after it: nobody is left with torch's threads."""
    calls, begun, ours_ended = [], threading.Event(), threading.Event()
    monkeypatch.setattr(openmp, "TEAM", lambda kernel, slices, args: calls.append(threading.get_ident()))
    cce.set_num_threads(2)

    def share():
        _threads.parallel_for(lambda start, stop: 1, 2, 1)

    @openmp.used
    def theirs():
        begun.set()
        assert ours_ended.wait(30)
        share()

    def other():
        theirs()
        share()

    thread = threading.Thread(target=other)

    @openmp.used
    def ours():
        thread.start()
        assert begun.wait(30)
        share()

    share()
    assert calls == []
    ours()
    assert calls == [threading.get_ident()]
    share()  # while theirs runs
    assert len(calls) == 1
    ours_ended.set()
    thread.join()
    assert calls[1:] == [thread.ident]
    share()
    assert len(calls) == 2


def test_an_operator_that_raises_gives_the_team_back(monkeypatch):
    monkeypatch.setattr(openmp, "TEAM", object())
    found = []

    @openmp.used
    def inner():
        raise ValueError

    @openmp.used
    def outer():
        with pytest.raises(ValueError):
            inner()
        found.append(_threads.team.get())

    outer()
    assert found == [openmp.TEAM]
    assert _threads.team.get() is None


def test_a_lookup_at_the_very_end_of_python_is_no_hang():
    code = """
import builtins, numpy as np, torch
from cce_core.adapters.torch import Embedding
torch.set_num_threads(2)
emb, ids = Embedding(1000, 32, method="cce", num_params=64 * 32, seed=0), torch.arange(40_000) % 1000
emb(ids)
class Late:
    def __init__(self, emb, ids): self.emb, self.ids = emb, ids
    def __del__(self): print(self.emb.table.lookup(self.ids.numpy()).shape)
builtins.late = Late(emb, ids)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100).stdout
    assert out.split("\n")[0] in ("(40000, 32)", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_lookups_of_the_core_start_no_thread_that_torch_would_miss_in_a_forked_child():
    code = """
import os, signal, numpy as np, torch, cce_core as cce, cce_core.adapters.torch
torch.set_num_threads(2), cce.set_num_threads(2)
cce.make_table("cce", vocab=1000, dim=32, num_params=2048, seed=0).lookup(np.arange(40_000) % 1000)
a, child = torch.from_numpy(np.ones((1000, 1000), np.float32)), os.fork()
if child == 0:
    signal.alarm(30)
    a.exp().sum()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["0"]
