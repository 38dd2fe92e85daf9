"""Sparse gradients, the fused optimisers against torch's own, and moments over a clustering."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from strategies import pairwise
from torch_tables import CASES, DIM, NAMES, VOCAB

import cce_core as cce

torch = pytest.importorskip("torch")

from cce_core.adapters.torch import Embedding, FusedAdagrad, FusedAdam, FusedSGD  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])


def train(emb, optimizers, steps=4, batch=IDS):
    """A few steps towards a target."""
    target = torch.linspace(-1, 1, batch.numel() * DIM).reshape(*batch.shape, DIM)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (emb(batch) - target).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    return emb


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_sparse_gradients_are_the_dense_ones(case):
    """Of blocks and cores; a projection's and a network's are dense."""
    method, options = case
    dense, sparse = (Embedding(VOCAB, DIM, method=method, seed=1, sparse=s, **options) for s in (False, True))
    sparse.load_state_dict(dense.state_dict())
    for emb in (dense, sparse):
        (emb(IDS) ** 2).sum().backward()
    for (name, a), b in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert a.grad.is_sparse == (name in ("memory", "weights") or name.startswith("core"))
        got = a.grad
        if got.is_sparse:
            assert got.shape == a.shape
            got = got.coalesce()
            assert got.values().abs().sum(1).count_nonzero() <= got.indices().shape[1] <= a.shape[0]
            got = got.to_dense()
        torch.testing.assert_close(got, b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "cce", "hash", "robe", "hemb", "int8", "tt", "pq"])
@pytest.mark.parametrize("kind", ["SparseAdam", "SGD", "Adagrad"])
def test_torchs_optimisers_take_sparse_gradients(method, kind):
    options = {} if method in ("full", "int8") else {"num_params": 300, **({"rank": 0} if method == "cce" else {})}
    emb = Embedding(VOCAB, DIM, method=method, seed=1, sparse=True, **options)
    before = emb(IDS).detach()
    train(emb, [getattr(torch.optim, kind)(emb.parameters(), lr=0.05)])
    assert emb(IDS).isfinite().all()
    assert not torch.equal(emb(IDS), before)


PAIRS = {
    "sgd": (lambda p: FusedSGD(p, lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    "momentum": (
        lambda p: FusedSGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    ),
    "adagrad": (lambda p: FusedAdagrad(p, lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "adam": (lambda p: FusedAdam(p, lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adamw": (
        lambda p: FusedAdam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize(("pair", "sparse", "method"), pairwise([*PAIRS], [False, True], ["full", "cce", "dhe", "tt"]))
def test_fused_steps_are_torchs(pair, sparse, method):
    options = {} if method == "full" else {"num_params": 600}
    ours, theirs = PAIRS[pair]
    emb = Embedding(VOCAB, DIM, method=method, seed=1, **options)
    twin = copy.deepcopy(emb)
    emb.sparse = sparse
    steps = ours(emb.parameters())
    train(emb, [steps])
    train(twin, [theirs(twin.parameters())])
    for a, b in zip(emb.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    again = ours(emb.parameters())
    again.load_state_dict(copy.deepcopy(steps.state_dict()))  # a resumed run goes on as the first would
    other = copy.deepcopy(emb)
    resumed = ours(other.parameters())
    resumed.load_state_dict(copy.deepcopy(steps.state_dict()))
    train(emb, [steps])
    train(other, [resumed])
    for a, b in zip(emb.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fused_steps_are_the_cores():
    """Row-wise Adagrad and lazy Adam, which torch has not: the same numbers as the core's own table."""
    for ours, core in (
        (lambda p: FusedAdagrad(p, lr=0.1, rowwise=True), cce.Adagrad(lr=0.1, rowwise=True)),
        (lambda p: FusedAdam(p, lr=0.1, weight_decay=0.1, lazy=True), cce.AdamW(lr=0.1, weight_decay=0.1, lazy=True)),
    ):
        emb = Embedding(VOCAB, DIM, method="cce", num_params=300, rank=0, seed=1, sparse=True)
        table, steps = copy.deepcopy(emb).table, ours(emb.parameters())
        grads = np.linspace(-1, 1, IDS.numel() * DIM, dtype=np.float32).reshape(*IDS.shape, DIM)
        for _ in range(3):
            steps.zero_grad()
            emb(IDS).backward(torch.from_numpy(grads))
            steps.step()
            core.step(table, table.backward(IDS.numpy(), grads))
        np.testing.assert_allclose(
            emb.memory.detach().numpy().ravel(), table.parameters()["memory"], rtol=1e-6, atol=1e-7
        )


def test_fused_optimisers_behave_as_torchs():
    emb = Embedding(VOCAB, DIM, method="hash", num_params=200, seed=1)
    steps = FusedAdam([{"params": emb.parameters(), "lr": 0.01}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(steps, 1, gamma=0.1)

    def closure():
        steps.zero_grad()
        loss = emb(IDS).square().sum()
        loss.backward()
        return loss

    first = steps.step(closure)
    scheduler.step()
    assert steps.param_groups[0]["lr"] == pytest.approx(0.001)
    version = emb.memory._version
    assert steps.step(closure) < first
    assert emb.memory._version > version  # the step is seen by autograd
    FusedSGD([torch.nn.Parameter(torch.ones(2))], momentum=1.0)
    with pytest.raises(TypeError, match="momentum"):  # also once 1.0, which equals it, has been taken
        FusedSGD([torch.nn.Parameter(torch.ones(2))], momentum=True)
    with pytest.raises(ValueError, match="lr"):
        FusedSGD(emb.parameters(), lr=-1.0)
    with pytest.raises(ValueError, match="betas"):
        FusedAdam(emb.parameters(), betas=(1.0, 0.9))
    wide = Embedding(VOCAB, DIM, method="hash", num_params=200, seed=1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="takes contiguous float32 parameters, got torch.float64"):
        train(wide, [FusedSGD(wide.parameters(), lr=0.1)])


LEARNING = ["cce", "cce_robe", "pq", "sparse", "sparse2"]
OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "FusedAdam": lambda p: FusedAdam(p, lr=0.01),
    "FusedAdagrad": lambda p: FusedAdagrad(p, rowwise=True),
}


@pytest.mark.parametrize(("method", "kind", "how"), pairwise(LEARNING, [*OPTIMIZERS], ["remap", "reset"]))
def test_moments_over_a_clustering(method, kind, how):
    options = {"rank": 4, "num_params": 300} if method == "cce" else {"num_params": 300}
    emb = Embedding(VOCAB, DIM, method=method, seed=1, **options)
    steps = OPTIMIZERS[kind](emb.parameters())
    ids = torch.arange(VOCAB)
    train(emb, [steps], batch=ids[None])
    for p in steps.state:  # constant moments are constant afterwards, wherever an id is
        for value in steps.state[p].values():
            if isinstance(value, torch.Tensor) and value.dim():
                value.fill_(0.5)
    old, projection = emb.table, dict(steps.state.get(emb._parameters.get("projection"), {}))
    kept = copy.deepcopy(projection)
    emb.cluster(vectors=old if old.method.post_training else None, optimizer=[steps, None], moments=how)
    for name in ("memory", "weights"):
        if name in emb._parameters:
            state = steps.state[emb._parameters[name]]
            for key, value in state.items():
                if key == "step":
                    assert float(value) == (4 if how == "remap" else 0)
                elif how == "reset":
                    assert not value.any()
                else:
                    assert ((value - 0.5).abs().lt(1e-4) | (value.abs() < 0.5)).all()
                    assert (value - 0.5).abs().lt(1e-4).any()
                    emb.zero_grad()
                    emb(ids).sum().backward()
                    if name == "memory" and value.shape == emb.memory.shape:
                        used = emb.memory.grad != 0
                        torch.testing.assert_close(value[used], torch.full_like(value[used], 0.5))
    for key, value in kept.items():
        assert torch.equal(torch.as_tensor(projection[key]), torch.as_tensor(value))  # its meaning stays
    train(emb, [steps])
    assert emb(ids).isfinite().all()


def test_remapped_moments_follow_their_ids():
    """With a row for each distinct vector, a moment is that of the ids which have it, before and after."""
    emb = Embedding(40, 8, method="pq", num_params=38 * 8, n_chunks=1, seed=0)
    rows = torch.arange(40) % 38
    emb.cluster(vectors=torch.randn(38, 8, generator=torch.Generator().manual_seed(0))[rows].numpy())
    assert emb(torch.arange(40)).unique(dim=0).shape[0] == 38
    steps = torch.optim.SGD(emb.parameters(), lr=1e-6, momentum=0.9)
    grads = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    emb(torch.arange(40)).backward(grads)
    steps.step()
    emb.cluster(vectors=emb.weight.detach().flip(0).numpy(), optimizer=steps)  # rows are numbered anew
    moments = steps.state[emb.memory]["momentum_buffer"]
    emb.memory.data.copy_(moments)
    torch.testing.assert_close(emb(torch.arange(40)), torch.zeros(38, 8).index_add(0, rows, grads)[rows])


def test_bad_words_about_moments():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300)
    with pytest.raises(ValueError, match="remap, reset"):
        emb.cluster(moments="keep")
    with pytest.raises(ValueError, match="does not learn"):
        Embedding(VOCAB, DIM).cluster(optimizer=torch.optim.SGD(emb.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="weights must have shape"):
        emb.cluster(weights=torch.ones(3))
    emb.cluster(weights=torch.arange(VOCAB))
