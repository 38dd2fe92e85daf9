"""Reads MovieLens' rating files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from cce_core import _check
from cce_core._jit import jit
from cce_core.datasets.columns import Form, Kind, Odd, compact, read_columns, whole
from cce_core.datasets.interactions import Ratings
from cce_core.datasets.lines import Piece, refused

SEPARATORS = ("\t", "::", ",")
HEADER = "userId,movieId,rating,timestamp"  # of the comma-separated files
NAMES = ("u.data", "ratings.dat", "ratings.csv")  # of the rating files in MovieLens' archives

_NEUTRAL = 6  # 3 stars, in half-stars
_WHOLE = re.compile(rb"([0-9]{1,18})(?:\.0*)?")
_STARS = re.compile(rb"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


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
        user, at = whole(text, at)
        if user < 0:
            return begin, row, line
        for _ in range(width):
            if text[at] != mark:
                return begin, row, line
            at += 1
        item, at = whole(text, at)
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
        time, at = whole(text, at)
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


def _parsed(form: Form, text: Any, at: int, stop: int, row: int, columns: list[Any]) -> tuple[int, int, int]:
    """The compiled loop, where lines are as it takes them."""
    if not form.plain:
        return at, row, 0
    found: tuple[int, int, int] = _parse(text, at, stop, form.mark, form.n_marks, row, *columns)
    return found


def _converted(fields: list[bytes]) -> tuple[int, ...] | None:
    """User, item, half-stars and time of a line; None for 3 stars."""
    user, item, rating, time = fields
    numbers = []
    for field, text in ((0, user), (1, item), (3, time)):
        found = _WHOLE.fullmatch(text)
        if not found:
            raise Odd(field)
        numbers.append(int(found[1]))
    stars = float(rating) if _STARS.fullmatch(rating) else 0.0
    if not (2 * stars).is_integer() or not 0.5 <= stars <= 5:
        raise Odd(2)
    return None if 2 * stars == _NEUTRAL else (numbers[0], numbers[1], int(2 * stars), numbers[2])


def _check_end(path: Path, line: int, piece: Piece, form: Form, columns: list[Any]) -> None:
    """Refuse a last line without an end that may be torn.

    What is torn off a time makes it ten times smaller, and so far below all others. Other numbers tell nothing.
    """
    last = form.places.index(form.width - 1) if form.width - 1 in form.places else -1
    if 0 <= last < 3:
        raise refused(
            path,
            line,
            form.words,
            piece,
            f", or the {form.kind.names[last]} may be; if it is whole, give it a line end",
        )
    rest, time = columns[3][:-1], int(columns[3][-1])
    if last == 3 and rest.size and 4 * time < int(rest.min()):
        raise refused(
            path, line, form.words, piece, " (its time is far before all others); if it is whole, give it a line end"
        )


RATINGS = Kind(
    one="rating",
    names=("user", "item", "rating", "time"),
    types=(np.int64, np.int64, np.int8, np.int64),
    expected="whole numbers and a rating of 0.5 to 5 in halves",
    header=HEADER,
    shortest=8,  # "1,1,1,1\n"
    longest=2000,  # four numbers need at most 3·18 + 3 and their separators, further columns some more
    files=NAMES,
    strict=True,
    parse=_parsed,
    convert=_converted,
    check_end=_check_end,
)


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
    columns, lines = read_columns(path, RATINGS, separator)
    if n_lines is not None and lines != n_lines:
        raise ValueError(
            f"{path} holds {lines:,} ratings, expected {n_lines:,}{f' for {name}' if name else ''}: it is torn, or "
            "another data set's file"
        )
    users, items, halves, times = columns
    columns.clear()
    users, user_ids = compact(users)
    items, item_ids = compact(items)
    labels = (halves > _NEUTRAL).astype(np.float32)
    return Ratings(name or path.name, users, items, labels, times, user_ids, item_ids, lines - labels.size)
