"""Who may read a table, and who may change it, while several threads do both.

Writers (a step, `cluster()`, `requantize`) change a table one at a time: they shut its `door`, a lock, and while they change
arrays its `clock` is odd. Whoever must see the table stand still for a while (a backward pass, saving, copying) shuts the
door too. Lookups take no lock: they read, and if the clock was odd or has moved since, they read again behind the door.
So a lookup costs two reads of a number, and sees the table as it is between two changes. Addresses stay inside the memory
whatever pointers say, so that a lookup that is thrown away does no harm.

`cluster()` reads for seconds what it changes in an instant: it is the `learner` meanwhile. Other writers wait for it, but
lookups, saving and copying do not.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

_numbers = itertools.count()
_all: weakref.WeakSet[Guard] = weakref.WeakSet()


class Guard:
    """The clock and the locks of one table.

    Attributes:
        clock: counts the beginnings and ends of changes; odd while arrays change.
        depth: changes that are under way, one within the other.
        door: shut while the table changes, or must not.
        turn: held by the learner.
        learner: the thread that reads what it will change, or None.
        number: doors are shut in this order, so that two threads never wait for each other.
    """

    __slots__ = ("__weakref__", "clock", "depth", "door", "learner", "number", "turn")

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.clock = self.depth = 0
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Begin with open doors."""
        self.door, self.turn = threading.RLock(), threading.RLock()
        self.learner: int | None = None

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Read for long what is to be changed at the end: other writers wait, readers do not."""
        with self.turn:
            with self.door:  # a step that is under way ends first
                self.learner = threading.get_ident()
            try:
                yield
            finally:
                self.learner = None


def in_order(guards: Iterable[Guard]) -> tuple[Guard, ...]:
    """Each guard once, in the order in which doors are shut."""
    return tuple(sorted(set(guards), key=lambda guard: guard.number))


class Still:
    """For `with`: tables that stand still, since their doors are shut.

    Args:
        guards: of the tables, `in_order`.
    """

    __slots__ = ("_begun", "_doors", "_guards")
    _writes = _changes = False

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards, self._begun = guards, False
        self._doors: list[Any] = []

    def __enter__(self) -> Self:
        me = threading.get_ident()
        while True:
            learner = None
            try:
                for guard in self._guards:
                    door = guard.door
                    door.acquire()
                    self._doors.append(door)
                    if self._writes and guard.learner is not None and guard.learner != me:
                        learner = guard
            except BaseException:
                self.__exit__()
                raise
            if learner is None:
                break
            self.__exit__()
            with learner.turn:
                pass  # it has ended
        if self._changes:
            self.begin()
        return self

    def begin(self) -> None:
        """Of a writer: from here to the end arrays change."""
        self._begun = True
        for guard in self._guards:
            guard.depth += 1
            guard.clock |= 1

    def __exit__(self, *error: object) -> None:
        if self._begun:
            self._begun = False
            for guard in self._guards:
                guard.depth = max(0, guard.depth - 1)  # 0 in a child that was forked within a change
                if guard.depth == 0:
                    guard.clock += guard.clock & 1
        while self._doors:
            self._doors.pop().release()


class Writer(Still):
    """For `with`: the one writer of some tables, which may read at leisure before it changes them."""

    __slots__ = ()
    _writes = True


class Changing(Writer):
    """For `with`: a writer while it changes arrays."""

    __slots__ = ()
    _changes = True


def _forget() -> None:
    """In a forked child the threads that had shut doors are gone, and with them what they were about to change."""
    for guard in list(_all):
        guard.renew()
        guard.depth, guard.clock = 0, guard.clock + (guard.clock & 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
