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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before NumPy comes: on matrices as small as these, threads only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from tqdm import tqdm

import cce_core as cce
from cce_core.datasets import Interactions, Split
from cce_core.training import logistic_dot

# What data sets of either kind are trained with; few pairs want small batches.
OF_RATINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2, "epochs": 20, "batch_size": 256}
OF_PAIRS: dict[str, Any] = {"lr": 5e-3, "weight_decay": 1e-2, "epochs": 8, "batch_size": 2048}
LARGE: dict[str, dict[str, Any]] = {"gowalla": {"batch_size": 4096}}
# A row of full width for every id learns by heart what is met few times; a strong decay keeps ids alike until data tell
# them apart. Narrow rows need less of it, and larger rates.
WIDE = {"weight_decay": 0.5}
VQ_OF_RATINGS, VQ_OF_PAIRS = {"lr": 2e-3, "weight_decay": 0.5}, {**WIDE, "rank": 0}
NARROW_VQ_OF_PAIRS = {"lr": 1e-2, "weight_decay": 0.05}


class GMF:
    """Generalised matrix factorisation: the probability of a like is σ(⟨user, item⟩)."""

    def __init__(self, users: cce.Table, items: cce.Table, optimizer: Any) -> None:
        self.users, self.items, self.optimizer = users, items, optimizer
        self.both = cce.Collection([users, items])

    def score(self, rows: Interactions) -> NDArray[np.float32]:
        """The logits of all rows."""
        parts = [
            np.einsum("nd,nd->n", self.users.lookup(part.users), self.items.lookup(part.items))
            for part in rows.batches(1 << 16)
        ]
        return np.concatenate(parts)

    def step(self, pairs: NDArray[Any], labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step of gradient descent on a batch of (user, item); gives the logits from before it."""
        seen = self.both.forward(pairs)
        u, v = self.both.split(seen.vectors)
        score = logistic_dot(u, v, labels)  # each vector becomes (σ(score) − label) / n · the other one
        self.optimizer.update(self.both, seen, seen.vectors)
        return score

    def epoch(self, rows: Interactions, batch_size: int, rng: np.random.Generator, bar: Any = None) -> float:
        """One pass over the rows in random order; gives the mean log loss on the way."""
        order = rng.permutation(len(rows))
        pairs, labels = np.stack([rows.users, rows.items], axis=1)[order], rows.labels[order]
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            scores[part] = self.step(pairs[part], labels[part])
            if bar is not None:
                bar.update(len(labels[part]))
        return logloss(scores, labels)


def logloss(score: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean cross-entropy in nats of logits."""
    return float(np.mean(np.maximum(score, 0) - labels * score + np.log1p(np.exp(-np.abs(score))), dtype=np.float64))


def auc(score: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Area under the ROC curve: how often a like scores above a dislike; a tie counts half."""
    positive = labels > 0.5
    wins = rankdata(score)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


@dataclasses.dataclass
class Result:
    """What a run reached: at its best epoch by validation AUC."""

    auc: float = 0.0
    last_auc: float = 0.0
    logloss: float = float("inf")
    best_epoch: int = 0
    train_seconds: float = 0.0
    cluster_seconds: float = 0.0
    clusters: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: list[cce.Table] = dataclasses.field(default_factory=list)


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


def train(model: GMF, split: Split, args: argparse.Namespace, say: Any = print, *, keep_best: bool = False) -> Result:
    """Train, cluster between epochs, and judge after each; `keep_best` keeps a copy of the best epoch's tables."""
    rng = np.random.default_rng(args.seed)
    result = Result()
    last_cluster = 3 * args.epochs // 4 if args.last_cluster is None else args.last_cluster
    if learned := model.users.method.post_training:  # then epoch 0 is the table as it was learned
        last_cluster = 0
    if phased := model.users.phase is not None:  # rows until they have settled, then clustered once
        last_cluster = min(max(1, last_cluster), args.epochs)
    tables = {"users": model.users, "items": model.items}
    settings: dict[str, dict[str, Any]] = {name: {"residual": args.residual == "mean"} for name in tables}
    if args.cluster_by == "counts":
        for name, ids in (("users", split.train.users), ("items", split.train.items)):
            settings[name]["weights"] = np.bincount(ids, minlength=tables[name].spec.vocab)

    def judged(epoch: int, how: str) -> None:
        score = model.score(split.valid)
        here, loss = auc(score, split.valid.labels), logloss(score, split.valid.labels)
        result.last_auc = here
        served = model.users.phase != "rows"  # else it has more bytes than were asked for
        if served and here > result.auc:
            result.auc, result.logloss, result.best_epoch = here, loss, epoch
            if keep_best:
                result.best = [cce.Table(table.spec, copied(table)) for table in tables.values()]
            if args.save:
                save(tables, Path(args.save))
        bar.clear()
        say(f"epoch {epoch:3}  {how}  AUC {here:.4f}  log loss {loss:.4f}")

    silent = None if say is print else True  # None: where no terminal is
    with tqdm(total=args.epochs * len(split.train), unit="row", unit_scale=True, disable=silent, leave=False) as bar:
        for epoch in range(int(not learned), args.epochs + 1):
            start = time.perf_counter()
            train_loss = model.epoch(split.train, args.batch_size, rng, bar) if epoch else float("nan")
            result.train_seconds += time.perf_counter() - start
            judged(epoch, f"train loss {train_loss:.4f}" if epoch else "as learned       ")
            if epoch == last_cluster or (epoch < last_cluster and not phased):
                for name, table in tables.items():
                    if table.method.learns:
                        report = table.cluster(**settings[name])
                        result.cluster_seconds += report.seconds
                        result.clusters.append({"epoch": epoch, "table": name, **dataclasses.asdict(report)})
                if phased:
                    judged(epoch, "clustered        ")
    return result


def adamw(args: argparse.Namespace) -> cce.AdamW:
    """The optimiser: it decays and moves every row in each step, whether the batch has it or not."""
    return cce.AdamW(lr=args.lr, weight_decay=args.weight_decay)


def copied(table: cce.Table) -> dict[str, NDArray[Any]]:
    """A copy of all arrays of a float32 table."""
    return {name: array.copy() for name, array in {**table.parameters(), **table.buffers()}.items()}


def learn_from_full(
    tables: tuple[cce.Table, cce.Table], split: Split, args: argparse.Namespace, say: Any = print
) -> tuple[float, list[dict[str, Any]]]:
    """For methods that compress a trained table: train the full one, and learn from its best epoch; seconds and reports."""
    full = [cce.make_table("full", t.spec.vocab, t.spec.dim, seed=t.spec.seed) for t in tables]
    say(f"{args.method} learns from a trained table: the full one first")
    quiet = argparse.Namespace(**{**vars(args), "save": None})
    result = train(GMF(*full, adamw(args)), split, quiet, say, keep_best=True)
    say(f"full table: AUC {result.auc:.4f} (epoch {result.best_epoch}); now {args.method}")
    reports = []
    for name, table, teacher in zip(("users", "items"), tables, result.best, strict=True):
        report = table.cluster(vectors=teacher)
        result.cluster_seconds += report.seconds
        reports.append({"epoch": 0, "table": name, **dataclasses.asdict(report)})
    return result.train_seconds + result.cluster_seconds, reports


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
    model, before, reports = GMF(*tables, adamw(args)), 0.0, list[dict[str, Any]]()
    if tables[0].method.post_training:
        before, reports = learn_from_full(tables, split, args, say)
    result = train(model, split, args, say)
    result.train_seconds += before
    result.clusters = reports + result.clusters
    return as_json(split, tables, args, result)


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
