"""Forks beside threads that compile, import or draw bars: the child finishes, and the parent is none the worse."""

from __future__ import annotations

import contextlib
import importlib
import operator
import os
import signal
import sys
import threading
import time
import types

import pytest

from cce_core import _fork
from cce_core._jit import jit
from cce_core._progress import progress

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def _double(x):
    return 2 * x


@contextlib.contextmanager
def held(lock, seconds=0.3):
    """Another thread holds `lock` when the block begins, and for a while."""
    begun = threading.Event()

    def hold():
        with lock:
            begun.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(30)
    yield
    thread.join()


def forked(call) -> int:
    """The exit status of a child that does `call()`; it is killed where that hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _compiles():
    assert jit(_double)(21) == 42


def _shows_a_bar():
    with progress(1, "work", show=False):
        pass


@pytest.mark.parametrize("patience", [300.0, 0.05])
@pytest.mark.parametrize(
    ("module", "path", "call"),
    [
        ("numba.core.compiler_lock", "global_compiler_lock._lock", _compiles),
        ("llvmlite.binding.ffi", "lib._lock._lock", _compiles),
        ("tqdm.std", "TqdmDefaultWriteLock.th_lock", _shows_a_bar),
    ],
    ids=["numba", "llvm", "bars"],
)
def test_a_fork_while_another_thread_holds_a_lock(module, path, call, patience, monkeypatch):
    """Also where it can't be waited for: the child has a lock of its own then."""
    call()
    monkeypatch.setattr(_fork, "_PATIENCE", patience)
    lock = operator.attrgetter(path)(importlib.import_module(module))
    with held(lock):
        assert forked(call) == 0
    assert lock.acquire(timeout=1)  # and the parent's is free again
    lock.release()
    call()


def test_a_fork_by_the_thread_that_compiles():
    lock = importlib.import_module("numba.core.compiler_lock").global_compiler_lock
    with lock:
        assert forked(_compiles) == 0
    assert not lock.is_locked()


def test_forks_of_several_threads_at_once():
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(forked(_compiles))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert statuses == [0] * 4
    _compiles()


@pytest.fixture
def module_of_ours(tmp_path, monkeypatch):
    """Takes its text; gives a name in the house to import it by."""
    package = importlib.import_module("cce_core.hashing")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    def write(text: str) -> str:
        (tmp_path / "of_a_test.py").write_text(text)
        importlib.invalidate_caches()
        return "cce_core.hashing.of_a_test"

    yield write
    sys.modules.pop("cce_core.hashing.of_a_test", None)


def test_a_fork_while_another_thread_imports_of_ours(module_of_ours):
    name = module_of_ours("import time\ntime.sleep(0.3)\nvalue = 5\n")
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    while name not in sys.modules:
        time.sleep(0.001)
    assert forked(lambda: importlib.import_module(name).value) == 0
    thread.join()


def test_an_import_is_waited_for_by_other_threads_alone(module_of_ours):
    name = module_of_ours(
        "import threading\nfrom cce_core._fork import _others_import\nmine, theirs = _others_import(), []\n"
        "thread = threading.Thread(target=lambda: theirs.append(_others_import()))\nthread.start()\nthread.join()\n"
    )
    module = importlib.import_module(name)
    assert (module.mine, module.theirs) == (False, [True])


def test_a_fork_does_not_wait_for_a_program_that_is_itself_an_import(tmp_path, monkeypatch):
    """It may run for hours, and wait for the very child."""
    (tmp_path / "program_of_a_user.py").write_text(
        "import threading, test_threads_forked as f\n"
        "t = threading.Thread(target=lambda: f.statuses.append(f.forked(f.call)))\n"
        "t.start()\nt.join(60)\n"
    )
    shared = types.SimpleNamespace(statuses=[], forked=forked, call=_compiles)
    monkeypatch.setitem(sys.modules, "test_threads_forked", shared)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("program_of_a_user")
    assert shared.statuses == [0]
    del sys.modules["program_of_a_user"]


def test_a_child_that_dies_within_a_bar_does_not_stop_its_parent():
    bar = progress(1, "of the parent", show=False)
    if (child := os.fork()) == 0:
        bar.get_lock().acquire()
        os._exit(0)
    os.waitpid(child, 0)
    making = threading.Thread(target=lambda: progress(1, "another", show=False).close(), daemon=True)
    making.start()
    making.join(10)
    assert not making.is_alive()
