"""Numba's first door: how functions are compiled, where compiled code is kept, and what holds when compilation is off.

A cache on disk that watches the file of the cached function alone is stale where a helper is edited in *another* file. So
the cache folder here is named after a digest of every source file that is compiled: an edit anywhere opens a new, empty
folder.

In it each function and signature has a file, checked before it is used. Numba's own cache keeps an index beside the code of each
function: a damaged index ends every later process with a bare EOFError, and of two processes that fill it at once, one may leave
an index that names the other's code. Here a file is named by a digest of all that its code depends on, holds a checksum, and
appears whole (written beside, then renamed). So nothing must be kept in step; what cannot be read is compiled anew and written
again, and where nothing can be written, code lives in memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import re
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite.binding import ffi
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from cce_core import _fork, _places

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = Path(__file__).parent
COMPILED = not numba.config.DISABLE_JIT
_KEPT_DAYS = 30.0
_MAGIC = b"cce-code 1\n"
_warned = False


def source_digest(package: Path = PACKAGE) -> str:
    """A digest of all source files that hold compiled code: those that import this module or `_simd`, and this module itself."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        if path.name == "_jit.py" or b"cce_core._jit import" in text or b"cce_core._simd import" in text:
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
        _warn_once(*_no_cache(named or where, str(error)))
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


def _warn_once(what: str, remedy: str) -> None:
    """Say what is wrong with the cache and how to mend it, the first time in this process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"{what}; {remedy}", RuntimeWarning, stacklevel=3)


class _CodeCache(NullCache):
    """What Numba's dispatcher asks for compiled code of one function, and gives it to. No fault of the disk's is raised.

    Args:
        function: the plain function; its source file, by its place in the package, is part of every key: environments share code.
        folder: an absolute path; made when it is first written to.

    Raises:
        OSError: the source cannot be read, so that nobody could tell when the code is stale.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        code = function.__code__
        source = Path(os.path.abspath(code.co_filename))
        place = source.relative_to(PACKAGE) if source.is_relative_to(PACKAGE) else source
        self.function, self.folder = function, folder
        self.name = re.sub(r"[^\w.]", "", f"{source.stem}.{function.__qualname__}")[:80]
        self.about = (
            numba.__version__, np.__version__, sys.implementation.cache_tag, place.as_posix(),
            hashlib.sha256(source.read_bytes()).digest(), function.__qualname__, code.co_firstlineno, code.co_code,
        )  # fmt: skip

    @property
    def cache_path(self) -> str:
        return str(self.folder)

    def _place(self, signature: Any, codegen: Any) -> tuple[Path, Any]:
        """The file for this signature, and what must be found in it, since types may look alike and differ."""
        cells = tuple(cell.cell_contents for cell in self.function.__closure__ or ())
        key = (*self.about, codegen.magic_tuple(), numba.config.BOUNDSCHECK, dumps(cells) if cells else b"")
        digest = hashlib.sha256(repr((key, signature)).encode()).hexdigest()[:24]
        return self.folder / f"{self.name}.{digest}.nbc", (key, signature)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function; None where there is none, or none that can be trusted."""
        target_context.refresh()
        path, key = self._place(signature, target_context.codegen())
        try:
            text = path.read_bytes()
            body = text[len(_MAGIC) + 32 :]
            if text[: len(_MAGIC) + 32] != _MAGIC + hashlib.sha256(body).digest():
                raise ValueError("it is damaged")
            found, reduced = pickle.loads(body)
            return CompileResult._rebuild(target_context, *reduced) if found == key else None
        except FileNotFoundError:
            return None
        except Exception as error:
            _warn_once(
                f"compiled code in {path} cannot be loaded ({_reason(error)}) and is compiled anew",
                f"if this comes again, remove {self.folder}, or name another folder in NUMBA_CACHE_DIR",
            )
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the compiled function, where it can be used in another process and the disk takes it."""
        if result.lifted or result.library.has_dynamic_globals:
            return
        try:
            path, key = self._place(signature, result.codegen)
            body = dumps((key, result._reduce()))
            self.folder.mkdir(parents=True, exist_ok=True)
            _put(path, _MAGIC + hashlib.sha256(body).digest() + body)
        except Exception as error:
            _warn_once(*_no_cache(str(self.folder), _reason(error)))


def _no_cache(folder: str, reason: str) -> tuple[str, str]:
    """For `_warn_once`: what it means that nothing can be kept in a folder, and what to do."""
    return (
        f"compiled code cannot be kept in {folder} ({reason}), so every process compiles it anew, for seconds",
        "make room there and give this user the right to write, or name another folder in NUMBA_CACHE_DIR",
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _put(path: Path, text: bytes) -> None:
    """Write a file that appears whole, or not at all."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        beside.write_bytes(text)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


_CACHE = _cache_folder() if COMPILED else None
_fork.wait_for(global_compiler_lock._lock, ffi.lib._lock._lock)


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
            compiled._cache = _CodeCache(function, _CACHE)
    return compiled
