"""Progress bars: on a terminal, for long work; silent when piped."""

from __future__ import annotations

import sys
from typing import Any


def progress(
    total: int | None, description: str, *, unit: str = "it", show: bool | None = None, delay: float = 2.0
) -> Any:
    """A tqdm bar that appears after `delay` seconds, on a terminal alone (or as `show` says), and is erased when done."""
    from tqdm import tqdm

    disable = not (sys.stderr.isatty() if show is None else show)
    return tqdm(
        total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=disable, delay=delay, leave=False
    )
