"""A sweep's rows as points to draw: a point is a method at a budget, over its seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

# What costs, and what is measured: whether more of it is better.
AXES = {"bytes": "stored bytes", "train_bytes": "training bytes", "num_params": "parameters"}
METRICS = {"auc": "validation AUC", "logloss": "validation log loss (nats)", "score": "score"}
SIGN = {"auc": 1, "logloss": -1, "score": 1}
ALIKE = 1.02  # sizes that are within this factor are one
# Colours of Okabe and Ito (2008), which colour-blind readers tell apart; a marker and a dash tell the rest. The same on black.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
ON_BLACK = ("#F5F5F5", "#E69F00", "#3E8EF7", "#10B98A", "#DE9DC0", "#F26B2C", "#8FD3FF")
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
    on_black: str
    marker: str
    dash: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """Runs that differ in their seed alone."""

    label: str
    budget: str
    runs: tuple[dict[str, Any], ...]

    def has(self, name: str) -> bool:
        """Whether all runs say this of themselves."""
        return all(run.get(name) is not None for run in self.runs)

    def x(self, axis: str) -> float:
        """Bytes or parameters, of all tables."""
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
        found[label] = Style(COLOURS[i % 7], ON_BLACK[i % 7], MARKERS[(i + 2 * turn) % 7], DASHES[turn % len(DASHES)])
    return {
        FULL: Style("#555555", "#AAAAAA", "o", (2, 2)),
        **{label: found[label] for label in labels if label != FULL},
    }


def points(rows: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """Points by label, in the order of `ORDER` and each from small to large; runs of a part of the training are none.

    Raises:
        ValueError: no run is finished, or they are of several data sets.
    """
    done = [row for row in rows if row["status"] == "ok" and (row.get("share") or 1) == 1]
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


def drawable(found: dict[str, list[Point]], axis: str, metric: str) -> list[Point]:
    """All points but the full table's that have both."""
    rivals = (p for label, line in found.items() if label != FULL for p in line)
    return [p for p in rivals if p.has(axis) and p.has(metric)]


def frontier(found: dict[str, list[Point]], axis: str = "bytes", metric: str = "auc") -> list[Point]:
    """The points that no smaller one, nor one as small, equals or beats; from small to large, without the full table.

    Sizes within 2 % of each other count as one: budgets are met to the byte by some methods alone.

    Example:
        >>> def point(label, size, auc):
        ...     return Point(label, "", ({"bytes": size, "auc": auc},))
        >>> lines = {"a": [point("a", 10, 0.6), point("a", 30, 0.7)], "b": [point("b", 20, 0.8), point("b", 5, 0.5)]}
        >>> [(p.label, p.x("bytes")) for p in frontier(lines)]
        [('b', 5), ('a', 10), ('b', 20)]
    """
    best: list[Point] = []
    for point in sorted(drawable(found, axis, metric), key=lambda p: (p.x(axis), -SIGN[metric] * p.mean(metric))):
        if not best or SIGN[metric] * (point.mean(metric) - best[-1].mean(metric)) > 0:
            if best and point.x(axis) <= ALIKE * best[-1].x(axis):
                best.pop()
            best.append(point)
    return best


def nearest(found: dict[str, list[Point]], axis: str = "bytes", metric: str = "auc", most: int = 6) -> list[str]:
    """The methods to look at first: those on the frontier, then those whose points come nearest to it, `most` in all.

    How far a point is from the frontier is what the best of its size, or smaller, has more. Methods of the frontier are all
    there, however many they are.
    """
    edge = frontier(found, axis, metric)
    first = list(dict.fromkeys(p.label for p in edge))
    gaps: dict[str, float] = {}
    for p in drawable(found, axis, metric):
        here = SIGN[metric] * p.mean(metric)
        gap = max((SIGN[metric] * e.mean(metric) for e in edge if e.x(axis) <= ALIKE * p.x(axis)), default=here) - here
        gaps[p.label] = min(gap, gaps.get(p.label, gap))
    others = sorted(gaps.keys() - set(first), key=lambda label: (gaps[label], label))
    return first + others[: max(0, most - len(first))]


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The smallest point that loses little.

    Attributes:
        point: the point; None if no method is within the loss.
        reference: what it is measured against: the full table, or else the best point that there is.
        metric: by which measure.
        loss: what may be lost, at most.
        axis: what is to be small.
    """

    point: Point | None
    reference: Point
    metric: str
    loss: float
    axis: str

    @property
    def change(self) -> float:
        """What the point has more than the reference, in the metric; below 0 where a larger value is better and it has less."""
        return 0.0 if self.point is None else self.point.mean(self.metric) - self.reference.mean(self.metric)

    def __str__(self) -> str:
        return f"{self.sentence} {self.sure}"

    @property
    def sure(self) -> str:
        """How far the figures can be trusted, in words."""
        seeds = min(len(p.runs) for p in (self.point, self.reference) if p is not None)
        return "One seed each: more may say otherwise." if seeds == 1 else f"Means of {seeds} seeds."

    @property
    def sentence(self) -> str:
        """What the tables take, and what takes less."""

        def takes(p: Point) -> str:
            training = f" ({size(p.x(self.axis))} in training)" if self.axis == "train_bytes" else ""
            return size(p.x("bytes")) + training

        name = METRICS[self.metric].removeprefix("validation ").removesuffix(" (nats)")
        many = self.reference.runs[0].get("n_tables") or 2
        yours = "Your table takes" if many == 1 else f"Your {COUNT.get(many, many)} tables take"
        if self.reference.label != FULL:
            yours = f"The best of all, {self.reference.label}, takes"
        start = f"{yours} {takes(self.reference)}."
        if self.point is None:
            return f"{start} Nothing smaller that was tried loses less than {self.loss:g} {name}."
        better = SIGN[self.metric] * self.change
        amount = f"loses {-better:.3f}" if better <= -5e-4 else f"gains {better:.3f}" if better >= 5e-4 else "loses no"
        return f"{start} {self.point.label} at {takes(self.point)} {amount} {name}."


COUNT = dict(enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine"), 2))


def size(n: float) -> str:
    """Bytes in decimal units, two or three digits of them.

    Example:
        >>> size(9_067_392), size(87_900), size(640), size(999_600)
        ('9.1 MB', '88 KB', '640 B', '1.0 MB')
    """
    for unit in ("B", "KB", "MB", "GB"):
        if n < 999.5 or unit == "GB":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if n >= 9.95 or unit == "B" else f"{n:.1f} {unit}"


def recommend(
    found: dict[str, list[Point]], loss: float = 0.005, metric: str = "auc", axis: str = "bytes"
) -> Recommendation:
    """The smallest point whose mean loses at most `loss` of the full table's; of the best point's where there is no full table.

    Raises:
        ValueError: no run has that metric on that axis.
    """
    points = drawable(found, axis, metric)
    if not points:
        raise ValueError(f"no run of these has {metric} and {axis}; there is nothing to recommend")
    sign = SIGN[metric]
    full = [p for p in found.get(FULL, []) if p.has(metric)]
    reference = max(full or points, key=lambda p: sign * p.mean(metric))
    close = [p for p in points if sign * (p.mean(metric) - reference.mean(metric)) >= -loss]
    fitting = [p for p in close if p is reference or not reference.has(axis) or p.x(axis) < reference.x(axis)]
    least = min((p.x(axis) for p in fitting), default=0)
    point = max((p for p in fitting if p.x(axis) <= ALIKE * least), key=lambda p: sign * p.mean(metric), default=None)
    return Recommendation(point, reference, metric, loss, axis)


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
