"""A file that is written beside the old one and takes its name once it is whole.

While it is written it has a temporary name, `.NAME.0123456789abcdef.part`, in the same folder, and a lock (`flock`) that ends
with its writer: what a killed writer left behind is known by that, and the next one to the same name removes it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from io import FileIO
from typing import Any

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

_PART = re.compile(r"[0-9a-f]{16}\.part")
_LONGEST = 200  # bytes of the file's name in the temporary one: file systems take 255
_OLD = 86_400.0  # seconds after which what cannot be locked is taken for dead


def regular(status: os.stat_result, path: Any) -> None:
    """OSError where a path is no regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file, but a FIFO, socket or device", os.fspath(path))


def opened(path: str | os.PathLike[str]) -> FileIO:
    """A regular file, open for reading; anything else is refused and never waited for.

    Raises:
        OSError: it cannot be opened, or is a directory, FIFO, socket or device.
    """

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO without a writer would wait for one

    file = open(path, "rb", buffering=0, opener=at_once)  # noqa: SIM115
    try:
        regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[FileIO]:
    """A new file to write (and seek) in, which takes the place of `path` at the end of the block, whole and on the disk.

    A new file has the mode that the umask leaves. One that was there is replaced by one of its mode and, where that is
    allowed, of its owner and group; of a symbolic link, what it points to is replaced. Other hard links keep the old file.
    Where the block or anything else fails, all is as before. Of several writers the last one wins.

    Raises:
        OSError: with the name of the file: a folder that is missing or cannot be written, a full disk, or a path that is a
            directory, FIFO, socket or device.
    """
    try:
        old = None  # also where a symbolic link leads to nothing yet
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(path)
        if old is not None:
            regular(old, path)
        folder, name = os.path.split(os.path.realpath(path))
        _remove_dead(folder, _prefix(name))
        file, temporary = _begun(folder, _prefix(name), 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777)
        try:
            with file:
                yield file
                if old is not None:
                    _make_like(file, old)
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()  # Windows renames no open file
                os.replace(temporary, os.path.join(folder, name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        if error.errno is None or error.filename == os.fspath(path):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        held = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(held)
        finally:
            os.close(held)


def _prefix(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:_LONGEST])}."


def _begun(folder: str, prefix: str, mode: int) -> tuple[FileIO, str]:
    """A new temporary file, locked, and its path. Nobody but its owner may ever read what nobody else may read."""
    while True:
        path = os.path.join(folder, f"{prefix}{secrets.token_hex(8)}.part")
        file = open(path, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        try:
            if _lock(file.fileno()) is not False and os.path.exists(path):
                return file, path
        except BaseException:
            file.close()
            os.unlink(path)
            raise
        file.close()  # another writer took it for dead before it was locked


def _lock(descriptor: int) -> bool | None:
    """Lock a file: whether that was to be had; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_dead(folder: str, prefix: str) -> None:
    """Remove the temporary files of writers that died. What cannot be read or removed stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and _PART.fullmatch(entry.name, len(prefix)):
                with contextlib.suppress(OSError):
                    _remove_if_dead(entry.path)


def _remove_if_dead(path: str) -> None:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        status, locked = os.fstat(descriptor), _lock(descriptor)
        if locked is None:
            locked = time.time() - status.st_mtime > _OLD
        if locked and stat.S_ISREG(status.st_mode):
            os.unlink(path)  # while it is locked: a writer that comes to lock it sees that it is gone
    finally:
        os.close(descriptor)


def _make_like(file: FileIO, old: os.stat_result) -> None:
    """Give a file another's owner, group and mode, as far as that is allowed."""
    if not hasattr(os, "fchown"):
        return
    new = os.fstat(file.fileno())
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        for owner in (old.st_uid, -1):
            with contextlib.suppress(OSError):
                os.fchown(file.fileno(), owner, old.st_gid)
                break
    with contextlib.suppress(OSError):  # file systems without modes
        os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
