"""Files of lines as people have them: plain or packed, with or without a byte order mark, lines ended in any of three ways."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from cce_core._progress import progress

_BLANKS = b" \t\r\n"
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
_UTF8, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class Piece(NamedTuple):
    """Whole lines of a file.

    Attributes:
        text: the lines, each with its "\\n" (or "\\r\\n").
        share: of the file that was read so far, above 0 and up to 1.
        fault: of a last piece of one line: "torn" where it has no end in the file (it was given one, and may be whole), "long"
            where it is far too long; "" otherwise.
    """

    text: bytes
    share: float
    fault: str = ""


def shown(text: bytes) -> str:
    """The first line of `text`, short enough for an error."""
    line = text.split(b"\n", 1)[0].rstrip(b"\r")
    return repr(line[:60].decode("utf-8", "backslashreplace")) + (" ..." if len(line) > 60 else "")


def pieces(
    path: Path, block: int, longest: int, names: tuple[str, ...] = (), show: bool | None = None
) -> Iterator[Piece]:
    """The lines of a file, about `block` bytes at a time; blank lines at its end are left out.

    Files packed by gzip, bzip2, xz or zip are unpacked on the way, whatever they are called; of a zip archive the only file in
    it is read, or the only one that is called one of `names`. UTF-16 with a byte order mark is read as UTF-8.

    Args:
        path: the file.
        block: bytes read at a time.
        longest: bytes of the longest line.
        names: see above.
        show: whether a progress bar is shown; None shows it on a terminal.

    Raises:
        ValueError: the file cannot be unpacked.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as raw, progress(size, f"reading {path.name}", unit="B", show=show) as bar:
        with _unpacking(path):
            read = _opened(raw, path, names)
        rest, at = b"", 0  # rest: the line that the block's end tore, and blank lines, which may be the last
        while True:
            with _unpacking(path):
                fresh = read(block)
                while fresh.endswith(b"\r") and (more := read(1)):  # it may be half of a line end
                    fresh += more
            if not fresh:
                break
            if b"\r" in fresh and fresh.count(b"\r") != fresh.count(b"\r\n"):
                fresh = fresh.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            here = raw.tell() if raw.seekable() else at + len(fresh)
            bar.update(here - at)
            at = here
            text = rest + fresh
            stop = text.rfind(b"\n") + 1
            keep = stop
            while keep and text[keep - 1] in b" \r\n":
                keep -= 1
            if keep < stop:
                stop = text.index(b"\n", keep) + 1 if keep else 0
            rest = text[stop:]
            if stop:
                yield Piece(text[:stop], min(1.0, at / size) if size else 1.0)
            if len(rest) > longest and (start := rest.rfind(b"\n") + 1) + longest < len(rest):
                if start:
                    yield Piece(rest[:start], 1.0)
                yield Piece(rest[start:] + b"\n", 1.0, "long")
                return
        if rest.strip(_BLANKS):
            start = rest.rstrip(b"\n").rfind(b"\n") + 1
            if start:
                yield Piece(rest[:start], 1.0)
            yield Piece(rest[start:].rstrip(b"\n") + b"\n", 1.0, "torn")


def refused(path: Path, line: int, expected: str, piece: Piece, why: str = "") -> ValueError:
    """What is wrong with a last line that is too long, or has no end and is not whole."""
    fault = "the line is far too long" if piece.fault == "long" else f"the file ends within it, so it is torn{why}"
    return ValueError(f"{path}, line {line}: {fault}; expected {expected} and a line end, got {shown(piece.text)}")


def _opened(raw: Any, path: Path, names: tuple[str, ...]) -> Callable[[int], bytes]:
    """What reads the file's text: unpacked, as UTF-8, without the mark."""
    file = raw
    head = raw.peek(6)
    packer = next((module for magic, module in _PACKERS.items() if head.startswith(magic)), None)
    if packer is not None:
        file = importlib.import_module(packer).open(raw)
    elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        file = _member(raw, path, names)
    if file is not raw:
        file = io.BufferedReader(file)
        head = file.peek(3)
    if head[:2] in _UTF16:
        text = io.TextIOWrapper(file, "utf-16", newline="")
        return lambda n: text.read(n).encode()
    if head[:3] == _UTF8:
        file.read(3)
    read: Callable[[int], bytes] = file.read
    return read


def _member(raw: BinaryIO, path: Path, names: tuple[str, ...]) -> Any:
    """The file of a zip archive that is meant."""
    import zipfile

    archive = zipfile.ZipFile(raw)
    found = [
        member
        for member in archive.infolist()
        if not member.is_dir()
        and "__MACOSX" not in member.filename
        and not PurePosixPath(member.filename).name.startswith(".")
    ]
    if len(found) != 1:
        called = [member for member in found if PurePosixPath(member.filename).name.lower() in names]
        if len(called) != 1:
            wanted = f", or one that is called {' or '.join(names)}" if names else ""
            inside = ", ".join(member.filename for member in found[:10]) or "none"
            raise ValueError(
                f"{path} is an archive of {len(found)} files ({inside}); expected one{wanted}: unpack it and give the file"
            )
        found = called
    return archive.open(found[0])


@contextmanager
def opening(path: Path) -> Iterator[tuple[Callable[[int], bytes], Callable[[], int]]]:
    """What reads a file's bytes, unpacked as `pieces` does it, and what says how far into the file that is."""
    with path.open("rb") as raw:
        with _unpacking(path):
            inner = _opened(raw, path, ())

        def read(n: int) -> bytes:
            with _unpacking(path):
                return inner(n)

        yield read, raw.tell


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    """Every way in which unpacking fails as one error."""
    try:
        yield
    except Exception as error:
        foreign = type(error).__module__ in ("zlib", "_lzma", "zipfile")
        known = isinstance(error, (EOFError, NotImplementedError, RuntimeError, UnicodeError))
        if foreign or known or (isinstance(error, OSError) and error.errno is None):
            raise ValueError(
                f"{path} can't be unpacked ({error}): it is damaged or torn, or of a kind that is not read here"
            ) from error
        raise
