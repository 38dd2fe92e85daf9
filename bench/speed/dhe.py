"""An epoch of training through deep hash embeddings, on MovieLens 100K's shape: ours against the same network in eager torch.

Both start from the same weights and see the same batches. The first peer is given our encodings of all ids, worked out
beforehand: kinder to it than to us, who hash in every pass. Its losses of an epoch must agree with ours step by step before
anything is timed. The second hashes in every pass as implementations do, ((a · x + b) mod p) mod m for all k hashes; its
encodings are others, so its losses are not compared. The peers run with the number of threads that suits them better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.epoch import BATCH, check
from bench.speed.timing import Row, in_turn

TARGET = 3.0
PRIME = 2**31 - 1


def eager_network(table: cce.Table, hashing: bool) -> Any:
    """The table as a torch module in plain tensor operations."""
    import torch

    from cce_core.method.deep_hash import BUCKETS, encode

    spec = table.spec
    hashes, width, depth = spec.sizes
    ids = np.arange(spec.vocab, dtype=np.uint64)
    known = torch.from_numpy(encode(spec, ids))
    factor, shift = torch.randint(1, PRIME, (2, hashes), generator=torch.Generator().manual_seed(0))
    sides = [hashes, *[width] * depth, spec.dim]
    layers: list[Any] = []
    for layer in range(depth + 1):
        linear = torch.nn.Linear(*sides[layer : layer + 2])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(table.parameters()[f"w{layer}"].T.copy()))
            linear.bias.copy_(torch.from_numpy(table.parameters()[f"b{layer}"]))
        layers += [linear, torch.nn.Mish()] if layer < depth else [linear]
    network = torch.nn.Sequential(*layers)

    class Eager(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            if not hashing:
                return self.network(known[x])
            h = (factor * x[:, None] + shift) % PRIME % BUCKETS
            return self.network(h.float() * (2.0 / (BUCKETS - 1)) - 1.0)

    return Eager()


def run(quick: bool) -> Iterator[Row]:
    """dhe at ppd 256 against both peers."""
    import torch

    from cce_core.tuning import GMF

    split = cce.datasets.load("synthetic-ml-100k", seed=0)
    rows = split.train
    for hashing in (False, True):
        tables = [
            cce.make_table("dhe", n, 32, num_params=256 * 32, seed=k)
            for k, n in enumerate((split.n_users, split.n_items))
        ]
        modules = [eager_network(table, hashing) for table in tables]
        ours = GMF(*tables, cce.AdamW())
        theirs = torch.optim.AdamW([p for m in modules for p in m.parameters()])
        loss_of = torch.nn.BCEWithLogitsLoss()
        tensors = [torch.from_numpy(a) for a in (rows.users, rows.items, rows.labels)]

        def torch_epoch(order: Any, losses: list[float] | None = None) -> None:
            users, items, labels = (t[torch.from_numpy(order)] for t in tensors)  # noqa: B023
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                score = (modules[0](users[part]) * modules[1](items[part])).sum(1)  # noqa: B023
                loss = loss_of(score, labels[part])  # noqa: B023
                theirs.zero_grad()  # noqa: B023
                loss.backward()
                theirs.step()  # noqa: B023
                if losses is not None:
                    losses.append(float(loss.detach()))

        if not hashing:
            check(ours, rows, torch_epoch, "dhe")
        rng, times = np.random.default_rng(2), {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times[threads] = in_turn(
                3 if quick else 9,
                lambda: ours.epoch(rows, BATCH, rng),  # noqa: B023
                lambda: torch_epoch(rng.permutation(len(rows))),  # noqa: B023
            )
        best = min(times, key=lambda n: sorted(times[n][1])[len(times[n][1]) // 2])
        how = "hashing in every pass" if hashing else "encodings given"
        peer = f"eager torch, {how}, {best} threads"
        yield Row("dhe", f"ppd 256, batch {BATCH}", times[best][0], peer, times[best][1], TARGET)
