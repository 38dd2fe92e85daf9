"""The only place that touches Numba's decorators: flags, cache policy, and what holds when compilation is off.

A cache on disk that watches the file of the cached function alone is stale where a helper is edited in *another* file. So
the cache folder here is named after a digest of every source file that is compiled: an edit anywhere opens a new, empty
folder.
"""

from __future__ import annotations

import contextlib
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

from cce_core import _code_cache, _fork, _places

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


def _cache_folder() -> Path | None:
    """The folder for compiled code, made; None where there is none, with a warning: code is then compiled in memory."""
    named, where = os.environ.get("NUMBA_CACHE_DIR"), "~/.cache/cce_core/numba"
    try:
        base = _places.absolute("NUMBA_CACHE_DIR", named) if named else _places.user_cache() / "numba"
        where = str(base)
        folder = base / source_digest()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _code_cache.warn_once(*_code_cache.no_cache(named or where, str(error)))
        return None
    if not named:
        _drop_old(folder)
    return folder


def _drop_old(current: Path) -> None:
    """Remove the folders of sources that were last compiled a month ago or earlier; mark the present one as used."""
    with contextlib.suppress(OSError):  # of a cache that is read-only, or which another process tidies up, too
        os.utime(current)
        for other in current.parent.iterdir():
            if other != current and time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
                shutil.rmtree(other, ignore_errors=True)


_CACHE = _cache_folder() if COMPILED else None
_fork.wait_for_compilers()


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
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    if _CACHE is not None:
        with contextlib.suppress(OSError):  # a function without a source file is compiled in memory
            compiled._cache = _code_cache.CodeCache(function, _CACHE)
    return compiled
