"""Reads MovieLens' rating files: a block of bytes at a time, digits parsed by a compiled loop, every line checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import COMPILED, jit
from cce_core._progress import progress
from cce_core.datasets.interactions import Ratings

SEPARATORS = ("\t", "::", ",")
HEADER = "userId,movieId,rating,timestamp"  # of the comma-separated files

_BLOCK = 1 << 22
_SHORTEST = 8  # bytes of "1,1,1,1\n"
_LONGEST = 200  # bytes of a line: four numbers need at most 3·18 + 3 and their separators
_NEUTRAL = 6  # 3 stars, in half-stars
_DIGITS = 18  # any number of 18 digits fits int64

_WHAT = ("the user", "the item", "the rating", "the time")


@jit
def _whole(text: Any, at: int) -> Any:
    """The number at `at` and the place after it; -1 where there is none, or one of more than 18 digits.

    A line end stands behind every line, so no scan runs off the text.
    """
    value, first = 0, at
    while 48 <= text[at] <= 57:
        if at - first == _DIGITS:
            return -1, at
        value = value * 10 + (text[at] - 48)
        at += 1
    return (value if at > first else -1), at


@jit
def _parse(
    text: Any, stop: int, mark: int, width: int, row: int, users: Any, items: Any, halves: Any, times: Any
) -> Any:
    """Parse whole lines in text[:stop] into the four columns from `row` on, leaving out ratings of 3.

    Returns:
        (the next row, lines read, -1), or with the number of the field that is wrong in the line after those read.
    """
    at, line = 0, 0
    while at < stop:
        user, at = _whole(text, at)
        if user < 0:
            return row, line, 0
        for _ in range(width):
            if text[at] != mark:
                return row, line, 0
            at += 1
        item, at = _whole(text, at)
        if item < 0:
            return row, line, 1
        for _ in range(width):
            if text[at] != mark:
                return row, line, 1
            at += 1
        half = 2 * (text[at] - 48)
        if half < 0 or half > 10:
            return row, line, 2
        at += 1
        if text[at] == 46:  # "."
            if text[at + 1] == 53:  # "5"
                half += 1
            elif text[at + 1] != 48:
                return row, line, 2
            at += 2
        if half < 1 or half > 10:
            return row, line, 2
        for _ in range(width):
            if text[at] != mark:
                return row, line, 2
            at += 1
        time, at = _whole(text, at)
        if time < 0:
            return row, line, 3
        if text[at] == 13:  # a carriage return before the line end
            at += 1
        if text[at] != 10:
            return row, line, 3
        at += 1
        line += 1
        if half != _NEUTRAL:
            users[row], items[row], halves[row], times[row] = user, item, half, time
            row += 1
    return row, line, -1


def _shown(text: bytes) -> str:
    """The first line of `text`, short enough for an error."""
    line = text.split(b"\n", 1)[0].rstrip(b"\r")
    return repr(line[:60].decode("utf-8", "backslashreplace")) + (" ..." if len(line) > 60 else "")


def _read_columns(file: BinaryIO, path: Path, size: int, separator: str, bar: Any) -> tuple[list[Any], int]:
    """The four raw columns (users, items, half-stars, times), without ratings of 3, and how many ratings there were."""
    form = separator.join(("user", "item", "rating", "time"))
    columns = [np.empty(0, t) for t in (np.int64, np.int64, np.int8, np.int64)]
    rest, row, line, done = b"", 0, 0, 0  # rest: the line that the block's end tore
    header = separator == ","
    while len(rest) <= _LONGEST and (fresh := file.read(_BLOCK)):
        bar.update(len(fresh))
        text = rest + fresh
        stop, start = text.rfind(b"\n") + 1, 0
        if header and stop:
            start = text.index(b"\n") + 1
            if text[: start - 1].rstrip(b"\r") != HEADER.encode():
                raise ValueError(f"{path}, line 1: expected the header {HEADER!r}, got {_shown(text)}")
            header, line = False, 1
        rest = text[stop:]
        text = text[start:stop]
        need = row + len(text) // _SHORTEST + 1
        if columns[0].size < need:
            # Room for the whole file, guessed from what was read. The system's realloc moves no large array.
            room = max(need, need + int(1.02 * row * (size - done) / done) if done else 0)
            for column in columns:
                column.resize(room, refcheck=False)
        # Signed bytes keep compiled arithmetic in int64; uncompiled, Python's own bytes are quickest.
        view: Any = np.frombuffer(text, np.int8) if COMPILED else text
        row, lines, wrong = _parse(view, len(text), ord(separator[0]), len(separator), row, *columns)
        if wrong >= 0:
            bad = text.split(b"\n", lines + 1)[lines]
            raise ValueError(
                f"{path}, line {line + lines + 1}: {_WHAT[wrong]} is wrong; expected {form!r}, whole numbers "
                f"and a rating of 0.5 to 5 in halves, got {_shown(bad)}"
            )
        line += lines
        done += len(text)
    if rest:
        torn = "the line is far too long" if len(rest) > _LONGEST else "the file ends within it, so it is torn"
        raise ValueError(f"{path}, line {line + 1}: {torn}; expected {form!r} and a line end, got {_shown(rest)}")
    if line <= (separator == ","):
        raise ValueError(f"{path} holds no rating; expected lines of {form!r}")
    for column in columns:
        column.resize(row, refcheck=False)
    return columns, line - (separator == ",")


def _compact(raw: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids numbered from 0 in rising order of the raw ones, and the raw id of each number."""
    most = int(raw.max()) if raw.size else 0
    if most > raw.size + (1 << 20):  # a table over all raw ids would outweigh the rows themselves
        known, ids = np.unique(raw, return_inverse=True)
        return ids.reshape(-1).astype(np.int64, copy=False), known
    present = np.zeros(most + 1, bool)
    present[raw] = True
    known = np.flatnonzero(present).astype(np.int64, copy=False)
    number = np.zeros(most + 1, np.int64)
    number[known] = np.arange(known.size)
    return number[raw], known


def read_ratings(
    path: str | os.PathLike[str], separator: str = "\t", *, name: str | None = None, n_lines: int | None = None
) -> Ratings:
    r"""Read a file of ratings, one `user, item, rating, time` a line, and make it binary.

    Above 3 stars is 1, below 3 is 0; a rating of 3 is dropped, and ids are compacted after that.

    Args:
        path: the file.
        separator: tab (as in `u.data` of MovieLens 100K), "::" (`ratings.dat` of 1M), or "," (`ratings.csv` of 20M and
            25M, whose first line must be `userId,movieId,rating,timestamp`).
        name: the data set's name; None takes the file's.
        n_lines: how many ratings the file must hold, neutral ones included; None takes any number.

    Returns:
        The `Ratings`, in the file's order.

    Raises:
        ValueError: the file is not such a file, or is torn: the error names the file, the line and what stands there.
            Every line must have its line end, the last one too. Ratings are 0.5 to 5 in halves, numbers have at most
            18 digits.
        OSError: the file can't be read.

    Cost:
        Read once in blocks of 4 MiB, at 100 to 200 MB a second; memory is 25 bytes a kept row while reading, and about
        35 at the peak, while ids are compacted.

    Example:
        >>> import tempfile, pathlib
        >>> from cce_core.datasets import read_ratings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "u.data")
        ...     n = path.write_text("7\t30\t5\t100\n7\t10\t3\t101\n9\t20\t1\t102\n")
        ...     ratings = read_ratings(path)
        >>> ratings.users, ratings.items, ratings.labels, ratings.item_ids
        (array([0, 1]), array([1, 0]), array([1., 0.], dtype=float32), array([20, 30]))
    """
    path = Path(path)
    separator = _check.choice("separator", separator, SEPARATORS)
    size = path.stat().st_size
    with path.open("rb") as file, progress(size, f"reading {path.name}", unit="B") as bar:
        columns, lines = _read_columns(file, path, size, separator, bar)
    if n_lines is not None and lines != n_lines:
        raise ValueError(
            f"{path} holds {lines:,} ratings, expected {n_lines:,}{f' for {name}' if name else ''}: it is torn, or "
            "another data set's file"
        )
    users, items, halves, times = columns
    columns.clear()
    users, user_ids = _compact(users)
    items, item_ids = _compact(items)
    labels = (halves > _NEUTRAL).astype(np.float32)
    return Ratings(name or path.name, users, items, labels, times, user_ids, item_ids, lines - labels.size)
