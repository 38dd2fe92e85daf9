"""The commands themselves, on Typer: thin callers of the library."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cce_core import _threads, datasets, tuning
from cce_core.commands import compressing, data, inspection, serving
from cce_core.datasets import vectors
from cce_core.method import methods as all_methods
from cce_core.tables import TieredCollection, load
from cce_core.tuning import candidates, gmf, points, pool, trial

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Embedding tables in a hundredth of the memory: how small can yours be?",
)  # fmt: skip

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="file, folder of parts or pattern; or a data set by name, such as ml-100k")
]
User = Annotated[str | None, typer.Option(help="column of users")]
Item = Annotated[str | None, typer.Option(help="column of items")]
Label = Annotated[
    str | None, typer.Option(help="column of labels, 0 or 1 (without: all are positives, negatives are drawn)")
]
Implicit = Annotated[bool, typer.Option("--implicit", help="all rows are positives: as without --label")]
Time = Annotated[str | None, typer.Option(help="column of times: the latest tenth is held out, else a random one")]
Above = Annotated[float | None, typer.Option(help="with --label, for ratings: those above are positives")]
Dim = Annotated[int, typer.Option(min=1, help="floats of a vector")]
Epochs = Annotated[int, typer.Option(min=1, help="passes over the data")]
SplitSeed = Annotated[int, typer.Option(min=0, help="of the held-out rows and drawn negatives")]


def source(
    path: str,
    user: str | None,
    item: str | None,
    label: str | None,
    implicit: bool,
    time: str | None,
    above: float | None,
    seed: int,
) -> data.Source:  # fmt: skip
    """What was asked for; contradictions are refused."""
    if implicit and label is not None:
        raise ValueError(
            "--implicit says that all rows are positives, --label names a column that says which are: give one"
        )
    if above is not None and label is None:
        raise ValueError("--above is a bound for the column that --label names: name it")
    return data.Source(path, user, item, label, time, above, seed)


@app.command()
def sweep(
    path: Data,
    user: User = None,
    item: Item = None,
    label: Label = None,
    implicit: Implicit = False,
    time: Time = None,
    above: Above = None,
    methods: Annotated[str, typer.Option(help="candidates, with commas")] = ",".join(candidates.DEFAULT),
    budgets: Annotated[
        str | None, typer.Option(help="bytes of both tables, with commas (1/200, 1/100, 1/50 of full)")
    ] = None,
    dim: Dim = 32,
    epochs: Epochs = 8,
    seeds: Annotated[int, typer.Option(min=1, help="of the finalists")] = 3,
    split_seed: SplitSeed = 1,
    out: Annotated[Path, typer.Option(help="folder of results and page; a stopped sweep goes on there")] = Path(
        "sweep"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="processes (the cores)")] = None,
    scheduler: Annotated[str | None, typer.Option(help="a Dask cluster's address, instead of processes")] = None,
) -> None:
    """Find the smallest tables that still work: every method at several budgets, by successive halving, and a page to read."""
    asked = source(path, user, item, label, implicit, time, above, split_seed)
    split, _ = asked.read()
    sizes = None if budgets is None else [whole(part) for part in budgets.split(",")]

    def command(row: dict[str, Any]) -> str:
        return training_line(asked, row)

    results = tuning.sweep(
        split, budgets=sizes, methods=methods, dim=dim, epochs=epochs, seeds=seeds, out=out,
        workers=workers or pool.cores(), scheduler=scheduler, command=command,
    )  # fmt: skip
    tell(results, out)


def whole(text: str) -> int:
    """A budget of the command line."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"--budgets must be whole numbers of bytes with commas, such as 50000,100000; got {text!r}"
        ) from None


def training_line(asked: data.Source, row: dict[str, Any]) -> str:
    """The command that trains a row's tables."""
    words = dict(word.split("=", 1) for word in str(row["command"]).split() if "=" in word)
    own = [f"{key}={words[key]}" for key in candidates.TRAINING if key in words]
    method = ":".join([row["label"], *own])
    budget = [] if row["num_bytes"] is None else ["--num-bytes", row["num_bytes"]]
    more = ["--epochs", words["epochs"], "--dim", words["dim"], "--seed", str(row["seed"]), "--save", "tables"]
    return data.line("train", *asked.words, "--method", method, *budget, *more)


def tell(results: tuning.Results, out: Path) -> None:
    """What was found: the data's portrait, a table, the sentence, its command, and where the page is."""
    results.to_html(out / "index.html")
    for name, text in results.portrait:
        typer.echo(f"{name:<28} {text}")
    typer.echo(f"\n{results}")
    if (best := results.recommend().point) is not None:
        typer.echo("\n    " + results.command(best.runs[0]).replace("\n", "\n    "))
    typer.echo(f"\npage: {out / 'index.html'}")


@app.command()
def train(
    path: Data,
    save: Annotated[Path, typer.Option(help="folder for both tables, and the lists of their ids")],
    method: Annotated[str, typer.Option(help="such as vq:rank=4:lr=0.01, as a sweep names it")] = candidates.DEFAULT[0],
    num_bytes: Annotated[int | None, typer.Option(min=1, help="of both tables (1/100 of full)")] = None,
    user: User = None,
    item: Item = None,
    label: Label = None,
    implicit: Implicit = False,
    time: Time = None,
    above: Above = None,
    dim: Dim = 32,
    epochs: Epochs = 8,
    patience: Annotated[int, typer.Option(min=1, help="epochs without a better AUC after which it ends")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="of the tables and of the training")] = 1,
    split_seed: SplitSeed = 1,
) -> None:
    """Train a table for the users and one for the items, and save those of the best epoch."""
    split, ids = source(path, user, item, label, implicit, time, above, split_seed).read()
    one = candidates.candidate(method)
    vocabs = {"users": split.n_users, "items": split.n_items}
    runner = trial.Runner(vocabs, dim, epochs, trial.usual_batch(len(split.train)), split, None)
    budgeted = any(m.name == one.method and m.budgeted for m in all_methods())
    budget = (num_bytes or max(1, runner.full_bytes // 100)) if budgeted else None
    run = trial.Trial(one, budget, seed, 1.0, ())
    tables = runner.tables(run)
    settings = dataclasses.replace(runner.settings(run), patience=patience)
    result = gmf.fit((tables["users"], tables["items"]), split, settings, typer.echo, keep_best=True, show=None)
    if not result.best:
        raise ValueError("no epoch gave a finite AUC: a smaller lr may help, such as --method vq:lr=0.001")
    save.mkdir(parents=True, exist_ok=True)
    for name, table in zip(vocabs, result.best, strict=True):
        to = save / f"{name}.safetensors"
        table.save(to)
        if name in ids:
            data.write_ids(to, ids[name])
    stored = sum(table.ledger().total for table in result.best)
    typer.echo(
        f"AUC {result.auc:.4f}, log loss {result.logloss:.4f} (epoch {result.best_epoch}); {stored:,} bytes stored, "
        f"1/{runner.full_bytes / stored:.0f} of the full tables, {result.train_bytes:,} at most while training\n"
        f"saved: {', '.join(str(save / f'{name}.safetensors') for name in vocabs)}"
    )


@app.command()
def compress(
    path: Annotated[
        Path, typer.Argument(metavar="VECTORS", help=".npy, .npz, safetensors, Parquet, word2vec or GloVe")
    ],
    ratio: Annotated[float | None, typer.Option(help="times smaller than float32 (50)")] = None,
    num_bytes: Annotated[int | None, typer.Option(min=1, help="bytes of the table, instead of a ratio")] = None,
    method: Annotated[str, typer.Option(help="auto, or one of `cce methods`")] = "auto",
    out: Annotated[Path | None, typer.Option(help="file of the table (VECTORS with .cce.safetensors)")] = None,
    kind: Annotated[str, typer.Option(help=f"of the file: {', '.join(vectors.KINDS)}")] = "auto",
    name: Annotated[str | None, typer.Option(help="array, tensor or column, where there are several")] = None,
    words: Annotated[Path | None, typer.Option(help="file with the name of each row, one a line")] = None,
    encoding: Annotated[str, typer.Option(help="of words")] = "utf-8",
    duplicates: Annotated[str, typer.Option(help="words that come twice: error, or first")] = "error",
    queries: Annotated[int, typer.Option(min=0, help="rows held out to measure by; 0 measures nothing")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the table and of the held-out rows")] = 0,
) -> None:
    """Compress vectors that were trained elsewhere, such as word vectors, and say what is left of them."""
    start = time.perf_counter()
    settings: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "words": words,
        "encoding": encoding,
        "duplicates": duplicates,
    }
    found = vectors.read_vectors(path, **settings)
    table, kept = compressing.made(found, ratio, num_bytes, method, seed, queries, 10)
    files = compressing.saved(table, found, out or path.with_name(f"{path.name}.cce.safetensors"))
    typer.echo(compressing.told(table, found, kept, files, start))


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="a saved table")]) -> None:
    """Say what a saved table is: its spec, every byte, how many ids share a row, its digest."""
    typer.echo(inspection.described(load(file)))


@app.command()
def lookup(
    file: Annotated[Path, typer.Argument(help="a saved table")],
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID…", help="as in the data (words), if their list is beside the table; else codes"),
    ],
) -> None:
    """Print the vectors of ids, a line each: the id, then its floats."""
    table = load(file)
    if isinstance(table, TieredCollection):
        raise ValueError(
            f"{file} holds {len(table.tables)} tables with one memory; in Python, load(file)[name].lookup(ids)"
        )
    for one, vector in zip(ids, table.lookup(data.codes_of(file, ids)), strict=True):
        typer.echo("\t".join([one, *(f"{x:.6g}" for x in vector)]))


app.command()(serving.serve)


@app.command()
def methods() -> None:
    """List the methods, and the named combinations."""
    for method in all_methods():
        typer.echo(f"{method.name:<10} {method.summary}; {method.paper}")
    typer.echo("")
    for name, text in candidates.NAMED.items():
        typer.echo(f"{name:<12} {text}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("cce-demo"),
    rows: Annotated[int, typer.Option(min=1000, help="interactions that are drawn")] = 60_000,
) -> None:
    """Show all of it on data that are drawn here, in about a minute: a sweep, its page, and what it recommends."""
    split = datasets.Synthetic(rows, 2000, 2000, dim=4, user_zipf=0.5, bias=-1.2, seed=1).split(rows // 10)
    _threads.set_num_threads(1)
    methods = "vq:rank=4:lr=0.02:weight_decay=0.05,ldim:codec=int8:lr=0.02,cce:codec=int8:n_chunks=2:rank=2,hash"
    results = tuning.sweep(split, budgets=[6_000, 12_000, 24_000], methods=methods, dim=16, epochs=4, seeds=2, out=out)
    typer.echo(f"drawn: {points.size(4 * 16 * 4000)} of full tables\n")
    tell(results, out)
