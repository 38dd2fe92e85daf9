"""Vectors with words: word2vec's text and binary formats, and GloVe's text, plain or packed.

    text     word, then dim numbers, with blanks between; word2vec's begins with a line `count dim`, GloVe's does not
    binary   a line `count dim`; then for each word: its bytes, a blank, dim float32 of the least byte first, and maybe a line end

Words may have blanks in them (GloVe's 840B has ". . ."): the numbers are the last dim fields of a line.
"""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._progress import progress
from cce_core.datasets.lines import Piece, opening, pieces, refused, shown

_BLOCK, _LONGEST, _MOST_WORD = 1 << 22, 1 << 24, 1 << 12
_SNIFFED = 1000  # lines that say how many numbers a line has
_HEADER = re.compile(rb"[ \t]*(\d{1,15})[ \t]+(\d{1,9})[ \t]*")
MOST_DIM = 1 << 20


class Part(NamedTuple):
    """Some rows of a file.

    Attributes:
        words: one a row, as they stand there.
        values: float32 (rows, dim), finite.
        first: of the first row: the line where it stands, or its number.
    """

    words: list[str]
    values: NDArray[np.float32]
    first: int


def is_binary(path: Path) -> bool:
    """Whether a file of words is word2vec's binary one: behind a header stand bytes that are no line of numbers."""
    with opening(path) as (read, _):
        head = _at_least(read, b"", 1 << 16)
        line, end, rest = head.partition(b"\n")
        found = _HEADER.fullmatch(line.rstrip(b"\r"))
        if not found or not end:
            return False
        dim = int(found[2])
        while b"\n" not in rest.lstrip(b"\n") and len(rest) < min(_LONGEST, 32 * dim + _MOST_WORD):
            if not (more := read(1 << 16)):
                break
            rest += more
    fields = rest.lstrip(b"\r\n").partition(b"\n")[0].split()
    if len(fields) < 2:
        return b"\0" in rest
    try:
        float(fields[-1])
    except ValueError:
        return True
    return not all(32 <= byte < 127 for field in fields[1:] for byte in field[:64])


def text_parts(path: Path, encoding: str, show: bool | None) -> Iterator[Part]:
    """The rows of a text file, some megabytes at a time.

    Raises:
        ValueError: a line has another number of numbers, or one that is none or not finite; a header lies; bytes are not of the
            encoding.
    """
    line, count, dim, seen = 1, -1, 0, 0
    for piece in pieces(path, _BLOCK, _LONGEST, show=show):
        text = piece.text
        if dim == 0:
            head, _, rest = text.partition(b"\n")
            if (found := _HEADER.fullmatch(head.rstrip(b"\r"))) and not _is_row(rest):
                count, dim = _header(path, int(found[1]), int(found[2]))
                text, line = rest, 2
            else:
                dim = _dim_of(path, text)
        if piece.fault == "long":
            raise refused(path, line, f"a word and {dim} numbers", piece)
        if not text:
            continue
        part = _rows(path, text, dim, line, encoding, piece, count >= 0)
        line, seen = line + len(part.words), seen + len(part.words)
        if 0 <= count < seen:
            raise ValueError(
                f"{path}, line 1: the header says {count:,} vectors, but line {count + 2:,} holds one more: correct the header"
            )
        yield part
    if 0 <= seen < count:
        raise ValueError(
            f"{path}, line 1: the header says {count:,} vectors, but there are {seen:,}: the file is torn, or correct the header"
        )


def _is_row(rest: bytes) -> bool:
    """Whether two numbers in the first line are a word and its only number, as those of the second line are."""
    fields = rest.partition(b"\n")[0].split()
    return len(fields) == 2 and _HEADER.fullmatch(rest.partition(b"\n")[0].rstrip(b"\r")) is not None


def _header(path: Path, count: int, dim: int) -> tuple[int, int]:
    if not count or not 1 <= dim <= MOST_DIM:
        raise ValueError(
            f"{path}, line 1: the header says {count:,} vectors of {dim:,} numbers; expected at least 1 of 1 to {MOST_DIM:,}"
        )
    return count, dim


def _dim_of(path: Path, text: bytes) -> int:
    """Numbers of a line: those of most of the first lines."""
    lines = text.split(b"\n", _SNIFFED)[:_SNIFFED]
    counts = collections.Counter(len(line.split()) for line in lines if line.strip())
    dim = max(counts, key=lambda fields: (counts[fields], -fields)) - 1 if counts else 0
    if dim < 1:
        raise ValueError(
            f"{path}, line 1: expected a word and its numbers with blanks between, or a header of two whole numbers, got "
            f"{shown(text)}"
        )
    return dim


def _rows(path: Path, text: bytes, dim: int, first: int, encoding: str, piece: Piece, header: bool) -> Part:
    """The words and numbers of whole lines."""
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    words, numbers = [], []
    for n, line in enumerate(lines):
        word, _, rest = line.rstrip().partition(b" ")
        if rest.count(b" ") != dim - 1 or b"\t" in line or not word or rest[:1] == b" ":
            word, rest = _fields(path, line, dim, first + n, piece, header)
        words.append(word)
        numbers.append(rest)
    values = _parsed(b" ".join(numbers))
    if values is None or len(values) != len(lines) * dim:
        values = np.concatenate([_numbers(path, rest, dim, first + n) for n, rest in enumerate(numbers)])
    table = values.reshape(-1, dim)
    if not np.isfinite(table).all():
        n = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        which = int(np.flatnonzero(~np.isfinite(table[n]))[0])
        raise ValueError(
            f"{path}, line {first + n:,}: number {which + 1} of {shown(words[n])} is {numbers[n].split()[which].decode()}, which "
            "float32 holds as no finite number: mend the vector, or delete the line"
        )
    return Part([_word(path, f"line {first + n:,}", word, encoding) for n, word in enumerate(words)], table, first)


def _fields(path: Path, line: bytes, dim: int, number: int, piece: Piece, header: bool) -> tuple[bytes, bytes]:
    """The word and the numbers of a line with other blanks than one between, or with some in the word."""
    fields = line.split()
    word, rest = fields[:-dim], fields[-dim:]
    if len(word) > 1 and _parsed(word[-1]) is not None:
        extra = f"{len(fields) - 1} numbers"
    elif word:
        return b" ".join(word), b" ".join(rest)
    else:
        extra = f"{max(0, len(fields) - 1)} numbers" if fields else "nothing"
    whence = "as the header says" if header else "as most lines before it have"
    torn = "; the file ends here without a line end, so it may be torn" if piece.fault == "torn" and fields else ""
    raise ValueError(
        f"{path}, line {number:,}: expected a word and {dim} numbers, {whence}, got {extra}: {shown(line)}; mend or delete the "
        f"line{torn}"
    )


def _numbers(path: Path, text: bytes, dim: int, number: int) -> NDArray[np.float32]:
    """The numbers of one line."""
    values = _parsed(text)
    if values is None or len(values) != dim:
        wrong = next((f for f in text.split() if (one := _parsed(f)) is None or len(one) != 1), text)
        raise ValueError(f"{path}, line {number:,}: expected {dim} numbers after the word, but {shown(wrong)} is none")
    return values


def _parsed(text: bytes) -> NDArray[np.float32] | None:
    """Numbers with a blank between; None where something is none."""
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        try:
            return np.fromstring(text, np.float32, sep=" ")
        except (ValueError, DeprecationWarning):
            return None


def _word(path: Path, where: str, word: bytes, encoding: str) -> str:
    try:
        return word.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, {where}: byte {error.start + 1} of the word {shown(word)} is no {encoding}: give the file's "
            "encoding, such as latin-1, or mend the word"
        ) from None


def _at_least(read: Callable[[int], bytes], held: bytes, n: int) -> bytes:
    """`held` and what follows, n bytes if there are as many."""
    parts, size = [held], len(held)
    while size < n and (more := read(n - size)):
        parts.append(more)
        size += len(more)
    return b"".join(parts)


def binary_parts(path: Path, encoding: str, show: bool | None) -> Iterator[Part]:
    """The rows of word2vec's binary file, some megabytes at a time.

    Raises:
        ValueError: the file ends before the header's count does, or goes on after it; a number is not finite, a word too long or
            not of the encoding.
    """
    with opening(path) as (read, at), progress(path.stat().st_size, f"reading {path.name}", unit="B", show=show) as bar:
        data = _at_least(read, b"", 1 << 16)
        line, end, data = data.partition(b"\n")
        found = _HEADER.fullmatch(line.rstrip(b"\r"))
        if not found or not end:
            raise ValueError(
                f"{path}, line 1: expected a header of two whole numbers, count and dim, got {shown(line)}"
            )
        count, dim = _header(path, int(found[1]), int(found[2]))
        done, place = 0, 0
        while done < count:
            data = _at_least(read, data, max(_BLOCK, 4 * dim + _MOST_WORD))
            bar.update(at() - place)
            place = at()
            words, values, used = _records(path, data, dim, done, count)
            data = data[used:]
            table = np.frombuffer(b"".join(values), "<f4").reshape(-1, dim).astype(np.float32, copy=False)
            if not np.isfinite(table).all():
                n = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
                raise ValueError(
                    f"{path}, vector {done + n + 1:,}: {shown(words[n])} holds NaN or infinity: mend or delete it, or, where "
                    f"the header's dim of {dim} is wrong, correct that"
                )
            named = [_word(path, f"vector {done + n + 1:,}", word, encoding) for n, word in enumerate(words)]
            yield Part(named, table, done + 1)
            done += len(words)
        if _at_least(read, data, 1 << 10).strip():
            raise ValueError(
                f"{path} goes on after the {count:,} vectors of {dim} numbers that its header says: correct count or dim"
            )


def _records(path: Path, data: bytes, dim: int, done: int, count: int) -> tuple[list[bytes], list[bytes], int]:
    """Words and numbers of the whole records in `data`, at least one, and how many bytes they take."""
    words: list[bytes] = []
    values: list[bytes] = []
    at = 0
    while done + len(words) < count:
        space = data.find(b" ", at, at + _MOST_WORD)
        stop = space + 1 + 4 * dim
        if space < 0 or stop > len(data):
            if words:
                break
            where = f"{path}, vector {done + 1:,} of {count:,}"
            if space < 0 and len(data) - at >= _MOST_WORD:
                raise ValueError(
                    f"{where}: no blank ends a word within {_MOST_WORD:,} bytes: the header's dim of {dim} is wrong, or it is no "
                    "word2vec file"
                )
            raise ValueError(
                f"{where}: the file ends within it, so it is torn: fetch it again, or correct the header's count or dim"
            )
        words.append(data[at:space].lstrip(b"\r\n"))
        values.append(data[space + 1 : stop])
        at = stop
    return words, values, at
