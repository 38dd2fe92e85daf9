"""Slices of our loops on torch's own threads, while one of torch's operators is ours.

After each of its operations torch's OpenMP threads spin for milliseconds, waiting for the next one, on the very cores that
threads of ours want: between operations of torch a loop then takes twice as long as alone. So where torch's runtime can be
found, slices are handed to the threads that spin there already, through the entry that compilers call for a parallel region.
`CCE_TEAM=0` in the environment leaves them to threads of our own, as do other systems than Linux and other threads than Python's
main one. What the core is asked for outside of our operators starts no thread of torch's: torch hangs in a forked child whose
parent had any.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from cce_core import _threads

P = ParamSpec("P")
R = TypeVar("R")
_UNDONE = object()
_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _runtime() -> Any:
    """The OpenMP library that torch calls, None where it can't be told: one that comes before all others, or its own."""
    for name in (None, Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        try:
            library = ctypes.CDLL(None if name is None else str(name))
            library.GOMP_parallel.argtypes = [_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            if library.omp_get_max_threads() == torch.get_num_threads():  # a setting that torch made there
                return library
        except (OSError, AttributeError):
            continue
    return None


class Team:
    """Torch's threads as `_threads.sliced` calls them."""

    def __init__(self, library: Any) -> None:
        self.parallel = library.GOMP_parallel
        # Every thread that opens a region gets threads of its own: one must do.
        self.owner: int | None = threading.get_ident()

    def __call__(self, kernel: Callable[..., Any], slices: list[tuple[int, int]], args: tuple[Any, ...]) -> Any:
        """What the kernel gave for each slice; None where they are not for this team, and nothing was called.

        Raises what a slice raised, or a signal's handler meanwhile, when all have ended.
        """
        size = torch.get_num_threads()  # a region of fewer threads would end the others
        if len(slices) > size or threading.get_ident() != self.owner:
            return None
        given: list[Any] = [_UNDONE] * len(slices)
        todo = iter(range(len(slices)))  # an iterator of C: each number goes to one thread
        raised: list[BaseException] = []

        def region(_: Any) -> None:
            try:
                for i in todo:
                    given[i] = kernel(*slices[i], *args)
            except BaseException as error:
                raised.append(error)

        # A handler may raise before the first line of `region`: ctypes reports that to this hook and goes on. It is a function
        # of C, in which no handler can raise again.
        reports, hook = list[Any](), sys.unraisablehook
        sys.unraisablehook = reports.append
        try:
            self.parallel(_Region(region), None, size, 0)
        finally:
            sys.unraisablehook = hook
            for report in reports:
                if report.object is region:
                    raised.append(report.exc_value)
                else:
                    hook(report)
        if raised:
            raise raised[0]
        if any(one is _UNDONE for one in given):
            raise RuntimeError(
                "torch's threads ran only some slices of a loop; set CCE_TEAM=0, and please report what was running"
            )
        return given


def _find() -> Team | None:
    if sys.platform != "linux" or os.environ.get("CCE_TEAM", "") == "0":
        return None
    library = _runtime() if threading.current_thread() is threading.main_thread() else None
    return None if library is None else Team(library)


TEAM = _find()


def _leave() -> None:
    """In a forked child torch's threads are gone, and it would wait for them for ever."""
    if TEAM is not None:
        TEAM.owner = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


def used(operator: Callable[P, R]) -> Callable[P, R]:
    """The same operator, with its large loops on the team."""
    if TEAM is None:
        return operator

    @functools.wraps(operator)
    def call(*args: P.args, **named: P.kwargs) -> R:
        token = _threads.team.set(TEAM)
        try:
            return operator(*args, **named)
        finally:
            _threads.team.reset(token)

    return call
