"""How small can these tables be? Every candidate at every budget for a short while, and the best of them for the whole."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from cce_core import _check
from cce_core.datasets import Split
from cce_core.method import methods as all_methods
from cce_core.tuning import pool, rows
from cce_core.tuning.candidates import DEFAULT, FULL, Candidate, candidates
from cce_core.tuning.points import SIGN
from cce_core.tuning.portrait import portrait
from cce_core.tuning.results import Results, python_lines
from cce_core.tuning.trial import Runner, Trial, failure, usual_batch

RATIOS = (200, 100, 50)
LEFT = 3  # one of so many methods goes on from a short training to a whole one
LEAST = 3  # and at least so many
FINALISTS = 2  # methods of a budget that are trained with all seeds


def sweep(
    data: Split | Mapping[str, int],
    *,
    budgets: Iterable[int] | None = None,
    methods: str | Sequence[str] = DEFAULT,
    full: str | Sequence[str] | None = FULL,
    train: Callable[..., Any] | None = None,
    dim: int = 32,
    epochs: int = 8,
    batch_size: int | None = None,
    share: float = 0.25,
    seeds: int = 3,
    out: str | os.PathLike[str] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    command: Callable[[dict[str, Any]], str] = python_lines,
    show: bool | None = None,
) -> Results:
    """Find the smallest tables that still work: all methods at several budgets, by successive halving.

    At each budget every candidate is trained for `share` of the whole training (seed 1). The best settings of each method stay,
    and of the methods a third, at least three, are trained wholly; the best two of them also with the other seeds. The full
    tables are the line that they are measured against: their settings are tuned in the same way. Halving and all figures go by
    the best epoch's AUC on `data.valid`, or by what `train` returns.

    Args:
        data: a `Split` (see `cce_core.datasets`), on which a GMF is trained; or, with `train`, each table's vocabulary by name.
        budgets: bytes that all tables together may store, each shared among them as the full tables' bytes are; None takes 1/200,
            1/100 and 1/50 of the full tables' bytes.
        methods: candidates such as "vq:rank=4:lr=0.01", as a list or with commas; see `candidate`.
        full: candidates for the full tables; None leaves them out.
        train: the caller's own training, `train(tables, budget, seed, share, settings) -> measure`, called by name with those of
            the last four that it takes. `tables` holds fresh tables by name, to be trained in place; `budget` is in bytes, None
            for `full`; `share` says how much of the training to do, at most 1; `settings` holds lr, weight_decay, … as the
            candidate has them. It returns a number of which more is better, or a dict with some of "auc", "logloss", "score" and
            "train_bytes". A table of a method that learns must be clustered within: `vq`, in phase "rows", once and late.
        dim: floats of a vector.
        epochs: passes over the data of a whole training.
        batch_size: rows per step; None chooses by the number of rows. A candidate may have its own.
        share: of the whole training, for the first round; 1 trains every candidate wholly.
        seeds: how many of them the finalists have.
        out: a folder for `results.csv`; a sweep that was stopped goes on there.
        workers: processes; with more than one, the program's work must stand under `if __name__ == "__main__"`, and `train` must
            be a function that can be imported.
        scheduler: a Dask cluster's address, instead of processes; `data` must lie where all see the temporary folder.
        command: what the page shows to make a run again; None shows lines of Python.
        show: whether there are progress bars; None shows them on a terminal.

    Returns:
        The `Results`.

    Raises:
        ValueError: a budget below one byte, an unknown candidate, rows of other data in `out`, or no run gave a result.
        BlockingIOError: another sweep is writing into `out`.

    Cost:
        About 1 + candidates · share + 3 to 7 whole trainings per budget, and `seeds` of the full tables.

    Example:
        >>> import numpy as np
        >>> from cce_core import tuning, AdamW
        >>> def train(tables, seed, share, settings):  # a model of one's own: words of one topic come together
        ...     table, rng = tables["words"], np.random.default_rng(seed)
        ...     optimizer = AdamW(lr=settings.get("lr", 0.1), weight_decay=0)
        ...     target = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)
        ...     for step in range(max(4, int(share * 40))):
        ...         seen = table.forward(np.arange(40))
        ...         optimizer.update(table, seen, seen.vectors - target)
        ...         if table.method.learns and step == 20:
        ...             _ = table.cluster()
        ...     return -float(np.square(table.lookup(np.arange(40)) - target).mean())
        >>> results = tuning.sweep({"words": 40}, train=train, budgets=[400], methods="hash,cce:n_chunks=2", dim=8, seeds=1)
        >>> [point.label for point in results.frontier()]
        ['cce:n_chunks=2']
        >>> print(results.recommend(loss=0.1).sentence)
        Your table takes 1.3 KB. cce:n_chunks=2 at ... B loses 0.0... score.
    """
    runner, words = _runner(data, train, dim, epochs, batch_size)
    share = _check.number("share", share, 0, 1, open_at_least=True)
    seeds = _check.integer("seeds", seeds, 1)
    tried, whole = candidates(methods), candidates(full or ())
    budgeted = {method.name: method.budgeted for method in all_methods()}
    if wrong := [str(c) for c in tried if not budgeted[c.method]]:
        raise ValueError(f"{wrong[0]} has no budget: give it in full=, or leave it out")
    given = [runner.full_bytes // ratio for ratio in RATIOS] if budgets is None else list(budgets)
    sizes: list[int | None] = [_check.integer("a budget", size, 1) for size in dict.fromkeys(given)]
    groups = [(size, tried) for size in sizes] + ([(None, whole)] if whole else [])
    make = functools.partial(Trial, context=words)
    with contextlib.ExitStack() as stack:
        writer: rows.Memory | rows.Writer = rows.Memory() if out is None else rows.Writer(_check.path("out", out))
        stack.enter_context(writer)
        _check_foreign(writer, words)
        run = _runs(runner, workers, scheduler, stack)

        def round_of(trials: list[Trial], name: str) -> list[dict[str, Any]]:
            return pool.complete(writer, trials, run, description=name, show=show)

        first = [make(c, size, 1, share) for size, group in groups for c in group]
        short = round_of(first, "all, in short")
        stay = [make(c, size, 1, 1.0) for size, c in _best(first, short, lambda n: max(LEAST, -(-n // LEFT)))]
        long = round_of(stay, "the best, wholly")
        finalists = _best(stay, long, lambda n: FINALISTS)
        last = [make(c, size, seed, 1.0) for seed in range(2, seeds + 1) for size, c in finalists]
        found = short + long + round_of(last, "finalists, all seeds")
    if not any(row["status"] == "ok" for row in found):
        raise ValueError(
            f"no run gave a result; the first said: {found[0]['error']}" if found else "nothing was to be run"
        )
    unique = {row["run"]: row for row in found}
    return Results(
        list(unique.values()), command=command, portrait=[] if runner.split is None else portrait(runner.split)
    )


def _runner(data: Any, train: Any, dim: int, epochs: int, batch_size: int | None) -> tuple[Runner, tuple[str, ...]]:
    """What runs trials, and what they all share in words."""
    dim, epochs = _check.size("dim", dim, 1), _check.integer("epochs", epochs, 1)
    if train is None:
        split = _check.instance(
            "data", data, Split, "a Split (or, with train=, the vocabularies of the tables by name)"
        )
        vocabs = {"users": split.n_users, "items": split.n_items}
        batch = usual_batch(len(split.train)) if batch_size is None else _check.integer("batch_size", batch_size, 1)
        of = f"data={split.name.replace(' ', '_')}:{_digest(split)}"
        words: tuple[str, ...] = (of, f"epochs={epochs}", f"batch={batch}")
    else:
        _check.callback("train", train)
        data = _check.instance("data", data, Mapping, "the vocabulary of each table by name, such as {'words': 50_000}")
        vocabs = {str(name): _check.size(f"the vocabulary of {name}", n, 1) for name, n in data.items()}
        if not vocabs:
            raise ValueError("data must name at least one table, such as {'words': 50_000}; got none")
        split, batch = None, 0
        words = (f"train={getattr(train, '__qualname__', type(train).__name__).replace(' ', '_')}",)
    tables = ",".join(f"{name}:{n}" for name, n in vocabs.items()).replace(" ", "_")
    return Runner(vocabs, dim, epochs, batch, split, train), (*words, f"dim={dim}", f"tables={tables}")


def _digest(split: Split) -> str:
    """What data are known by."""
    found = xxhash.xxh3_64()
    for part in (split.train, split.valid):
        for column in (part.users, part.items, part.labels):
            found.update(np.ascontiguousarray(column).view(np.uint8).data)
    return found.hexdigest()


def _check_foreign(writer: Any, words: tuple[str, ...]) -> None:
    """Refuse a folder with rows of other data."""
    for row in writer.rows:
        if words[0] not in str(row["command"]).split():
            raise ValueError(f"{writer.path} holds rows of {row['dataset']}: give every data set a folder of its own")


def _runs(runner: Runner, workers: int, scheduler: str | None, stack: contextlib.ExitStack) -> Any:
    """What runs a list of trials: here, in processes, or on a cluster."""
    n = _check.integer("workers", workers, 1)
    failed = functools.partial(failure, runner)
    if scheduler is None and n == 1:
        return lambda trials: pool.here(trials, runner)
    if (kept := runner.spill()) is not None:
        stack.enter_context(kept)
    if scheduler is not None:
        return lambda trials: pool.over_cluster(trials, runner, failed, scheduler)
    return lambda trials: pool.over_processes(trials, runner, failed, n)


def _best(
    trials: list[Trial], found: list[dict[str, Any]], most: Callable[[int], int]
) -> list[tuple[int | None, Candidate]]:
    """For each budget the best candidate of each method, and of those the best `most(how many there are)`."""
    groups: dict[int | None, dict[str, tuple[float, Candidate]]] = {}
    for trial, row in zip(trials, found, strict=True):
        if row["status"] != "ok":
            continue
        metric = next(name for name in ("auc", "score", "logloss") if row[name] is not None)
        value, group = SIGN[metric] * row[metric], groups.setdefault(trial.budget, {})
        label = trial.candidate.label
        if label not in group or value > group[label][0]:
            group[label] = value, trial.candidate
    return [
        (size, c)
        for size, group in groups.items()
        for _, c in sorted(group.values(), key=lambda pair: -pair[0])[: most(len(group))]
    ]
