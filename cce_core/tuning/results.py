"""What a sweep found: its rows as points, a table, a frontier, a recommendation and a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from cce_core import _check
from cce_core.tuning import page, rows
from cce_core.tuning.candidates import candidate
from cce_core.tuning.points import AXES, METRICS, SIGN, Point, Recommendation, frontier, points, recommend, size


def python_lines(row: dict[str, Any]) -> str:
    """The lines of Python that make a row's tables."""
    words = dict(word.split("=", 1) for word in str(row["command"]).split() if "=" in word)
    vocabs = [int(one.rpartition(":")[2]) for one in words["tables"].split(",")]
    own = "".join(f", {key}={value!r}" for key, value in candidate(row["label"]).table)
    training = " ".join(
        f"{key}={words[key]}" for key in ("lr", "weight_decay", "batch_size", "last_cluster") if key in words
    )
    lines = []
    for n in vocabs:
        budget = "" if row["num_bytes"] is None else f", num_bytes={max(1, int(row['num_bytes']) * n // sum(vocabs))}"
        lines.append(f'make_table("{row["method"]}", {n}, {row["dim"]}{budget}{own})')
    return "\n".join([*lines, *([f"# {training}"] if training else [])])


class Results:
    """What a sweep found.

    Attributes:
        rows: a dict per run, finished or not, with the columns of `results.csv`; `share` is below 1 for runs of a part of the
            training, by which candidates were chosen.
        points: by label, runs that differ in their seed alone; of the settings of a method at a budget the best, after a whole
            training.
        portrait: what is known of the data, as pairs of a name and a text.

    Example:
        >>> from cce_core import tuning
        >>> from cce_core.datasets import Synthetic
        >>> split = Synthetic(2000, 50, 40, dim=4, seed=1).split(400)
        >>> results = tuning.sweep(split, budgets=[1500], methods=["hash", "cce"], dim=8, epochs=2, seeds=1)
        >>> sorted(point.label for line in results.points.values() for point in line)[0]
        'cce'
        >>> best = results.recommend(loss=1.0)
        >>> best.point.x("bytes") <= 1500, str(best).startswith("Your two tables take 2.9 KB. ")
        (True, True)
    """

    def __init__(
        self,
        found: Sequence[dict[str, Any]],
        title: str = "",
        command: Callable[[dict[str, Any]], str] = python_lines,
        portrait: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.rows, self.command, self.portrait = list(found), command, list(portrait)
        self.points = best_settings(points(self.rows))
        self.title = title or str(next(iter(self.points.values()))[0].runs[0]["dataset"])

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Results:
        """Those of a folder that a sweep was given as `out`.

        Raises:
            FileNotFoundError: no sweep was there.
            ValueError: its rows are another program's, or none is finished.
        """
        return cls(rows.read(_check.path("folder", folder)))

    @property
    def metric(self) -> str:
        """By what the results are judged: AUC if there is one, else the caller's score, else log loss."""
        every = [p for line in self.points.values() for p in line]
        return next(name for name in ("auc", "score", "logloss") if any(p.has(name) for p in every))

    def frontier(self, axis: str = "bytes", metric: str | None = None) -> list[Point]:
        """The points that nothing smaller equals, from small to large.

        Args:
            axis: "bytes" as stored, "train_bytes" or "num_params".
            metric: "auc", "logloss" or "score"; None takes `metric`.
        """
        return frontier(self.points, _check.choice("axis", axis, tuple(AXES)), self._metric(metric))

    def recommend(self, loss: float = 0.005, axis: str = "bytes", metric: str | None = None) -> Recommendation:
        """The smallest point that loses at most `loss` of what the full tables reach; `str()` of it is a sentence.

        Raises:
            ValueError: the loss is below 0, or nothing was measured.
        """
        loss = _check.number("loss", loss, least=0)
        return recommend(self.points, loss, self._metric(metric), _check.choice("axis", axis, tuple(AXES)))

    def table(self) -> list[dict[str, Any]]:
        """A dict per point, from small to large: label, budget, seeds, sizes, and each metric's mean, least and most."""
        made = []
        for point in sorted((p for line in self.points.values() for p in line), key=lambda p: p.x("bytes")):
            row: dict[str, Any] = {"label": point.label, "budget": point.budget, "seeds": len(point.runs)}
            row |= {axis: point.x(axis) for axis in AXES if point.has(axis)}
            for metric in filter(point.has, METRICS):
                row[metric], row[f"{metric}_spread"] = point.mean(metric), point.spread(metric)
            made.append(row)
        return made

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The page that shows it all, without a network; written to `path` too, if one is given."""
        text = page.html(self.points, self.title, self.command, self.portrait)
        if path is not None:
            _check.path("path", path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        metric, edge = self.metric, {id(p) for p in self.frontier()}
        lines = [f"{'method':<36} {'stored':>9} {'training':>9} {'seeds':>5} {metric:>8}"]
        for point in sorted((p for line in self.points.values() for p in line), key=lambda p: p.x("bytes")):
            training = size(point.x("train_bytes")) if point.has("train_bytes") else ""
            mark = "  frontier" if id(point) in edge else ""
            value = f"{point.mean(metric):8.4f}" if point.has(metric) else f"{'':8}"
            lines.append(
                f"{point.label:<36} {size(point.x('bytes')):>9} {training:>9} {len(point.runs):>5} {value}{mark}"
            )
        return "\n".join([*lines, str(self.recommend())])

    def _metric(self, metric: str | None) -> str:
        return self.metric if metric is None else _check.choice("metric", metric, tuple(METRICS))


def best_settings(found: dict[str, list[Point]]) -> dict[str, list[Point]]:
    """Of the points of one method at one budget the best: first by its number of seeds, then by its mean."""
    kept: dict[str, list[Point]] = {}
    for label, line in found.items():
        groups: dict[str, list[Point]] = {}
        for point in line:
            groups.setdefault(point.budget, []).append(point)
        kept[label] = [max(group, key=_rank) for group in groups.values()]
    return kept


def _rank(point: Point) -> tuple[int, float]:
    metric = next(name for name in ("auc", "score", "logloss") if point.has(name))
    return len(point.runs), SIGN[metric] * point.mean(metric)
