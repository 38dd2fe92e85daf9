"""python -m bench plot DIR: a sweep's results as pictures, as a page and as a table.

Draws into DIR: AUC and log loss against stored bytes, training bytes and parameters, in PNG and SVG, and index.html, a page of
its own that needs no network. Where DIR has a README.md with a line <!-- table -->, the table of who wins at which bytes is put
there. Rows that an older sweep made have no training bytes; --training-bytes finds them, by a short run of each configuration.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from bench.methods import sweep_run
from cce_core.tuning import page, points, rows
from cce_core.tuning.points import FULL, Point

AXES = {
    "bytes": "stored bytes of both tables",
    "training": "most bytes of both tables while training",
    "params": "parameters of both tables",
}
METRICS = {"auc": "validation AUC", "logloss": "validation log loss (nats)"}
COLUMN = {"bytes": "bytes", "training": "train_bytes", "params": "num_params"}
NEAR = 0.04  # what the upper panel shows below the best AUC, or above the best log loss
TABLE = re.compile(r"<!-- table -->\n.*?<!-- end of table -->", re.DOTALL)


def draw(found: dict[str, list[Point]], metric: str, axis: str, stem: Path, title: str) -> list[Path]:
    """One picture, mean and least to most over seeds, as PNG and SVG: above, the best from near; below, all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "cce"  # the same rows give the same file
    figure, (near, whole) = pyplot.subplots(
        2, 1, figsize=(10, 8.5), sharex=True, layout="constrained", height_ratios=(2, 3)
    )
    try:
        for ax in (near, whole):
            lines(ax, found, metric, axis)
            ax.set_ylabel(METRICS[metric])
            ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        means = [p.mean(metric) for line in found.values() for p in line]
        best, sign = (max(means), -1) if metric == "auc" else (min(means), 1)
        near.set_ylim(*sorted((best - 0.15 * sign * NEAR, best + sign * NEAR)))
        near.set_title(title)
        whole.set_xscale("log")
        whole.set_xlabel(AXES[axis])
        handles, labels = whole.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, handlelength=4)
        files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
        figure.savefig(files[0], dpi=100, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    finally:
        pyplot.close(figure)
    return files


def lines(ax: Any, found: dict[str, list[Point]], metric: str, axis: str) -> None:
    """Every method's line, and the full table's from side to side."""
    look = points.styles(found)
    for label, line in found.items():
        if label == FULL:
            continue
        style, ours = look[label], label == "cce"
        ordered = sorted((p for p in line if p.has(COLUMN[axis])), key=lambda p: p.x(COLUMN[axis]))
        if not ordered:
            continue
        means = [p.mean(metric) for p in ordered]
        low, high = zip(*(p.spread(metric) for p in ordered), strict=True)
        ax.errorbar(
            [p.x(COLUMN[axis]) for p in ordered], means,
            yerr=[[m - v for m, v in zip(means, low)], [v - m for m, v in zip(means, high)]],
            label=label, color=style.colour, marker=style.marker, markersize=6 if ours else 4.5, capsize=2,
            linewidth=2.6 if ours else 1.3, elinewidth=0.8, zorder=5 if ours else 3,
            linestyle=(0, style.dash) if style.dash else "solid",
        )  # fmt: skip
    for point in found.get(FULL, []):
        if not point.has(COLUMN[axis]):
            continue
        size = f"{point.x(COLUMN[axis]):,.0f} {'parameters' if axis == 'params' else 'B'}"
        ax.axhline(point.mean(metric), color="#555555", linestyle=(0, (2, 2)), label=f"full table ({size})", zorder=2)
        ax.axhspan(*point.spread(metric), color="#555555", alpha=0.12, zorder=1)


def seeds_of(found: dict[str, list[Point]]) -> str:
    """How many seeds a point has, in words."""
    n = sorted({len(p.runs) for line in found.values() for p in line})
    many = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    return f"mean and range of {many} seed{'s' if n[-1] > 1 else ''}"


def plot(folder: str | os.PathLike[str], only: list[str] | None = None, reference: str = "cce") -> list[Path]:
    """Everything that is drawn of a folder; gives the files.

    Raises:
        FileNotFoundError: there is no sweep.
        ValueError: its rows are another program's, of several data sets or none finished; or a method is not among them.
        OSError: the folder cannot be written.
    """
    where = Path(folder)
    everything = points.points(rows.read(where))
    for label in only or []:
        if label not in everything:
            raise ValueError(f"no finished run of {label!r} in {where}; there are {', '.join(everything)}")
    found = {label: line for label, line in everything.items() if not only or label in only or label == FULL}
    dataset = next(iter(everything.values()))[0].runs[0]["dataset"]
    title, files = f"{dataset}: {seeds_of(found)}", []
    drawn = [p for line in found.values() for p in line]
    for metric in METRICS:
        for axis in (name for name, column in COLUMN.items() if any(p.has(column) for p in drawn)):
            files += draw(found, metric, axis, where / f"{metric}-{axis}", title)
    (where / "index.html").write_text(page.html(found, f"{dataset}", sweep_run.command_line))
    files.append(where / "index.html")
    text = points.table(everything, reference)
    readme = where / "README.md"
    if readme.exists() and TABLE.search(old := readme.read_text()):
        readme.write_text(TABLE.sub(lambda _: f"<!-- table -->\n{text}\n<!-- end of table -->", old))
        files.append(readme)
    print(text)
    return files


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when it worked, 2 and a line for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench plot", description=str(__doc__).split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", help=f"a sweep's folder, with its {rows.NAME}")
    parser.add_argument("--methods", metavar="M", help="draw these alone, such as cce,ldim (default: all)")
    parser.add_argument("--reference", default="cce", metavar="M", help="whose bytes the table goes by (cce)")
    add = parser.add_argument
    add("--training-bytes", action="store_true", help="find them first where they are missing, and write them down")
    add("--data-dir", metavar="D", help="with it: the folder that holds the data set (then CCE_DATA)")
    args = parser.parse_args(argv)
    only: Any = [part.strip() for part in args.methods.split(",")] if args.methods else None
    try:
        if args.training_bytes:
            print(f"training bytes of {sweep_run.fill_training_bytes(args.folder, args.data_dir)} rows found\n")
        files = plot(args.folder, only, args.reference)
    except ImportError:
        print("python -m bench plot: error: it needs matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"python -m bench plot: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"\nwritten to {args.folder}: {', '.join(path.name for path in files)}")
    return 0
