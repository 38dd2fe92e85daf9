"""python -m bench sweep: every method at every budget, several seeds, over all cores; a row of results.csv a run.

    python -m bench sweep --dataset ml-100k --methods all --budgets 2^4..2^12 --seeds 3 --out DIR
    python -m bench sweep --dataset my_interactions.csv --methods cce,pq-int8 --bytes 2^14..2^17 --out DIR

A sweep that was stopped goes on where it was by the same command. Arguments that are not the sweep's own go to every run:
--epochs, --batch-size, --lr, --interactions and whatever else examples/movielens.py knows.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from bench.methods import sweep_run
from bench.methods.sweep_run import Run
from cce_core.tuning import pool
from cce_core.tuning import rows as sweep_rows
from cce_core.tuning.candidates import NAMED, options

# What a method may be given of its own.
OWN = ("rank", "codec", "rounding", "n_chunks", "last_cluster", "cluster_by", "residual", "dim")
OWN += ("lr", "weight_decay", "batch_size")
SET_HERE = ("--method", "--ppd", "--num-bytes", "--seed", "--json", "--save", "--threads")
_NUMBER = r"(\d+)(?:\^(\d+))?"


def numbers(text: str) -> list[int]:
    """Budgets as people write them: `16,64`, `2^4`, or `2^4..2^12` for every power on the way.

    Example:
        >>> numbers("2^4..2^7,1000")
        [16, 32, 64, 128, 1000]
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(rf"\s*{_NUMBER}(?:\.\.{_NUMBER})?\s*", part)
        if not match:
            raise argparse.ArgumentTypeError(f"expected such as 16,64 or 2^4..2^12, got {part!r}")
        low, power, high, top = (None if g is None else int(g) for g in match.groups())
        if high is None:
            found.append(low ** (1 if power is None else power))
        elif power is None or top is None or low != high or low < 2 or top < power:
            raise argparse.ArgumentTypeError(f"a range is of powers of one number, such as 2^4..2^12, got {part!r}")
        else:
            found += [low**k for k in range(power, top + 1)]
    if min(found) < 1 or max(found) > 2**40:
        raise argparse.ArgumentTypeError(f"a budget is between 1 and 2^40, got {text!r}")
    return list(dict.fromkeys(found))


def seeds(text: str) -> list[int]:
    """`3` is the seeds 1, 2 and 3; `5,6` is these two."""
    if not re.fullmatch(r"\d+(,\d+)*", text) or text == "0":
        raise argparse.ArgumentTypeError(f"expected how many, such as 3, or which, such as 1,2,5; got {text!r}")
    return list(dict.fromkeys(map(int, text.split(",")))) if "," in text else list(range(1, int(text) + 1))


def methods(text: str) -> dict[str, list[str]]:
    """Methods by label, each with its arguments: `cce`, `cce:rank=0`, `narrow-int8`, or `all`.

    Example:
        >>> methods("ldim,narrow-int8")
        {'ldim': ['--method', 'ldim'], 'narrow-int8': ['--method', 'ldim', '--codec', 'int8']}
    """
    import cce_core as cce

    names = [m.name for m in cce.methods()]
    found: dict[str, list[str]] = {}
    for label in [name for part in text.split(",") for name in ([*names, *NAMED] if part == "all" else [part.strip()])]:
        try:
            name, given = options(label)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if unknown := next((key for key in given if key not in OWN), None):
            raise argparse.ArgumentTypeError(
                f"{label!r}: expected such as {name}:rank=4, with one of {', '.join(OWN)}; got {unknown!r}"
            )
        found[label] = ["--method", name]
        for key, value in given.items():
            found[label] += [f"--{key.replace('_', '-')}", value]
    return found


def arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line: the sweep's own arguments, and those of every run."""
    about = str(__doc__)
    parser = argparse.ArgumentParser(
        prog="python -m bench sweep", description=about.split(": ", 1)[1], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--methods", type=methods, default="all", help="such as cce,narrow-int8,cce:rank=0 (default: all)")
    most = "parameters a dimension, such as 2^4..2^12 (16,64,256,1024; none where --bytes or --ratios is given alone)"
    add("--budgets", type=numbers, metavar="B", help=most)
    add(
        "--equal-bytes",
        metavar="METHOD",
        help="run all others also at the real bytes that this one takes at the budgets",
    )
    add(
        "--bytes",
        type=numbers,
        default=[],
        metavar="B",
        help="real bytes a table to run at as well, such as 2^12..2^18",
    )
    add(
        "--ratios",
        type=numbers,
        default=[],
        metavar="R",
        help="real bytes of each table over such numbers, such as 2^5..2^8",
    )
    add("--seeds", type=seeds, default="3", help="how many, or which (default: %(default)s)")
    add("--out", required=True, metavar="DIR", help=f"where {sweep_rows.NAME} is, or will be")
    add("--workers", type=int, help="processes (default: the cores)")
    add("--worker-threads", type=int, default=1, help="threads of each (default: %(default)s)")
    add("--scheduler", metavar="URL", help="run on a Dask cluster instead, such as tcp://host:8786")
    add("--retry", action="store_true", help="run again what failed before, and what other code than this one made")
    args, rest = parser.parse_known_args(argv)
    if args.budgets is None:
        args.budgets = [] if (args.bytes or args.ratios) and not args.equal_bytes else [16, 64, 256, 1024]
    for word in rest:
        if word.split("=")[0] in SET_HERE:
            parser.error(
                f"{word.split('=')[0]} is the sweep's own business: see --methods, --budgets, --bytes, --ratios, --seeds"
            )
    for name in ("workers", "worker_threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.equal_bytes and args.equal_bytes not in args.methods:
        try:
            args.methods |= methods(args.equal_bytes)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --equal-bytes: {error}")
    return args, rest


def planned(args: argparse.Namespace, rest: list[str]) -> list[Run]:
    """Every run, each once: seed by seed, budget by budget, so that a part of the sweep shows all methods."""
    import cce_core as cce

    parse, budgeted = sweep_run.movielens().parse, {m.name: m.budgeted for m in cce.methods()}
    shape = shape_of(parse(rest))
    runs: dict[str, Run] = {}

    def add(label: str, budget: str, *words: object) -> None:
        run = Run(label, budget, sweep_run.command(parse([*rest, *args.methods[label], *map(str, words)])))
        runs.setdefault(run.key, run)

    free = [label for label, words in args.methods.items() if not budgeted[words[1]]]
    others = [label for label in args.methods if label not in free]
    equal = {}
    if args.equal_bytes:
        for ppd in args.budgets:
            sizes = bytes_of(shape, parse([*rest, *args.methods[args.equal_bytes], "--ppd", str(ppd)]))
            if sizes:
                equal[ppd] = (f"bytes of {args.equal_bytes} at {ppd}", sizes)
    for seed in args.seeds:
        for label in free:
            add(label, "own", "--seed", seed)
        for ppd in args.budgets:
            for label in others:
                add(label, f"ppd {ppd}", "--ppd", ppd, "--seed", seed)
            for label in others if ppd in equal else ():
                if label != args.equal_bytes:
                    add(label, equal[ppd][0], "--num-bytes", *equal[ppd][1], "--seed", seed)
        for size in args.bytes:
            for label in others:
                add(label, f"{size} bytes a table", "--num-bytes", size, "--seed", seed)
        for ratio in args.ratios:
            full = (4 * n * parse(rest).dim for n in (shape.n_users, shape.n_items))
            sizes = [max(1, nbytes // ratio) for nbytes in full]
            for label in others:
                add(label, f"{sum(sizes)} bytes of both tables", "--num-bytes", *sizes, "--seed", seed)
    return list(runs.values())


def shape_of(args: argparse.Namespace) -> Any:
    """How many users and items the data set has; that it is at hand is found out here, before anything runs."""
    if args.dataset == "synthetic":
        return SimpleNamespace(n_users=args.vocab, n_items=args.vocab)
    return sweep_run.load(args)


def bytes_of(shape: Any, args: argparse.Namespace) -> tuple[int, int] | None:
    """The real bytes of both tables; None where the budget is too small for the method."""
    import cce_core as cce

    try:
        users, items = sweep_run.movielens().make_tables(shape, args)
    except cce.BudgetError:
        return None
    return users.ledger().total, items.ledger().total


def sweep(args: argparse.Namespace, rest: list[str]) -> dict[str, int]:
    """Run what is not yet in the folder; gives how many rows there are of each status."""
    runs, data_dir = planned(args, rest), sweep_run.movielens().parse(rest).data_dir
    code = sweep_run.versions()["code"]
    with sweep_rows.Writer(args.out) as out:
        ours = {run.key for run in runs}
        if foreign := other_data(out.rows, runs):
            raise ValueError(f"{out.path} holds rows of {foreign}: give every data set a folder of its own")
        old = {row["run"]: row for row in out.rows if row["run"] in ours}
        stale = {key for key, row in old.items() if row["code"] != code}
        again = stale | {key for key, row in old.items() if row["status"] == "failed"} if args.retry else set()
        if stale and not args.retry:
            print(f"{len(stale)} rows were made by another version of the code; --retry runs them again", flush=True)
        made = pool.complete(out, runs, lambda todo: rows(todo, data_dir, args), again, say_failure)
    states = [row["status"] for row in made]
    counts = {status: states.count(status) for status in sweep_rows.STATUSES}
    new = len(runs) - len(old.keys() - again)
    print(f"{len(runs)} runs in {out.path}, {new} of them new: " + ", ".join(f"{n} {s}" for s, n in counts.items()))
    return counts


def say_failure(row: dict[str, Any], bar: Any) -> None:
    """A line for a run that failed."""
    if row["status"] == "failed":
        bar.write(f"{row['label']}, {row['budget']}, seed {row['seed']}: {row['error']}", file=sys.stderr)


def other_data(rows: list[dict[str, Any]], runs: list[Run]) -> str:
    """The data set of rows that were drawn from another one than the runs' is; empty where there is none."""

    def data(words: list[str]) -> str:
        pairs = dict(itertools.pairwise(words))
        return " ".join(pairs[key] for key in ("--dataset", "--interactions", "--vocab") if key in pairs)

    ours = {data(" ".join(run.command).split()) for run in runs}  # as in a row: a file's name may have blanks
    return ", ".join(sorted({data(row["command"].split()) for row in rows} - ours))


def rows(todo: list[Run], data_dir: str | None, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows as they are done, from processes here or from a cluster."""
    run = functools.partial(sweep_run.execute, data_dir=data_dir)
    if args.scheduler:
        return pool.over_cluster(todo, run, sweep_run.failure, args.scheduler)
    return pool.over_processes(todo, run, sweep_run.failure, args.workers or pool.cores(), args.worker_threads)


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when all is well, 1 where runs failed, 2 and a line for bad input, 130 for Ctrl-C."""
    args, rest = arguments(argv)
    try:
        return int(sweep(args, rest)["failed"] > 0)
    except KeyboardInterrupt:
        pool.end_workers()
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        pool.end_workers()
        print(f"python -m bench sweep: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
