"""Reads files of interactions: who met what, a pair of ids a line, without a rating."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from cce_core import _check
from cce_core._jit import jit
from cce_core.datasets.columns import Form, Kind, Odd, compact, read_columns, whole
from cce_core.datasets.frames import kind_of, read_frame
from cce_core.datasets.interactions import Pairs

_WHOLE = re.compile(rb"([+-]?[0-9]{1,19})(?:\.0*)?")
_LEAST, _MOST = -(2**63), 2**63 - 1


@jit
def _parse(
    text: Any,
    at: int,
    stop: int,
    mark: int,
    n_marks: int,
    user_at: int,
    item_at: int,
    width: int,
    row: int,
    users: Any,
    items: Any,
) -> Any:
    """Parse whole lines in text[at:stop] into both columns from `row` on; fields other than user_at and item_at are skipped.

    Returns:
        (the place after the lines that were read, the next row, the number of those lines). It stops at a line that is not
        `width` fields with one separator (or, where that is a blank, any number of blanks) between them, or has quotes.
    """
    line = 0
    while at < stop:
        begin, user, item = at, 0, 0
        for field in range(width):
            if field:
                gap = at
                while text[at] == 32:
                    at += 1
                if mark == 32:
                    if at == gap:
                        return begin, row, line
                else:
                    for _ in range(n_marks):
                        if text[at] != mark:
                            return begin, row, line
                        at += 1
                    while text[at] == 32:
                        at += 1
            if field in (user_at, item_at):
                sign = 1
                if text[at] == 45:  # "-"
                    sign, at = -1, at + 1
                value, at = whole(text, at)
                if value < 0:
                    return begin, row, line
                if field == user_at:
                    user = sign * value
                else:
                    item = sign * value
            else:
                while text[at] != mark and text[at] != 10:
                    if text[at] == 34:  # a quote
                        return begin, row, line
                    at += 1
        while text[at] == 32:
            at += 1
        if text[at] == 13:  # a carriage return before the line end
            at += 1
        if text[at] != 10:
            return begin, row, line
        at += 1
        users[row], items[row] = user, item
        row, line = row + 1, line + 1
    return at, row, line


def _parsed(form: Form, text: Any, at: int, stop: int, row: int, columns: list[Any]) -> tuple[int, int, int]:
    """The compiled loop."""
    found: tuple[int, int, int] = _parse(
        text, at, stop, form.mark, form.n_marks, form.places[0], form.places[1], form.width, row, *columns
    )
    return found


def _converted(fields: list[bytes]) -> tuple[int, ...]:
    """User and item of a line."""
    numbers = []
    for field, text in enumerate(fields):
        found = _WHOLE.fullmatch(text)
        if not found or not _LEAST <= int(found[1]) <= _MOST:
            raise Odd(field)
        numbers.append(int(found[1]))
    return tuple(numbers)


PAIRS = Kind(
    one="interaction",
    names=("user", "item"),
    types=(np.int64, np.int64),
    expected="both whole numbers of 64 bits",
    header="user,item",
    shortest=4,  # "1,1\n"
    longest=1 << 16,  # further columns may hold texts
    files=("interactions.tsv", "interactions.csv", "interactions.txt"),
    strict=False,
    parse=_parsed,
    convert=_converted,
)


def read_interactions(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    user: str | None = None,
    item: str | None = None,
    label: str | None = None,
    time: str | None = None,
    above: float | None = None,
) -> Pairs:
    r"""Read a file of interactions, one user and item per line; ids are compacted, in rising order.

    Without `user` and `item`, from text: both are integers of 64 bits. Fields are separated by tabs, "::", commas, semicolons,
    "|" or blanks: by the first of these that the first line has. A first line without a number is a header: of two columns it may
    name them in any words, of more it must name user and item (`user_id`, `movieId`, …). Without one the first two columns are
    user and item. Further columns are left out, so a file of ratings is read as one of interactions.

    With `user` and `item`, the names of columns, through Polars (`pip install 'cce-core[data]'`): CSV with any of these
    separators and quotes, JSON lines, Parquet and Arrow, a part at a time; ids are of any kind. If all are whole numbers they are
    numbers, else text (UUIDs in 16 bytes as they are written). Text is UTF-8 or, where it is not, Latin-1. Missing values are
    refused.

    Text may be packed, marked and ended in all the ways that `read_ratings` knows.

    Args:
        path: the file; with named columns also a folder of parts, or a pattern such as `visits/part-*.parquet`.
        name: the data set's name; None takes the file's.
        user, item: the columns of ids.
        label: the column of labels: 0 or 1, true or false; None takes every pair for a positive.
        time: the column of times, numbers or as ISO 8601 writes them.
        above: for a column of ratings: those above it are positives.

    Returns:
        The `Pairs`, in the file's order; a pair that comes twice is there twice.

    Raises:
        ValueError: the file is not such a file, has no such column, or a value is missing: the error names the file, the line and
            what stands there. Whether a last line without an end is torn does not show in its numbers; it is refused where a
            field is missing.
        ImportError: Polars is needed and not installed.
        OSError: the file can't be read.

    Cost:
        As for `read_ratings`: one pass, 16 bytes per pair while reading, and about 40 at the peak, while ids are compacted (60 if
        they are spread widely, or negative). With named columns 32 bytes per pair, and every id once as a Python object.

    Example:
        >>> import tempfile, pathlib
        >>> from cce_core.datasets import read_interactions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "visits.csv")
        ...     n = path.write_text("customer,product\n7,30\n-2,10\n7,20\n")
        ...     pairs = read_interactions(path)
        >>> pairs.users, pairs.items, pairs.user_ids, pairs.item_ids
        (array([1, 0, 1]), array([2, 0, 1]), array([-2,  7]), array([10, 20, 30]))
    """
    path = _check.path("path", path)
    name = path.name if name is None else _check.instance("name", name, str, "a name")
    if user is None and item is None and kind_of(path) == "text":
        if given := [text for text, value in (("label", label), ("time", time), ("above", above)) if value is not None]:
            raise ValueError(f"{given[0]} was given, but not user and item: name their columns too")
        (raw_users, raw_items), _ = read_columns(path, PAIRS)
        users, user_ids = compact(raw_users)
        del raw_users
        items, item_ids = compact(raw_items)
        return Pairs(name, users, items, user_ids, item_ids)
    if user is None or item is None:
        raise ValueError(
            f"name both columns of {path}, such as user='user_id' and item='item_id'; got {user!r} and {item!r}"
        )
    found = read_frame(path, user, item, label, time, None if above is None else _check.number("above", above, -1e300))
    return Pairs(name, found.users, found.items, found.user_ids, found.item_ids, found.labels, found.times)
