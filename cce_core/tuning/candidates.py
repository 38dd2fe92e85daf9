"""What a sweep tries: a method with options of its table and settings of its training, as people write it and as it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from cce_core import _check
from cce_core.method import methods

# Rivals that are easily forgotten, and what the house's own combinations are called.
NAMED = {
    "narrow-int8": "ldim:codec=int8",
    "narrow-int4": "ldim:codec=int4",
    "cce-int8": "cce:codec=int8",
    "cce-lean": "cce:codec=int8:n_chunks=2:rank=2",
    "cce-paper": "cce:rank=0",
    "pq-int8": "pq:codec=int8",
}
# What `make_table` takes, and how training goes on; the types of their values.
TABLE: dict[str, type] = {"rank": int, "codec": str, "rounding": str, "n_chunks": int, "stages": int, "bits": int}
TRAINING: dict[str, type] = {"lr": float, "weight_decay": float, "batch_size": int, "last_cluster": int}
# Every kind of table once: rows of their own until they are clustered, wide and narrow; learned from the trained full
# table; narrow rows in few bits; clustered while training; hashed. With rates and decays that suit interactions.
DEFAULT = (
    "vq:rank=0:weight_decay=0.5",
    "vq:rank=4:lr=0.01:weight_decay=0.05",
    "pq:codec=int8:n_chunks=1:weight_decay=0.5",
    "ldim:codec=int8",
    "ldim:codec=int4:lr=0.06",
    "cce:codec=int8:n_chunks=2:rank=2",
    "rhemb",
)
FULL = ("full:weight_decay=0.01", "full:weight_decay=0.5")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method, and how it is made and trained.

    Attributes:
        method: its name, as `make_table` knows it.
        table: options of `make_table`.
        training: settings of the training.
    """

    method: str
    table: tuple[tuple[str, Any], ...] = ()
    training: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The table alone: what differs in its training is the same table."""
        return ":".join([self.method, *(f"{key}={value}" for key, value in self.table)])

    def __str__(self) -> str:
        return ":".join([self.label, *(f"{key}={value:g}" for key, value in self.training)])


def options(text: str) -> tuple[str, dict[str, str]]:
    """A method's name and options as they were written; short names of combinations are spelled out.

    Raises:
        ValueError: there is no such method, or an option is not a name and a value.

    Example:
        >>> options("narrow-int8")
        ('ldim', {'codec': 'int8'})
    """
    name, *rest = NAMED.get(text, text).split(":")
    names = [method.name for method in methods()]
    if name not in names:
        raise ValueError(f"unknown method {name!r}; there are {', '.join([*names, *NAMED])}, and such as cce:rank=0")
    found = {}
    for option in rest:
        key, equals, value = option.partition("=")
        if not equals or not value:
            raise ValueError(f"{text!r}: expected such as {name}:rank=4, got {option!r}")
        found[key.replace("-", "_")] = value
    return name, found


def candidate(text: str) -> Candidate:
    """A candidate as people write it: `vq:rank=4:lr=0.01`.

    Args:
        text: a method's name or that of a combination (`narrow-int8`, `cce-lean`, …); then, after colons, options of
            `make_table` (rank, codec, rounding, n_chunks, stages, bits) and settings of the training (lr, weight_decay,
            batch_size, last_cluster).

    Raises:
        ValueError: there is no such method or option, or its value is of another type.

    Example:
        >>> candidate("vq:rank=4:lr=0.01")
        Candidate(method='vq', table=(('rank', 4),), training=(('lr', 0.01),))
    """
    _check.instance("a candidate", text, str, "such as 'vq:rank=4:lr=0.01'")
    name, found = options(text)
    parts: dict[bool, list[tuple[str, Any]]] = {True: [], False: []}
    for key, value in found.items():
        kinds = TABLE if key in TABLE else TRAINING
        if key not in kinds:
            raise ValueError(f"{text!r}: {key!r} is none of {', '.join([*TABLE, *TRAINING])}")
        try:
            typed = value if key == "rank" and value == "auto" else kinds[key](value)
        except ValueError:
            raise ValueError(f"{text!r}: {key} must be a {kinds[key].__name__}, got {value!r}") from None
        parts[kinds is TABLE].append((key, typed))
    return Candidate(name, tuple(parts[True]), tuple(parts[False]))


def candidates(texts: str | Iterable[str]) -> list[Candidate]:
    """Candidates of several texts, or of one with commas, each once.

    Example:
        >>> [str(c) for c in candidates("hash,ldim:lr=0.06")]
        ['hash', 'ldim:lr=0.06']
    """
    parts: Sequence[str] = texts.split(",") if isinstance(texts, str) else list(texts)
    return list(dict.fromkeys(candidate(part.strip() if isinstance(part, str) else part) for part in parts))
