"""Times of two programs taken in turn, so that a machine whose speed drifts treats both alike."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: medians in seconds, and how many times faster ours is than the peer.

    Attributes:
        nbytes: what must be moved at least, 0 where nobody has counted.
        floor: seconds that moving it takes at the bandwidth of a copy.
    """

    name: str
    case: str
    ours: list[float]
    peer: str
    peers: list[float]
    target: float
    nbytes: int = 0
    floor: float = 0.0

    @property
    def ratio(self) -> float:
        """The peer's median over ours."""
        return statistics.median(self.peers) / statistics.median(self.ours)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.name,
            "case": self.case,
            "ours_s": statistics.median(self.ours),
            "ours_spread_s": [min(self.ours), max(self.ours)],
            "peer": self.peer,
            "peer_s": statistics.median(self.peers),
            "peer_spread_s": [min(self.peers), max(self.peers)],
            "ratio": self.ratio,
            "target": self.target,
            "bytes": self.nbytes,
            "floor_s": self.floor,
        }

    def __str__(self) -> str:
        ours, theirs = statistics.median(self.ours), statistics.median(self.peers)
        spread = f"{min(self.ours) * 1e3:.1f}-{max(self.ours) * 1e3:.1f}"
        return (
            f"{self.name} {self.case}: ours {ours * 1e3:.1f} ms ({spread}), {self.peer} {theirs * 1e3:.1f} ms "
            f"({min(self.peers) * 1e3:.1f}-{max(self.peers) * 1e3:.1f}): {self.ratio:.1f}x (target {self.target:g}x)"
            + (f"; {self.nbytes / 1e6:.3g} MB, {ours / self.floor:.1f} times the floor" if self.floor else "")
        )


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures that stand without a peer."""

    name: str
    case: str
    figures: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"name": self.name, "case": self.case, **self.figures}

    def __str__(self) -> str:
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items())
        return f"{self.name} {self.case}: {', '.join(shown)}"


_SHORT, _REST, _WARM = 0.1, 0.02, 0.06  # seconds


def in_turn(n: int, *programs: Callable[[], Any], warm: bool = False) -> list[list[float]]:
    """Seconds of each program, n times A B A B …, after one round that is not counted (none where all is `warm`).

    A short one is timed as in a loop of its own. First a rest, for torch's idle threads go on spinning for milliseconds on the
    cores of whoever is next; then calls that are not timed, since a core that has rested takes tens of milliseconds to be fast.
    """
    times: list[list[float]] = [[] for _ in programs]
    last = [math.inf] * len(programs)
    for turn in range(warm, n + 1):
        for k, (program, seconds) in enumerate(zip(programs, times, strict=True)):
            if last[k] < _SHORT:
                time.sleep(_REST)
                awake = time.perf_counter() + _WARM
                while time.perf_counter() < awake:
                    program()
            start = time.perf_counter()
            program()
            last[k] = time.perf_counter() - start
            if turn:
                seconds.append(last[k])
    return times
