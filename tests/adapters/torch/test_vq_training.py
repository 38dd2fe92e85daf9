"""Vector quantisation while training: what optimisers and averages know follows the ids; whole models, and when."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from reference import vq as twin

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    FusedAdagrad,
    FusedAdam,
    FusedSGD,
    cluster_,
    reopen_,
)

pytestmark = pytest.mark.torch

VOCAB, DIM = 53, 8
IDS = torch.arange(VOCAB)
OPTIONS = {
    "vq": {"num_bytes": 330},
    "two stages": {"num_bytes": 350, "stages": 2},
    "as wide as the vector": {"num_bytes": 250, "rank": 0},
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "FusedSGD": lambda p: FusedSGD(p, lr=0.01, momentum=0.9),
    "FusedAdagrad": lambda p: FusedAdagrad(p),
    "FusedAdagrad by row": lambda p: FusedAdagrad(p, rowwise=True),
    "FusedAdam": lambda p: FusedAdam(p, lr=0.01),
}
ROWS = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))[IDS % 5]


def made(name="vq", kind=Embedding, **more):
    emb = kind(VOCAB, DIM, method="vq", seed=1, **{**OPTIONS[name], **more})
    assert emb.table.spec.sizes[0] < VOCAB
    return emb


def train(emb, steps, n=4):
    for _ in range(n):
        steps.zero_grad()
        loss = (emb(IDS) - ROWS).square().sum()
        loss.backward()
        steps.step()
    return float(loss)


def rows_of(emb):
    words = None if emb.phase == "rows" else emb.pointers.numpy().view(np.uint64).tolist()
    return twin.rows_of(words, VOCAB, emb.spec.sizes[0], emb.spec.option("stages"))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_follow_their_ids_through_all_phases(name, kind):
    """Into codes, back into rows, and into codes again; the projection's stay, and so do counts of steps."""
    emb = made(name)
    steps = OPTIMIZERS[kind](emb.parameters())
    groups = [id(p) for group in steps.param_groups for p in group["params"]]
    for change in (emb.cluster, emb.reopen, emb.cluster):
        train(emb, steps)
        old, held = rows_of(emb), copy.deepcopy(steps.state[emb.memory])
        kept = copy.deepcopy(steps.state.get(emb._parameters.get("projection"), {}))
        n = len(emb.memory)
        change(optimizer=[steps, None])
        new, now = rows_of(emb), steps.state[emb.memory]
        assert held.keys() == now.keys()
        for key, value in held.items():
            if not isinstance(value, torch.Tensor) or not value.dim():
                assert now[key] == value
            elif value.numel() in (n, n * emb.memory.shape[1]):
                expected = twin.followed(value.reshape(n, -1).double().numpy(), old, new, len(emb.memory))
                np.testing.assert_allclose(now[key].reshape(len(emb.memory), -1), expected, rtol=1e-4, atol=1e-6)
                assert now[key].dtype == value.dtype
            else:
                assert not now[key].any()
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(steps.state[emb.projection][key]), torch.as_tensor(value))
        assert [id(p) for group in steps.param_groups for p in group["params"]] == groups
    first = train(emb, steps)
    assert train(emb, steps, 30) < first
    assert emb.weight.isfinite().all()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_or_are_those_of_new_parameters(kind):
    emb = made()
    steps = OPTIMIZERS[kind](emb.parameters())
    for change in (emb.cluster, emb.reopen):
        train(emb, steps)
        change(optimizer=steps, moments="reset")
        for value in steps.state[emb.memory].values():
            assert not torch.as_tensor(value).any()
        assert any(torch.as_tensor(v).any() for v in steps.state[emb.projection].values())
    assert train(emb, steps, 30) < float((emb.weight - ROWS).square().sum()) + 50


@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "FusedSGD", "FusedAdagrad"])
def test_with_sparse_gradients_and_bags(kind):
    bag = made(kind=EmbeddingBag, mode="sum", sparse=True)
    make = {"SGD": lambda p: torch.optim.SGD(p, lr=0.01)}.get(kind, OPTIMIZERS[kind])
    steps = make(bag.parameters())
    for change in (bag.cluster, bag.reopen, bag.cluster):
        before = float((bag(IDS[:, None]) - ROWS).square().sum().detach())
        for _ in range(8):
            steps.zero_grad()
            (bag(IDS[:, None]) - ROWS).square().sum().backward()
            steps.step()
        assert float((bag(IDS[:, None]) - ROWS).square().sum().detach()) < before
        change(optimizer=steps)


def test_an_optimiser_that_was_forgotten_is_told():
    """Loops over raw memory would leave it."""
    for make in (lambda p: FusedAdam(p), lambda p: FusedAdagrad(p)):
        emb = made()
        steps = make(emb.parameters())
        train(emb, steps)
        emb.cluster()
        with pytest.raises(RuntimeError, match=r"must be given its optimiser, cluster_\(model, optimizer\)"):
            train(emb, steps, 1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("given", [True, False])
def test_averages_come_along(name, given):
    """An average that follows by itself, or that is given: it has the pointers, and vectors near those that it had."""
    model = nn.ModuleDict({"item": made(name)})
    steps = torch.optim.Adam(model.parameters(), lr=0.05)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=not given)
    emb, mean = model["item"], average.module["item"]
    for change in (cluster_, reopen_, cluster_):
        for _ in range(10):
            train(emb, steps, 3)
            average.update_parameters(model)
            if given:
                continue
            mean(IDS)
        before = mean.weight.detach().clone()
        change(model, steps, averaged=average if given else None)
        assert mean.phase == emb.phase
        assert given or mean._mark.follows
        for buffer in ("stamp", "pointers", "generation"):
            if emb._buffers[buffer] is not None:
                assert torch.equal(getattr(mean, buffer), getattr(emb, buffer))
        apart = (mean.weight - before).square().mean()
        assert apart < 0.15 * before.square().mean()
        average.update_parameters(model)
        assert mean(IDS).isfinite().all()


def test_whole_models_are_clustered_once_and_opened_again():
    shared = made()
    model = nn.ModuleDict({"a": shared, "b": Embedding(VOCAB, DIM, method="cce", num_params=300), "c": shared})
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="'a' has a row per id already"):
        reopen_(model)
    assert list(cluster_(model, optimizer, weights={"a": torch.ones(VOCAB)})) == ["a", "b"]
    generations = [m.table.generation for m in model.values()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the table 'a' was clustered"):
        cluster_(model, optimizer)
    assert [m.table.generation for m in model.values()] == generations
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert reopen_(model, optimizer) == ["a"]
    assert shared.phase == "rows"
    with pytest.raises(ValueError, match="no table with phases"):
        reopen_(nn.ModuleDict({"b": model["b"]}))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        reopen_(3)
