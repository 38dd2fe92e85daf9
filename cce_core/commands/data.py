"""Data as the command line names them: a file and its columns, or a data set by name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import datasets
from cce_core.datasets import Split


@dataclass(frozen=True)
class Source:
    """What was asked for.

    Attributes:
        data: a path, or the name of a data set.
        user, item, label, time: columns.
        above: the bound of ratings.
        seed: of the split and of negatives.
    """

    data: str
    user: str | None = None
    item: str | None = None
    label: str | None = None
    time: str | None = None
    above: float | None = None
    seed: int = 1

    @property
    def words(self) -> list[str]:
        """The arguments that name it again."""
        options = {"user": self.user, "item": self.item, "label": self.label, "time": self.time, "above": self.above}
        found = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return [self.data, *found, *([] if self.seed == 1 else ["--split-seed", str(self.seed)])]

    def read(self) -> tuple[Split, dict[str, NDArray[Any]]]:
        """The split, and the ids of users and items in the order of their codes; none for a data set by name.

        Raises:
            ValueError, OSError, ImportError: it is none, cannot be read, or needs Polars.
        """
        if self.data in datasets.names():
            return datasets.load(self.data, seed=self.seed), {}
        pairs = datasets.read_interactions(
            self.data, user=self.user, item=self.item, label=self.label, time=self.time, above=self.above
        )
        return datasets.split_pairs(pairs, self.seed), {"users": pairs.user_ids, "items": pairs.item_ids}


def line(*words: str) -> str:
    """A command line that a shell reads back."""
    return shlex.join(["cce", *words])


def ids_beside(path: Path) -> Path:
    """Where the ids of a saved table stand, one per line in the order of their codes."""
    return path.with_suffix(".ids.txt")


def write_ids(path: Path, ids: Iterable[Any]) -> None:
    """The ids of a table, beside it; a backslash and line ends within an id are escaped."""
    lines = (str(one).replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for one in ids)
    ids_beside(path).write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")


def codes_of(path: Path, ids: list[str]) -> NDArray[np.int64]:
    """The codes of ids: by the list beside the table, or the ids themselves.

    Raises:
        ValueError: an id is not in the list, or there is none and it is no whole number.
    """
    beside = ids_beside(path)
    if not beside.exists():
        try:
            return np.array([int(one) for one in ids], np.int64)
        except ValueError:
            raise ValueError(
                f"ids must be whole numbers, since {beside} is not there to name others; got {ids}"
            ) from None
    wanted = {one.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r"): one for one in ids}
    found: dict[str, int] = {}
    with beside.open(encoding="utf-8", newline="\n") as file:
        for code, text in enumerate(file):
            if (key := text[:-1]) in wanted:
                found[wanted[key]] = code
    if missing := [one for one in ids if one not in found]:
        raise ValueError(f"{beside} has no id {missing[0]!r}: the table was made without it")
    return np.array([found[one] for one in ids], np.int64)
