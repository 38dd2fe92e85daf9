"""Train DLRM on Criteo's click logs, its 26 tables compressed, and say what that costs in accuracy and saves in bytes.

    python examples/dlrm.py --method cce --ratio 8.48
    python examples/dlrm.py --method cce --data train.txt --rows 10000000

The model is the one published for this data (arXiv 1906.00091): an MLP 13-512-256-64-16 over the counts, 26 tables of 16 floats,
the inner products of all pairs, an MLP 512-256-1. Without --data it trains on synthetic rows of the same format, of which the
best reachable AUC is known. Everything is streamed; the last rows are for validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import cce_core as cce
from cce_core.adapters.torch import ClusterSchedule, CompressionReport, EmbeddingBag, FusedAdagrad, compress_
from cce_core.datasets import Clicks, CriteoFile, SyntheticCriteo, criteo_sizes
from cce_core.tuning import auc

DIM, BOTTOM, TOP = 16, (512, 256, 64), (512, 256)
OWN: dict[str, dict[str, Any]] = {
    "cce": {"n_chunks": 2, "rank": 0, "codec": "int8"},  # better than bfloat16 on 1,000,000 synthetic rows
    "vq": {"rank": 0},  # rows of full width, until they are clustered at the end
    "tiered": {"lr": 0.2, "projection_lr": None, "half_life": 1_000_000},  # of ids that do not drift
}


def mlp(sizes: Iterable[int]) -> nn.Sequential:
    """Linear layers with ReLU between; weights and biases drawn as published."""
    layers = list[nn.Module]()
    for n_in, n_out in itertools.pairwise(sizes):
        linear = nn.Linear(n_in, n_out)
        nn.init.normal_(linear.weight, 0.0, math.sqrt(2.0 / (n_in + n_out)))
        nn.init.normal_(linear.bias, 0.0, math.sqrt(1.0 / n_out))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """Deep Learning Recommendation Model: counts through an MLP, categories through tables, all pairs' products on top."""

    def __init__(self, sizes: Iterable[int], sparse: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, DIM, mode="sum", sparse=sparse) for n in sizes)
        for table in self.tables:
            nn.init.uniform_(table.weight, -math.sqrt(1 / table.num_embeddings), math.sqrt(1 / table.num_embeddings))
        self.bottom = nn.Sequential(mlp((13, *BOTTOM, DIM)), nn.ReLU())
        n = len(self.tables) + 1
        self.top = mlp((n * (n - 1) // 2 + DIM, *TOP, 1))
        self.register_buffer("pairs", torch.tril_indices(n, n, -1), persistent=False)
        self.tiers: Tiers | None = None

    def stored_bytes(self) -> int:
        """Of all tables, as they are now."""
        if self.tiers is not None:
            return self.tiers.after
        plain = [t.weight.nbytes for t in self.tables if not isinstance(t, EmbeddingBag)]
        return sum(plain) + sum(t.ledger().total for t in self.tables if isinstance(t, EmbeddingBag))

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        """Logits (n,) of counts (n, 13) and ids (n, 26)."""
        x = self.bottom(dense)
        tiers = {} if self.tiers is None else self.tiers(categories)
        found = (tiers[k] if k in tiers else table(categories[:, k : k + 1]) for k, table in enumerate(self.tables))
        vectors = torch.stack([x, *found], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.top(torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], 1))[:, 0]


class Tiers(nn.Module):
    """The large tables as one collection, whose rows go to the ids of all tables that are met most often.

    It trains itself: the step of its optimiser is taken as the gradient of its vectors comes by.
    """

    def __init__(self, sizes: tuple[int, ...], args: argparse.Namespace, **options: Any) -> None:
        super().__init__()
        self.columns = [k for k, n in enumerate(sizes) if n >= args.min_rows]
        full = [4 * DIM * n for n in sizes]
        large = sum(full[k] for k in self.columns)
        num_bytes = args.num_bytes or int(large / args.ratio)
        lr, projection_lr = options.pop("lr"), options.pop("projection_lr")
        names = [f"C{k + 1}" for k in self.columns]
        self.collection = cce.make_collection("tiered", names, DIM, num_bytes=num_bytes, seed=args.seed, **options)
        self.optimizer = cce.Adagrad(lr, rowwise=True, projection_lr=projection_lr)
        self.others = sum(full) - large

    @property
    def after(self) -> int:
        """Bytes of all tables, the small ones among them."""
        return self.others + self.collection.ledger().total

    def cluster(self, num_bytes: int) -> Any:
        """Let ids settle, after the last step: nobody else will want a row, so that those that count most keep what is left."""
        return self.collection.cluster(num_bytes=num_bytes, keep=1.0)

    def extra_repr(self) -> str:
        """The collection."""
        return repr(self.collection)

    def forward(self, categories: Tensor) -> dict[int, Tensor]:
        """The vectors (n, DIM) of each of its columns of ids."""
        ids = categories[:, self.columns].numpy()
        if not torch.is_grad_enabled():
            vectors = torch.from_numpy(self.collection.lookup(ids))
        else:
            seen = self.collection.forward(ids)
            vectors = torch.from_numpy(seen.vectors).requires_grad_()
            vectors.register_hook(lambda grad: self.optimizer.update(self.collection, seen, grad.numpy()))
        return dict(zip(self.columns, vectors.split(DIM, 1)))


@dataclasses.dataclass
class Data:
    """Rows [0, n_train) of a stream to learn from, rows [n_train, n) to judge by."""

    stream: Any
    name: str
    n_train: int
    n: int

    def train(self, size: int) -> Iterable[Clicks]:
        """The training rows, in batches, in order."""
        return self.stream.batches(size, stop=self.n_train)

    def valid(self) -> Iterable[Clicks]:
        """The validation rows."""
        return self.stream.batches(1 << 14, start=self.n_train, stop=self.n)


def load_data(args: argparse.Namespace) -> Data:
    """The file asked for, or the synthetic stream."""
    if args.data is None:
        rows = args.rows or 1_000_000
        stream: Any = SyntheticCriteo(rows, vocab=args.vocab, seed=args.seed)
        return Data(stream, "synthetic", rows, rows + (args.valid_rows or max(1000, rows // 10)))
    stream = CriteoFile(args.data, criteo_sizes(args.vocab or 1_000_000), seed=args.seed)
    there = stream.count()
    n = min(args.rows or there, there)
    n_valid = args.valid_rows or n // 7  # the original's last of seven days
    if not 0 < n_valid < n:
        raise ValueError(f"{args.data} has {there:,} rows, too few to hold back {n_valid:,} of {n:,}: see --valid-rows")
    return Data(stream, Path(args.data).name, n - n_valid, n)


def tensors(rows: Clicks, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, ids and labels of a batch."""
    arrays = rows.dense, rows.categories, rows.labels
    dense, ids, labels = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)
    return dense, ids, labels


def make_model(sizes: tuple[int, ...], args: argparse.Namespace) -> tuple[DLRM, CompressionReport | Tiers | None]:
    """The model with its tables compressed within the budget; and the report, None where they are full."""
    torch.manual_seed(args.seed)
    model = DLRM(sizes, sparse=args.sparse)
    if args.method == "full":
        return model, None
    method = next((m for m in cce.methods() if m.name == args.method), None)
    if method is None:
        raise ValueError(f"--method {args.method}: the methods are {', '.join(m.name for m in cce.methods())}")
    budget: dict[str, Any] = {}
    if method.budgeted:
        budget = {"num_bytes": args.num_bytes} if args.num_bytes else {"ratio": args.ratio}
    given = {"n_chunks": args.n_chunks, "rank": args.rank, "codec": args.codec}
    options = {**OWN.get(args.method, {}), **{name: value for name, value in given.items() if value is not None}}
    if method.owned:
        model.tiers = Tiers(sizes, args, **options)
        for k in model.tiers.columns:
            model.tables[k] = nn.Identity()
        return model, model.tiers
    fresh = not method.post_training
    report = compress_(
        model, method=args.method, min_rows=args.min_rows, fresh=fresh, seed=args.seed, **budget, **options
    )
    return model, report


@torch.no_grad()
def judge(model: nn.Module, data: Data, device: str) -> tuple[float, float]:
    """Mean cross-entropy (nats) and AUC on the validation rows."""
    model.eval()
    scores, labels = list[np.ndarray](), list[np.ndarray]()
    for rows in data.valid():
        dense, ids, _ = tensors(rows, device)
        scores.append(model(dense, ids).float().cpu().numpy())
        labels.append(rows.labels)
    model.train()
    score, label = np.concatenate(scores), np.concatenate(labels)
    loss = np.maximum(score, 0) - label * score + np.log1p(np.exp(-np.abs(score)))
    return float(loss.mean(dtype=np.float64)), auc(score, label)


def train(model: DLRM, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """All epochs, with clusterings on the way; what the last one reached."""
    tables = {id(parameter) for parameter in model.tables.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    groups = [{"params": others}, {"params": list(model.tables.parameters()), "lr": args.tables_lr}]
    optimizer = FusedAdagrad(groups, lr=args.lr)
    steps = args.epochs * -(-data.n_train // args.batch_size)
    # With several epochs between them, else within the one.
    when = {"epochs": args.epochs} if args.epochs > 1 else {"steps": max(4, steps)}
    counts = {
        name: np.zeros(table.num_embeddings, np.float32)
        for name, table in model.named_modules()
        if isinstance(table, EmbeddingBag) and table.table.method.learns and table.phase is None
    }
    # Ids count as often as they were seen: those that never were have nothing that a cluster should be spent on. Tables with
    # phases count themselves.
    schedule = ClusterSchedule(**when, times=args.clusterings, weights=counts)
    called: Any = torch.compile(model) if args.compile else model
    seconds, cluster_seconds, epochs = 0.0, 0.0, list[dict[str, float]]()
    bce = score = float("nan")
    with tqdm(total=args.epochs * data.n_train, unit="row", unit_scale=True, disable=None, leave=False) as bar:
        for epoch in range(1, args.epochs + 1):
            start = time.perf_counter()
            total = torch.zeros((), device=args.device)
            for rows in data.train(args.batch_size):
                dense, ids, labels = tensors(rows, args.device)
                loss = nn.functional.binary_cross_entropy_with_logits(called(dense, ids), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                bar.update(len(rows))
                for name, seen in counts.items():
                    np.add.at(seen, rows.categories[:, int(name.rpartition(".")[2])], 1)
                cluster_seconds += sum(r.seconds for r in schedule.after_step(model, optimizer).values())
            seconds += time.perf_counter() - start
            bce, score = judge(called, data, args.device)
            bar.clear()
            print(
                f"epoch {epoch:3}  train BCE {float(total) / data.n_train:.4f}  BCE {bce:.4f}  AUC {score:.4f}",
                flush=True,
            )
            epochs.append({"train_bce": float(total) / data.n_train, "bce": bce, "auc": score})
            cluster_seconds += sum(r.seconds for r in schedule.after_epoch(model, optimizer).values())
    return {
        "bce": bce, "auc": score, "epochs": epochs, "train_seconds": seconds, "cluster_seconds": cluster_seconds,
        "clustered_after": [schedule.unit, *schedule.at] if schedule.reports else [],
    }  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dlrm.py", description=str(__doc__).split("\n")[0])
    add = parser.add_argument
    names = ", ".join(method.name for method in cce.methods())
    add("--method", default="cce", help=f"one of {names} (default: %(default)s)")
    add("--ratio", type=float, default=8.48, help="how many times smaller the large tables are (default: %(default)s)")
    add("--num-bytes", type=int, help="most stored bytes of the large tables together, instead of --ratio")
    add("--min-rows", type=int, default=1000, help="smaller tables stay full (default: %(default)s)")
    add("--n-chunks", type=int, help="chunks of a vector (default: the method's own)")
    add(
        "--rank",
        type=lambda t: t if t == "auto" else int(t),
        help="of the projection, 0 for none (default: the method's)",
    )
    add("--codec", help="how memories are kept: float32, bfloat16, int8, int4 (default: the method's own)")
    add("--epochs", type=int, default=1, help="passes over the data (default: %(default)s)")
    add(
        "--cluster-bytes",
        type=int,
        help="tiered: after the last step, cluster the large tables into at most so many stored bytes together",
    )
    add("--clusterings", type=int, default=9, help="how often to cluster, but vq once and late (default: %(default)s)")
    add("--batch-size", type=int, default=256, help="rows a step (default: %(default)s)")
    add("--lr", type=float, default=0.01, help="Adagrad's learning rate (default: %(default)s)")
    add("--tables-lr", type=float, default=0.1, help="that of the tables (default: %(default)s)")
    add("--sparse", action="store_true", help="sparse gradients of the tables")
    add("--device", default="cpu", help="of torch (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--data", metavar="FILE", help="Criteo's train.txt (default: synthetic rows)")
    add("--rows", type=int, help="rows to use (default: 1,000,000 synthetic ones, or all of the file)")
    add(
        "--valid-rows",
        type=int,
        help="rows to judge by (default: a tenth more synthetic ones, or a seventh of the file)",
    )
    add(
        "--vocab",
        type=int,
        help="ids of every synthetic column, or most of a file's (default: in the data's measure, or 1,000,000)",
    )
    add("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    add("--threads", type=int, help="of torch and the core (default: the cores)")
    add("--json", metavar="FILE", help="write the result there")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "rows", "valid_rows", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.cluster_bytes is not None and args.method != "tiered":
        parser.error(f"--cluster-bytes is for --method tiered; {args.method} is clustered on the way, if it can be")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed must be between 0 and 2^62 - 1, got {args.seed}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job."""
    cce.set_num_threads(args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.json:  # before an hour of training, not after it: can it be written?
        was_there = Path(args.json).exists()
        with open(args.json, "a"):
            pass
        if not was_there:
            Path(args.json).unlink()
    data = load_data(args)
    print(f"{data.name}: {data.n_train:,} training and {data.n - data.n_train:,} validation rows", flush=True)
    model, compressed = make_model(data.stream.sizes, args)
    before = sum(4 * DIM * n for n in data.stream.sizes)
    if compressed:
        print(compressed, flush=True)
    model.to(args.device)
    reached = train(model, data, args)
    if args.cluster_bytes is not None and model.tiers is not None:
        reached["unclustered"] = {"bce": reached["bce"], "auc": reached["auc"], "bytes": model.stored_bytes()}
        settled = model.tiers.cluster(args.cluster_bytes)
        reached["bce"], reached["auc"] = judge(model, data, args.device)
        reached["cluster_seconds"] = settled.seconds
        print(settled, flush=True)
    after = model.stored_bytes()
    report: dict[str, Any] = {
        "dataset": data.name, "rows": data.n_train, "method": args.method, "bytes_before": before, "bytes_after": after,
        "share": after / before, **reached,
        "arguments": {k: v for k, v in vars(args).items() if k not in ("json", "data")},
    }  # fmt: skip
    lines = [("BCE", f"{report['bce']:.4f}"), ("AUC", f"{report['auc']:.4f}")]
    if earlier := report.get("unclustered"):
        lines += [
            ("before clustering", f"BCE {earlier['bce']:.4f}, AUC {earlier['auc']:.4f}, {earlier['bytes']:,} bytes")
        ]
    if isinstance(data.stream, SyntheticCriteo):
        report["best_auc"], report["best_bce"] = data.stream.best(data.n_train, data.n)
        lines += [
            ("best reachable BCE", f"{report['best_bce']:.4f}"),
            ("best reachable AUC", f"{report['best_auc']:.4f}"),
        ]
    lines += [
        ("bytes before", f"{before:,}"),
        ("bytes after", f"{after:,}  ({100 * after / before:.1f} %, {before / after:.1f}x smaller)"),
        ("seconds", f"{report['train_seconds']:.1f}, {report['cluster_seconds']:.1f} of them clustering"),
    ]
    print("\n".join(f"  {name:<20}{value}" for name, value in lines))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(argv: list[str] | None = None) -> int:
    """The command: 0 when it worked, 2 and one line for bad input, 130 for Ctrl-C."""
    args = parse(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        print(f"dlrm.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
