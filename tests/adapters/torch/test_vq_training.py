"""Vector quantisation while training: what optimisers and averages know follows the ids; whole models, and when."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
from reference import vq as twin

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402
from torch_modules import OPTIMIZERS  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    ClusterSchedule,
    Embedding,
    EmbeddingBag,
    FusedAdagrad,
    FusedAdam,
    TiedLinear,
    cluster_,
    parameter_groups,
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


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_schedule_knows_the_time_of_each_table(unit):
    """`cce` in the first two thirds, `vq` after three quarters of the epochs or at the end of all steps, once; exhaustively."""
    for total in range(2 if unit == "epoch" else 4, 14):
        model = nn.ModuleDict({"a": made(), "b": Embedding(VOCAB, DIM, method="cce", num_params=300, seed=0)})
        schedule = ClusterSchedule(**{unit + "s": total}, weights={"a": torch.ones(VOCAB)}, n_iter=1)
        call, seen = (schedule.after_epoch if unit == "epoch" else schedule.after_step), {}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for now in range(1, total + 3):
            for name in call(model, optimizer):
                seen.setdefault(name, []).append(now)
            if now == total // 2:
                state, schedule = schedule.state_dict(), ClusterSchedule(weights={"a": torch.ones(VOCAB)}, n_iter=1)
                schedule.load_state_dict(state)
                call = schedule.after_epoch if unit == "epoch" else schedule.after_step
        assert seen == {"a": [schedule.late], "b": list(schedule.at)}
        assert schedule.late == (total if unit == "step" else 3 * total // 4)
    again = ClusterSchedule(epochs=4, weights={"c": torch.ones(VOCAB)})
    with pytest.raises(ValueError, match="weights names 'c'"):
        again.after_epoch(model)


def test_one_epoch_of_rows_alone():
    model, schedule = nn.Sequential(made()), ClusterSchedule(epochs=1)
    assert (schedule.at, schedule.late) == ((), 1)
    assert list(schedule.after_epoch(model)) == ["0"]
    assert model[0].phase == "codes"
    assert schedule.after_epoch(model) == {}
    with pytest.raises(ValueError, match="one epoch has no end to cluster after"):
        ClusterSchedule(epochs=1).after_epoch(Embedding(VOCAB, DIM, method="cce", num_params=300))


def test_trainers_that_end_sooner_or_count_otherwise():
    """Lightning's steps are those of all optimisers, and both trainers may stop: what was not clustered is at the end."""
    for counts in ([2, 4, 6, 8], [2, 4], [3, 7, 9], []):
        model = nn.Sequential(made())
        schedule = ClusterSchedule()
        trainer = types.SimpleNamespace(max_epochs=1, estimated_stepping_batches=8, global_step=0, optimizers=[])
        schedule.on_train_start(trainer, model)
        for trainer.global_step in counts:
            schedule.on_train_batch_end(trainer, model, None, None, 0)
            assert (model[0].phase == "codes") == (trainer.global_step >= 8)
        schedule.on_train_end(trainer, model)
        assert model[0].phase == "codes"
        assert len(schedule.reports) == 1
    model, schedule = nn.Sequential(made()), ClusterSchedule()
    state = types.SimpleNamespace(num_train_epochs=4, max_steps=40, global_step=0, epoch=0.0)
    schedule.on_train_begin(None, state, None)
    for state.epoch in (1.0, 2.0):
        schedule.on_epoch_end(None, state, None, model=model)
    assert model[0].phase == "rows"
    schedule.on_train_end(None, state, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert model[0].phase == "codes"
    ClusterSchedule().on_train_end(None, state, None, model=model)


def test_narrow_tables_have_a_rate_of_their_own():
    emb = made()
    wide = Embedding(9, DIM)
    model = nn.ModuleDict({"a": emb, "b": emb, "wide": wide, "head": TiedLinear(emb, bias=True)})
    groups = parameter_groups(model, lr=0.1, tables_lr=0.5)
    assert [g["lr"] for g in groups] == [0.1, 0.5]
    assert [[id(p) for p in g["params"]] for g in groups] == [
        [id(wide.memory), id(model["head"].bias)],
        [id(emb.memory), id(emb.projection)],
    ]
    optimizer = torch.optim.Adam(groups)
    train(emb, optimizer)
    cluster_(model, optimizer)
    train(emb, optimizer)
    assert [g["lr"] for g in parameter_groups(wide, lr=0.1, tables_lr=0.5)] == [0.1]
    assert [g["lr"] for g in parameter_groups(emb, lr=0.1, tables_lr=0.5)] == [0.5]
    for arguments, error in (({"lr": -1, "tables_lr": 1}, ValueError), ({"lr": 1, "tables_lr": "x"}, TypeError)):
        with pytest.raises(error, match="lr must be"):
            parameter_groups(model, **arguments)
    with pytest.raises(ValueError, match="no parameters to train"):
        parameter_groups(nn.Flatten(), lr=1, tables_lr=1)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        parameter_groups([wide], lr=1, tables_lr=1)
