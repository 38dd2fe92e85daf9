"""One page that holds a sweep's results, its program and its style: it opens anywhere and asks no network for anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.methods import plot_data, sweep_run
from bench.methods.plot_data import Point

TEMPLATE = Path(__file__).parent / "page.html"
SHOWN = (
    "run", "seed", "auc", "logloss", "best_epoch", "num_params", "bytes", "full_bytes", "bytes_by_kind", "user_rank",
    "item_rank", "codec", "epochs", "seconds", "cce_core", "code",
)  # fmt: skip


def series(found: dict[str, list[Point]]) -> list[dict[str, Any]]:
    """The data of the page: methods with their looks, points and runs."""
    look = plot_data.styles(found)
    return [
        {
            "label": label,
            "colour": look[label].colour,
            "marker": look[label].marker,
            "dash": list(look[label].dash),
            "points": [
                {
                    "budget": p.budget,
                    "runs": [
                        {name: run.get(name) for name in SHOWN}
                        | {"command": sweep_run.spelled(str(run["command"]).split())}
                        for run in p.runs
                    ],
                }
                for p in line
            ],
        }
        for label, line in found.items()
    ]


def html(found: dict[str, list[Point]], title: str) -> str:
    """The page as text; what is in the rows cannot end its script."""
    data = json.dumps({"title": title, "series": series(found)}, allow_nan=False, separators=(",", ":"))
    for letter, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(letter, code)
    return TEMPLATE.read_text().replace("/*DATA*/", data)
