"""What a server is told when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Limits(NamedTuple):
    """The most that one request may ask for.

    Attributes:
        ids: ids of a request, and bags.
        body: bytes of its body.
    """

    ids: int = 16_384
    body: int = 1 << 20


class Settings(NamedTuple):
    """What is served, and how.

    Attributes:
        places: files, and folders, of which all files with the suffix `.safetensors` are tables.
        deltas: a folder of files with the suffix `.delta`, of any of the tables.
        verify: as for `Reader`.
        limits: of a request.
        every: seconds between two looks for what is new; 0 looks never again.
    """

    places: tuple[Path, ...]
    deltas: Path | None = None
    verify: str = "header"
    limits: Limits = Limits()
    every: float = 1.0
