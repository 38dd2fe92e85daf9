"""The only place that touches Numba's decorators: flags, cache policy, and what holds when compilation is off.

Numba's on-disk cache watches the file of the cached function alone: a helper that is edited in *another* file leaves its
callers stale. So the cache folder here is named after a digest of every source file that is compiled: an edit anywhere
opens a new, empty folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = Path(__file__).parent
COMPILED = not numba.config.DISABLE_JIT
_KEPT_DAYS = 30.0


def source_digest(package: Path = PACKAGE) -> str:
    """A digest of all source files that hold compiled code: those that import this module, and this module itself."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        if path.name == "_jit.py" or b"cce_core._jit import" in text:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()[:16]


def _cache_folder() -> str | None:
    """The folder for compiled code, made; None where none can be written (a read-only home: compile in memory)."""
    base = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "cce_core", "numba"
    )
    folder = Path(base) / source_digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        if not os.environ.get("NUMBA_CACHE_DIR"):
            _drop_old(folder)
    except OSError:
        return None
    return str(folder)


def _drop_old(current: Path) -> None:
    """Remove the folders of sources that were last compiled a month ago or earlier; mark the present one as used."""
    os.utime(current)
    for other in current.parent.iterdir():
        if other != current and time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
            shutil.rmtree(other, ignore_errors=True)


_CACHE = _cache_folder() if COMPILED else None


def jit(function: F) -> F:
    """Compile `function` in no-Python mode, without the GIL, cached on disk, with IEEE arithmetic (no fastmath).

    Division follows NumPy (no exception), overflow of integers wraps round. Under `NUMBA_DISABLE_JIT=1` the function
    stays plain Python, and NumPy's overflow warnings are silenced in it, since wrapping round is what it means to do.
    """
    if not COMPILED:

        @functools.wraps(function)
        def plain(*args: Any) -> Any:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return function(*args)

        return plain  # type: ignore[return-value]
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE or before
    try:
        return numba.njit(nogil=True, cache=_CACHE is not None, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
