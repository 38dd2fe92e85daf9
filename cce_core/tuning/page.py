"""One page that holds a sweep's results, its program and its style: it opens anywhere and asks no network for anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cce_core.tuning import points
from cce_core.tuning.points import AXES, METRICS, SIGN, Point

TEMPLATE = Path(__file__).parent / "page.html"
SHOWN = (
    "run", "seed", "auc", "logloss", "score", "best_epoch", "num_params", "bytes", "train_bytes", "full_bytes",
    "bytes_by_kind", "user_rank", "item_rank", "codec", "epochs", "seconds", "cce_core", "code",
)  # fmt: skip
LOSSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
FIRST = 6  # methods that are drawn before the reader picks any


def html(
    found: dict[str, list[Point]],
    title: str,
    command: Callable[[dict[str, Any]], str],
    portrait: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as text; what is in the rows cannot end its script.

    Args:
        found: the points of every method.
        title: what was swept.
        command: the command line, or the lines of Python, that make a run again.
        portrait: what is to be said of the data, as pairs of a name and a value.
    """
    everything = [p for line in found.values() for p in line]
    axes = {name: text for name, text in AXES.items() if any(p.has(name) for p in everything)}
    metrics = {name: text for name, text in METRICS.items() if any(p.has(name) for p in everything)}
    views = {
        f"{axis} {metric}": {
            "frontier": [[p.label, found[p.label].index(p)] for p in points.frontier(found, axis, metric)],
            "first": points.nearest(found, axis, metric, FIRST),
        }
        for axis in axes
        for metric in metrics
    }
    page = {
        "title": title,
        "about": about(found),
        "axes": axes,
        "metrics": metrics,
        "sign": {name: SIGN[name] for name in metrics},
        "series": series(found, command),
        "views": views,
        "advice": advice(found, axes, metrics, command),
        "portrait": list(portrait),
    }
    data = json.dumps(page, allow_nan=False, separators=(",", ":"))
    for letter, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(letter, code)
    return TEMPLATE.read_text("utf-8").replace("/*DATA*/", data)


def about(found: dict[str, list[Point]]) -> str:
    """How much was run, in words.

    Example:
        >>> about({"cce": [Point("cce", "", ({}, {})), Point("cce", "", ({},))]})
        '1 method, 3 runs, 1 to 2 seeds each'
    """
    counts = sorted({len(p.runs) for line in found.values() for p in line})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = sum(len(p.runs) for line in found.values() for p in line)
    seeds = f"{many} seed{'s' if counts[-1] > 1 else ''} each"
    return f"{len(found)} method{'s' if len(found) > 1 else ''}, {runs:,} run{'s' if runs > 1 else ''}, {seeds}"


def series(found: dict[str, list[Point]], command: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """Methods with their looks, points and runs."""
    look = points.styles(found)
    return [
        {
            "label": label,
            "colour": look[label].colour,
            "onBlack": look[label].on_black,
            "marker": look[label].marker,
            "dash": list(look[label].dash),
            "points": [
                {
                    "budget": p.budget,
                    "runs": [{name: run.get(name) for name in SHOWN} | {"command": command(run)} for run in p.runs],
                }
                for p in line
            ],
        }
        for label, line in found.items()
    ]


def advice(
    found: dict[str, list[Point]],
    axes: dict[str, str],
    metrics: dict[str, str],
    command: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """What to take, for every axis, metric and loss that the reader may pick; the sentence in three parts, the method between."""
    said = []
    for axis in axes:
        for metric in metrics:
            if not points.drawable(found, axis, metric):
                continue
            for loss in LOSSES:
                best = points.recommend(found, loss, metric, axis)
                p, text = best.point, best.sentence
                before, label, after = text.rpartition(f"{p.label} at ") if p else (text, "", "")
                said.append(
                    {
                        "axis": axis,
                        "metric": metric,
                        "loss": loss,
                        "text": [before, label.removesuffix(" at "), " at " + after if label else ""],
                        "sure": best.sure,
                        "point": [p.label, found[p.label].index(p)] if p else None,
                        "command": command(p.runs[0]) if p else "",
                    }
                )
    return said
