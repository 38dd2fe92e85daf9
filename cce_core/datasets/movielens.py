"""Reads MovieLens' rating files: a block of bytes at a time, digits parsed by a compiled loop, every line checked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import COMPILED, jit
from cce_core.datasets.interactions import Ratings
from cce_core.datasets.lines import Piece, pieces, refused, shown

SEPARATORS = ("\t", "::", ",")
HEADER = "userId,movieId,rating,timestamp"  # of the comma-separated files
NAMES = ("u.data", "ratings.dat", "ratings.csv")  # of the rating files in MovieLens' archives

_BLOCK = 1 << 22
_SHORTEST = 8  # bytes of "1,1,1,1\n"
_LONGEST = 2000  # bytes of a line: four numbers need at most 3·18 + 3 and their separators, further columns some more
_NEUTRAL = 6  # 3 stars, in half-stars
_DIGITS = 18  # any number of 18 digits fits int64

_WHAT = ("the user", "the item", "the rating", "the time")
_NAMES = ("user", "item", "rating", "time")
_ROLES = {  # what headers call them, in small letters alone
    **dict.fromkeys(("user", "users", "userid", "uid"), "user"),
    **dict.fromkeys(("item", "items", "itemid", "iid", "movie", "movies", "movieid", "mid"), "item"),
    **dict.fromkeys(("rating", "ratings", "stars", "score"), "rating"),
    **dict.fromkeys(("time", "timestamp", "times", "timestamps", "unixtime", "ts"), "time"),
}
_WHOLE = re.compile(rb"([0-9]{1,18})(?:\.0*)?")
_STARS = re.compile(rb"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


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
    text: Any, at: int, stop: int, mark: int, width: int, row: int, users: Any, items: Any, halves: Any, times: Any
) -> Any:
    """Parse whole lines in text[at:stop] into the four columns from `row` on, leaving out ratings of 3.

    Returns:
        (the place after the lines that were read, the next row, the number of those lines). It stops at a line that is not
        four numbers with one separator between them.
    """
    line = 0
    while at < stop:
        begin = at
        user, at = _whole(text, at)
        if user < 0:
            return begin, row, line
        for _ in range(width):
            if text[at] != mark:
                return begin, row, line
            at += 1
        item, at = _whole(text, at)
        if item < 0:
            return begin, row, line
        for _ in range(width):
            if text[at] != mark:
                return begin, row, line
            at += 1
        half = 2 * (text[at] - 48)
        if half < 0 or half > 10:
            return begin, row, line
        at += 1
        if text[at] == 46:  # "."
            if text[at + 1] == 53:  # "5"
                half += 1
            elif text[at + 1] != 48:
                return begin, row, line
            at += 2
            while text[at] == 48:  # "5.00"
                at += 1
        if half < 1 or half > 10:
            return begin, row, line
        for _ in range(width):
            if text[at] != mark:
                return begin, row, line
            at += 1
        time, at = _whole(text, at)
        if time < 0:
            return begin, row, line
        while text[at] == 32:
            at += 1
        if text[at] == 13:  # a carriage return before the line end
            at += 1
        if text[at] != 10:
            return begin, row, line
        at += 1
        line += 1
        if half != _NEUTRAL:
            users[row], items[row], halves[row], times[row] = user, item, half, time
            row += 1
    return at, row, line


class _Odd(ValueError):
    """A line that is none of ratings; the number of the field that is wrong."""


class _Form:
    """How the lines of a file are written, as far as is known yet.

    Attributes:
        separator: as the caller says.
        places: where user, item, rating and time stand in a line, from 0.
        width: fields of a line.
        mark: the byte that separates them, for the compiled loop; a blank where a file of tabs has blanks in their place.
    """

    def __init__(self, separator: str) -> None:
        self.separator, self.between, self.names = separator, separator.encode(), ["user", "item", "rating", "time"]
        self.places, self.width, self.mark = [0, 1, 2, 3], 4, ord(separator[0])

    @property
    def plain(self) -> bool:
        """Whether lines are as the compiled loop takes them."""
        return self.places == [0, 1, 2, 3] and self.width == 4

    @property
    def words(self) -> str:
        """A line in words."""
        return repr(self.separator.join(self.names))

    def begin(self, line: bytes) -> bool:
        """Learn from the first line of a file; whether it is a header."""
        if self.separator == "\t" and b"\t" not in line:
            self.mark = ord(" ")
        names = [name.decode("utf-8", "replace") for name in self._split(line, 0)]
        roles = [_ROLES.get(re.sub(r"[\W_]", "", name.split(":")[0].lower())) for name in names]
        if not any(roles):
            return False
        for role in _NAMES:
            if roles.count(role) != 1:
                raise ValueError(
                    f"the header names {'no' if role not in roles else 'more than one'} {role}; expected {HEADER!r} or the "
                    f"like, in any order"
                )
        self.names, self.width = names, len(names)
        self.places = [roles.index(role) for role in _NAMES]
        return True

    def line(self, line: bytes) -> tuple[int, int, int, int]:
        """User, item, half-stars and time of a line, however it is written; `_Odd` where it has none."""
        fields = self._split(line, self.width)
        if len(fields) != self.width:
            wrong = [k for k, field in enumerate(fields[:4]) if not _STARS.fullmatch(field)]
            raise _Odd(wrong[0] if wrong else min(len(fields), 4) - 1)
        user, item, rating, time = (fields[place] for place in self.places)
        whole = []
        for field, text in ((0, user), (1, item), (3, time)):
            found = _WHOLE.fullmatch(text)
            if not found:
                raise _Odd(field)
            whole.append(int(found[1]))
        stars = float(rating) if _STARS.fullmatch(rating) else 0.0
        if not (2 * stars).is_integer() or not 0.5 <= stars <= 5:
            raise _Odd(2)
        return whole[0], whole[1], int(2 * stars), whole[2]

    def _split(self, line: bytes, width: int) -> list[bytes]:
        """The fields of a line without blanks and quotes; by blanks where it has no tabs, or not as many as there are fields."""
        if b'"' in line and len(self.separator) == 1:
            import csv

            text = line.decode("latin-1")
            by = self.separator if self.separator in text else " "
            if text.count('"') % 2:  # a quote that is torn
                return [line]
            try:
                (row,) = csv.reader([text], delimiter=by, skipinitialspace=True)
            except csv.Error:
                return [line]
            fields = [field.encode("latin-1").strip() for field in row]
        else:
            fields = [field.strip() for field in line.strip(b" ").split(self.between)]
            if b'"' in line:
                fields = [
                    field[1:-1] if len(field) > 1 and field[:1] == field[-1:] == b'"' else field for field in fields
                ]
            if self.separator == "\t" and (len(fields) == 1 or len(fields) != width):
                fields = line.split() if len(fields) == 1 or len(line.split()) == width else fields
        while len(fields) > max(width, 1) and not fields[-1]:
            fields.pop()
        return fields


def _read_columns(path: Path, separator: str) -> tuple[list[Any], int]:
    """The four raw columns (users, items, half-stars, times), without ratings of 3, and how many ratings there were."""
    form, begun = _Form(separator), False
    columns = [np.empty(0, t) for t in (np.int64, np.int64, np.int8, np.int64)]
    row, ratings, line = 0, 0, 0
    for piece in pieces(path, _BLOCK, _LONGEST, NAMES):
        text, share = piece.text, piece.share
        if piece.fault == "long":
            raise refused(path, line + 1, form.words, piece)
        need = row + len(text) // _SHORTEST + 1
        if columns[0].size < need:
            # Room for the whole file, guessed from what was read. The system's realloc moves no large array.
            for column in columns:
                column.resize(need + int(1.02 * row * (1 - share) / share), refcheck=False)
        # Signed bytes keep compiled arithmetic in int64; uncompiled, Python's own bytes are quickest.
        view: Any = np.frombuffer(text, np.int8) if COMPILED else text
        at, before = 0, row
        while at < len(text):
            if form.plain and begun:
                at, row, lines = _parse(
                    view, at, len(text), form.mark, len(separator) if form.mark > 32 else 1, row, *columns
                )
                line, ratings = line + lines, ratings + lines
                if at == len(text):
                    break
            stop = text.index(b"\n", at)
            odd, at, line = text[at:stop].rstrip(b"\r"), stop + 1, line + 1
            if not odd.strip():
                continue
            try:
                if not begun:
                    begun = True
                    if form.begin(odd):
                        continue
                *ids, half, time = form.line(odd)
            except _Odd as error:
                if piece.fault:
                    raise refused(path, line, form.words, piece) from None
                raise ValueError(
                    f"{path}, line {line}: {_WHAT[error.args[0]]} is wrong; expected {form.words}, whole numbers "
                    f"and a rating of 0.5 to 5 in halves, got {shown(odd)}"
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}, got {shown(odd)}") from None
            ratings += 1
            if half != _NEUTRAL:
                for column, value in zip(columns, (*ids, half, time)):
                    column[row] = value
                row += 1
        if piece.fault and row > before:
            _whole_end(path, line, piece, form, columns[3][:row])
    if not ratings:
        raise ValueError(f"{path} holds no rating; expected lines of {form.words}")
    for column in columns:
        column.resize(row, refcheck=False)
    return columns, ratings


def _whole_end(path: Path, line: int, piece: Piece, form: _Form, times: Any) -> None:
    """Refuse a last line without an end that may be torn.

    What is torn off a time makes it ten times smaller, and so far below all others. Other numbers tell nothing.
    """
    last = form.places.index(form.width - 1) if form.width - 1 in form.places else -1
    if 0 <= last < 3:
        raise refused(path, line, form.words, piece, f", or {_WHAT[last]} may be; if it is whole, give it a line end")
    rest, time = times[:-1], int(times[-1])
    if last == 3 and rest.size and 4 * time < int(rest.min()):
        raise refused(
            path, line, form.words, piece, " (its time is far before all others); if it is whole, give it a line end"
        )


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

    Files are read as people have them: with a byte order mark (UTF-8 or UTF-16), line ends of any system, blank lines, blanks
    where tabs should be, quotes, ratings such as `5.00`, and packed by gzip, bzip2, xz or zip (of an archive of several files the
    one that is called as MovieLens calls it). A first line that names the columns says their order; further columns are ignored.

    Args:
        path: the file.
        separator: tab (as in `u.data` of MovieLens 100K), "::" (`ratings.dat` of 1M and 10M), or "," (`ratings.csv` of the rest).
        name: the data set's name; None takes the file's.
        n_lines: how many ratings the file must hold, neutral ones included; None takes any number.

    Returns:
        The `Ratings`, in the file's order.

    Raises:
        ValueError: the file is not such a file, or is torn: the error names the file, the line and what stands there. Ratings are
            0.5 to 5 in halves, numbers have at most 18 digits. A last line without an end is taken for whole where its last
            number is a time that is not far before all others: what is torn off shows there.
        OSError: the file can't be read.

    Cost:
        Read once in blocks of 4 MiB, at 100 to 200 MB a second, and a million lines in 5 to 10 s where each is of an unusual form
        (quotes, columns in another order); memory is 25 bytes a kept row while reading, and about 35 at the peak, while ids are
        compacted.

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
    path = _check.path("path", path)
    name = None if name is None else _check.instance("name", name, str, "a name")
    n_lines = None if n_lines is None else _check.integer("n_lines", n_lines)
    separator = _check.choice("separator", separator, SEPARATORS)
    columns, lines = _read_columns(path, separator)
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
