"""Train a recommender on MovieLens with a compressed table for the users and one for the items, on NumPy and Numba alone.

    python examples/movielens.py --method cce
    python examples/movielens.py --method cce --dataset my_interactions.csv

The model is GMF, σ(⟨user, item⟩); the gradient of its cross-entropy is one line. Each user's last two ratings are held
back to judge by. Ratings above 3 are likes, below 3 dislikes. Of interactions without ratings a random tenth is held back,
and each is told from a negative that is drawn beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before NumPy comes: on matrices as small as these, threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cce_core as cce
from cce_core import tuning
from cce_core.datasets import Split
from cce_core.tuning import GMF, Result, Settings, learn_from_full

# What data sets of either kind are trained with; few pairs want small batches.
OF_RATINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2, "epochs": 20, "batch_size": 256}
OF_PAIRS: dict[str, Any] = {"lr": 5e-3, "weight_decay": 1e-2, "epochs": 8, "batch_size": 2048}
LARGE: dict[str, dict[str, Any]] = {"gowalla": {"batch_size": 4096}}
# A row of full width for every id learns by heart what is met few times; a strong decay keeps ids alike until data tell
# them apart. Narrow rows need less of it, and larger rates.
WIDE = {"weight_decay": 0.5}
VQ_OF_RATINGS, VQ_OF_PAIRS = {"lr": 2e-3, "weight_decay": 0.5}, {**WIDE, "rank": 0}
NARROW_VQ_OF_PAIRS = {"lr": 1e-2, "weight_decay": 0.05}


def make_tables(split: Split, args: argparse.Namespace) -> tuple[cce.Table, cce.Table]:
    """A table for the users and one for the items, each within the budget."""
    budgets: list[dict[str, Any]] = [{"num_params": args.ppd * args.dim}] * 2
    if args.num_bytes:
        budgets = [{"num_bytes": args.num_bytes[0]}, {"num_bytes": args.num_bytes[-1]}]
    if any(method.name == args.method and not method.budgeted for method in cce.methods()):
        budgets = [{}, {}]  # such as the table that the others are measured against: as large as it is
    own = {"n_chunks": args.n_chunks, "rank": args.rank, "codec": args.codec, "rounding": args.rounding}
    users, items = (
        cce.make_table(args.method, n, args.dim, seed=2 * args.seed + k, **own, **budgets[k])
        for k, n in enumerate((split.n_users, split.n_items))
    )
    return users, items


def settings_of(args: argparse.Namespace) -> Settings:
    """How the command line wants the model to be trained."""
    return Settings(
        args.epochs, args.batch_size, args.lr, args.weight_decay, args.last_cluster,
        args.cluster_by == "counts", args.residual == "mean", args.seed,
    )  # fmt: skip


def train(model: GMF, split: Split, args: argparse.Namespace, say: Any = print) -> Result:
    """Train, cluster between epochs, and judge after each; the best epoch's tables are saved where that is asked for."""
    keep = (lambda tables: save(tables, Path(args.save))) if args.save else None
    return tuning.train(model, split, settings_of(args), say, on_best=keep, show=None if say is print else False)


def save(tables: dict[str, cce.Table], folder: Path) -> None:
    """Write both tables; Ctrl-C waits until they are a pair again."""
    with interrupts_held():
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.save(folder / f"{name}.safetensors")


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Put off Ctrl-C until the block is done."""
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *event: came.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])


def rated(dataset: str) -> bool:
    """Whether a data set has ratings; the others, files of one's own among them, are pairs alone."""
    return dataset == "synthetic" or dataset in set(cce.datasets.names()) - {"gowalla", "book-crossing"}


def load_data(args: argparse.Namespace) -> Split:
    """The data set asked for or, where it is not at hand, a synthetic one of its shape; the first line says which."""
    if args.dataset == "synthetic":
        return drawn(args)
    try:
        split = cce.datasets.load(args.dataset, data_dir=args.data_dir, download=args.download, seed=args.seed)
    except (FileNotFoundError, ConnectionError) as error:
        if not rated(args.dataset):
            raise
        why = (
            "the download failed" if isinstance(error, ConnectionError) else "not on this machine (--download gets it)"
        )
        print(f"{args.dataset}: {why}; training on synthetic-{args.dataset}, of the same shape, instead", flush=True)
        return cce.datasets.load(f"synthetic-{args.dataset}", seed=args.seed)
    print(f"{split.name}: {len(split.train):,} training and {len(split.valid):,} validation rows", flush=True)
    return split


def drawn(args: argparse.Namespace) -> Split:
    """A stream of any length over a vocabulary of any size: a truth of 4 dimensions, popularity by Zipf's law."""
    n, vocab = args.interactions, args.vocab
    stream = cce.datasets.Synthetic(n, vocab, vocab, dim=4, user_zipf=0.5, bias=-1.2, seed=args.seed)
    return dataclasses.replace(stream.split(min(200_000, max(n // 10, 2))), name=f"synthetic-{n}-of-{vocab}")


def as_json(
    split: Split, tables: tuple[cce.Table, cce.Table], args: argparse.Namespace, result: Result
) -> dict[str, Any]:
    """The run's result for machines."""
    ledger = tables[0].ledger() + tables[1].ledger()
    return {
        "dataset": split.name,
        "method": args.method,
        "num_params": sum(table.num_params for table in tables),
        "bytes": {**ledger.stored, "stored": ledger.total, "full": ledger.full, "training": dict(ledger.training)},
        "ratio": ledger.ratio,
        "auc": result.auc,
        "last_auc": result.last_auc,
        "logloss": result.logloss,
        "epochs": args.epochs,
        "seconds": result.train_seconds + result.cluster_seconds,
        "cluster": result.clusters,
        "best_epoch": result.best_epoch,
        "train_bytes": result.train_bytes,
        "train_seconds": result.train_seconds,
        "best_reachable_auc": split.best_auc,
        "tables": [table.spec.as_json() for table in tables],
        "arguments": {k: v for k, v in vars(args).items() if k not in ("json", "save", "data_dir")},
    }


def summary(report: dict[str, Any]) -> str:
    """The run's result for people."""
    names = {kind: kind for kind in report["bytes"] if kind not in ("stored", "full", "training", "generation")} | {
        "keys": "hash keys"
    }
    best = f"{report['auc']:.4f}  (epoch {report['best_epoch']}; {report['last_auc']:.4f} at the last)"
    rows = [("AUC", best), ("log loss", f"{report['logloss']:.4f}")]
    if report["best_reachable_auc"] is not None:
        rows.append(("best reachable AUC", f"{report['best_reachable_auc']:.4f}"))
    rows.append(("parameters", f"{report['num_params']:,}"))
    rows += [
        (f"bytes: {words}", f"{report['bytes'][kind]:,}") for kind, words in names.items() if kind in report["bytes"]
    ]
    rows.append(("bytes in all", f"{report['bytes']['stored']:,} of the full tables' {report['bytes']['full']:,}"))
    rows.append(("ratio", f"{report['ratio']:.2f}x smaller"))
    rows.append(("training bytes", f"{report['train_bytes']:,} at the most"))
    rows.append(("seconds", f"{report['seconds']:.2f}"))
    return "\n".join(f"  {name:<20}{value}" for name, value in rows)


def usual_settings(args: argparse.Namespace) -> dict[str, Any]:
    """How a method is trained on a data set, unless the command line says otherwise."""
    wide = any(m.name == args.method and (m.post_training or not m.budgeted) for m in cce.methods())
    ours = args.method in ("vq", "rvq")
    if rated(args.dataset):
        return OF_RATINGS | (VQ_OF_RATINGS if ours else {})
    usual = OF_PAIRS | LARGE.get(args.dataset, {}) | (WIDE if wide else {})
    return usual | ((NARROW_VQ_OF_PAIRS if args.rank else VQ_OF_PAIRS) if ours else {})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""

    def rank(text: str) -> int | str:
        return text if text == "auto" else int(text)

    def both(name: str) -> str:
        large = "".join(f", {values[name]:g} {of}" for of, values in LARGE.items() if name in values)
        return f"{OF_RATINGS[name]:g}; of interactions {OF_PAIRS[name]:g}{large}"

    parser = argparse.ArgumentParser(prog="movielens.py", description=str(__doc__).split("\n")[0])
    names = [method.name for method in cce.methods()]
    parser.add_argument("--method", default="cce", help=f"one of {', '.join(names)} (default: %(default)s)")
    parser.add_argument(
        "--ppd", type=int, default=256, help="parameters per dimension and table (default: %(default)s)"
    )
    parser.add_argument(
        "--num-bytes",
        type=int,
        nargs="+",
        metavar="N",
        help="most stored bytes a table, or users' and items' apart; no --ppd",
    )
    parser.add_argument("--dim", type=int, default=32, help="floats of a vector (default: %(default)s)")
    parser.add_argument(
        "--rank",
        type=rank,
        help="rank of the projection, 0 for none, auto (default: the method's own; vq of interactions 0)",
    )
    parser.add_argument(
        "--codec", help="how the memory is kept: float32, bfloat16, int8, int4 (default: the method's own)"
    )
    parser.add_argument(
        "--rounding",
        choices=("straight-through", "stochastic"),
        help="how training rounds into the codec (default: the method's own)",
    )
    parser.add_argument("--n-chunks", type=int, default=4, help="chunks of a vector (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help=f"passes over the data (default: {both('epochs')})")
    parser.add_argument(
        "--last-cluster",
        type=int,
        help="cluster after each epoch up to this one, vq once (default: 3/4 of them)",
    )
    parser.add_argument(
        "--cluster-by", choices=("ids", "counts"), default="ids", help="an id counts once, or as often as it was seen"
    )
    parser.add_argument(
        "--residual",
        choices=("mean", "zero"),
        default="mean",
        help="what the fresh half starts at (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, help=f"rows a step (default: {both('batch_size')})")
    parser.add_argument("--lr", type=float, help=f"AdamW's learning rate (default: {both('lr')})")
    parser.add_argument(
        "--weight-decay",
        type=float,
        help=f"AdamW's λ (default: {both('weight_decay')}, {WIDE['weight_decay']:g} where every id has a row of full width)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--dataset",
        default="ml-100k",
        help=f"one of {', '.join(cce.datasets.names())}, synthetic, or a file of interactions: user and item, a pair a line",
    )
    parser.add_argument("--interactions", type=int, default=1_000_000, help="rows of synthetic (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=10_000, help="its users, and its items (default: %(default)s)")
    parser.add_argument("--data-dir", help="folder that holds the data set (then CCE_DATA, then the user's cache)")
    parser.add_argument("--download", action="store_true", help="download the data set where it is not at hand")
    parser.add_argument("--threads", type=int, help="threads of large calls (default: the cores)")
    parser.add_argument("--save", metavar="DIR", help="keep the tables of the best epoch there")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args(argv)
    for name, value in usual_settings(args).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.num_bytes and len(args.num_bytes) > 2:
        parser.error(f"--num-bytes takes one number, or one for users and one for items; got {len(args.num_bytes)}")
    for name in ("ppd", "dim", "n_chunks", "epochs", "batch_size", "interactions", "vocab"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed must be between 0 and 2^62 - 1, got {args.seed}")
    return args


def job(split: Split, args: argparse.Namespace, say: Any = print) -> dict[str, Any]:
    """From data to report: make the tables, learn them where the method does that first, train."""
    tables = make_tables(split, args)
    for name, table in zip(("users", "items"), tables, strict=True):
        say(f"{name}: {table!r}")
    settings, before = settings_of(args), None
    if tables[0].method.post_training:
        before = learn_from_full(tables, split, settings, say)
    result = train(GMF(*tables, settings.optimizer()), split, args, say)
    return as_json(split, tables, args, result if before is None else result.after(before))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job, with its data and its report."""
    cce.set_num_threads(args.threads)
    if args.json:  # before an hour of training, not after it: can it be written?
        was_there = Path(args.json).exists()
        with open(args.json, "a"):
            pass
        if not was_there:
            Path(args.json).unlink()
    report = job(load_data(args), args)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(summary(report))
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
        print(f"movielens.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
