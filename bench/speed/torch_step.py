"""A training step of GMF in torch: our modules against eager torch as one would write it, and against the NumPy core.

All start from the same tables, take the same steps of AdamW on the same batches (torch's own, and for our modules the core's too,
`FusedAdam`), and must give the same losses before anything is timed. Each runs with one thread and with all, and its quicker way
counts: threads of torch spin while they wait for work, and then keep those of others, and of other programs, waiting. The eager
peer finds its addresses as our paper's users write them: hashes of the ids in tensor operations, learned pointers from a table of
indices, then a gather and a sum.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cce_core as cce
from bench.speed.timing import Row, in_turn

VOCAB, DIM, PPD = 100_000, 32, 256
PRIME = 2**31 - 1


def eager_embedding(table: cce.Table) -> Any:
    """The table as a torch module in plain tensor operations; its hash is (a·id + b) mod p mod rows, as is usual."""
    import torch

    from cce_core.sketching import blocks

    spec, layout = table.spec, table.layout
    assert spec.vocab is not None
    at = blocks.addresses(table.sketch, np.arange(spec.vocab, dtype=np.uint64))
    bases = np.array([c.base for c in layout.columns])
    index = torch.from_numpy((at - bases) // layout.width).reshape(spec.vocab, spec.n_chunks, 2)[..., 0].contiguous()
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(1, PRIME, spec.n_chunks)) for _ in range(2))
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

        def forward(self, ids: Any) -> Any:
            hashes = (ids[:, None] * a + b) % PRIME % spec.sizes[0]
            vectors = self.learned[self.chunks, index[ids]] + self.hashed[self.chunks, hashes]
            vectors = vectors.flatten(1)
            return vectors if self.projection is None else vectors @ self.projection[:-1] + self.projection[-1]

    return Eager()


def stepper(modules: Any, optimizer: Any) -> Callable[[Any, Any, Any], float]:
    """A step of any pair of modules; gives the loss."""
    import torch

    loss_of = torch.nn.BCEWithLogitsLoss()

    def step(users: Any, items: Any, labels: Any) -> float:
        loss = loss_of((modules[0](users) * modules[1](items)).sum(1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def run(quick: bool) -> Iterator[Row]:
    """cce at ppd 256, with its projection and without, batches of 4,096 and 65,536; and bags of a full table."""
    import torch

    from cce_core.adapters.torch import Embedding, FusedAdam
    from cce_core.tuning import GMF, logloss

    for rank in (0, None):
        for batch in (4096, 65536):
            ours = [Embedding(VOCAB, DIM, method="cce", num_params=PPD * DIM, rank=rank, seed=k) for k in (0, 1)]
            for module in ours:
                module.cluster(points_per_centroid=64)
            fused = copy.deepcopy(ours)
            core = [cce.Table(m.spec, {n: a.copy() for n, a in m.table.arrays().items()}) for m in ours]
            eager = [eager_embedding(table) for table in core]
            model = GMF(*core, cce.AdamW())
            by_module = stepper(ours, torch.optim.AdamW([p for m in ours for p in m.parameters()]))
            by_fused = stepper(fused, FusedAdam([p for m in fused for p in m.parameters()], weight_decay=1e-2))
            by_hand = stepper(eager, torch.optim.AdamW([p for m in eager for p in m.parameters()]))
            rng = np.random.default_rng(1)
            users, items = rng.zipf(1.2, (2, batch)) % VOCAB
            pairs, labels = np.stack([users, items], axis=1), (rng.random(batch) < 0.5).astype(np.float32)
            u, v, y = (torch.from_numpy(x) for x in (users, items, labels))
            for k in range(3):
                expected = logloss(model.step(pairs, labels), labels)
                for got in (by_module(u, v, y), by_fused(u, v, y)):
                    if abs(got - expected) > 1e-4:
                        raise AssertionError(f"step {k}: the module's loss {got:.6f} is not the core's {expected:.6f}")
            by_hand(u, v, y)
            case = f"cce, ppd {PPD}, batch {batch}, rank {core[0].spec.rank}"
            module_s, fused_s, hand_s, core_s = quickest(
                5 if quick else 15,
                lambda: by_module(u, v, y),  # noqa: B023
                lambda: by_fused(u, v, y),  # noqa: B023
                lambda: by_hand(u, v, y),  # noqa: B023
                lambda: model.step(pairs, labels),  # noqa: B023
            )
            for ours_s, name in ((module_s, case), (fused_s, f"{case}, FusedAdam")):
                yield Row("torch_step", name, ours_s, "eager torch", hand_s, 3.0)
                yield Row("torch_step", name, ours_s, "the NumPy core", core_s, 1 / 1.2)
    yield from bags(quick)


def bags(quick: bool) -> Iterator[Row]:
    """Forward and backward of bags of 16 ids, of a full table."""
    import torch

    from cce_core.adapters.torch import EmbeddingBag

    rng, count, size = np.random.default_rng(2), 4096, 16
    ids, offsets = torch.from_numpy(rng.zipf(1.2, count * size) % VOCAB), torch.arange(0, count * size, size)
    for mode, weighted in (("sum", False), ("mean", False), ("sum", True)):
        weights = torch.rand(count * size, requires_grad=True) if weighted else None
        theirs, ours = torch.nn.EmbeddingBag(VOCAB, DIM, mode=mode), EmbeddingBag(VOCAB, DIM, mode=mode, method="full")
        with torch.no_grad():
            ours.weight.copy_(theirs.weight)

        def once(bag: Any, weights: Any = weights) -> Any:
            bag.zero_grad()
            out = bag(ids, offsets, weights)
            out.sum().backward()
            return out.detach()

        torch.testing.assert_close(once(ours), once(theirs), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)
        ours_s, theirs_s = quickest(5 if quick else 15, lambda: once(ours), lambda: once(theirs))  # noqa: B023
        case = f"{count} bags of {size}, full, {mode}{', weighted' if weighted else ''}, forward and backward"
        yield Row("torch_step", case, ours_s, "nn.EmbeddingBag", theirs_s, 1.0)


def quickest(n: int, *programs: Callable[[], Any]) -> list[list[float]]:
    """`in_turn` with one thread and with all; of each program the quicker one."""
    import torch

    every, best = cce.get_num_threads(), None
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        cce.set_num_threads(threads)
        times = in_turn(n, *programs)
        best = times if best is None else [min(pair, key=statistics.median) for pair in zip(best, times, strict=True)]
    assert best is not None
    return best
