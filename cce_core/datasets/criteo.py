"""Reads Criteo's display advertising data (`train.txt` of the Kaggle contest) as a stream: a click, 13 counts, 26 categories.

A line is `label, I1 … I13, C1 … C26`, tab separated; counts may be empty or negative, categories are up to 8 hexadecimal
digits or empty. Nothing but one block of the text and one batch of rows is ever in memory. The data are Criteo's, for research;
no part of them is in this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import COMPILED, jit
from cce_core.datasets.columns import whole
from cce_core.datasets.interactions import picked
from cce_core.datasets.lines import pieces, refused, shown
from cce_core.hashing.mix import derive_keys, keyed, multiply_high, premix

COUNTS, CATEGORIES = 13, 26
_FIELDS = 1 + COUNTS + CATEGORIES
NAMES = ("train.txt", "train.tsv")  # of the file in an archive
_BLOCK = 1 << 22
_LONGEST = 1000  # bytes of a line: 13 numbers of 20 signs and 26 of 8 need 535 with their tabs
_HEX = 8
_MOST_ROWS = 1 << 40
MISSING = -(2**63)  # no count of at most 18 digits is that
_one = np.uint64(1)

# How many categories each column of the contest's training file has, as published with DLRM (arXiv 1906.00091).
CARDINALITIES = (
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194,
    27, 14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Clicks:
    """Rows of an advertisement's click log, a column an array.

    Attributes:
        labels: float32 (n,), 1 where it was clicked on.
        dense: float32 (n, 13), `log(1 + max(count, 0))`, 0 where the count is missing.
        categories: int64 (n, 26), ids from 0.

    Raises:
        ValueError: the shapes do not fit each other.
    """

    labels: NDArray[np.float32]
    dense: NDArray[np.float32]
    categories: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("labels", "dense", "categories"):
            _check.instance(name, getattr(self, name), np.ndarray, "an array")
        n = self.labels.shape[:1]
        shapes = self.labels.shape, self.dense.shape, self.categories.shape
        if shapes != (n, (*n, COUNTS), (*n, CATEGORIES)):
            raise ValueError(f"labels, dense and categories must be (n,), (n, 13) and (n, 26), got shapes {shapes}")

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, rows: Any) -> Clicks:
        """The rows that a slice, a boolean mask or an array of row numbers picks; a slice copies nothing."""
        rows = picked(rows)
        return Clicks(self.labels[rows], self.dense[rows], self.categories[rows])


def logged(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """`log(1 + max(count, 0))`, which makes 0 of what is missing."""
    return np.log1p(np.maximum(counts, 0)).astype(np.float32)


def table_sizes(sizes: Any) -> tuple[int, ...]:
    """26 vocabularies from one number or 26 of them, each at least 2."""
    if (
        isinstance(sizes, (Sequence, np.ndarray))
        and not isinstance(sizes, (str, bytes))
        and not (isinstance(sizes, np.ndarray) and sizes.ndim == 0)
    ):
        if len(sizes) != CATEGORIES:
            raise ValueError(f"vocab must be one number or 26 of them, one a column, got {len(sizes)}")
        return tuple(_check.integer(f"vocab of C{k + 1}", size, 2, 2**40) for k, size in enumerate(sizes))
    return (_check.integer("vocab", sizes, 2, 2**40),) * CATEGORIES


def criteo_sizes(most: int) -> tuple[int, ...]:
    """Vocabularies that suit Criteo's columns: two ids a published category, at least 4,096, so that few collide, at most `most`.

    Example:
        >>> from cce_core.datasets import criteo_sizes
        >>> criteo_sizes(1_000_000)[:5]
        (4096, 4096, 1000000, 1000000, 4096)
    """
    most = _check.integer("most", most, 2, 2**40)
    return tuple(min(most, max(2 * n, 4096)) for n in CARDINALITIES)


@jit
def _hexadecimal(text: Any, at: int) -> Any:
    """The number of up to 8 hexadecimal digits at `at` and the place after it; -1 where there is none, or one too long."""
    value, first = 0, at
    while True:
        c = text[at]
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c <= 102:
            digit = c - 87
        elif 65 <= c <= 70:
            digit = c - 55
        else:
            break
        if at - first == _HEX:
            return -1, at
        value = value * 16 + digit
        at += 1
    return (value if at > first else -1), at


@jit
def _bucket(value: np.uint64, key: np.uint64, size: np.uint64) -> np.int64:
    """The id of a category: 1 to size − 1, for 0 stands for a missing one."""
    return np.int64(multiply_high(keyed(premix(value), key), size - _one) + _one)


@jit
def _parse(
    text: Any, at: int, stop: int, row: int, end: int, keys: Any, sizes: Any, labels: Any, counts: Any, ids: Any
) -> Any:
    """Parse whole lines of text[at:stop] into rows [row, end).

    Returns:
        (the place after the last line, the next row, -1), or with the number of the field that is wrong in the line after those.
    """
    while at < stop and row < end:
        begin = at
        if not 48 <= text[at] <= 49:
            return begin, row, 0
        labels[row] = text[at] - 48
        at += 1
        for k in range(COUNTS):
            if text[at] != 9:
                return begin, row, k
            at += 1
            sign = 1
            if text[at] == 45:  # "-"
                sign = -1
                at += 1
            value, at = whole(text, at)
            if value < 0 and (sign < 0 or 48 <= text[at] <= 57):
                return begin, row, k + 1
            counts[row, k] = MISSING if value < 0 else sign * value
        for k in range(CATEGORIES):
            if text[at] != 9:
                return begin, row, COUNTS + k
            at += 1
            first = at
            value, at = _hexadecimal(text, at)
            if value < 0 and at > first:
                return begin, row, COUNTS + 1 + k
            ids[row, k] = 0 if value < 0 else _bucket(np.uint64(value), keys[k], sizes[k])
        if text[at] == 13:  # a carriage return before the line end
            at += 1
        if text[at] != 10:
            return begin, row, COUNTS + CATEGORIES
        at += 1
        row += 1
    return at, row, -1


def _column(field: int) -> str:
    """A field's name and what belongs there."""
    if field == 0:
        return "column 1 (the label) is wrong; expected 0 or 1"
    if field <= COUNTS:
        return f"column {field + 1} (I{field}) is wrong; expected a whole number of at most 18 digits, or nothing"
    return f"column {field + 1} (C{field - COUNTS}) is wrong; expected at most 8 hexadecimal digits, or nothing"


class CriteoFile:
    r"""A file in the format of Criteo's `train.txt`, read as a stream of batches.

        id = 0 where a category is missing, else 1 + floor(hash(category; seed, column) · (vocab − 1) / 2^64)

    Args:
        path: the file, plain or packed (gzip, bzip2, xz, or a zip archive with one file in it or one called `train.txt`).
        vocab: ids of a column are below it; one number for all columns, or 26. `criteo_sizes` suggests some.
        seed: of the hashes.

    Raises:
        ValueError, TypeError: `vocab` is out of range, or not one number or 26.
        OSError: the file can't be read.

    Cost:
        One pass over the text a pass over the rows, some 100 MB a second; memory is one block of 4 MiB and one batch.

    Example:
        >>> import tempfile, pathlib
        >>> from cce_core.datasets import CriteoFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.txt")
        ...     n = path.write_text("1\t3\t-1" + "\t" * 12 + "68fd1e64" + "\t" * 25 + "\n")
        ...     (rows,) = CriteoFile(path, vocab=1000).batches(256)
        >>> rows.labels, rows.dense[0, :3], int((rows.categories > 0).sum())
        (array([1.], dtype=float32), array([1.3862944, 0.       , 0.       ], dtype=float32), 1)
    """

    def __init__(self, path: str | os.PathLike[str], vocab: int | Sequence[int] = 100_000, *, seed: int = 0) -> None:
        self.path, self.seed = _check.path("path", path), _check.seed(seed)
        self.sizes = table_sizes(vocab)
        with self.path.open("rb"):
            pass

    def count(self) -> int:
        """How many rows there are: one quick pass over the file.

        Raises:
            ValueError: the file is empty, or torn.
        """
        n = sum(lines for _, _, lines in self._pieces(show=None))
        if not n:
            raise ValueError(f"{self.path} holds no row; expected lines of a label, 13 counts and 26 categories")
        return n

    def batches(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Clicks]:
        """Rows [start, stop) of the file, by default all, `size` at a time, the last batch shorter; a file may end before `stop`.

        Args:
            size: rows a batch, at least 1.
            start, stop: rows are numbered from 0.

        Raises:
            ValueError: a line is not such a line; the error names the file, the line, the column and what stands there. Or the
                file is torn: a last line without an end is taken for whole where its last category has 8 digits. Or `start` is
                outside [0, stop].
        """
        size = _check.integer("size", size, 1)
        stop = _MOST_ROWS if stop is None else _check.integer("stop", stop, 0)
        return self._batches(size, _check.integer("start", start, 0, stop), stop)

    def _batches(self, size: int, start: int, stop: int) -> Iterator[Clicks]:
        keys = derive_keys(self.seed, CATEGORIES)
        sizes = np.array(self.sizes, np.uint64)
        row, columns = 0, _columns(min(size, stop - start))
        for text, line, lines in self._pieces():
            if line + lines <= start:
                continue
            at = 0
            if line < start:
                at = int(np.flatnonzero(np.frombuffer(text, np.uint8) == 10)[start - line - 1]) + 1
                line = start
            # Signed bytes keep compiled arithmetic in int64; uncompiled, Python's own bytes are quickest.
            view: Any = np.frombuffer(text, np.int8) if COMPILED else text
            while at < len(text) and line < stop:
                end = min(size, row + stop - line)
                at, done, wrong = _parse(view, at, len(text), row, end, keys, sizes, *columns)
                line, row = line + done - row, done
                if wrong >= 0:
                    raise ValueError(f"{self.path}, line {line + 1}, {_column(wrong)}, got {_field(text[at:], wrong)}")
                if row == size:
                    yield _clicks(columns, row)
                    row, columns = 0, _columns(min(size, stop - line))
            if line >= stop:
                break
        if row:
            yield _clicks(columns, row)

    def _pieces(self, *, show: bool | None = False) -> Iterator[tuple[bytes, int, int]]:
        """The text in pieces of whole lines, each with the number of lines before it and in it."""
        line = 0
        for piece in pieces(self.path, _BLOCK, _LONGEST, NAMES, show):
            text, lines = piece.text, piece.text.count(b"\n")
            # What is torn off the last category leaves it shorter than all are in Criteo's files.
            last = text.rstrip(b"\r\n").rsplit(b"\t", 1)[-1] if piece.fault == "torn" else b""
            if piece.fault and (len(last) != _HEX or text.count(b"\t") != _FIELDS - 1):
                raise refused(self.path, line + 1, f"{_FIELDS} columns", piece)
            yield text, line, lines
            line += lines


def _columns(n: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Room for n rows: labels, counts, ids."""
    return np.empty(n, np.float32), np.empty((n, COUNTS), np.int64), np.empty((n, CATEGORIES), np.int64)


def _clicks(columns: Any, n: int) -> Clicks:
    labels, counts, ids = columns
    return Clicks(labels[:n], logged(counts[:n]), ids[:n])


def _field(text: bytes, wrong: int) -> str:
    """The field that is wrong, or what is left of a line that has not as many, or more of them."""
    fields = text.split(b"\n", 1)[0].rstrip(b"\r").split(b"\t")
    if len(fields) != _FIELDS:
        return f"{shown(fields[min(wrong, len(fields) - 1)])} in a line of {len(fields)} columns instead of {_FIELDS}"
    return shown(fields[wrong])
