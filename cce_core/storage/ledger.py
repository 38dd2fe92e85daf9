"""Every byte that a table costs, by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


def readable(n: float) -> str:
    """Bytes as people write them.

    Example:
        >>> readable(4_000_000), readable(512)
        ('3.81 MiB', '512 B')
    """
    if abs(n) < 1024:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if abs(n) < 1024:
            return f"{n:.2f} {unit}"
    return f"{n / 1024:.2f} TiB"


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a table costs in bytes: what is stored with it, and what training and clustering hold beside it.

    Attributes:
        stored: bytes by kind of every array that is saved with the table. Their sum is the saved file less its header.
        training: bytes by kind that exist only while training: float32 `values` behind a codec and the `optimiser`'s state,
            which stay; the `gradient` of the last backward pass and the `scratch` of it and of its step, which pass; the
            largest scratch of the last `cluster`.
        full: bytes of the float32 table (vocab × dim) that this one stands for; None where the vocabulary is unbounded.
        clustered: bytes that are stored after `cluster()`, where that changes them.

    Example:
        >>> ledger = Ledger({"memory": 1000, "pointers": 600}, {"gradient": 1000}, 16_000)
        >>> ledger.total, ledger.ratio, ledger.peak
        (1600, 10.0, 2600)
    """

    stored: Mapping[str, int]
    training: Mapping[str, int]
    full: int | None
    clustered: int | None = None

    @property
    def total(self) -> int:
        """All stored bytes."""
        return sum(self.stored.values())

    @property
    def peak(self) -> int:
        """The most bytes at once while training: what is stored, what is kept beside it, and what a step or `cluster()` takes.

        Vectors, and what a forward pass keeps for its backward pass, are the batch's and not counted.
        """
        return self.kept + max(self.step, self.training.get("cluster", 0))

    @property
    def kept(self) -> int:
        """What training holds from one step to the next: stored bytes, float copies behind a codec, the optimiser's state.

        Example:
            >>> Ledger({"memory": 1000}, {"optimiser": 2000, "gradient": 500, "cluster": 900}, None).kept
            3000
        """
        passing = ("gradient", "scratch", "cluster")
        return self.total + sum(n for kind, n in self.training.items() if kind not in passing)

    @property
    def step(self) -> int:
        """What a step takes beside what is kept: its gradient and its scratch."""
        return self.training.get("gradient", 0) + self.training.get("scratch", 0)

    @property
    def ratio(self) -> float | None:
        """Bytes of the full table over all stored bytes."""
        return None if self.full is None else self.full / self.total

    def __add__(self, other: Ledger) -> Ledger:
        """The two tables together, kind by kind."""

        def both(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
            return {kind: a.get(kind, 0) + b.get(kind, 0) for kind in (*a, *(k for k in b if k not in a))}

        full = None if self.full is None or other.full is None else self.full + other.full
        changes = self.clustered is not None or other.clustered is not None
        then = sum(one.total if one.clustered is None else one.clustered for one in (self, other)) if changes else None
        return Ledger(both(self.stored, other.stored), both(self.training, other.training), full, then)

    def __str__(self) -> str:
        rows = [(kind, n) for kind, n in self.stored.items()] + [("stored", self.total)]
        if self.full is not None:
            rows.append(("full table", self.full))
        if self.clustered is not None:
            rows.append(("after cluster()", self.clustered))
        if self.training:
            rows += [(f"training: {kind}", n) for kind, n in self.training.items()] + [
                ("training at its peak", self.peak)
            ]
        width = max(len(kind) for kind, _ in rows)
        lines = [f"{kind:<{width}}  {n:>15,} B  {readable(n):>10}" for kind, n in rows]
        return "\n".join([*lines, *([] if self.ratio is None else [f"{'ratio':<{width}}  {self.ratio:>15.2f} x"])])
