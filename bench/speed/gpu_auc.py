"""MovieLens 100K on a GPU: the example's own protocol, `cce` tables clustered between epochs, against the same run on the CPU.

Both runs of a seed begin with the same tables and see the same batches; the first clustering of the device draws other starts,
and its sums have another order. Where CCE_DATA names no folder that holds the data set, a synthetic one of its shape stands in.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cce_core as cce

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

MOST_APART = 0.005


@dataclasses.dataclass(frozen=True)
class AucRow:
    """What a seed reached on the GPU and on the CPU."""

    case: str
    gpu: float
    cpu: float

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"name": "auc", **dataclasses.asdict(self), "apart": self.gpu - self.cpu, "most_apart": MOST_APART}

    def __str__(self) -> str:
        apart = f"{self.gpu - self.cpu:+.4f} (at most {MOST_APART})"
        return f"auc {self.case}: {self.gpu:.4f} on the GPU, {self.cpu:.4f} on the CPU, {apart}"


class DeviceTable:
    """A table on the device with the few methods that the example's model and its training loop ask for."""

    def __init__(self, table: cce.Table, device: str, optimizer: Any) -> None:
        from cce_kernels.steps import Trainer
        from cce_kernels.tables import Tables, from_table

        self.method, self.phase, self.ledger, self.device = table.method, table.phase, table.ledger, device
        self.tables = Tables([(table.spec, from_table(table, device))])
        self.trainer = Trainer(self.tables, optimizer)

    def put(self, ids: Any) -> Any:
        """Ids on the device."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(ids, np.int64)).to(self.device)

    def cluster(self, residual: bool = True) -> Any:
        """As `Table.cluster()`, with the fresh half at the mean residual."""
        from cce_kernels.cluster import cluster

        return cluster(self.tables)


def model_on(device: str, users: cce.Table, items: cce.Table, lr: float) -> Any:
    """The example's model with its tables on the device."""
    import torch
    from movielens import GMF

    class DeviceGMF(GMF):
        def __init__(self, users: DeviceTable, items: DeviceTable) -> None:
            self.users, self.items = users, items

        def score(self, rows: Any) -> Any:
            sides = zip((self.users, self.items), (rows.users, rows.items), strict=True)
            u, v = (side.tables.lookup(side.put(ids)) for side, ids in sides)
            return (u * v).sum(1).cpu().numpy()

        def step(self, pairs: Any, labels: Any) -> Any:
            ids = self.users.put(pairs[:, 0]), self.items.put(pairs[:, 1])
            u, v = (side.tables.forward(x) for side, x in zip((self.users, self.items), ids, strict=True))
            score = (u[0] * v[0]).sum(1)
            slope = (torch.sigmoid(score) - torch.from_numpy(labels).to(score)) / len(labels)
            for side, x, seen, other in zip((self.users, self.items), ids, (u, v), (v, u), strict=True):
                side.trainer.update(x, slope[:, None] * other[0], seen=seen, check=False)
            return score.cpu().numpy()

    sides = (DeviceTable(table, device, cce.AdamW(lr=lr)) for table in (users, items))
    return DeviceGMF(*sides)


def run(device: str, quick: bool, more: Sequence[str] = ()) -> Iterator[AucRow]:
    """Three seeds (one where `quick`) at 256 parameters a dimension; `more` goes to the example."""
    from movielens import GMF, load_data, make_tables, parse, train

    for seed in range(1 if quick else 3):
        args = parse(["--seed", str(seed), *more])
        split = load_data(args)
        cpu = train(GMF(*make_tables(split, args), cce.AdamW(lr=args.lr)), split, args, lambda line: None)
        gpu = train(model_on(device, *make_tables(split, args), args.lr), split, args, lambda line: None)
        yield AucRow(f"{split.name}, seed {seed}", gpu.auc, cpu.auc)
