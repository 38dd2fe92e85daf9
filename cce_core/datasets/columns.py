"""Reads files of numbers in columns: a block of bytes at a time, digits parsed by a compiled loop, every line checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import COMPILED, jit
from cce_core.datasets.lines import Piece, pieces, refused, shown

SEPARATORS = ("\t", "::", ",", ";", "|")  # in the order in which they are looked for; a file without any has blanks

_BLOCK = 1 << 22
_DIGITS = 18  # any number of 18 digits fits int64
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_ROLES = {  # what headers call them, in small letters alone
    **dict.fromkeys(("user", "users", "userid", "uid"), "user"),
    **dict.fromkeys(("item", "items", "itemid", "iid", "movie", "movies", "movieid", "mid"), "item"),
    **dict.fromkeys(("rating", "ratings", "stars", "score"), "rating"),
    **dict.fromkeys(("time", "timestamp", "times", "timestamps", "unixtime", "ts"), "time"),
}


class Odd(ValueError):
    """A line that is none of its kind; the number of the field that is wrong."""


@dataclass(frozen=True)
class Kind:
    """What the lines of a file hold.

    Attributes:
        one: what a line is, in a word.
        names: the fields that are kept; an array each.
        types: of these arrays.
        expected: what the fields must be, in words.
        header: the usual header, as an example.
        shortest, longest: bytes of a line with its end, at least and at most.
        files: what such a file is called in an archive of several.
        strict: whether a header must name every field and, if there is none, a line has these fields alone; else a header of two
            columns may call them anything, and further columns are left out.
        parse: (form, text, at, stop, row, columns) → (at, row, lines) parses lines in text[at:stop] into the columns from `row`
            on and stops at one that is not plain.
        convert: a line's fields as numbers, or None for a line that is not kept; `Odd` for what is none.
        check_end: refuses a last line without an end that may be torn.
    """

    one: str
    names: tuple[str, ...]
    types: tuple[type, ...]
    expected: str
    header: str
    shortest: int
    longest: int
    files: tuple[str, ...]
    strict: bool
    parse: Callable[[Form, Any, int, int, int, list[Any]], tuple[int, int, int]]
    convert: Callable[[list[bytes]], tuple[int, ...] | None]
    check_end: Callable[[Path, int, Piece, Form, list[Any]], None] | None = None


@jit
def whole(text: Any, at: int) -> Any:
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


class Form:
    """How the lines of a file are written, as far as is known yet.

    Attributes:
        separator: as the caller says, or as the first line shows.
        call_args: where the fields of the kind stand in a line, from 0.
        width: fields of a line.
        mark: the byte that separates them, for the compiled loop; a blank where a file of tabs has blanks in their place.
        n_marks: how many of it there are in a row.
    """

    def __init__(self, kind: Kind, separator: str | None) -> None:
        self.kind, self.names, self.separator = kind, list(kind.names), separator or ""
        self.places, self.width, self.mark, self.n_marks = list(range(len(kind.names))), len(kind.names), 0, 1

    @property
    def plain(self) -> bool:
        """Whether lines hold the kind's fields alone, in their order."""
        return self.places == list(range(self.width))

    @property
    def words(self) -> str:
        """A line in words."""
        return repr((self.separator or "\t").join(self.names))

    def begin(self, line: bytes) -> bool:
        """Learn from the first line of a file; whether it is a header."""
        self.separator = self.separator or next((s for s in SEPARATORS if s.encode() in line), "\t")
        blanks = self.separator == "\t" and b"\t" not in line
        self.mark, self.n_marks = ord(" " if blanks else self.separator[0]), len(self.separator)
        fields = self._split(line, 0)
        names = [name.decode("utf-8", "replace") for name in fields]
        roles = [_ROLES.get(re.sub(r"[\W_]", "", name.split(":")[0].lower())) for name in names]
        wanted = self.kind.names
        if not self.kind.strict:
            if any(map(_NUMBER.fullmatch, fields)) or len(fields) < 2:
                self.width = max(len(fields), len(wanted))
                self.names += ["..."] * (self.width - len(wanted))
                return False
            # `customer,product`, or `movie,customer`
            if len(fields) == 2 and sorted(filter(None, roles)) != sorted(wanted):
                roles = list(reversed(wanted)) if roles[0] == wanted[1] or roles[1] == wanted[0] else list(wanted)
        elif not any(roles):
            return False
        for role in wanted:
            if roles.count(role) != 1:
                raise ValueError(
                    f"the header names {'no' if role not in roles else 'more than one'} {role}; expected "
                    f"{self.kind.header!r} or the like, in any order"
                )
        self.names, self.width = names, len(names)
        self.places = [roles.index(role) for role in wanted]
        return True

    def line(self, line: bytes) -> list[bytes]:
        """The kind's fields of a line, however it is written; `Odd` where it has other ones."""
        fields, n = self._split(line, self.width), len(self.kind.names)
        if len(fields) != self.width:
            wrong = [k for k, field in enumerate(fields[:n]) if not _NUMBER.fullmatch(field)]
            raise Odd(wrong[0] if wrong else min(len(fields), n) - 1)
        return [fields[place] for place in self.places]

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
            fields = [field.strip() for field in line.strip(b" ").split(self.separator.encode())]
            if b'"' in line:
                fields = [
                    field[1:-1] if len(field) > 1 and field[:1] == field[-1:] == b'"' else field for field in fields
                ]
            if self.separator == "\t" and (len(fields) == 1 or len(fields) != width):
                fields = line.split() if len(fields) == 1 or len(line.split()) == width else fields
        while len(fields) > max(width, 1) and not fields[-1]:
            fields.pop()
        return fields


def read_columns(path: Path, kind: Kind, separator: str | None = None) -> tuple[list[Any], int]:
    """The columns of a file, and how many lines of its kind there were, those that are not kept included.

    Args:
        path: the file.
        kind: what its lines hold.
        separator: of fields; None takes the first of `SEPARATORS` in the first line, and blanks where there is none.
    """
    form, begun = Form(kind, separator), False
    columns: list[Any] = [np.empty(0, t) for t in kind.types]
    row, total, line = 0, 0, 0
    for piece in pieces(path, _BLOCK, kind.longest, kind.files):
        text, share = piece.text, piece.share
        if piece.fault == "long":
            raise refused(path, line + 1, form.words, piece)
        need = row + len(text) // kind.shortest + 1
        if columns[0].size < need:
            # Room for the whole file, guessed from what was read. The system's realloc moves no large array.
            for column in columns:
                column.resize(need + int(1.02 * row * (1 - share) / share), refcheck=False)
        # Signed bytes keep compiled arithmetic in int64; uncompiled, Python's own bytes are quickest.
        view: Any = np.frombuffer(text, np.int8) if COMPILED else text
        at, before = 0, row
        while at < len(text):
            if begun:
                at, row, lines = kind.parse(form, view, at, len(text), row, columns)
                line, total = line + lines, total + lines
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
                values = kind.convert(form.line(odd))
            except Odd as error:
                if piece.fault:
                    raise refused(path, line, form.words, piece) from None
                raise ValueError(
                    f"{path}, line {line}: the {kind.names[error.args[0]]} is wrong; expected {form.words}, "
                    f"{kind.expected}, got {shown(odd)}"
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}, got {shown(odd)}") from None
            total += 1
            if values is not None:
                for column, value in zip(columns, values):
                    column[row] = value
                row += 1
        if piece.fault and row > before and kind.check_end is not None:
            kind.check_end(path, line, piece, form, [column[:row] for column in columns])
    if not total:
        raise ValueError(f"{path} holds no {kind.one}; expected lines of {form.words}")
    for column in columns:
        column.resize(row, refcheck=False)
    return columns, total


def compact(raw: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids numbered from 0 in rising order of the raw ones, and the raw id of each number."""
    least, most = (int(raw.min()), int(raw.max())) if raw.size else (0, 0)
    if least < 0 or most > raw.size + (1 << 20):  # a table over all raw ids would outweigh the rows themselves
        known, ids = np.unique(raw, return_inverse=True)
        return ids.reshape(-1).astype(np.int64, copy=False), known
    present = np.zeros(most + 1, bool)
    present[raw] = True
    known = np.flatnonzero(present).astype(np.int64, copy=False)
    number = np.zeros(most + 1, np.int64)
    number[known] = np.arange(known.size)
    return number[raw], known
