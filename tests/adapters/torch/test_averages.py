"""Averages of a module whose sketch is learned meanwhile."""

from __future__ import annotations

import copy
import warnings

import pytest
from torch_tables import DIM, VOCAB

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn  # noqa: E402
from torch_modules import numbers  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, cluster_  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.arange(VOCAB)
LEARNS = [("cce", {"num_params": 300, "rank": 0}), ("cce", {"num_params": 300, "rank": 4}), ("cce_robe", {"num_params": 200}),
          ("cce", {"num_bytes": 900, "codec": "int8", "rank": 0})]  # fmt: skip


def made(case, kind=Embedding, seed=1, **more):
    method, options = case
    return kind(VOCAB, DIM, method=method, seed=seed, **{**options, **more})


def vectors(module):
    return module(IDS[:, None] if isinstance(module, EmbeddingBag) else IDS).detach().clone()


def apart(a, b):
    return ((a - b).square().mean() / b.square().mean()).sqrt().item()


class Tower(nn.Module):
    """Two tables of one seed, so that their sketches are the same at first."""

    def __init__(self, case):
        super().__init__()
        self.user, self.item = made(case), made(case, EmbeddingBag, mode="sum")
        self.out = nn.Linear(2 * DIM, 1)


def blocks(count, noise, seed):
    """Vectors in groups, which is what clusterings are for."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, DIM, generator=generator)
    return centres[torch.randint(count, (VOCAB,), generator=generator)] + noise * torch.randn(
        VOCAB, DIM, generator=generator
    )


def train(emb, target, steps, averages=(), lr=0.02):
    optimizer = torch.optim.Adam(emb.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (emb(IDS) - target).square().sum().backward()
        optimizer.step()
        for average in averages:
            average()
    return optimizer


AVERAGES = {
    "average of all": lambda m: AveragedModel(m),
    "moving average": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.95)),
    "by tensor": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.95)),
    "buffers too": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True),
    "buffers by tensor": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.95), use_buffers=True),
}


@pytest.mark.parametrize("how", AVERAGES)
@pytest.mark.parametrize("case", LEARNS, ids=str)
def test_an_average_comes_along_when_its_model_is_clustered(case, how):
    """Its vectors are about as near to what is learned as the model's, clustering after clustering."""
    emb = made(case)
    mean, target = AVERAGES[how](emb), blocks(12, 0.05, 0)
    for _ in range(3):
        train(emb, target, 60, [lambda: mean.update_parameters(emb)])
        before, after = vectors(mean.module), emb.cluster() and vectors(mean.module)
        assert apart(after, before) < 0.5  # unrelated ones are 1.4 apart
        assert int(mean.module.generation) == int(emb.generation)
    train(emb, target, 200, [lambda: mean.update_parameters(emb)], lr=0.005)
    lost = apart(vectors(mean.module), target)
    assert lost < apart(vectors(emb), target) + 0.1
    assert lost < 0.7


def test_averages_of_several_tables_of_one_seed():
    model = Tower(LEARNS[0])
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        mean.update_parameters(model)
    with torch.no_grad():
        model.item.memory.mul_(3.0)
    for _ in range(100):
        mean.update_parameters(model)
    cluster_(model)
    for _ in range(3):
        mean.update_parameters(model)
    for name in ("user", "item"):
        assert apart(vectors(getattr(mean.module, name)), vectors(getattr(model, name))) < 0.05


def manual(mean, model, rate=0.05):
    with torch.no_grad():
        for a, b in zip(mean.parameters(), model.parameters(), strict=True):
            a.lerp_(b, rate)
        for a, b in zip(mean.buffers(), model.buffers(), strict=True):
            a.copy_(b)


def test_an_average_of_ones_own_making_comes_along():
    emb, target = made(LEARNS[0]), blocks(12, 0.05, 0)
    mean = copy.deepcopy(emb)
    train(emb, target, 60, [lambda: manual(mean, emb)])
    before = vectors(mean)
    emb.cluster()
    assert apart(vectors(mean), before) < 0.5
    train(emb, target, 60, [lambda: manual(mean, emb)])
    assert apart(vectors(mean), target) < apart(vectors(emb), target) + 0.1


def test_a_copy_of_how_it_was_stays():
    """Nobody writes into it: it is no average. A copy by load_state_dict neither, nor one that is trained by itself."""
    emb, target = made(LEARNS[0]), blocks(12, 0.05, 0)
    train(emb, target, 30)
    best, loaded, own = copy.deepcopy(emb), copy.deepcopy(emb), copy.deepcopy(emb)
    loaded.load_state_dict(emb.state_dict())
    train(own, -target, 30)
    kept = [(m, vectors(m), numbers(m)) for m in (best, loaded, own)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emb.cluster()
    for m, seen, state in kept:
        assert torch.equal(vectors(m), seen)
        assert all(torch.equal(value, state[name]) for name, value in numbers(m).items())
    late = AveragedModel(best)  # one that begins after a clustering takes all anew
    best.cluster()
    late.update_parameters(best)
    late.update_parameters(best)
    train(best, target, 3)
    assert apart(vectors(late.module), vectors(best)) < 1.0


def test_averages_that_are_given():
    """Of the same sketch, by name where there are several; what is no such average is refused before anything is done."""
    model = Tower(LEARNS[0])
    mean = Tower(LEARNS[0])  # no copy: its maker is another
    mean.load_state_dict(model.state_dict())
    before = {name: vectors(getattr(mean, name)) for name in ("user", "item")}
    cluster_(model, averaged=nn.ModuleDict({"module": mean}))
    for name, seen in before.items():
        ours = getattr(model, name)
        assert torch.equal(getattr(mean, name).pointers, ours.pointers)
        torch.testing.assert_close(vectors(getattr(mean, name)), vectors(ours), rtol=1e-4, atol=1e-5)
        assert apart(vectors(getattr(mean, name)), seen) < 0.6
    manual(mean.user, model.user)
    state = numbers(model)
    for wrong, said in (
        (Tower(LEARNS[0]), "no tables of this sketch"),
        (nn.ModuleDict({"user": mean.user}), "has no table 'item'"),
        (3, "averaged takes modules, got int"),
        (nn.Linear(2, 2), "has no table 'user'"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            cluster_(model, averaged=wrong)
    with pytest.raises(ValueError, match="no tables of this sketch"):
        model.user.cluster(averaged=Tower(LEARNS[1]))
    assert all(torch.equal(value, state[name]) for name, value in numbers(model).items())


def test_an_average_of_another_sketch_is_refused_or_told_of():
    emb = made(LEARNS[0])
    stranger = made(LEARNS[0])  # no copy of it, so nobody could know
    manual(stranger, emb)
    emb.cluster()
    manual(stranger, emb)
    with pytest.raises(RuntimeError, match=r"cluster_\(model, optimizer, averaged="):
        vectors(stranger)
    stranger.load_state_dict(emb.state_dict())
    assert torch.equal(vectors(stranger), vectors(emb))
    half = copy.deepcopy(emb)  # an average of the parameters alone
    with torch.no_grad():
        half.memory.lerp_(emb.memory + 1, 0.1)
    with pytest.warns(UserWarning, match="keeps the old pointers"):
        emb.cluster()
