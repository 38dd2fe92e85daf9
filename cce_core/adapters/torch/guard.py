"""Lookups beside a change of the same table in another thread: each sees the whole table, as before or as afterwards.

Every thread that reads holds a lock of its own, which nobody else wants (0.1 µs); who changes a table in place takes all of them
for the moment in which it copies the new numbers over the old. What is computed before that moment stands in nobody's way.

Compiled graphs and CUDA streams know nothing of it: there, change tables between steps.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

closed = False  # whether somebody waits for the readers, who then stay out between two reads
_door = threading.RLock()  # held by the one who changes something, and where a lock is added
_locks: list[weakref.ref[Any]] = []
_writers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class _Here(threading.local):
    """The lock of the thread that asks; its first question makes it, and waits for a change that is on its way."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        with _door:
            _locks[:] = [known for known in _locks if known() is not None]
            _locks.append(weakref.ref(self.lock))


here = _Here()


def inside() -> bool:
    """Whether this thread is within a read, which a change waits for."""
    return bool(here.lock._is_owned())  # type: ignore[attr-defined]


def give_way() -> None:
    """Let those in who wait for the readers; not within a read, whose end they wait for."""
    if not inside():
        with _door:
            pass


def reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for the length of which no table changes."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments)
        with here.lock:
            out = function(*arguments)
        if closed:
            give_way()
        return out

    return call


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """For the length of it nobody reads: keep it short, and wait for nothing within."""
    global closed
    with _door:
        outer, closed = closed, True
        taken: list[Any] = []
        try:
            for known in tuple(_locks):
                lock = known()
                if lock is not None:
                    lock.acquire()
                    taken.append(lock)
            yield
        finally:
            closed = outer
            for lock in taken:
                lock.release()


def writing(module: Any) -> Any:
    """The lock of those who change one module: they do so one after the other, however long each computes."""
    with _door:
        return _writers.setdefault(module, threading.RLock())


def _anew() -> None:
    """In a forked child the threads that held locks are gone."""
    global closed, here, _door, _locks, _writers
    closed, _door, _locks, _writers = False, threading.RLock(), [], weakref.WeakKeyDictionary()
    here = _Here()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
