"""python -m bench stream: methods on a stream without end, at shares of what a growing dictionary takes; a row a run.

    python -m bench stream --methods tiered,cafe,hash:rank=4:codec=int8 --shares 0.3,1,5 --rows 1000000 --seeds 2 --out DIR
    python -m bench stream --table --out DIR

Runs are `examples/stream.py`'s own, one after the other on one thread. Budgets are per cent of the dictionary's bytes: of
rows and ids, the least that it could take, of all that it has met by the last row. What was stopped goes on where it was by the
same command.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.methods.sweep import seeds as seeds_of
from bench.methods.sweep_run import Run, example_named, versions_of
from cce_core.tuning import pool
from cce_core.tuning import rows as sweep_rows
from cce_core.tuning.rows import by_kind

METHODS = "dict,tiered,cafe,hash:rank=4:codec=int8:rounding=stochastic,hash,robe,hemb,cce"


def example() -> Any:
    """The example as a module."""
    return example_named("stream")


@functools.cache
def versions() -> dict[str, str]:
    """Everything that a result was made with; `code` is a digest of our own sources."""
    return versions_of("stream.py", "stream_rows.py")


@functools.lru_cache(maxsize=1)
def dictionary_bytes(rows: int, dim: int, seed: int) -> int:
    """The bytes of a dictionary of all ids among the first rows of a stream."""
    stream, sides = example().ClickStream(rows, seed=seed), [set[int](), set[int]()]
    for part in stream.batches(1 << 16):
        for ids, seen in zip((part.users, part.items), sides, strict=True):
            seen.update(np.unique(ids).tolist())
    return sum(map(len, sides)) * (4 * dim + 8)


def shares_of(text: str) -> list[float]:
    """`0.3,1,5` as numbers, per cent.

    Example:
        >>> shares_of("0.3,5")
        [0.3, 5.0]
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected per cent such as 0.3,1,5, got {text!r}") from None
    if not all(0 < share <= 100 for share in found):
        raise argparse.ArgumentTypeError(f"shares are above 0 and at most 100 per cent, got {text!r}")
    return list(dict.fromkeys(found))


def plan(args: argparse.Namespace) -> list[Run]:
    """Every run, each once: seed by seed, budget by budget, so that a part of it shows all methods."""
    runs: dict[str, Run] = {}
    labels = list(dict.fromkeys(args.methods.split(",")))
    for seed in args.seeds:
        full = dictionary_bytes(args.rows, args.dim, seed)
        words = ["--rows", args.rows, "--dim", args.dim, "--batch-size", args.batch_size, "--window", args.window]
        for share, label in itertools.product((None, *args.shares), labels):
            if (label.split(":")[0] == "dict") != (share is None):
                continue
            budget = [] if share is None else ["--num-bytes", max(1, int(full * share / 100))]
            command = tuple(map(str, ["--method", label, *words, "--seed", seed, *budget]))
            run = Run(label, "own" if share is None else f"{share:g} %", command)
            runs.setdefault(run.key, run)
    return list(runs.values())


def start_of(run: Run) -> dict[str, Any]:
    """What is known of a run before it is run."""
    args = example().parse(list(run.command))
    return {
        "run": run.key, "label": run.label, "budget": run.budget, "command": " ".join(run.command), "seed": args.seed,
        "dataset": f"click-stream-{args.rows}", "train_rows": args.rows, "method": args.method.split(":")[0], "dim": args.dim,
        "num_bytes": None if run.budget == "own" else str(args.num_bytes), "batch_size": args.batch_size, "epochs": 1,
        "n_tables": 2, "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **versions(),
    }  # fmt: skip


def failure(run: Run, error: BaseException | str) -> dict[str, Any]:
    """The row of a run that gave no result."""
    from cce_core import BudgetError

    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    status = "does not fit" if isinstance(error, BudgetError) else "failed"
    return {**start_of(run), "status": status, "error": what[:500]}


def execute(run: Run) -> dict[str, Any]:
    """Run it and give its row; an error becomes a row too."""
    import cce_core as cce

    try:
        args = example().parse(list(run.command))
        found = example().job(args, say=lambda _: None)
        if not np.isfinite(found["logloss"]):
            return failure(run, "the log loss is not finite: a smaller lr may help")
        full = dictionary_bytes(args.rows, args.dim, args.seed)
        return {
            **start_of(run), "status": "ok", "auc": found["auc"], "logloss": found["logloss"], "num_params": found["params"],
            "bytes": found["peak"], "train_bytes": found["peak_held"], "full_bytes": full, "ratio": full / found["peak"],
            "best_reachable_auc": found["best_auc"], "seconds": found["seconds"],
            "bytes_by_kind": by_kind({"stored": found["stored"], "resident": found["resident"]}),
            "threads": cce.get_num_threads(),
        }  # fmt: skip
    except Exception as error:
        return failure(run, error)


def table(rows: list[dict[str, Any]]) -> str:
    """AUC and log loss, means over seeds: a line a method, a column a budget.

    A budget's best figure is marked by a star.
    """
    done = [row for row in rows if row["status"] == "ok"]
    budgets = sorted({row["budget"] for row in done}, key=lambda b: float(b.split()[0]) if b != "own" else 1e9)
    labels = list(dict.fromkeys(row["label"] for row in done))
    means = {}
    for label, budget in itertools.product(labels, budgets):
        own = [row for row in done if (row["label"], row["budget"]) == (label, budget)]
        if own:
            auc, loss = (float(np.mean([row[name] for row in own])) for name in ("auc", "logloss"))
            means[label, budget] = auc, loss, len(own)
    best = {b: max(mean[0] for (_, budget), mean in means.items() if budget == b) for b in budgets}
    lines = ["| method | " + " | ".join(budgets) + " |", "|---" * (1 + len(budgets)) + "|"]
    for label in labels:
        cells = []
        for budget in budgets:
            mean = means.get((label, budget))
            star = "*" if mean and mean[0] == best[budget] and budget != "own" else ""
            cells.append(f"{mean[0]:.4f}{star} / {mean[1]:.4f}" if mean else "–")
        lines.append(f"| `{label}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    about = str(__doc__)
    parser = argparse.ArgumentParser(
        prog="python -m bench stream", description=about.split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--methods", default=METHODS, help="as the example's --method has them (default: %(default)s)")
    add(
        "--shares",
        type=shares_of,
        default="0.3,1,5",
        help="budgets in per cent of the dictionary (default: %(default)s)",
    )
    add("--rows", type=int, default=1_000_000, help="rows of the stream (default: %(default)s)")
    add("--seeds", type=seeds_of, default="1", help="how many, or which (default: %(default)s)")
    add("--dim", type=int, default=16, help="floats of a vector (default: %(default)s)")
    add("--batch-size", type=int, default=512, help="rows a step (default: %(default)s)")
    add("--window", type=int, default=100_000, help="rows that are judged together (default: %(default)s)")
    add("--out", required=True, metavar="DIR", help=f"where {sweep_rows.NAME} is, or will be")
    add("--workers", type=int, default=1, help="processes (default: %(default)s)")
    add("--retry", action="store_true", help="run again what failed before, and what other code than this one made")
    add("--table", action="store_true", help="run nothing: show what was found")
    args = parser.parse_args(argv)
    for name in ("rows", "dim", "batch_size", "window", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    return args


def bench(args: argparse.Namespace) -> int:
    """Run what is not yet in the folder; gives how many rows failed."""
    if args.table:
        print(table(sweep_rows.read(args.out)))
        return 0
    runs = plan(args)

    def rows(todo: list[Run]) -> Iterator[dict[str, Any]]:
        return pool.over_processes(todo, execute, failure, args.workers)

    def say(row: dict[str, Any], bar: Any) -> None:
        said = f"AUC {row['auc']:.4f}, log loss {row['logloss']:.4f}" if row["status"] == "ok" else row["error"]
        bar.write(f"{row['label']}, {row['budget']}, seed {row['seed']}: {said}", file=sys.stderr)

    with sweep_rows.Writer(args.out) as out:
        code, ours = versions()["code"], {run.key for run in runs}
        old = [row for row in out.rows if row["run"] in ours]
        again = {row["run"] for row in old if row["code"] != code or row["status"] == "failed"} if args.retry else set()
        made = pool.complete(out, runs, rows, again, say, "stream")
    print(table(made))
    return sum(row["status"] == "failed" for row in made)


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when all is well, 1 where runs failed, 2 and a line for bad input, 130 for Ctrl-C."""
    args = arguments(argv)
    try:
        return int(bench(args) > 0)
    except KeyboardInterrupt:
        pool.end_workers()
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError) as error:
        pool.end_workers()
        print(f"python -m bench stream: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
