"""What each process of tests/adapters/torch/test_distributed.py does; each gives what all ranks must agree on."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
from typing import Any

import numpy as np
from torch_tables import DIM

VOCAB = 1000
IDS = 48  # of a step, over all ranks
WEIGHTED = ("cce", "robe", "sparse2")


def tables() -> dict[str, dict[str, Any]]:
    """Those that learn, and one that does not."""
    return {
        "cce": {"method": "cce", "num_params": 512, "rank": 0},
        "rank": {"method": "cce", "num_params": 600, "rank": 4},
        "int8": {"method": "cce", "num_bytes": 4000, "codec": "int8", "rank": 0},
        "robe": {"method": "cce_robe", "num_params": 200},
        "robe4": {"method": "cce_robe", "num_params": 200, "rank": 4, "codec": "int8"},
        "sparse": {"method": "sparse", "num_params": 400},
        "sparse2": {"method": "sparse2", "num_params": 400},
        "hash": {"method": "hash", "num_params": 200},
        "hemb": {"method": "hemb", "num_params": 400},
        "tt": {"method": "tt", "num_params": 400},
        "narrow": {"method": "hash", "num_params": 400, "rank": 4, "codec": "int8"},
    }


UNLEARNED = ("hash", "hemb", "tt", "narrow")


def clustered(name: str, **settings: Any) -> dict[str, Any]:
    """A table's numbers after two clusterings with a few steps between, moments carried; and what the reports say."""
    import torch

    from cce_core.adapters.torch import Embedding

    emb = Embedding(VOCAB, DIM, seed=3, **tables()[name])
    steps = torch.optim.Adam(emb.parameters(), lr=0.1)
    target = torch.randn(20, DIM, generator=torch.Generator().manual_seed(0))[torch.arange(VOCAB) % 20]
    reports = []
    for _ in range(2):
        for _ in range(3):
            steps.zero_grad()
            (emb.weight - target).square().sum().backward()
            steps.step()
        given = target.numpy() if emb.table.method.post_training else None
        reports.append(emb.cluster(optimizer=steps, vectors=given, n_iter=8, **settings))
    state = {k: v.numpy().copy() for k, v in emb.state_dict().items()}
    moments = {k: v.numpy().copy() for k, v in steps.state[emb.memory].items()}
    said = [(r.inertia_before, r.inertia_after, r.iterations, r.empty_clusters, r.column_entropy) for r in reports]
    return {"state": state, "moments": moments, "said": said}


def learned() -> dict[str, Any]:
    """A trained table compressed by `pq` and by `cce`, on all ranks together."""
    import torch

    from cce_core.adapters.torch import Embedding

    weight = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(1)).numpy()
    out = {}
    for method in ("pq", "cce"):
        emb = Embedding(VOCAB, DIM, method=method, num_params=512, seed=3)
        emb.cluster(vectors=weight, weights=np.arange(1.0, VOCAB + 1))
        out[method] = {k: v.numpy().copy() for k, v in emb.state_dict().items()}
    return out


def trained(wrap: Any, name: str = "cce", sparse: bool = False, **more: Any) -> dict[str, Any]:
    """Steps on this rank's share of each batch, a clustering half-way; the state at the end."""
    import torch
    from torch import distributed as dist

    from cce_core.adapters.torch import Embedding

    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        Embedding(VOCAB, DIM, seed=3, sparse=sparse, **tables()[name], **more), torch.nn.Linear(DIM, 1)
    )
    emb, wrapped = model[0], wrap(model)
    steps = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.0 if sparse else 0.9)
    ids = torch.randint(VOCAB, (6, IDS), generator=torch.Generator().manual_seed(2))
    for k, batch in enumerate(ids):
        steps.zero_grad()
        mine = batch[rank::size]
        (wrapped(mine) - mine[:, None] / VOCAB).square().mean().backward()
        steps.step()
        if k == 3 and emb.table.method.learns:
            emb.cluster(optimizer=steps)
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}
    return {"state": {k: v.numpy().copy() for k, v in state.items() if "pointers" not in k and "shard" not in k}}


SHARDED: dict[str, dict[str, Any]] = {
    "cce": {"method": "cce", "num_params": 512, "rank": 0},
    "rank": {"method": "cce", "num_params": 600, "rank": 4, "sparse": True},
    "robe": {"method": "cce_robe", "num_params": 200},
    "pq": {"method": "pq", "num_params": 512, "sparse": True},
    "sparse": {"method": "sparse", "num_params": 400, "n_atoms": 8},  # more than 64 bits an id
    "sparse2": {"method": "sparse2", "num_params": 400},
    "hash": {"method": "hash", "num_params": 200},  # no pointers: nothing to share
}


def sharded() -> dict[str, Any]:
    """Modules that hold a share of the pointers beside such as hold all: the same vectors, gradients and clusterings."""
    import torch
    from torch import distributed as dist

    from cce_core.adapters.torch import Embedding, EmbeddingBag

    rank, size, out = dist.get_rank(), dist.get_world_size(), {}
    trained_rows = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(1)).numpy()
    ids = torch.randint(VOCAB, (3, 17 + rank), generator=torch.Generator().manual_seed(rank))
    for name, options in SHARDED.items():
        whole, part = (Embedding(VOCAB, DIM, padding_idx=5, seed=3, shard_pointers=s, **options) for s in (False, True))
        if hasattr(part, "pointers"):
            n = whole.pointers.numel()
            assert n / size <= part.pointers.numel() <= n / size + 64
        for generation in range(2):
            if generation and whole.table.method.learns:
                given = trained_rows if whole.table.method.post_training else None
                steps = [torch.optim.SGD(m.parameters(), lr=0.0, momentum=0.9) for m in (whole, part)]
                reports = [
                    m.cluster(vectors=given, optimizer=o, n_iter=4) for m, o in zip((whole, part), steps, strict=True)
                ]
                assert reports[0].inertia_after == reports[1].inertia_after
            for batch in (ids, ids[:, : 4 * rank], torch.full((2,), rank)):  # one rank asks for nothing
                torch.testing.assert_close(part(batch), whole(batch), rtol=1e-5, atol=1e-6, msg=name)
            torch.testing.assert_close(part.weight, whole.weight, rtol=1e-5, atol=1e-6)
            for m in (whole, part):
                m.zero_grad()
                m(ids).square().sum().backward()
            for a, b in zip(part.parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(a.grad.to_dense(), b.grad.to_dense(), rtol=1e-5, atol=1e-6)
        for key, value in whole.table.arrays().items():
            np.testing.assert_array_equal(part.table.arrays()[key], value)
        again = Embedding(VOCAB, DIM, padding_idx=5, seed=4, shard_pointers=True, **options)
        again.load_state_dict(part.state_dict())
        assert torch.equal(again(ids), part(ids))
        out[name] = {k: v.copy() for k, v in part.table.arrays().items()}
    bag = EmbeddingBag(VOCAB, DIM, mode="sum", seed=3, shard_pointers=True, method="cce", num_params=512)
    one = EmbeddingBag(VOCAB, DIM, mode="sum", seed=3, method="cce", num_params=512)
    torch.testing.assert_close(bag(ids), one(ids), rtol=1e-5, atol=1e-6)
    return out


def phased_table(stages: int = 1, sparse: bool = False, rounding: str | None = None) -> Any:
    """A `vq` table in rows."""
    from cce_core.adapters.torch import Embedding

    return Embedding(VOCAB, DIM, seed=3, method="vq", num_bytes=3000, stages=stages, sparse=sparse, rounding=rounding)


def phased(wrap: Any, **options: Any) -> dict[str, Any]:
    """Such a table trained in rows, clustered within the wrapped model, trained in codes, opened again, and trained."""
    import torch
    from torch import distributed as dist

    from cce_core.adapters.torch import FusedSGD

    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(phased_table(**options), torch.nn.Linear(DIM, 1))
    emb, wrapped, out = model[0], wrap(model), {}
    kind, momentum = FusedSGD if "rounding" in options else torch.optim.SGD, 0.0 if "sparse" in options else 0.9
    steps = kind(model.parameters(), lr=0.5, momentum=momentum)
    batches = torch.randint(VOCAB // 2, (3, 5, IDS), generator=torch.Generator().manual_seed(2))
    for phase, change in enumerate((emb.cluster, emb.reopen, None)):
        for batch in batches[phase]:
            steps.zero_grad()
            mine = batch[rank::size]
            loss = (wrapped(mine) - mine[:, None] / VOCAB).square().mean()
            loss.backward()
            steps.step()
        before = copy.deepcopy(emb)
        gradients = [p.grad.to_dense() for p in model.parameters()]
        out[f"gradients {phase}"] = {str(k): g.numpy().copy() for k, g in enumerate(gradients)}
        if phase == 0:
            counts = [before.counts] if size == 1 else [torch.empty_like(before.counts) for _ in range(size)]
            if size > 1:
                dist.all_gather(counts, before.counts)
            out["met"] = {str(k): one.numpy().copy() for k, one in enumerate(counts)}
        if change is not None:
            change(optimizer=steps)
            out[f"before {phase}"], out[f"after {phase}"] = (
                {k: v.copy() for k, v in m.table.arrays().items() if k != "counts"} for m in (before, emb)
            )
    state = {k: v.numpy().copy() for k, v in model.state_dict().items() if k not in ("0.counts", "0.passes")}
    return {**out, "state": state}


def earning(wrap: Any, stands_for: int = 1, **options: Any) -> dict[str, Any]:
    """A table whose ids earn rows, each step from two backward passes of each rank's share, which may be no id at all.

    One process may stand for several, and does what they do one after the other.
    """
    import contextlib

    import torch
    from torch import distributed as dist

    from cce_core.adapters.torch import Embedding, FusedSGD

    together = stands_for == 1  # other tests of a process may have left a group of it alone
    ranks, size = ([dist.get_rank()], dist.get_world_size()) if together else (range(stands_for), stands_for)
    torch.manual_seed(0)
    settings: Any = {"num_bytes": 2000, "codec": "float32", "half_life": 5, "lead": 1, **options}
    model = torch.nn.Sequential(Embedding(None, DIM, seed=3, method="tiered", **settings), torch.nn.Linear(DIM, 1))
    emb, wrapped = model[0], wrap(model)
    steps = FusedSGD(model.parameters(), lr=0.01)
    for step, batch in enumerate(np.random.default_rng(4).zipf(1.3, (8, 2, IDS)) % 2**40):
        if step == 5 and emb.sparse:
            emb.cluster(optimizer=steps, num_bytes=1500, bits=4)
        steps.zero_grad()
        for rank, k in itertools.product(ranks, range(2)):
            ends = [IDS * max(0, r - k) // max(1, size - k) for r in range(size)] + [IDS]
            mine = torch.from_numpy(batch[k])[ends[rank] : ends[rank + 1]]
            with wrapped.no_sync() if together and k == 0 else contextlib.nullcontext():
                loss = (wrapped(mine) - mine[:, None] % 3).square().sum() / IDS
                (loss * size if together else loss).backward()
        steps.step()
    assert emb.table.stats().evictions[0] > 3
    return {"state": {k: v.numpy().copy() for k, v in model.state_dict().items()}, "said": str(emb.table.stats())}


def disagreements() -> dict[str, str]:
    """What is said where the ranks do not hold the same."""
    import torch
    from torch import distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from cce_core.adapters.torch import Embedding, leave_out_pointers

    rank, said = dist.get_rank(), {}

    def note(name: str, call: Any) -> None:
        try:
            call()
            said[name] = "nothing"
        except RuntimeError as error:
            said[name] = str(error)

    emb = Embedding(VOCAB, DIM, seed=3, method="cce", num_params=512, rank=0)
    before = copy.deepcopy(emb.state_dict())
    with torch.no_grad():
        emb.memory[0, 0] += rank
    changed = copy.deepcopy(emb.state_dict())
    note("memory", emb.cluster)
    assert all(torch.equal(a, b) for a, b in zip(emb.state_dict().values(), changed.values(), strict=True))
    emb.load_state_dict(before)
    note("weights", lambda: emb.cluster(weights=np.arange(1.0, VOCAB + 1) + rank))
    note("seeds", Embedding(VOCAB, DIM, seed=rank, method="cce", num_params=512, rank=0).cluster)
    other = Embedding(VOCAB, DIM, seed=rank, method="cce", num_params=512, rank=0)
    note("pointers", lambda: leave_out_pointers(torch.nn.Sequential(other)))
    parts = torch.nn.Sequential(Embedding(VOCAB, DIM, seed=3, method="cce", num_params=512, shard_pointers=True))
    torch.nn.parallel.DistributedDataParallel(parts)  # nobody told it to leave the pointers out
    if rank:
        note("shard", lambda: parts(torch.tensor([1])))
    model = torch.nn.Sequential(Embedding(VOCAB, DIM, seed=3, method="cce", num_params=512))
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    model[0].memory = torch.nn.Parameter(model[0].memory.detach().clone())  # DistributedDataParallel never hears of it
    wrapped(torch.tensor([rank])).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    note("replaced", model[0].cluster)
    rows = Embedding(VOCAB, DIM, seed=3, method="vq", num_bytes=3000)
    hooked = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(rows))
    hooked.register_comm_hook(None, allreduce_hook)
    note("hooked", rows.cluster)
    rows = Embedding(VOCAB, DIM, seed=3, method="vq", num_bytes=3000)
    with torch.no_grad():
        rows.memory[0, 0] += rank
    note("rows", rows.cluster)
    note("vectors", lambda: rows.cluster(vectors=np.full((VOCAB, DIM), float(rank))))
    assert rows.phase == "rows"
    note("robe", Embedding(VOCAB, DIM, seed=rank, method="cce_robe", num_params=200).cluster)
    return said


def everything() -> dict[str, Any]:
    """What the tests compare, in one run of the processes: they take seconds to begin."""
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from cce_core.adapters.torch import leave_out_pointers

    def left_out(model: Any, **more: Any) -> Any:
        left = leave_out_pointers(model)
        names = ("shard", "counts", "pointers", "passes", "own_counts", "sketch", "clock")
        assert set(left) == {f"0.{name}" for name in names if name in model[0]._buffers}
        wrapped = DistributedDataParallel(model, **more)
        assert not any(b is getattr(model[0], "pointers", None) for b in wrapped.modules_buffers)
        return wrapped

    def left_out_hollow(model: Any) -> Any:
        return left_out(model, init_sync=False)

    def fully_sharded(model: Any) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    out: dict[str, Any] = {f"clustered {name}": clustered(name) for name in tables() if name not in UNLEARNED}
    for name in WEIGHTED:
        out[f"weighted {name}"] = clustered(name, weights=np.arange(1.0, VOCAB + 1), points_per_centroid=8)
    out["learned"] = learned()
    for name in ("cce", "hash"):
        out[f"wrapped {name}"] = trained(DistributedDataParallel, name)
        out[f"left out {name}"] = trained(left_out, name)
    for name in ("cce", "hash"):
        out[f"sharded {name}"] = trained(left_out, name, shard_pointers=True)
        out[f"fully sharded {name}"] = trained(fully_sharded, name)
    for name in ("cce", "rank", *UNLEARNED):
        out[f"sparse {name}"] = trained(DistributedDataParallel, name, sparse=True)
    more = {"find_unused_parameters": True, "gradient_as_bucket_view": True}
    out["sparse and unused hemb"] = trained(lambda m: DistributedDataParallel(m, **more), "hemb", sparse=True)
    out["phased"] = phased(DistributedDataParallel)
    out["phased, left out"] = phased(left_out, stages=2)
    out["phased, sparse"] = phased(DistributedDataParallel, sparse=True)
    out["phased, codes"] = phased(lambda m: DistributedDataParallel(m, init_sync=False), rounding="stochastic")
    out["phased, static"] = phased(
        lambda m: DistributedDataParallel(m, static_graph=True, gradient_as_bucket_view=True)
    )
    out["earning"] = earning(DistributedDataParallel)
    out["earning, left out"] = earning(left_out, sparse=True)
    out["earning, codes"] = earning(left_out_hollow, codec="int8", rounding="stochastic")
    out["sharded"] = sharded()
    out["disagreements"] = disagreements()
    return out


def work(rank: int, size: int, folder: str) -> None:
    """One process: it leaves what it found in a file."""
    import torch
    from torch import distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        found = everything()
    finally:
        dist.destroy_process_group()
    with open(f"{folder}/{rank}.pickle", "wb") as file:
        pickle.dump(found, file)
