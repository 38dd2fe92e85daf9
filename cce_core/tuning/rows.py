"""The rows of a sweep on disk: `results.csv`, a line per run, appended in one write and synced, so that a kill loses none.

A run is all that its result depends on, in words; `run` is a digest of them. Of two rows of one run the later one counts.
Files of before, without one of the columns in `LATER`, are read, and rewritten with it when a sweep goes on in them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAME = "results.csv"
COLUMNS: dict[str, type] = {
    # the run
    "run": str, "label": str, "budget": str, "seed": int, "share": float, "status": str, "error": str,
    # what it reached, at its best epoch by validation AUC
    "auc": float, "logloss": float, "best_epoch": int, "score": float,
    # what it takes: all tables; training at its peak
    "num_params": int, "bytes": int, "train_bytes": int, "full_bytes": int, "n_tables": int, "ratio": float,
    "bytes_by_kind": str, "training_bytes_by_kind": str,
    "cluster_seconds": float, "seconds": float, "cpu_seconds": float, "clusterings": int,
    # its configuration, as it took effect
    "dataset": str, "train_rows": int, "valid_rows": int, "best_reachable_auc": float, "method": str, "dim": int,
    "user_rank": int, "item_rank": int, "codec": str, "n_chunks": int, "ppd": int, "num_bytes": str, "epochs": int,
    "last_cluster": int, "batch_size": int, "lr": float, "command": str,
    # where and with what
    "cce_core": str, "code": str, "python": str, "numpy": str, "numba": str, "scipy": str, "processor": str, "threads": int,
    "started": str,
}  # fmt: skip
LATER = ("score", "train_bytes", "share", "n_tables")
STATUSES = ("ok", "does not fit", "failed")
MEASURES = ("auc", "logloss", "score")


def digest(command: Sequence[str]) -> str:
    """What a run is known by: 12 hexadecimal digits of its command's SHA-256."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]


def by_kind(sizes: dict[str, int]) -> str:
    """Bytes by kind in one field: `memory=2816 keys=64`."""
    return " ".join(f"{kind.replace(' ', '-')}={n}" for kind, n in sizes.items())


def line(values: Iterable[Any]) -> str:
    """One line of CSV; None is an empty field, and no field has a line's end in it."""
    out = io.StringIO()
    fields = ("" if v is None else " ".join(v.split()) if isinstance(v, str) else repr(v) for v in values)
    csv.writer(out, lineterminator="\n").writerow(fields)
    return out.getvalue()


def parsed(text: str, where: Path) -> list[dict[str, Any]]:
    """The rows of a file's text, typed, the last one of each run; a torn last line is left out.

    Raises:
        ValueError: another file's header, or a line that does not hold what its columns say; the message has its number.
    """
    text = text[: text.rfind("\n") + 1]
    if not text:
        return []
    lines = csv.reader(io.StringIO(text))
    header = next(lines)
    if header != [name for name in COLUMNS if name in header or name not in LATER]:
        odd = sorted((set(header) ^ set(COLUMNS)) - set(LATER))
        raise ValueError(
            f"{where} is not a sweep's: its first line must be {','.join(COLUMNS)[:40]}…"
            + (f"; the odd columns are {', '.join(odd[:5])}" if odd else "; the order of its columns differs")
        )
    rows: dict[str, dict[str, Any]] = {}
    for number, fields in enumerate(lines, 2):
        place = f"{where}, line {number}"
        if len(fields) != len(header):
            raise ValueError(f"{place}: expected {len(header)} fields, got {len(fields)}; delete the line")
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        for name, field in zip(header, fields, strict=True):
            kind = COLUMNS[name]
            try:
                row[name] = kind(field) if field else None
            except ValueError:
                raise ValueError(f"{place}: {name} must be a {kind.__name__}, got {field!r}; delete the line") from None
        if row["status"] not in STATUSES or not row["run"] or not row["label"]:
            raise ValueError(
                f"{place}: it needs a run, a label and a status among {', '.join(STATUSES)}; delete the line"
            )
        if row["status"] == "ok" and (wrong := out_of_range(row)):
            raise ValueError(f"{place}: {wrong}; delete the line")
        rows.pop(row["run"], None)
        rows[row["run"]] = row
    return list(rows.values())


def out_of_range(row: dict[str, Any]) -> str:
    """What is wrong with the figures of a finished run, in words; empty if nothing is."""
    if not all(row.get(name) is not None and 0 < row[name] < float("inf") for name in ("bytes", "num_params")):
        return "bytes and num_params must be above 0 and finite"
    measured = {name: row[name] for name in MEASURES if row.get(name) is not None}
    least = {"auc": 0.0, "logloss": 0.0, "score": float("-inf")}
    if not measured or not all(least[name] < value < float("inf") for name, value in measured.items()):
        return "auc and logloss must be above 0, score a number, all finite, and one of them must be there"
    return ""


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a sweep's folder; FileNotFoundError where it has none."""
    path = Path(folder) / NAME
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist: let a sweep write there first (--out {folder})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a sweep's: it is not text") from None
    return parsed(text, path)


class Memory:
    """Rows that no file keeps, with a `Writer`'s face."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row, and return it with all columns."""
        self.rows.append(dict.fromkeys(COLUMNS) | row)
        return self.rows[-1]

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""


class Writer:
    """Holds a folder's file open, alone, and appends to it.

    Raises:
        OSError: the folder cannot be made or written.
        BlockingIOError: another sweep is writing there.
        ValueError: the file there is another program's.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            self._lock()
            self.rows = read(folder)
            text = self.path.read_bytes()
            whole = text.rfind(b"\n") + 1
            os.ftruncate(self.file, whole)  # a line that a power cut tore
            if not whole:
                self._append(line(COLUMNS))
            elif text[:whole].split(b"\n", 1)[0].decode() != ",".join(COLUMNS):
                self.rewrite()
        except BaseException:
            os.close(self.file)
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another sweep is writing {self.path}: wait for it, or give another --out") from None

    def rewrite(self) -> None:
        """All rows with today's columns, in a file that takes the old one's place at once."""
        fresh = self.path.with_name(f".{NAME}.{os.getpid()}")
        try:
            fresh.write_text("".join([line(COLUMNS), *(line(row[name] for name in COLUMNS) for row in self.rows)]))
            new = os.open(fresh, os.O_RDWR | os.O_APPEND)
            os.fsync(new)
            os.replace(fresh, self.path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        old, self.file = self.file, new
        self._lock()
        os.close(old)

    def _append(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self.file, data) :]
        os.fsync(self.file)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a row, and return it with all columns; when this returns it is on the disk."""
        self._append(line(row.get(name) for name in COLUMNS))
        self.rows.append(dict.fromkeys(COLUMNS) | row)
        return self.rows[-1]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
