"""An epoch of training on MovieLens 100K's shape: our core against the same model in eager torch.

Both start from the same tables and see the same batches. Before anything is timed, the losses of an epoch must agree
step by step; then epochs are timed in turn. The peer runs with the number of threads that suits it better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Row, in_turn

BATCH = 256
TARGET = 10.0


def eager_embedding(table: cce.Table) -> Any:
    """The table as a torch module in plain tensor operations, pointers and hashes as stored indices."""
    import torch

    from cce_core.sketching import blocks

    spec, layout = table.spec, table.layout
    ids = np.arange(spec.vocab, dtype=np.uint64)
    at = blocks.addresses(table.sketch, ids)
    bases = np.array([c.base for c in layout.columns])
    index = torch.from_numpy((at - bases) // layout.width).reshape(spec.vocab, spec.n_chunks, 2)
    memory = torch.from_numpy(table.parameters()["memory"].copy())
    memory = memory.reshape(spec.n_chunks, 2, spec.sizes[0], layout.width)

    class Eager(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learned = torch.nn.Parameter(memory[:, 0].clone())
            self.hashed = torch.nn.Parameter(memory[:, 1].clone())
            self.chunks = torch.arange(spec.n_chunks)
            w = table.parameters().get("projection")
            self.projection = None if w is None else torch.nn.Parameter(torch.from_numpy(w.copy()))

        def forward(self, x: Any) -> Any:
            where = index[x]
            vectors = self.learned[self.chunks, where[..., 0]] + self.hashed[self.chunks, where[..., 1]]
            vectors = vectors.flatten(1)
            return vectors if self.projection is None else vectors @ self.projection[:-1] + self.projection[-1]

    return Eager()


def run(quick: bool) -> Iterator[Row]:
    """cce at ppd 256, with its projection and without."""
    import torch

    from cce_core.tuning import GMF

    split = cce.datasets.load("synthetic-ml-100k", seed=0)
    rows = split.train
    for rank in (0, None):
        tables = [
            cce.make_table("cce", n, 32, num_params=256 * 32, rank=rank, seed=k)
            for k, n in enumerate((split.n_users, split.n_items))
        ]
        for table in tables:
            table.cluster()
        modules = [eager_embedding(table) for table in tables]
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

        check(ours, rows, torch_epoch, case := f"rank {tables[0].spec.rank}")
        rng, times = np.random.default_rng(2), {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times[threads] = in_turn(
                3 if quick else 9,
                lambda: ours.epoch(rows, BATCH, rng),  # noqa: B023
                lambda: torch_epoch(rng.permutation(len(rows))),  # noqa: B023
            )
        best = min(times, key=lambda n: sorted(times[n][1])[len(times[n][1]) // 2])
        yield Row(
            "epoch",
            f"cce, ppd 256, batch {BATCH}, {case}",
            times[best][0],
            f"eager torch, {best} threads",
            times[best][1],
            TARGET,
        )


def check(ours: Any, rows: Any, torch_epoch: Any, case: str) -> None:
    """Refuse to time two programs that do not give the same losses, step by step."""
    from cce_core.tuning import logloss

    order = np.random.default_rng(1).permutation(len(rows))
    expected: list[float] = []
    torch_epoch(order, expected)
    pairs, labels = np.stack([rows.users, rows.items], axis=1)[order], rows.labels[order]
    got = []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        got.append(logloss(ours.step(pairs[part], labels[part]), labels[part]))
    worst = float(np.abs(np.array(got) - expected).max())
    if worst > 2e-3:
        raise AssertionError(f"{case}: the losses of an epoch differ by up to {worst:.2g}; nothing is timed")
    print(f"{case}: {len(got)} losses agree within {worst:.1g}")
