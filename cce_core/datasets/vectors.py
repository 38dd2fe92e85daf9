"""`read_vectors`: vectors that were trained elsewhere, with the names of their rows, in memory that the file does not decide."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.datasets import word_vectors
from cce_core.datasets.frames import first_line, polars
from cce_core.datasets.word_vectors import MOST_DIM, Part

KINDS = ("auto", "npy", "npz", "safetensors", "parquet", "text", "binary")
ERROR, FIRST = "error", "first"
_BYTES = 1 << 24  # of rows that are converted at a time
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8,
}  # fmt: skip


class Vectors(NamedTuple):
    """Rows, and what they are called.

    Attributes:
        words: the name of each row, all different; None where the file has none.
        values: float32 (rows, dim), finite; mapped from the file or from an unnamed temporary one, so that it need not fit in
            memory.
    """

    words: list[str] | None
    values: NDArray[np.float32]


class _Tensor(NamedTuple):
    """An array of a file that may be meant."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]
    halved: bool = False  # the upper halves of float32: bfloat16


def read_vectors(
    path: str | os.PathLike[str],
    *,
    kind: str = "auto",
    name: str | None = None,
    words: str | os.PathLike[str] | None = None,
    encoding: str = "utf-8",
    duplicates: str = ERROR,
    show: bool | None = None,
) -> Vectors:
    """Read vectors and the names of their rows.

    Args:
        path: `.npy`; `.npz` (a matrix, and maybe one array of strings, the names); safetensors; Parquet (a column of lists or one
            column a number, and maybe a column of names); word2vec's text or binary format; GloVe's text. The latter three also
            packed by gzip, bzip2, xz or zip.
        kind: one of `KINDS`, where the file doesn't say it itself.
        name: the array, tensor or column that is meant, where there are several.
        words: a file with the name of each row, one a line, where the vectors' own has none.
        encoding: of the words in text and binary files.
        duplicates: what a word that comes twice is: an "error", or the "first" of its vectors is taken.
        show: a progress bar; None shows one on a terminal.

    Returns:
        `Vectors`. Arrays of float32 are mapped; others are converted some rows at a time into a temporary file.

    Raises:
        ValueError: the file is empty, torn or of no such kind, a header lies, a row is of another length, or a number is NaN or
            infinite; the message says which, where, and how to mend it.
        OSError: it can't be read.
        ImportError: Parquet needs Polars.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "tiny.txt")
        ...     with open(path, "w") as file:
        ...         _ = file.write("the 0.5 1\\nof -0.25 0\\n")
        ...     words, values = read_vectors(path)
        >>> words, values.tolist()
        (['the', 'of'], [[0.5, 1.0], [-0.25, 0.0]])
    """
    path = _check.path("path", path)
    kind = _check.choice("kind", kind, KINDS)
    _check.choice("duplicates", duplicates, (ERROR, FIRST))
    try:
        "".encode(encoding)
    except (LookupError, TypeError, ValueError):
        raise ValueError(
            f"encoding must be one that Python knows, such as utf-8 or latin-1, got {encoding!r}"
        ) from None
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file of vectors")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected vectors")
    kind = kind_of(path) if kind == "auto" else kind
    if kind in ("text", "binary"):
        if name is not None:
            raise ValueError(f"{path} is a file of words and has no named arrays: leave name={name!r} out")
        parts = word_vectors.binary_parts if kind == "binary" else word_vectors.text_parts
        unit = "vector" if kind == "binary" else "line"
        found = _gathered(path, parts(path, encoding, show), unit, duplicates)
    elif kind == "parquet":
        found = _gathered(path, _of_parquet(path, name), "row", duplicates)
    else:
        found = _of_arrays(path, kind, name, duplicates)
    if words is not None:
        if found.words is not None:
            raise ValueError(f"{path} has names of its own: leave {os.fspath(words)} out")
        found = _named(path, found.values, _lines(_check.path("words", words), encoding), duplicates, str(words))
    return found


def kind_of(path: Path) -> str:
    """What a file is, by its first bytes and then by its name."""
    with path.open("rb") as file:
        head = file.read(8)
    suffix = path.suffix.lower()
    if head[:6] == b"\x93NUMPY" or suffix == ".npy":
        return "npy"
    if head[:4] == b"PAR1" or suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix in (".safetensors", ".npz"):
        return suffix[1:]
    if head[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.endswith(".npy") for member in archive.namelist()):
                return "npz"
    return "binary" if word_vectors.is_binary(path) else "text"


class _Rows:
    """Rows of float32 that are written to an unnamed file as they come."""

    def __init__(self) -> None:
        self._file, self.n, self.dim = tempfile.TemporaryFile(prefix="cce-vectors-"), 0, 0  # noqa: SIM115

    def add(self, values: NDArray[np.float32]) -> None:
        """Some more."""
        self._file.write(np.ascontiguousarray(values).data)
        self.n, self.dim = self.n + len(values), values.shape[1]

    def mapped(self) -> NDArray[np.float32]:
        """All of them, read-only."""
        with self._file:
            self._file.flush()
            return np.memmap(self._file, np.float32, "r", shape=(self.n, self.dim))


def _gathered(path: Path, parts: Iterator[Part], unit: str, duplicates: str) -> Vectors:
    """All rows of a file, words that come twice aside."""
    rows, seen, words = _Rows(), {}, []  # type: ignore[var-annotated]
    for part in parts:
        if part.words and len(part.words) != len(part.values):
            raise AssertionError
        kept = []
        for n, word in enumerate(part.words):
            if (before := seen.setdefault(word, part.first + n)) == part.first + n:
                kept.append(n)
            elif duplicates == ERROR:
                raise ValueError(
                    f"{path}, {unit} {part.first + n:,}: the word {word[:60]!r} came in {unit} {before:,} before: delete one, or "
                    "take the first of such (duplicates='first', --duplicates first)"
                )
        words += [part.words[n] for n in kept]
        rows.add(part.values[kept] if len(kept) < len(part.words) else part.values)
    if not rows.n:
        raise ValueError(f"{path} holds no vector; expected a word and its numbers a line")
    return Vectors(words or None, rows.mapped())


def _named(path: Path, values: NDArray[np.float32], words: list[str], duplicates: str, whence: str) -> Vectors:
    """Rows with names from elsewhere."""
    if len(words) != len(values):
        raise ValueError(f"{whence} has {len(words):,} names, but {path} has {len(values):,} rows: give one a row")
    if len(set(words)) == len(words):
        return Vectors(words, values)
    step = max(1, _BYTES // (4 * values.shape[1]))
    parts = (Part(words[low : low + step], values[low : low + step], low + 1) for low in range(0, len(words), step))
    return _gathered(path, parts, "row", duplicates)


def _lines(path: Path, encoding: str) -> list[str]:
    """The lines of a file of names."""
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            return [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no {encoding} ({error.reason}): give its encoding, such as latin-1") from None


def _of_arrays(path: Path, kind: str, name: str | None, duplicates: str) -> Vectors:
    """The matrix of a file of arrays, and names where it has them."""
    try:
        tensors, words = {"npy": _npy, "npz": _npz, "safetensors": _safetensors}[kind](path)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read as {kind}: {' '.join(str(error).split())[:200]}") from None
    found = [tensor for tensor in tensors if tensor.name == name or (name is None and len(tensor.shape) == 2)]
    if len(found) != 1:
        there = ", ".join(f"{t.name!r} {t.shape}" for t in tensors[:12]) or "none"
        said = f"no array {name!r}" if name is not None else f"{len(found)} matrices"
        raise ValueError(f"{path} has {said}; expected one (rows, dim) of real numbers: name it; its arrays: {there}")
    (tensor,) = found
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.shape[1] > MOST_DIM:
        raise ValueError(f"{path}: {tensor.name!r} has shape {tensor.shape}; expected (rows, dim), at least (1, 1)")
    try:
        array = tensor.load()
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {tensor.name!r} can't be read, it is torn or damaged: {error}") from None
    values = _as_float32(path, array, tensor.halved)
    return Vectors(None, values) if words is None else _named(path, values, words, duplicates, f"an array of {path}")


def _npy(path: Path) -> tuple[list[_Tensor], None]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return [_Tensor(path.name, array.shape, lambda: array)], None


def _npz(path: Path) -> tuple[list[_Tensor], list[str] | None]:
    """Arrays are held whole here, since what is packed can't be mapped."""
    tensors: list[_Tensor] = []
    texts: list[NDArray[Any]] = []
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            array = archive[name]
            if array.dtype.kind in "SU" and array.ndim == 1:
                texts.append(array)
            else:
                tensors.append(_Tensor(name, array.shape, lambda array=array: array))  # type: ignore[misc]
    if len(texts) != 1:
        return tensors, None
    (names,) = texts
    return tensors, [one.decode() if isinstance(one, bytes) else str(one) for one in names.tolist()]


def _safetensors(path: Path) -> tuple[list[_Tensor], None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:  # which checks the header against the file
            _ = file.keys()
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(size))
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, at = entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]

        def load(kind: str = kind, shape: tuple[int, ...] = shape, at: int = at) -> NDArray[Any]:
            if kind not in _DTYPES:
                raise ValueError(f"numbers of type {kind}; expected one of {', '.join(_DTYPES)}")
            return np.memmap(path, np.dtype(_DTYPES[kind]).newbyteorder("<"), "r", at, shape)

        tensors.append(_Tensor(name, shape, load, kind == "BF16"))
    return tensors, None


def _as_float32(path: Path, array: NDArray[Any], halved: bool = False) -> NDArray[np.float32]:
    """A matrix as float32, some rows at a time; itself where it is one."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected real numbers, got {array.dtype}")
    whole = array.dtype == np.float32 and array.dtype.isnative and array.flags.c_contiguous
    rows, step = None if whole else _Rows(), max(1, _BYTES // (8 * array.shape[1]))
    for low in range(0, len(array), step):
        part = array[low : low + step]
        if halved:
            part = (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False)
        _check_finite(path, part, low + 1)
        if rows is not None:
            rows.add(part)
    return array if rows is None else rows.mapped()


def _check_finite(path: Path, values: NDArray[np.float32], first: int) -> None:
    if _check.first_not_finite(np.ascontiguousarray(values).reshape(-1)) >= 0:
        n, j = (int(at[0]) for at in np.nonzero(~np.isfinite(values)))
        raise ValueError(
            f"{path}, row {first + n:,}: number {j + 1} is {values[n, j]}, which is no finite float32: mend the vector, or "
            "leave the row out"
        )


def _of_parquet(path: Path, name: str | None) -> Iterator[Part]:
    """The rows of a Parquet file: vectors from a column of lists, or from all columns of floats."""
    pl = polars()
    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = dict(lazy.collect_schema())
        lists = [c for c, kind in schema.items() if kind in (pl.List, pl.Array) and kind.inner.is_numeric()]
        if name is not None and name not in lists:
            raise ValueError(f"{path} has no column of lists {name!r}; it has {', '.join(map(repr, schema)) or 'none'}")
        chosen = [name] if name is not None else lists
        floats = [c for c, kind in schema.items() if kind.is_float()] if not chosen else []
        if len(chosen) > 1 or not (chosen or floats):
            raise ValueError(
                f"{path} has {len(chosen)} columns of lists and {len(floats)} of floats; expected one of lists (name=, --name), "
                f"or one column a number; it has {', '.join(map(repr, list(schema)[:12]))}"
            )
        texts = [c for c, kind in schema.items() if kind == pl.String]
        texts = texts or [c for c, kind in schema.items() if kind.is_integer() and chosen]
        names = texts if len(texts) == 1 else []
        total, at, dim = lazy.select(pl.len()).collect().item(), 0, 0
        while at < total:
            step = max(1, _BYTES // (4 * dim)) if dim else 1
            frame = lazy.select([*(chosen or floats), *names]).slice(at, step).collect()
            if chosen:
                values, dim = _of_lists(path, frame[chosen[0]], at + 1, dim)
            else:
                values, dim = frame.select(pl.col(floats).cast(pl.Float32).fill_null(np.nan)).to_numpy(), len(floats)
            _check_finite(path, values, at + 1)
            if names and frame[names[0]].null_count():
                row = int(frame[names[0]].is_null().arg_max())
                raise ValueError(
                    f"{path}, row {at + row + 1:,}: the name is missing in column {names[0]!r}: fill it in"
                )
            words = frame[names[0]].cast(pl.String).to_list() if names else []
            yield Part(words, np.ascontiguousarray(values), at + 1)
            at += len(frame)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} can't be read as parquet: {first_line(error)}") from None


def _of_lists(path: Path, series: Any, first: int, dim: int) -> tuple[NDArray[np.float32], int]:
    """The numbers of lists that are all of one length."""
    pl = polars()
    if series.dtype == pl.Array:
        series = series.arr.to_list()
    lengths = series.list.len().fill_null(0).to_numpy()
    dim = dim or int(lengths[0])
    if wrong := np.flatnonzero((lengths != dim) | (lengths == 0)).tolist():
        row = wrong[0]
        raise ValueError(
            f"{path}, row {first + row:,}: the vector has {int(lengths[row])} numbers; expected {dim or 'at least 1'}, as in the "
            "first row: mend it, or leave the row out"
        )
    values = series.explode().cast(pl.Float32, strict=False).fill_null(np.nan).to_numpy()
    return values.reshape(-1, dim), dim
