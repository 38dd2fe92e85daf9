"""A sweep's rows as points to draw: a point is a method at a budget, over its seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

# Colours of Okabe and Ito (2008), which colour-blind readers tell apart; a marker and a dash tell the rest.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
# The same method looks the same in every picture; those in front get the full lines.
ORDER = (
    "cce", "ldim", "narrow-int8", "dhe", "pq", "int8", "sparse",
    "cce-int8", "pq-int8", "rhemb", "tt", "hash", "int4", "robe",
    "cce-paper", "cce_robe", "sparse2", "hemb", "ce", "bloom", "hnet", "qr",
    "cce-lean", "narrow-int4", "vq", "tiered",
)  # fmt: skip
FULL = "full"


@dataclasses.dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str
    marker: str
    dash: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """Runs that differ in their seed alone."""

    label: str
    budget: str
    runs: tuple[dict[str, Any], ...]

    def x(self, axis: str) -> float:
        """Real bytes or parameters, of both tables."""
        return statistics.mean(run[axis] for run in self.runs)

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return statistics.mean(run[metric] for run in self.runs)

    def spread(self, metric: str) -> tuple[float, float]:
        """The least and the most."""
        values = [run[metric] for run in self.runs]
        return min(values), max(values)


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A look for every label: no two alike up to 28, and known methods always the same."""
    known = [*ORDER, *sorted(set(labels) - {*ORDER, FULL})]
    found = {}
    for i, label in enumerate(known):
        turn = i // len(COLOURS)
        found[label] = Style(COLOURS[i % 7], MARKERS[(i + 2 * turn) % 7], DASHES[turn % len(DASHES)])
    return {FULL: Style("#555555", "o", (2, 2)), **{label: found[label] for label in labels if label != FULL}}


def points(rows: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """Points by label, in the order of `ORDER` and each from small to large.

    Raises:
        ValueError: no run is finished, or they are of several data sets.
    """
    done = [row for row in rows if row["status"] == "ok"]
    if not done:
        raise ValueError("no run of this sweep has given a result yet: there is nothing to draw")
    sets = sorted({str(row["dataset"]) for row in done})
    if len(sets) > 1:
        raise ValueError(f"these rows are of several data sets ({', '.join(sets)}): give each a folder of its own")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in done:
        words = str(row["command"]).split()
        if "--seed" in words:
            at = words.index("--seed")
            words = words[:at] + words[at + 2 :]
        groups.setdefault((row["label"], row["budget"] or "", *words), []).append(row)
    found: dict[str, list[Point]] = {}
    place = {label: i for i, label in enumerate((FULL, *ORDER))}
    for key, runs in sorted(groups.items(), key=lambda item: (place.get(item[0][0], 99), item[0][0])):
        found.setdefault(key[0], []).append(Point(key[0], key[1], tuple(sorted(runs, key=lambda r: r["seed"] or 0))))
    for line in found.values():
        line.sort(key=lambda p: (p.x("bytes"), p.x("num_params")))
    return found


def standings(found: dict[str, list[Point]], most_bytes: float, metric: str = "auc") -> list[Point]:
    """Each method's best point within these bytes, the best method first."""
    best = []
    for line in found.values():
        fitting = [point for point in line if point.x("bytes") <= most_bytes]
        if fitting:
            best.append(max(fitting, key=lambda p: p.mean(metric)))
    return sorted(best, key=lambda p: -p.mean(metric))


def table(found: dict[str, list[Point]], reference: str = "cce", rows: int = 4) -> str:
    """Which method wins at which real bytes, in Markdown: for each size of the reference, the best within its bytes."""

    def cell(point: Point) -> str:
        low, high = point.spread("auc")
        text = f"{point.label} {point.mean('auc'):.3f} ({low:.3f}–{high:.3f}), {point.x('bytes'):,.0f} B"
        return f"**{text}**" if point.label == reference else text

    sizes = [p.x("bytes") for p in found.get(reference, []) if p.budget.startswith("ppd")]
    if not sizes:  # else the sizes that were asked for, of both tables
        times = {"bytes a table": 2.0, "bytes of both tables": 1.0}
        asked = {p.budget.partition(" ")[::2] for line in found.values() for p in line}
        sizes = sorted({times[unit] * int(size) for size, unit in asked if unit in times})
    if not sizes:  # else those that there are, thinned
        every = sorted({p.x("bytes") for line in found.values() for p in line})
        sizes = every[:: max(1, len(every) // 6)]
    lines = [
        f"| real bytes | best | {' | '.join(f'{k}.' for k in range(2, rows + 1))} | level with the best | {reference} |"
    ]
    lines.append("|" + "---|" * (rows + 3))
    for size in sizes:
        order = standings(found, size)
        floor = order[0].spread("auc")[0]
        level = [p.label for p in order[1:] if p.mean("auc") >= floor]
        own = next((f"{k}." for k, p in enumerate(order, 1) if p.label == reference), "–")
        cells = [cell(p) for p in order[:rows]] + [""] * (rows - len(order))
        where = next((p for p in order if p.label == reference), None)
        mine = "–" if where is None else f"{own} {cell(where)}"
        lines.append(f"| {size:,.0f} | {' | '.join(cells)} | {', '.join(level) or '–'} | {mine} |")
    return "\n".join(lines)
