"""Fused optimisers and clusterings of torch modules on a GPU, or as if there were one, as they are on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from kernel_tables import DEVICE, INTERPRETED, poisoned, torch
from strategies import pairwise
from torch_gpu import IDS, both, gpu, near, table
from torch_tables import CASES, DIM, NAMES, VOCAB

from cce_core.adapters.torch import Embedding, FusedAdagrad, FusedAdam, FusedSGD
from cce_core.adapters.torch.modules import device_cluster
from cce_core.adapters.torch.operators import cuda
from cce_core.adapters.torch.optim import steps

pytestmark = pytest.mark.triton
_ = poisoned, gpu

FUSED = {
    "sgd": lambda p: FusedSGD(p, lr=0.1),
    "momentum": lambda p: FusedSGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda p: FusedAdagrad(p, lr=0.1),
    "rowwise": lambda p: FusedAdagrad(p, lr=0.1, rowwise=True),
    "adamw": lambda p: FusedAdam(p, lr=0.01, weight_decay=0.1),
    "lazy": lambda p: FusedAdam(p, lr=0.01, lazy=True),
}


def train(emb, optimizer, n=3):
    where = emb.memory.device
    for _ in range(n):
        optimizer.zero_grad()
        (emb(IDS.to(where)) - 1.0).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("rule", "name", "sparse", "fused"),
    pairwise([*FUSED], ["full", "hemb", "cce-rank=4"], [False, True], [True, False]),
)
def test_fused_optimisers(rule, name, sparse, fused, gpu, monkeypatch):
    """Steps and state as on the CPU, by the kernels and by plain torch, and on from a state that was loaded."""
    emb, there = both(CASES[NAMES.index(name)], sparse=sparse)
    mine, theirs = FUSED[rule](emb.parameters()), FUSED[rule](there.parameters())
    if INTERPRETED:  # the peer takes the core's way
        with pytest.MonkeyPatch.context() as cpu:
            cpu.setattr(cuda, "here", lambda tensor: False)
            train(emb, mine)
    else:
        train(emb, mine)
    if not fused:
        monkeypatch.setattr(cuda, "kernels", lambda: None)
    else:
        monkeypatch.setattr(steps, "update", None)
    version = there.memory._version
    train(there, theirs, 2)
    assert there.memory._version > version
    kept = copy.deepcopy(theirs.state_dict())
    theirs = FUSED[rule](there.parameters())
    theirs.load_state_dict(kept)
    train(there, theirs, 1)
    for a, b in zip(there.parameters(), emb.parameters(), strict=True):
        near(a.detach(), b.detach())
        assert theirs.state[a].keys() == mine.state[b].keys()
        for key, value in mine.state[b].items():
            if isinstance(value, torch.Tensor):
                assert theirs.state[a][key].shape == value.shape
                near(theirs.state[a][key], value)
            else:
                assert theirs.state[a][key] == value


# Clusterings


def trained(method="cce", num_params=8 * 40, **options):
    """A module that was clustered once and trained since, on the CPU."""
    emb = Embedding(300, DIM, method=method, num_params=num_params, seed=3, **options)
    emb.cluster(n_iter=3)
    with torch.no_grad():
        emb.memory += torch.randn(emb.memory.shape, generator=torch.Generator().manual_seed(1))
    return emb


def same_state(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        if x.is_floating_point():
            near(x, y)
        else:
            assert torch.equal(x.cpu(), y.cpu()), name


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": 4}, {"rank": 0, "codec": "int8"}, {"method": "cce_robe", "num_params": 90}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_warm_clustering_is_that_of_the_cpu(options, weighted, gpu, monkeypatch):
    """Pointers, keys and memory; moments go along; parameters and buffers keep their places."""
    with pytest.MonkeyPatch.context() as cpu:
        cpu.setattr(cuda, "here", lambda tensor: False)
        emb = trained(**options)
    there = copy.deepcopy(emb).to(DEVICE)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(5)) if weighted else None
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0, momentum=0.9) for m in (emb, there)]
    for module, optimizer in zip((emb, there), optimizers, strict=True):
        module(torch.arange(300, device=module.memory.device)).square().sum().backward()
        optimizer.step()
    places, version = [t.data_ptr() for t in there.state_dict().values()], there.memory._version
    setting = {"n_iter": 4, "points_per_centroid": 8, "weights": weights}
    with pytest.MonkeyPatch.context() as cpu:
        if INTERPRETED:
            cpu.setattr(cuda, "here", lambda tensor: False)
        want = emb.cluster(optimizer=optimizers[0], **setting)
    monkeypatch.setattr(Embedding, "table", property(lambda self: pytest.fail("nothing is to go over the CPU")))
    got = there.cluster(optimizer=optimizers[1], **setting)
    monkeypatch.undo()
    same_state(there, emb)
    assert [t.data_ptr() for t in there.state_dict().values()] == places
    assert there.memory._version > version
    near(*(o.state[m.memory]["momentum_buffer"] for o, m in zip(optimizers[::-1], (there, emb), strict=True)), 10)
    assert (got.generation, got.iterations, got.empty_clusters) == (2, want.iterations, want.empty_clusters)
    np.testing.assert_allclose(got.inertia_after, want.inertia_after, rtol=1e-5)


def test_a_first_clustering_of_other_types(gpu):
    """From given vectors, and of bfloat16 parameters: nearer than before, the same at each run."""
    rows = torch.randn(300, DIM, generator=torch.Generator().manual_seed(2))
    for method, more, given_ in (
        ("pq", {}, rows),
        ("sparse", {}, rows),
        ("sparse2", {"dtype": torch.bfloat16}, rows),
        ("cce", {"dtype": torch.bfloat16}, None),
    ):
        found = []
        for _ in range(2):
            emb = Embedding(300, DIM, method=method, num_params=8 * 40, seed=3, **more).to(DEVICE)
            report = emb.cluster(vectors=given_, n_iter=5, show_progress=False)
            assert report.inertia_after < report.inertia_before
            found.append({name: value.clone() for name, value in emb.state_dict().items()})
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        if method in ("pq", "sparse"):  # hashed weights are means, and their report is of those before
            error = (emb(torch.arange(300, device=DEVICE)).float().cpu() - rows).square().sum().item() / 300
            assert error == pytest.approx(report.inertia_after, rel=0.1)
        assert emb.memory.dtype == more.get("dtype", torch.float32)
        assert int(emb.generation) == 1


def test_what_the_kernels_do_not_cluster_goes_to_the_core(gpu, monkeypatch):
    with pytest.raises(ValueError, match="weights must have shape"):
        table(("cce", {"num_params": 300})).to(DEVICE).cluster(weights=torch.ones(3))
    monkeypatch.setattr(device_cluster, "cluster", None)
    rows = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(2)).numpy()
    for case, more in (
        (("cce", {"num_params": 300, "rank": 4}), {"vectors": rows}),
        (("cce", {"num_params": 300}), {"max_bytes": 1 << 22}),
    ):
        emb = table(case).to(DEVICE)
        assert emb.cluster(**more).generation == 1
    with pytest.raises(ValueError, match="does not learn"):
        table(("full", {})).to(DEVICE).cluster()
