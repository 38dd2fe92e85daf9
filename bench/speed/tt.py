"""An epoch of training with tensor trains: our products along shared prefixes against the usual chain of bmm in eager torch.

The model, the batches and the check of the losses are those of the benchmark `epoch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.epoch import BATCH, check
from bench.speed.timing import Row, in_turn

TARGET = 3.0


def eager_train(table: cce.Table) -> Any:
    """The table as a torch module: for each id a slice of every core, multiplied along the chain."""
    import torch

    cores = table.method.cores(table)

    class Eager(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cores = torch.nn.ParameterList(
                torch.from_numpy(core.values.reshape(core.base, -1).copy()) for core in cores
            )

        def forward(self, x: Any) -> Any:
            n, vectors = len(x), torch.ones(len(x), 1, 1)
            for core, rows in zip(cores, self.cores, strict=True):
                slices = rows.index_select(0, x % core.base).reshape(n, core.left, core.width)
                x = torch.div(x, core.base, rounding_mode="floor")
                vectors = slices if core.left == 1 else torch.bmm(vectors, slices)
                vectors = vectors.reshape(n, -1, core.right)
            return vectors.reshape(n, -1)

    return Eager()


def run(quick: bool) -> Iterator[Row]:
    """tt at ppd 256."""
    import torch

    from cce_core.tuning import GMF

    split = cce.datasets.load("synthetic-ml-100k", seed=0)
    rows = split.train
    tables = [
        cce.make_table("tt", n, 32, num_params=256 * 32, seed=k) for k, n in enumerate((split.n_users, split.n_items))
    ]
    modules = [eager_train(table) for table in tables]
    ours = GMF(*tables, cce.AdamW())
    theirs = torch.optim.AdamW([p for m in modules for p in m.parameters()])
    loss_of = torch.nn.BCEWithLogitsLoss()
    tensors = [torch.from_numpy(a) for a in (rows.users, rows.items, rows.labels)]

    def torch_epoch(order: Any, losses: list[float] | None = None) -> None:
        users, items, labels = (t[torch.from_numpy(order)] for t in tensors)
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            loss = loss_of((modules[0](users[part]) * modules[1](items[part])).sum(1), labels[part])
            theirs.zero_grad()
            loss.backward()
            theirs.step()
            if losses is not None:
                losses.append(float(loss.detach()))

    check(ours, rows, torch_epoch, "tt")
    rng, times = np.random.default_rng(2), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times[threads] = in_turn(
            3 if quick else 9,
            lambda: ours.epoch(rows, BATCH, rng),
            lambda: torch_epoch(rng.permutation(len(rows))),
        )
    best = min(times, key=lambda n: sorted(times[n][1])[len(times[n][1]) // 2])
    case = f"tt, ppd 256, batch {BATCH}, ranks {tables[0].spec.sizes} and {tables[1].spec.sizes}"
    yield Row("tt", case, times[best][0], f"eager torch, {best} threads", times[best][1], TARGET)
