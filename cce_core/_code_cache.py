"""Compiled code on disk: one file for each function and signature, checked before it is used.

Numba's own cache keeps an index beside the code of each function: a damaged index ends every later process with a bare
EOFError, and of two processes that fill it at once, one may leave an index that names the other's code. Here a file is
named by a digest of all that its code depends on, holds a checksum, and appears whole (written beside, then renamed). So
nothing must be kept in step; what cannot be read is compiled anew and written again, and where nothing can be written,
code lives in memory.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import secrets
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import __version__ as numba_version
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

_MAGIC = b"cce-code 1\n"
_warned = False


def warn_once(what: str, remedy: str) -> None:
    """Say what is wrong with the cache and how to mend it, the first time in this process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"{what}; {remedy}", RuntimeWarning, stacklevel=3)


class CodeCache(NullCache):
    """What Numba's dispatcher asks for compiled code of one function, and gives it to. No fault of the disk's is raised.

    Args:
        function: the plain function; its source file is part of every key.
        folder: an absolute path; made when it is first written to.

    Raises:
        OSError: the source cannot be read, so that nobody could tell when the code is stale.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        code = function.__code__
        source = os.path.abspath(code.co_filename)
        self.function, self.folder = function, folder
        self.name = re.sub(r"[^\w.]", "", f"{Path(source).stem}.{function.__qualname__}")[:80]
        self.about = (
            numba_version, sys.implementation.cache_tag, source, hashlib.sha256(Path(source).read_bytes()).digest(),
            function.__qualname__, code.co_firstlineno, code.co_code,
        )  # fmt: skip

    @property
    def cache_path(self) -> str:
        return str(self.folder)

    def _place(self, signature: Any, codegen: Any) -> tuple[Path, Any]:
        """The file for this signature, and what must be found in it, since types may look alike and differ."""
        cells = tuple(cell.cell_contents for cell in self.function.__closure__ or ())
        key = (*self.about, codegen.magic_tuple(), config.BOUNDSCHECK, dumps(cells) if cells else b"")
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
            warn_once(
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
            warn_once(*no_cache(str(self.folder), _reason(error)))


def no_cache(folder: str, reason: str) -> tuple[str, str]:
    """For `warn_once`: what it means that nothing can be kept in a folder, and what to do."""
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
        with suppress(OSError):
            beside.unlink()
        raise
