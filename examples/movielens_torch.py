"""The recommender of movielens.py as a torch model: two compressed embeddings, autograd and a torch optimiser.

    python examples/movielens_torch.py --method cce --device cpu

All flags are those of movielens.py; data, evaluation and reports are its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import movielens
import numpy as np
import torch
from torch import Tensor, nn

import cce_core as cce
from cce_core.adapters.torch import Embedding, FusedAdam

_SMALL = 1 << 14  # rows of a batch


class Net(nn.Module):
    """The logit of a like, ⟨user, item⟩."""

    def __init__(self, users: nn.Module, items: nn.Module) -> None:
        super().__init__()
        self.users, self.items = users, items

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits (n,) of ids (n,)."""
        return (self.users(users) * self.items(items)).sum(-1)


class Module:
    """An embedding as movielens.py knows a table: it is clustered together with its optimiser, all else is the table's own."""

    def __init__(self, embedding: Any) -> None:
        self.embedding, self.optimizer = embedding, None

    def cluster(self, **settings: Any) -> Any:
        """As for a table."""
        return self.embedding.cluster(optimizer=self.optimizer, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embedding.table, name)


class GMF(movielens.GMF):
    """movielens.GMF, its step and its scores by torch."""

    def __init__(self, users: Module, items: Module, args: argparse.Namespace) -> None:
        net = Net(users.embedding, items.embedding).to(args.device)
        self.users, self.items = users, items
        self.optimizer = FusedAdam(net.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        users.optimizer = items.optimizer = self.optimizer
        self.net: Any = torch.compile(net) if args.compile else net
        self.device = args.device

    def _logits(self, users: Any, items: Any) -> Tensor:
        return self.net(*(torch.from_numpy(np.ascontiguousarray(ids)).to(self.device) for ids in (users, items)))

    @torch.no_grad()
    def score(self, rows: Any) -> Any:
        """The logits of all rows."""
        parts = [self._logits(part.users, part.items).float().cpu().numpy() for part in rows.batches(1 << 16)]
        return np.concatenate(parts)

    def step(self, pairs: Any, labels: Any) -> Any:
        """One step of gradient descent on a batch of (user, item); gives the logits from before it."""
        score = self._logits(pairs[:, 0], pairs[:, 1])
        loss = nn.functional.binary_cross_entropy_with_logits(score, torch.from_numpy(labels).to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return score.detach().float().cpu().numpy()


def make_modules(split: Any, args: argparse.Namespace) -> tuple[Module, Module]:
    """An embedding for the users and one for the items, each within the budget; first values as in movielens.py."""
    budgeted = not any(method.name == args.method and not method.budgeted for method in cce.methods())
    made = []
    for k, n in enumerate((split.n_users, split.n_items)):
        budget: dict[str, Any] = {"num_params": args.ppd * args.dim}
        if args.num_bytes:  # one number, or one for the users and one for the items
            budget = {"num_bytes": int(np.atleast_1d(args.num_bytes)[-k])}
        own = {"n_chunks": args.n_chunks, "rank": args.rank, "codec": getattr(args, "codec", None)}
        own["rounding"] = getattr(args, "rounding", None) or "straight-through"
        options = {**own, "seed": 2 * args.seed + k, **(budget if budgeted else {})}
        if args.method == "full":  # torch's own begins far from where this model trains
            first = cce.make_table("full", n, args.dim, **options).lookup(np.arange(n))
            made.append(Module(Embedding(n, args.dim, _weight=torch.from_numpy(first), method="full", **options)))
        else:
            made.append(Module(Embedding(n, args.dim, method=args.method, **options)))
        made[-1].embedding.to(args.device)
    return made[0], made[1]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: movielens.py's, and what torch adds."""
    own = argparse.ArgumentParser(prog="movielens_torch.py", add_help=False, allow_abbrev=False)
    own.add_argument("--device", default="cpu", help="of torch (default: %(default)s)")
    own.add_argument("--compile", action="store_true", help="torch.compile the model")
    argv = sys.argv[1:] if argv is None else argv
    mine, rest = own.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        own.print_help()
        print("\nand all of:\n")
    return argparse.Namespace(**vars(movielens.parse(rest)), **vars(mine))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The whole job."""
    cce.set_num_threads(args.threads)
    # Torch's threads spin while they wait, and its logistic loss wakes them for any batch: a small one is quicker with one.
    if args.threads or args.batch_size < _SMALL:
        torch.set_num_threads(args.threads or 1)
    split = movielens.load_data(args)
    torch.manual_seed(args.seed)
    tables: Any = make_modules(split, args)
    for name, table in zip(("users", "items"), tables, strict=True):
        print(f"{name}: {table.embedding!r}", flush=True)
    model, before = GMF(*tables, args), None
    if tables[0].method.post_training:
        before = movielens.learn_from_full(tables, split, movielens.settings_of(args), print)
    result = movielens.train(model, split, args)
    result = result if before is None else result.after(before)
    report = movielens.as_json(split, tables, args, result)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print(movielens.summary(report))
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
        print(f"movielens_torch.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
