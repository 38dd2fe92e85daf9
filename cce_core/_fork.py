"""A fork waits until no other thread compiles, loads compiled code, or imports what that takes.

A child has one thread. What another thread of its parent held at the fork is held for ever: Numba's compiler lock, LLVM's, the
lock of a module that was being imported. To make new ones in the child would leave LLVM and Numba's types half changed. So the
locks are taken before a fork and given back after it, in parent and child. That costs microseconds, or what is left of a
function that another thread is compiling just then: seconds, when the cache of compiled code is empty.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from cce_core import _progress

_PATIENCE = 300.0  # seconds; a fork that could never come would be worse than a child that may hang
# Packages whose imports end by themselves; a user's module may run for as long as the program, and fork meanwhile.
_PACKAGES = sys.stdlib_module_names | {
    "cce_core", "cce_kernels", "llvmlite", "numba", "numpy", "safetensors", "scipy", "tqdm", "xxhash",
}  # fmt: skip
_importing: Any = getattr(sys.modules["_frozen_importlib"], "_module_locks", {})  # by name, what any thread imports
_compilers: list[Any] = []  # their locks


class _Held(threading.local):
    """What the thread that forks has taken, and whether that is all."""

    def __init__(self) -> None:
        self.locks: list[Any] = []
        self.all = False


_held = _Held()


def _locks() -> list[Any]:
    """In the order in which they are taken: the compilers', and that of progress bars."""
    return [*_compilers, _progress.lock]


def _take(end: float) -> bool:
    """Take all locks, or none, where the time is over."""
    for lock in _locks():
        if not lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _give()
            return False
        _held.locks.append(lock)
    return True


def _give() -> None:
    while _held.locks:
        _held.locks.pop().release()


def _others_import() -> bool:
    locks = [ref() for name, ref in _importing.copy().items() if name.partition(".")[0] in _PACKAGES]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


def _before() -> None:
    _held.all, end = False, time.monotonic() + _PATIENCE
    while _take(end):
        if time.monotonic() > end or not _others_import():
            _held.all = True
            return
        _give()  # an import may be waiting for them
        time.sleep(0.001)


def _in_child() -> None:
    _give()
    if not _held.all:  # interrupted, or it waited in vain: with these locks as they are, the child would hang
        for lock in _locks():
            lock._at_fork_reinit()


def wait_for(*compilers: Any) -> None:
    """Have every fork of this process wait for these locks, taken in this order; to be called once."""
    _compilers.extend(compilers)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_give, after_in_child=_in_child)
