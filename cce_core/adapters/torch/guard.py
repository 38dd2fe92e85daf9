"""Lookups beside a change of the same table in another thread: each sees the whole table, as before or as afterwards.

Every thread that reads counts its reads under way in a cell of its own (0.1 µs, and no lock); who changes a table in place closes
the door, waits until all cells are empty, and copies the new numbers over the old. What is computed before that stands in
nobody's way.

A reader counts first and looks at the door then; who changes closes the door first and looks at the cells then: one of them sees
the other. Compiled graphs and CUDA streams know nothing of it: there, change tables between steps.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

_PAUSE = 2e-5  # seconds between looks at the cells
owner = 0  # the thread that changes something: all others begin no read
_door = threading.RLock()  # held by the one who changes something, and where a cell is added
_cells: list[weakref.ref[Cell]] = []
_writers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Cell:
    """How many reads of one thread are under way, one within the other."""

    __slots__ = ("__weakref__", "count")

    def __init__(self) -> None:
        self.count = 0


class _Here(threading.local):
    """The cell of the thread that asks; its first question makes it, and waits for a change that is on its way."""

    def __init__(self) -> None:
        self.cell = Cell()
        with _door:
            _cells[:] = [known for known in _cells if known() is not None]
            _cells.append(weakref.ref(self.cell))


here = _Here()


def inside() -> bool:
    """Whether this thread is within a read, which a change waits for."""
    return here.cell.count > 0


def wait(cell: Cell) -> None:
    """Let the owner of the door end; a read within another has been let in, and the owner itself reads as it likes."""
    while cell.count == 1 and owner not in (0, threading.get_ident()):
        cell.count = 0
        try:
            with _door:
                pass
        finally:
            cell.count = 1


def reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for the length of which no table changes."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        cell = here.cell
        cell.count += 1  # no call before `try`: there, a signal's handler may raise
        try:
            if owner:
                wait(cell)
            return function(*arguments)
        finally:
            cell.count -= 1

    return call


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """For the length of it nobody reads: keep it short, and wait for nothing within."""
    global owner
    with _door:
        outer = owner
        try:
            owner = threading.get_ident()
            mine = here.cell
            for known in tuple(_cells):
                cell = known()
                while cell is not None and cell is not mine and cell.count:
                    time.sleep(_PAUSE)
            yield
        finally:
            owner = outer


def writing(module: object) -> Any:
    """The lock of those who change one module: they do so one after the other, however long each computes."""
    with _door:
        return _writers.setdefault(module, threading.RLock())


def _anew() -> None:
    """In a forked child the other threads are gone, and what they held is held for ever."""
    global owner, here, _door, _cells, _writers
    owner, _door, _cells, _writers = 0, threading.RLock(), [], weakref.WeakKeyDictionary()
    here = _Here()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
