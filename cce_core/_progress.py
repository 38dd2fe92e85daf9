"""Progress bars: on a terminal, for long work; silent when piped."""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from typing import Any

# Of all our bars. tqdm's own lock is shared with forked children: one that dies while it holds it stops its parent for ever.
lock = threading.RLock()


@functools.cache
def _bar() -> Any:
    """tqdm's bar with that lock and without a thread that watches it; imported where one is made."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval, monitor = 0, None
        _instances: Any = weakref.WeakSet()

    Bar.set_lock(lock)
    return Bar


def progress(
    total: int | None, description: str, *, unit: str = "it", show: bool | None = None, delay: float = 2.0
) -> Any:
    """A tqdm bar that appears after `delay` seconds, on a terminal alone (or as `show` says), and is erased when done."""
    disable = not (sys.stderr.isatty() if show is None else show)
    return _bar()(
        total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=disable, delay=delay, leave=False
    )
