"""Files with named columns, read a piece at a time through Polars: ids of any kind become codes, and what is missing is named."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from cce_core.datasets.columns import SEPARATORS
from cce_core.datasets.lines import pieces, shown

_BLOCK, _LONGEST, _ROWS = 1 << 24, 1 << 20, 1 << 20
_ROW = "\0row"
_PACKED = (".gz", ".bz2", ".xz", ".zip")
_KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
_INTEGER = re.compile(r"-?[1-9][0-9]{0,19}|0")


class Columns(NamedTuple):
    """What a file holds, a row per interaction.

    Attributes:
        users, items: int64 codes, in rising order of the ids.
        user_ids, item_ids: the id of each code: whole numbers if all of them are, else text.
        labels: float32, 0 or 1; None without such a column.
        times: float64; None without such a column.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    labels: NDArray[np.float32] | None
    times: NDArray[np.float64] | None


class _Part(NamedTuple):
    """Some rows: a data frame of texts (or bytes) with a column of row numbers, and where they stand."""

    frame: Any
    path: Path
    unit: str
    first: int

    def at(self, row: int) -> str:
        """The place of a row, for an error."""
        return f"{self.path}, {self.unit} {self.first + self.frame[_ROW][row]:,}"


def polars() -> Any:
    """The package, or how to get it."""
    try:
        import polars
    except ImportError:
        raise ImportError(
            "named columns, Parquet, Arrow and JSON lines are read through Polars: pip install 'cce-core[data]'"
        ) from None
    return polars


def kind_of(path: Path) -> str:
    """What a file is by its name: json, parquet, arrow, or text.

    Example:
        >>> kind_of(Path("visits.jsonl.gz")), kind_of(Path("a.parquet")), kind_of(Path("u.data"))
        ('json', 'parquet', 'text')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return _KINDS.get(suffixes[-1], "text") if suffixes else "text"


def files_of(path: Path) -> list[Path]:
    """A file, or the parts that a folder or a pattern such as `part-*.parquet` names, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return [path]
    found = (
        path.iterdir() if path.is_dir() else path.parent.glob(path.name) if any(c in path.name for c in "*?[") else ()
    )
    parts = sorted(p for p in found if p.is_file() and p.name[0] not in "._")
    if not parts:
        raise FileNotFoundError(f"{path} is no file, no folder of parts and no pattern that names some")
    return parts


def read_frame(path: Path, user: str, item: str, label: str | None, time: str | None, above: float | None) -> Columns:
    """All rows of a file or of its parts; see `read_interactions`."""
    wanted = [name for name in (user, item, label, time) if name is not None]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"user, item, label and time must be different columns, got {', '.join(wanted)}")
    users, items = _Codes(), _Codes()
    codes: list[list[NDArray[Any]]] = [[], [], [], []]
    for part in _parts(path, wanted):
        for name, what in ((user, "user"), (item, "item"), (label, "label"), (time, "time")):
            if name is not None:
                _check_present(part, name, what)
        codes[0].append(users.add(part.frame[user]))
        codes[1].append(items.add(part.frame[item]))
        if label is not None:
            codes[2].append(_labels(part, label, above))
        if time is not None:
            codes[3].append(_times(part, time))
    if not codes[0]:
        raise ValueError(f"{path} holds no interaction; expected rows with the columns {', '.join(wanted)}")
    u, i, *others = (np.concatenate(column) if column else None for column in codes)
    codes.clear()
    (user_rank, user_ids), (item_rank, item_ids) = users.finish(), items.finish()
    return Columns(user_rank[u], item_rank[i], user_ids, item_ids, others[0], others[1])


def _parts(path: Path, wanted: list[str]) -> Iterator[_Part]:
    for one in files_of(path):
        kind = kind_of(one)
        if kind in ("parquet", "arrow"):
            yield from _of_tables(one, kind, wanted)
        else:
            yield from _of_text(one, kind, wanted)


def _of_tables(path: Path, kind: str, wanted: list[str]) -> Iterator[_Part]:
    """Rows of Parquet and Arrow files, a million at a time."""
    pl = polars()
    try:
        lazy = pl.scan_parquet(path, glob=False) if kind == "parquet" else pl.scan_ipc(path)
        _check_columns(path, list(lazy.collect_schema()), wanted)
        total, start = lazy.select(pl.len()).collect().item(), 0
        while start < total:
            frame = lazy.select(wanted).slice(start, _ROWS).collect()
            texts = frame.select(_as_text(frame[name]) for name in wanted)
            yield _Part(texts.with_row_index(_ROW), path, "row", start + 1)
            start += len(frame)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} can't be read as {kind}: {first_line(error)}") from None


def _of_text(path: Path, kind: str, wanted: list[str]) -> Iterator[_Part]:
    """Rows of CSV and of JSON lines, some megabytes at a time; bytes that are not UTF-8 are taken for Latin-1."""
    pl = polars()
    line, header, separator, rest = 1, b"", ",", b""
    schema = dict.fromkeys(wanted, pl.String)
    for piece in pieces(path, _BLOCK, _LONGEST):
        if piece.fault == "long":
            raise ValueError(f"{path}, line {line}: the line is far too long; got {shown(piece.text)}")
        text = rest + piece.text
        rest = b""
        if kind == "text" and text.count(b'"') % 2:  # a quoted field goes on in the next piece
            if len(text) > 4 * _BLOCK or piece.share >= 1:
                raise ValueError(f"{path}, line {line}: a quote that is opened from here on is never closed")
            rest = text
            continue
        text = _utf8(text)
        if kind == "text" and not header:
            header, _, text = text.partition(b"\n")
            separator = _separator(path, header.decode(), wanted)
            line += 1
        if not text:
            continue
        try:
            if kind == "text":
                frame = pl.read_csv(header + b"\n" + text, separator=separator, infer_schema=False, columns=wanted)
                frame = frame.select(wanted)
            else:
                frame = pl.read_ndjson(text, schema=schema)
                if any(frame[name].null_count() == len(frame) for name in wanted):
                    _check_columns(path, pl.read_ndjson(text.split(b"\n", 1)[0]).columns, wanted)
        except pl.exceptions.PolarsError as error:
            raise ValueError(_wrong_line(path, line, text, kind, header, separator, error)) from None
        yield _Part(_without_blank_lines(frame, text, wanted), path, "line", line)
        line += text.count(b"\n")


def _utf8(text: bytes) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()
    return text


def _separator(path: Path, header: str, wanted: list[str]) -> str:
    """The separator by which a header names all the columns."""
    named: list[str] = []
    for separator in SEPARATORS:
        if len(separator) == 1:
            fields = next(csv.reader([header.rstrip("\r")], delimiter=separator), [])
            if set(wanted) <= set(fields):
                return separator
            named = max(named, fields, key=len)
    _check_columns(path, named, wanted)
    raise AssertionError


def _check_columns(path: Path, there: list[str], wanted: list[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        names = ", ".join(map(repr, there[:12])) + (", …" if len(there) > 12 else "")
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {names}")


def _wrong_line(path: Path, line: int, text: bytes, kind: str, header: bytes, separator: str, error: Exception) -> str:
    """Which line is not of its kind."""
    import json

    lines = text.decode().split("\n")
    if kind == "json":
        for k, one in enumerate(lines):
            try:
                if one.strip() and not isinstance(json.loads(one), dict):
                    return f'{path}, line {line + k:,}: expected an object such as {{"user": 1}}, got {shown(one.encode())}'
            except ValueError:
                return f"{path}, line {line + k:,}: this is no JSON: {shown(one.encode())}"
    else:
        width = len(next(csv.reader([header.decode()], delimiter=separator)))
        for k, one in enumerate(lines):
            n = len(next(csv.reader([one], delimiter=separator), []))
            if n > width:
                return f"{path}, line {line + k:,}: expected {width} fields as the header names, got {n}: {shown(one.encode())}"
    return f"{path}, from line {line:,} on: {first_line(error)}"


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().split("\n", 1)[0]


def _as_text(series: Any) -> Any:
    """Ids, labels and times as text; bytes stay."""
    pl = polars()
    if series.dtype == pl.Binary:
        return series
    if series.dtype.is_float():
        whole = series.cast(pl.Int64, strict=False)
        if (whole.cast(series.dtype) == series).all():  # whole numbers beside missing ones, as pandas writes them
            series = whole
        else:
            series = series.fill_nan(None)
    elif series.dtype.is_temporal():
        series = series.cast(pl.Datetime("us")).cast(pl.Int64) if series.dtype != pl.Date else series.cast(pl.Int64)
    return series.cast(pl.String)


def _without_blank_lines(frame: Any, text: bytes, wanted: list[str]) -> Any:
    """The rows of a text with their numbers; blank lines, which are read as rows of nothing, are left out."""
    pl = polars()
    frame = frame.with_row_index(_ROW)
    empty = frame.select(pl.all_horizontal(pl.col(wanted).is_null())).to_series()
    if empty.any():
        lines = text.split(b"\n")
        blank = [row for row in empty.arg_true().to_list() if row < len(lines) and not lines[row].strip()]
        frame = frame.filter(~pl.col(_ROW).is_in(blank))
    return frame


def _check_present(part: _Part, name: str, what: str) -> None:
    """Refuse a row without a value."""
    pl = polars()
    column = part.frame[name]
    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column == "")
    if missing.any():
        row = int(missing.arg_max())
        raise ValueError(
            f"{part.at(row)}: the {what} is missing; expected a value in column {name!r}: fill it in, or delete the {part.unit}"
        )


def _labels(part: _Part, name: str, above: float | None) -> NDArray[np.float32]:
    """0 and 1; or whether a number is above a bound."""
    pl = polars()
    text = part.frame[name].str.to_lowercase().replace({"true": "1", "false": "0"})
    values = text.cast(pl.Float64, strict=False)
    wrong = values.is_null() | values.is_nan() if above is not None else ~values.is_in([0.0, 1.0]).fill_null(False)
    if wrong.any():
        row = int(wrong.arg_max())
        hint = "a number" if above is not None else "0 or 1 (or give above=, a bound for ratings)"
        raise ValueError(f"{part.at(row)}: the label must be {hint}, got {part.frame[name][row]!r}")
    found: NDArray[np.float32] = (values > above if above is not None else values).cast(pl.Float32).to_numpy()
    return found


def _times(part: _Part, name: str) -> NDArray[np.float64]:
    """Times as numbers; dates and times as text are read as ISO 8601 writes them."""
    pl = polars()
    values = part.frame[name].cast(pl.Float64, strict=False)
    if values.null_count():
        dates = part.frame[name].str.replace("T", " ").str.replace(r"(Z|[+-]\d\d:?\d\d)$", "")
        when = dates.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
        when = when.fill_null(dates.str.to_datetime("%Y-%m-%d", strict=False, time_unit="us"))
        values = (when.cast(pl.Float64) / 1e6).fill_null(values)
    if values.null_count():
        row = int(values.is_null().arg_max())
        raise ValueError(
            f"{part.at(row)}: the time must be a number or such as 2024-05-31 12:00:00, got {part.frame[name][row]!r}"
        )
    found: NDArray[np.float64] = values.to_numpy()
    return found


class _Codes:
    """Ids numbered as they come."""

    def __init__(self) -> None:
        self.index: dict[Any, int] = {}

    def add(self, ids: Any) -> NDArray[np.int64]:
        """The codes of some ids: Python sees each of them once, Polars joins the rest."""
        pl = polars()
        known = ids.unique()
        codes = [self.index.setdefault(one, len(self.index)) for one in known.to_list()]
        pairs = pl.DataFrame({"id": known, "code": pl.Series(codes, dtype=pl.Int64)})
        coded = ids.alias("id").to_frame().join(pairs, on="id", how="left", maintain_order="left")
        found: NDArray[np.int64] = coded["code"].to_numpy()
        return found

    def finish(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The final number of every code, by the order of the ids, and the ids in that order."""
        keys = list(self.index)
        if all(isinstance(key, str) and _INTEGER.fullmatch(key) for key in keys):
            numbers = [int(key) for key in keys]
            signed = min(numbers) < 0 or max(numbers) < 2**63
            if min(numbers) >= -(2**63) and max(numbers) < (2**63 if signed else 2**64):
                keys = np.array(numbers, np.int64 if signed else np.uint64)  # type: ignore[assignment]
        if isinstance(keys, list):
            texts = [str(UUID(bytes=key)) if isinstance(key, bytes) and len(key) == 16 else _text(key) for key in keys]
            keys = np.array(texts, dtype=object)  # type: ignore[assignment]
        array: NDArray[Any] = np.asarray(keys)
        order = np.argsort(array, kind="stable")
        rank = np.empty(order.size, np.int64)
        rank[order] = np.arange(order.size)
        return rank, array[order]


def _text(key: Any) -> str:
    return key.hex() if isinstance(key, bytes) else str(key)
