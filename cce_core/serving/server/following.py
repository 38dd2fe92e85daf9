"""Readers by name that follow their files: a new file is opened, and deltas are applied, beside; then they are swapped.

    base     the file as it was opened
    chain    the delta whose parent is the digest of what is served, and so on: names and times of files say nothing

What cannot be read is told and counted, and what was served goes on being served; so is a table whose file is taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cce_core.serving.reader import Link, Reader, read_link
from cce_core.serving.server import log

SUFFIX, DELTA = ".safetensors", ".delta"
Version = tuple[int, int, int]
File = tuple[Path, Version]
_NONE = (0, 0, 0)


class Served(NamedTuple):
    """A table as it is served.

    Attributes:
        file: its path, and which of those that have had this name.
        reader: what looks ids up.
        sequence: the number of the delta that was applied last; 0 if none was.
        applied: deltas that were applied, each once.
    """

    file: File
    reader: Reader
    sequence: int = 0
    applied: frozenset[File] = frozenset()


class Following:
    """The tables of a server, by name.

    Args:
        places: files, and folders, of which all files with the suffix `.safetensors` are tables.
        deltas: a folder of files with the suffix `.delta`, of any of the tables.
        verify: as for `Reader`.
        told: is called with the name of a table, "file" or "delta", and whether it was taken, for each that is new.

    Raises:
        OSError, FileFormatError: a table cannot be opened.
        ValueError: there is none, or there are two of the same name.
    """

    def __init__(
        self,
        places: Iterable[Path],
        deltas: Path | None = None,
        verify: str = "header",
        told: Callable[[str, str, bool], None] = lambda *_: None,
    ) -> None:
        self._places, self._deltas, self._verify, self._told = list(places), deltas, verify, told
        self._refused: dict[Path, Version] = {}
        self._links: dict[File, Link] = {}
        files = self._files()
        names = [path.stem for path, _ in files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two files give a table the name {twice[0]!r}: rename one")
        if not files:
            raise ValueError(f"there is no file *{SUFFIX} in {', '.join(map(str, self._places))}")
        if deltas is not None and not deltas.is_dir():
            raise NotADirectoryError(f"{deltas}, where deltas are looked for, is no folder")
        self._read_links()
        self.tables = {file[0].stem: self._followed(self._opened(file)) for file in files}

    def poll(self) -> None:
        """Look for what is new: files of tables that were replaced or have come, and deltas. It may take long: not for a loop."""
        self._read_links()
        for file in self._files():
            name, held = file[0].stem, self.tables.get(file[0].stem)
            if (held and held.file == file) or self._is_refused(file) or file[1] == _NONE:
                continue
            try:
                if held and held.file[0] != file[0]:
                    raise ValueError(f"{held.file[0]} has this name already")
                self.tables[name] = served = self._followed(self._opened(file))
                self._took(name, "file", served, file)
            except (OSError, ValueError) as error:
                self._refuse(name, "file", file, error)
        for name, served in list(self.tables.items()):
            self.tables[name] = self._followed(served)

    def _files(self) -> list[File]:
        paths = [
            path for place in self._places for path in (sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place])
        ]
        return [(path, _version(path)) for path in paths]

    def _opened(self, file: File) -> Served:
        return Served(file, Reader(file[0], self._verify))  # one that is replaced meanwhile is opened again

    def _read_links(self) -> None:
        """What the deltas that are there say of themselves."""
        found = sorted(self._deltas.glob(f"*{DELTA}")) if self._deltas else []
        links: dict[File, Link] = {}
        for file in [(path, _version(path)) for path in found]:
            try:
                if not self._is_refused(file):
                    links[file] = self._links.get(file) or read_link(file[0])
            except (OSError, ValueError) as error:
                self._refuse("", "delta", file, error)
        self._links = links

    def _followed(self, served: Served) -> Served:
        """A table with all deltas that follow, each once."""
        name = served.file[0].stem
        while (file := self._next(served)) is not None:
            try:
                reader, applied = served.reader.apply(file[0]), (served.applied | {file}) & self._links.keys()
            except (OSError, ValueError) as error:
                self._refuse(name, "delta", file, error)
                del self._links[file]
            else:
                served = Served(served.file, reader, self._links[file].sequence, applied)
                self._took(name, "delta", served, file)
        return served

    def _next(self, served: Served) -> File | None:
        """The delta that changes what is served: of several the next by number, if there is one."""
        links = {file: link for file, link in self._links.items() if link.spec == served.reader.spec}
        links = {file: link for file, link in links.items() if file not in served.applied and link.child != link.parent}
        for complete in (False, True) if links else ():  # else no digest is needed, which takes a pass over the arrays
            if own := [file for file in links if links[file].parent == served.reader.digest(complete)]:
                return min(own, key=lambda file: (links[file].sequence <= served.sequence, links[file].sequence))
        return None

    def _took(self, name: str, what: str, served: Served, file: File) -> None:
        log.info("%s: %s %s is taken: %r, delta %d", name, what, file[0], served.reader, served.sequence)
        self._told(name, what, True)

    def _refuse(self, name: str, what: str, file: File, why: Exception) -> None:
        """Tell of it; of a file that is wrong once, while what the system did not let us read is tried again."""
        if not isinstance(why, OSError):
            self._refused[file[0]] = file[1]
        log.error("%s: %s %s is not taken: %s", name or "?", what, file[0], " ".join(str(why).split()))
        self._told(name, what, False)

    def _is_refused(self, file: File) -> bool:
        return self._refused.get(file[0]) == file[1]


def _version(path: Path) -> Version:
    """Which file it is that has a name now; zeros if none has."""
    try:
        found = path.stat()
    except OSError:
        return _NONE
    return (found.st_ino, found.st_mtime_ns, found.st_size)
