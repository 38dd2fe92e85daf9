"""Whole models: compress_, cluster_ and ClusterSchedule."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    ClusterSchedule,
    Embedding,
    EmbeddingBag,
    cluster_,
    compress_,
    leave_out_pointers,
)
from cce_core.adapters.torch.modules.module import Compressed  # noqa: E402

pytestmark = pytest.mark.torch

ROWS, DIM = 300, 8
IDS = torch.tensor([[5, 299, 0], [3, 1, 2]])


class Scaled(nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


class Plain(nn.Embedding):
    """A subclass that changes nothing of the forward pass."""


class Tower(nn.Module):
    """Two embeddings of every kind that counts, one of them in two places."""

    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(ROWS, DIM, padding_idx=-1)
        self.item = nn.ModuleDict(
            {"a": nn.EmbeddingBag(ROWS, DIM, mode="sum", sparse=True), "small": nn.Embedding(9, DIM)}
        )
        self.again = self.item["a"]
        self.out = nn.Linear(DIM, 1)

    def forward(self, ids):
        vectors = self.user(ids).mean(1) + self.item["a"](ids) + self.again(ids) + self.item["small"](ids % 9).sum(1)
        return self.out(vectors)[:, 0]


def test_every_embedding_is_swapped_in_place_shared_ones_once():
    torch.manual_seed(0)
    model = Tower()
    linear, small = model.out, model.item["small"]
    report = compress_(model, method="cce", ratio=4, min_rows=10, seed=3)
    assert type(model.user) is Embedding
    assert type(model.item["a"]) is EmbeddingBag
    assert model.again is model.item["a"]
    assert model.item["small"] is small
    assert model.out is linear
    assert model.user.padding_idx == ROWS - 1
    assert (model.item["a"].mode, model.item["a"].sparse) == ("sum", True)
    assert [s.name for s in report.tables] == ["user", "item.a", "item.small"]
    assert [(s.rows, s.dim, s.before) for s in report.tables] == [(ROWS, DIM, 9600), (ROWS, DIM, 9600), (9, DIM, 288)]
    assert [s.after for s in report.tables[:2]] == [model.user.ledger().total, model.item["a"].ledger().total]
    assert all(s.after <= 2400 for s in report.tables[:2])
    assert report.tables[2].after == 288
    assert report.tables[2].why == "fewer than 10 rows"
    assert report.before == 19488
    assert report.after == sum(s.after for s in report.tables)
    assert report.ratio == report.before / report.after
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert [word in lines[3] for word in ("item.small", "288", "1.0x", "left: fewer than 10 rows")] == [True] * 4
    assert lines[4].startswith("all")
    assert model.user.spec.seed != model.item["a"].spec.seed
    before = model(IDS).detach()
    model(IDS).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], 0.1).step()
    assert not torch.equal(model(IDS), before)
    other = Tower()
    compress_(other, method="cce", ratio=4, min_rows=10, seed=3, fresh=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS), model(IDS))


@pytest.mark.parametrize(
    ("method", "options"), [("full", {}), ("int8", {}), ("pq", {"ratio": 2}), ("ce", {"ratio": 1.1})]
)
def test_a_trained_model_keeps_what_it_knows(method, options):
    torch.manual_seed(1)
    model = Tower()
    centres = torch.randn(7, DIM)  # so that little is lost
    with torch.no_grad():
        model.user.weight[:] = centres[torch.arange(ROWS) % 7]  # the padding row, too
    weight, before = model.user.weight.detach().clone(), model(IDS).detach()
    compress_(model, method=method, min_rows=10, skip="item*", seed=0, **options)
    assert isinstance(model.user, Embedding)
    assert torch.equal(model.user(torch.tensor(ROWS - 1)), weight[-1])
    error = ((model.user.weight - weight).square().sum() / weight.square().sum()).item()
    assert error < (0.95 if method == "ce" else 2e-2)  # hashed rows can only be near in the mean
    if method != "ce":
        torch.testing.assert_close(model(IDS), before, atol=0.2, rtol=0.1)
    fresh = Tower()
    compress_(fresh, method=method, min_rows=10, seed=0, fresh=True, **options)
    assert (fresh.user.weight - weight).square().sum() > 0.9 * weight.square().sum()


def test_what_a_module_is_stays():
    model = nn.ModuleDict(
        {
            "a": nn.Embedding(ROWS, DIM, padding_idx=3, scale_grad_by_freq=True, dtype=torch.float64),
            "b": nn.EmbeddingBag(ROWS, DIM, mode="mean", include_last_offset=True, padding_idx=2, dtype=torch.bfloat16),
            "c": Plain(ROWS, DIM),
        }
    )
    model["a"].requires_grad_(False)
    model["b"].eval()
    compress_(model, method="hash", ratio=4, min_rows=0)
    a, b, c = model["a"], model["b"], model["c"]
    assert (a.padding_idx, a.scale_grad_by_freq, a.memory.dtype, a.memory.requires_grad) == (
        3,
        True,
        torch.float64,
        False,
    )
    assert (b.mode, b.include_last_offset, b.padding_idx, b.memory.dtype) == ("mean", True, 2, torch.bfloat16)
    assert (a.training, b.training, b.memory.requires_grad) == (True, False, True)
    assert type(c) is Embedding


@pytest.mark.parametrize(
    ("method", "options"), [("cce", {}), ("cce", {"rank": 4}), ("hash", {}), ("hemb", {}), ("robe", {})]
)
def test_fresh_tables_have_the_scale_of_those_before(method, options):
    model = nn.ModuleDict({"a": nn.Embedding(ROWS, DIM), "zero": nn.EmbeddingBag(ROWS, DIM)})
    nn.init.normal_(model["a"].weight, std=1e-3)
    nn.init.zeros_(model["zero"].weight)  # nothing to learn a scale from: as new tables are
    compress_(model, method=method, ratio=2, min_rows=0, fresh=True, seed=1, **options)
    assert model["a"].weight.std().item() == pytest.approx(1e-3, rel=0.1)
    assert model["zero"].weight.std() > 1e-2


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = Tower()
    compress_(model, method="cce", ratio=4, min_rows=10, fresh=True, seed=1)
    assert model.user.memory.device.type == "meta"


def test_what_cannot_be_swapped_is_left_and_said():
    model = nn.ModuleDict({"tied": nn.Embedding(ROWS, DIM), "head": nn.Linear(DIM, ROWS, bias=False)})
    model["head"].weight = model["tied"].weight
    model["head"].register_forward_hook(lambda *_: None)
    model["own"] = Scaled(ROWS, DIM)
    model["patched"] = nn.Embedding(ROWS, DIM)
    model["patched"].forward = lambda ids: ids
    model["hooked"] = nn.Embedding(ROWS, DIM)
    model["hooked"].register_forward_hook(lambda *_: None)
    model["norm"] = nn.Embedding(ROWS, DIM, max_norm=1.0)
    model["weighed"] = nn.utils.parametrizations.weight_norm(nn.Embedding(ROWS, DIM))
    model["free"] = nn.Embedding(ROWS, DIM)
    kept = dict(model)
    report = compress_(model, method="hash", ratio=4, min_rows=0)
    why = {s.name: s.why for s in report.tables}
    assert why == {
        "tied": "its weight is head.weight too",
        "own": "Scaled has a forward pass of its own",
        "patched": "Embedding has a forward pass of its own",
        "hooked": "it has hooks",
        "norm": "it has max_norm",
        "weighed": "it is parametrised",
        "free": "",
    }
    assert all(model[name] is kept[name] for name in kept if name != "free")


def test_modules_that_share_a_weight_share_a_table():
    a, b, c = (nn.Embedding(ROWS, DIM) for _ in range(3))
    b.weight = a.weight
    model = nn.ModuleDict({"a": a, "b": b, "c": c})
    report = compress_(model, method="cce", ratio=4, min_rows=0, seed=0)
    assert model["a"] is model["b"]
    assert model["a"] is not model["c"]
    assert [s.name for s in report.tables] == ["a", "c"]
    a, b = nn.Embedding(ROWS, DIM), nn.Embedding(ROWS, DIM, padding_idx=0)
    b.weight = a.weight
    model = nn.ModuleDict({"a": a, "b": b})
    report = compress_(model, method="cce", ratio=4, min_rows=0)
    assert all("too" in s.why for s in report.tables)
    assert model["a"] is a


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (None, set()),
        ("user", {"user"}),
        ("item*", {"item.a", "item.small"}),
        (["item.a", "user"], {"item.a", "user"}),
        (lambda name, module: module.embedding_dim == DIM and name.endswith("l"), {"item.small"}),
    ],
)
def test_skip(skip, left):
    report = compress_(Tower(), method="int8", min_rows=0, skip=skip)
    assert {s.name for s in report.tables if s.why == "skipped"} == left
    assert {s.name for s in report.tables if not s.method} == left


@given(st.lists(st.integers(50, 400), min_size=1, max_size=4), st.integers(500, 40_000), st.sampled_from([4, 8]))
def test_a_budget_is_kept(rows, num_bytes, dim):
    model = nn.ModuleList(nn.Embedding(n, dim) for n in rows)
    kept = list(model)
    try:
        report = compress_(model, method="hash", num_bytes=num_bytes, min_rows=0, fresh=True)
    except ValueError as error:
        assert "least that fits" in str(error)  # noqa: PT017
        assert list(model) == kept
    else:
        assert report.after <= num_bytes
        assert report.after == sum(m.ledger().total for m in model)


def test_bad_input_leaves_the_model_as_it_was():
    model = Tower()
    kept = {name: id(module) for name, module in model.named_modules()}
    for options, message in (
        ({"method": "nope", "ratio": 4}, "the methods are"),
        ({"ratio": None}, "give ratio= or num_bytes="),
        ({"ratio": 4, "num_bytes": 4}, "give ratio= or num_bytes="),
        ({"method": "int8", "ratio": 4}, "give neither ratio nor num_bytes"),
        ({"ratio": 0}, "ratio must be above 0"),
        ({"num_bytes": 0}, "num_bytes must be"),
        ({"ratio": 4, "min_rows": -1}, "min_rows must be"),
        ({"ratio": 1e6}, r"'user' \(300 x 8\): .*least that fits.* min_rows= or skip="),
        (
            {"ratio": 4, "skip": "itme.*"},
            r"skip='itme.\*' matches none of the model's embeddings: user, item.a, item.small",
        ),
        ({"method": "dhe", "ratio": 1}, r"user.* not linear"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_(model, **{"min_rows": 10, **options})
    assert {name: id(module) for name, module in model.named_modules()} == kept
    with pytest.raises(ValueError, match="the model has no nn.Embedding"):
        compress_(nn.Linear(3, 3), ratio=4)
    with pytest.raises(ValueError, match="itself an embedding"):
        compress_(nn.Embedding(10, 4), ratio=4)


def test_clustering_all_tables():
    model = Tower()
    compress_(model, method="cce", ratio=4, min_rows=10, seed=0, fresh=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(IDS).sum().backward()
    reports = cluster_(model, optimizer, weights={"user": np.arange(ROWS)})
    assert list(reports) == ["user", "item.a"]
    assert all(r.generation == 1 for r in reports.values())
    assert int(model.user.generation) == int(model.again.generation) == 1
    alone = copy.deepcopy(model.user)
    assert list(cluster_(alone)) == [""]
    with pytest.raises(
        ValueError, match=r"weights names 'itme', which is no table that learns; those are user, item.a"
    ):
        cluster_(model, weights={"itme": 1})
    other = Tower()
    compress_(other, method="pq", ratio=4, min_rows=10)
    assert cluster_(other) == {}


# When


@given(st.integers(2, 200), st.none() | st.integers(1, 20))
def test_epochs_rest_for_the_last_third(epochs, times):
    at = ClusterSchedule(epochs=epochs, times=times).at
    assert list(at) == sorted(set(at))
    assert at[0] >= 1
    assert at[-1] == 2 * epochs // 3
    assert len(at) == min(times or 6, 2 * epochs // 3)
    gaps = np.diff([0, *at])
    assert gaps.max() - gaps.min() <= 1


@given(st.integers(4, 10**9))
def test_one_epoch_clusters_at_a_quarter_and_a_half(steps):
    assert ClusterSchedule(steps=steps).at == (steps // 4, steps // 2)
    assert ClusterSchedule(steps=steps, times=2).at[-1] == 2 * steps // 3


def tiny():
    model = nn.Sequential(
        Embedding(50, 4, method="cce", num_params=64, n_chunks=2, seed=0), nn.Flatten(), nn.Linear(8, 1)
    )
    return model, torch.optim.SGD(model.parameters(), 0.1)


def test_a_plain_loop():
    model, optimizer = tiny()
    schedule, seen = ClusterSchedule(epochs=5), []
    for epoch in range(1, 6):
        assert schedule.after_step(model, optimizer) == {}  # epochs are what it counts
        if schedule.after_epoch(model, optimizer):
            seen.append(epoch)
            assert int(model[0].generation) == len(seen)
    assert tuple(seen) == schedule.at == (1, 2, 3)
    assert len(schedule.reports) == 3
    schedule, seen = ClusterSchedule(steps=9), []
    for step in range(1, 10):
        if schedule.after_step(model, optimizer):
            seen.append(step)
        schedule.after_epoch(model, optimizer)
        if step == 3:
            state, schedule = schedule.state_dict(), ClusterSchedule()
            schedule.load_state_dict(state)
    assert tuple(seen) == (2, 4)


def test_bad_schedules():
    for arguments, message in (
        ({"epochs": 3, "steps": 9}, "give epochs or steps, not both"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps": 3}, "steps must be at least 4"),
        ({"epochs": 3, "times": 0}, "times must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterSchedule(**arguments)
    with pytest.raises(RuntimeError, match="give it epochs= or steps="):
        ClusterSchedule().after_epoch(tiny()[0])
    with pytest.raises(ValueError, match="one epoch has no end to cluster after: give steps="):
        ClusterSchedule(epochs=1).after_epoch(tiny()[0])
    with pytest.raises(AttributeError, match="no attribute 'after_epochs'"):
        _ = ClusterSchedule().after_epochs
    with pytest.raises(RuntimeError, match="says neither epochs nor steps"):
        ClusterSchedule()._settle(1, -1)
    assert repr(ClusterSchedule()) == "ClusterSchedule()"
    assert "(1, 2)" in repr(ClusterSchedule(epochs=3))


# Trainers by their documented hooks; test_other_packages.py has the packages themselves


@pytest.mark.parametrize(("epochs", "expected"), [(3, [4, 8]), (1, [1, 2])])
def test_lightnings_hooks(epochs, expected):
    """Four batches an epoch, a step each."""
    model, optimizer = tiny()
    schedule, seen = ClusterSchedule(), []
    trainer = types.SimpleNamespace(
        max_epochs=epochs, estimated_stepping_batches=4 * epochs, global_step=0, current_epoch=0, optimizers=[optimizer]
    )
    schedule.setup(trainer, model, stage="fit")
    schedule.on_train_start(trainer, model)
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        schedule.on_train_epoch_start(trainer, model)
        for batch in range(4):
            trainer.global_step += 1
            schedule.on_train_batch_end(trainer, model, None, None, batch)
            seen += [trainer.global_step] * (len(schedule.reports) > len(seen))
        schedule.on_train_epoch_end(trainer, model)
        seen += [trainer.global_step] * (len(schedule.reports) > len(seen))
    schedule.on_train_end(trainer, model)
    assert seen == expected
    assert schedule.state_key == "ClusterSchedule"


def test_lightning_calls_at_every_batch_while_gradients_gather():
    model, optimizer = tiny()
    schedule = ClusterSchedule(steps=8)
    trainer = types.SimpleNamespace(max_epochs=1, estimated_stepping_batches=8, global_step=0, optimizers=[optimizer])
    for batch in range(1, 17):
        trainer.global_step = batch // 2
        schedule.on_train_batch_end(trainer, model, None, None, batch)
    assert int(model[0].generation) == 2


@pytest.mark.parametrize(("epochs", "expected"), [(3, [4, 8]), (1, [1, 2])])
def test_hugging_faces_hooks(epochs, expected):
    model, optimizer = tiny()
    schedule, seen = ClusterSchedule(), []
    state = types.SimpleNamespace(num_train_epochs=epochs, max_steps=4 * epochs, global_step=0, epoch=0.0)
    more = {"model": model, "optimizer": optimizer, "lr_scheduler": None}
    schedule.on_init_end(None, state, None, **more)
    schedule.on_train_begin(None, state, None, **more)
    for _ in range(epochs):
        schedule.on_epoch_begin(None, state, None, **more)
        for _ in range(4):
            state.global_step += 1
            state.epoch += 0.25
            schedule.on_step_end(None, state, None, **more)
            seen += [state.global_step] * (len(schedule.reports) > len(seen))
        schedule.on_epoch_end(None, state, None, **more)
        seen += [state.global_step] * (len(schedule.reports) > len(seen))
    schedule.on_train_end(None, state, None, **more)
    assert seen == expected


def test_a_schedule_is_copied_and_pickled():
    import pickle

    schedule = pickle.loads(pickle.dumps(copy.deepcopy(ClusterSchedule(epochs=9))))
    assert schedule.at == ClusterSchedule(epochs=9).at


def test_what_compress_makes_is_what_it_says():
    model = Tower()
    compress_(model, method="cce", ratio=4, min_rows=10)
    assert sum(isinstance(m, Compressed) for m in model.modules()) == 2


@pytest.mark.parametrize(("call", "message"), [
    (lambda: compress_(torch.zeros(3), ratio=2), "model must be a torch.nn.Module"),
    (lambda: compress_(None, ratio=2), "model must be a torch.nn.Module"),
    (lambda: compress_(nn.Sequential(nn.Embedding(2000, 8)), method=[], ratio=2), "method must be a method's name"),
    (lambda: compress_(nn.Sequential(nn.Embedding(2000, 8)), ratio=2, skip=0.1), "skip must be a name"),
    (lambda: compress_(nn.Sequential(nn.Embedding(2000, 8)), ratio=2, skip=[1]), "skip must be a name"),
    (lambda: cluster_(True), "model must be a torch.nn.Module"),
    (lambda: cluster_(nn.Sequential(nn.Linear(2, 2)), weights=torch.ones(0)), "weights must be a dict"),
    (lambda: leave_out_pointers(torch.zeros(3)), "model must be a torch.nn.Module"),
    (lambda: Embedding(50, 8, method="cce", num_params=200).cluster(optimizer={"a": 1}), "optimizer must be a torch optimiser"),
    (lambda: Embedding.from_pretrained(1.5, method="pq", num_params=64), "embeddings must be a tensor"),
    (lambda: EmbeddingBag.from_pretrained([1.5]), "embeddings must be a tensor"),
    (lambda: Embedding(50, 8, _weight={}), "weight must be a tensor"),
    (lambda: EmbeddingBag(50, 8, _weight={}), "weight must be a tensor"),
    (lambda: Embedding(50, 8, dtype="cuda"), "dtype must be a torch.dtype"),
    (lambda: Embedding(50, 8, padding_idx="x"), "padding_idx must be a whole number"),
    (lambda: Embedding.from_pretrained(torch.rand(50, 8), padding_idx=0.5), "padding_idx must be a whole number"),
])  # fmt: skip
def test_what_is_no_module_tensor_or_name_is_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()
