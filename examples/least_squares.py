"""Compare CCE for least squares with the bound of its Theorem 3.1: a table, and a picture.

    python examples/least_squares.py --out least_squares.png

X has random singular vectors and singular values that fall geometrically from --condition to 1, Y is Gaussian. What is
left at a step is (loss − optimum) / (‖Y‖² − optimum): 1 before the first step, 0 at the least loss of any table.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before NumPy comes: on matrices as small as these, threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cce_core.theory import Fit, dense_cce, sparse_cce

METHODS: dict[str, Callable[..., Fit]] = {
    "dense, plain noise": functools.partial(dense_cce, noise="plain"),
    "dense, shaped noise": functools.partial(dense_cce, noise="shaped"),
    "sparse (count-sketch)": sparse_cce,
}
# Of Okabe and Ito: told apart by colour-blind readers, and by lightness in print.
COLOURS = dict(zip(METHODS, ("#D55E00", "#0072B2", "#009E73"), strict=True))
MARKERS = dict(zip(METHODS, "osD", strict=True))
LEAST = 1e-14  # what is left below this is rounding


def problem(n: int, d1: int, d2: int, condition: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """X (n, d₁) with singular values from `condition` to 1 and Y (n, d₂)."""
    rng = np.random.default_rng(seed)
    r = min(n, d1)
    U, V = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in (n, d1))
    return (U * np.geomspace(condition, 1, r)) @ V.T, rng.standard_normal((n, d2))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every method on one problem, with as many seeds as asked for: what --json writes and the picture shows."""
    X, Y = problem(args.n, args.d1, args.d2, args.condition, args.seed)
    report: dict[str, Any] = {"arguments": {k: v for k, v in vars(args).items() if k not in ("json", "out")}}
    methods: dict[str, Any] = {}
    with tqdm(total=len(METHODS) * args.seeds, unit="run", disable=None, leave=False) as bar:
        for name, run in METHODS.items():
            fits = []
            for seed in range(args.seed, args.seed + args.seeds):
                fits.append(run(X, Y, args.k, args.steps, seed=seed))
                bar.update()
            fit = fits[0]
            losses, start, optimum = np.array([f.losses for f in fits]), fit.losses[0], fit.optimum
            left = (losses - optimum) / (start - optimum)
            report.update(rank=fit.rank, start=float(start), optimum=optimum)
            methods[name] = {
                "losses": losses.tolist(),
                "left": {
                    "mean": left.mean(axis=0).tolist(),
                    "deviation": left.std(axis=0).tolist(),
                    "least": left.min(axis=0).tolist(),
                    "most": left.max(axis=0).tolist(),
                },
                "rho": fit.rho,
                "bound": None if fit.bound is None else ((fit.bound - optimum) / (start - optimum)).tolist(),
            }
    return report | {"methods": methods}


def heading(args: argparse.Namespace) -> str:
    return (
        f"X ({args.n}, {args.d1}) with singular values from {args.condition:g} to 1; Y ({args.n}, {args.d2}); "
        f"k = {args.k}; seeds: {args.seeds}"
    )


def table(report: dict[str, Any]) -> str:
    """The report for people: some of the steps."""
    last, methods = report["arguments"]["steps"], report["methods"]
    lines = [
        f"loss at step 0: {report['start']:.6g}; least loss of any table: {report['optimum']:.6g}",
        "what is left of the way from the one to the other, mean and standard deviation over the seeds:",
        "",
        " " * 6 + "".join(f"{name:^30}" for name in methods),
        "  step" + "".join(f"{'bound':>10}{'measured':>20}" for _ in methods),
    ]
    steps = sorted({step for step in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step < last} | {last})
    rows = (f"{step:>6}" + "".join(cells(method, step) for method in methods.values()) for step in steps)
    return "\n".join(line.rstrip() for line in [*lines, *rows])


def cells(method: dict[str, Any], step: int) -> str:
    bound = "none" if method["bound"] is None else f"{method['bound'][step]:.3g}"
    mean, deviation = (max(method["left"][part][step], 0) for part in ("mean", "deviation"))
    return f"{bound:>10}{mean:>10.3g} +- {deviation:<6.2g}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture: a line and a band for each method, and a broken line for its bound."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot, ticker

    matplotlib.rcParams.update({"svg.hashsalt": "least_squares", "svg.fonttype": "none", "font.size": 10})
    a, steps = report["arguments"], np.arange(report["arguments"]["steps"] + 1)
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    ends: list[tuple[float, str, str]] = []
    for name, method in report["methods"].items():
        mean, least, most = (np.maximum(method["left"][part], LEAST) for part in ("mean", "least", "most"))
        colour, every = COLOURS[name], max(1, len(steps) // 10)
        axes.fill_between(steps, least, most, color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(steps[::every], mean[::every], MARKERS[name], color=colour, markersize=5, clip_on=False, zorder=3)
        ends.append((float(mean[-1]), name, colour))
        if method["bound"] is not None:
            bound = np.maximum(method["bound"], LEAST)
            axes.plot(steps, bound, color=colour, linewidth=1.5, linestyle=(0, (5, 3)))
            ends.append((float(bound[-1]), f"bound, {name.split(', ')[1]}", colour))
    axes.set_yscale("log")
    axes.set_xlim(0, a["steps"])
    axes.set_ylim(top=1.1)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3) if high < 2000 * low else (1,)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("(loss − optimum) / (‖Y‖² − optimum)")
    axes.set_title("CCE for least squares, and the bound of Theorem 3.1", loc="left", fontweight="bold", pad=34)
    seeds = f"mean of {a['seeds']} seeds, in a band from the least to the most" if a["seeds"] > 1 else "one seed"
    words = (
        f"solid: {seeds}; broken: the bound on the mean\n"
        f"n = {a['n']}, d₁ = {a['d1']}, d₂ = {a['d2']}, k = {a['k']}, condition {a['condition']:g}"
    )
    axes.annotate(words, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=9, color="#555555")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    label_ends(axes, ends)
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(file, format=path.suffix[1:], dpi=160, facecolor="white", metadata=metadata)
    pyplot.close(figure)
    path.write_bytes(file.getvalue())


def label_ends(axes: Any, ends: list[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Write each line's name at its right end, moved down or up where two would touch."""
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((1, y)))[1] for y, _, _ in ends]
    order = np.argsort(heights)[::-1]
    at = np.array(heights)[order]
    for i in range(1, len(at)):
        at[i] = min(at[i], at[i - 1] - gap)
    at[-1] = max(at[-1], 0)
    for i in range(len(at) - 2, -1, -1):
        at[i] = max(at[i], at[i + 1] + gap)
    for height, i in zip(at, order, strict=True):
        axes.annotate(ends[i][1], (1.015, height), xycoords="axes fraction", color=ends[i][2], va="center")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="least_squares.py", description=str(__doc__).split("\n")[0])
    parser.add_argument("--n", type=int, default=400, help="rows of X and Y (default: %(default)s)")
    parser.add_argument("--d1", type=int, default=100, help="columns of X, the ids (default: %(default)s)")
    parser.add_argument("--d2", type=int, default=4, help="columns of Y (default: %(default)s)")
    parser.add_argument("--k", type=int, default=20, help="columns of the sketch, above d2 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each method (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the problem and the first run (default: %(default)s)")
    parser.add_argument(
        "--condition", type=float, default=3.0, help="largest over least singular value (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="draw the picture there: .png or .svg")
    parser.add_argument("--json", metavar="FILE", help="write the losses and bounds there")
    args = parser.parse_args(argv)
    for name in ("n", "d1", "d2", "steps", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed must be between 0 and 2^62 - 1, got {args.seed}")
    if not 1 <= args.condition <= 1e12:
        parser.error(f"--condition must be between 1 and 1e12, got {args.condition:g}")
    if args.out and Path(args.out).suffix not in (".png", ".svg"):
        parser.error(f"--out must end in .png or .svg, got {args.out}")
    if args.out and args.json and Path(args.out) == Path(args.json):
        parser.error(f"--out and --json must be two files, got {args.out} for both")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job."""
    if args.out:  # what can fail fails before the work, not after it
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError("--out needs matplotlib: pip install 'cce-core[plot]'; the table needs none") from error
    for path in filter(None, (args.out, args.json)):
        was_there = Path(path).exists()
        with open(path, "a"):
            pass
        if not was_there:
            Path(path).unlink()
    print(heading(args), flush=True)
    report = measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    if args.out:
        draw(report, Path(args.out))
        print(f"\npicture: {args.out}")
    return report


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when it worked, 2 and one line for bad input, 130 for Ctrl-C."""
    args = parse(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError) as error:
        print(f"least_squares.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
