"""Tables whose ids earn rows in torch's modules: clustered and opened again, saved, copied and averaged."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import numpy as np
import pytest
from strategies import pairwise
from tiered_tables import same

import cce_core as cce

torch = pytest.importorskip("torch")

from tiered_modules import DIM, EVERY, SETTINGS, made, of_core, slopes, stream, train  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402
from torch_modules import OPTIMIZERS, assert_same, numbers  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    Embedding,
    FusedAdagrad,
    FusedSGD,
    cluster_,
    reopen_,
)

pytestmark = pytest.mark.torch


# --- clustered, and opened again --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), pairwise(["float32", "narrow", "int8", "lru", "frequency"], ["row", "float"])
)
def test_ids_settle_and_are_opened_as_in_the_core(name, kind):
    """To the bit, with what optimisers know of rows, and training goes on."""
    emb, core, batches = made(name), of_core(name), stream(18)
    rowwise = kind == "row"
    steps, optimizer = FusedAdagrad(emb.parameters(), lr=0.1, rowwise=rowwise), cce.Adagrad(0.1, rowwise=rowwise)
    places = list(map(id, emb.parameters()))
    for k, ids in enumerate(batches):
        if k in (6, 10):
            report = emb.cluster(optimizer=steps, num_bytes=1100 if k == 6 else None, bits=3)
            assert report.settled == core.cluster(num_bytes=1100 if k == 6 else None, bits=3).settled > 5
            assert emb.phase == emb.table.phase == "codes"
        if k == 14:
            emb.reopen(optimizer=steps)
            core.reopen()
            assert emb.phase is emb.table.phase is None
        same(core, emb.table)
        assert str(emb.table.stats()) == str(core.stats())
        for name_of, array in optimizer.states_for(core)["memory"].arrays.items() if k else ():
            assert steps.state[emb.memory][name_of].shape[0] == len(emb.memory)
            np.testing.assert_array_equal(steps.state[emb.memory][name_of].reshape(-1), array)
        train(emb, steps, [ids])
        optimizer.update(core, ids.numpy(), slopes(torch.from_numpy(core.lookup(ids.numpy()))).numpy())
    same(core, emb.table)
    assert list(map(id, emb.parameters())) == places


@pytest.mark.parametrize("name", ["narrow", "stochastic"])
def test_a_state_is_followed_through_clusterings(name):
    emb, other = made(name), made(name, seed=8)
    steps, ids = FusedSGD(emb.parameters(), lr=0.05), stream(1)[0]
    train(emb, steps, stream(6))
    apart = copy.deepcopy(emb)
    for change in (
        lambda: emb.cluster(optimizer=steps, num_bytes=900),
        lambda: None,
        lambda: emb.reopen(optimizer=steps),
    ):
        change()
        late, before = other(ids), numbers(apart)
        other.load_state_dict(emb.state_dict())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            late.sum().backward()
        assert_same(other, numbers(emb))
        assert other.spec == emb.spec
        assert torch.equal(other(ids), emb(ids))
        if emb.phase:  # which the other is not in
            with pytest.raises(RuntimeError, match=r"another table: sizes|size mismatch for clock"):
                apart.load_state_dict({**emb.state_dict(), "clock": torch.zeros(3, dtype=torch.int64)})
            assert_same(apart, before)
        again = copy.deepcopy(other)
        for module in (emb, again):
            train(module, FusedSGD(module.parameters(), lr=0.05), stream(2, seed=4))
        assert_same(again, numbers(emb))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_go_with_rows_that_settle(kind):
    emb = made("narrow", sparse=kind == "SGD")
    steps = OPTIMIZERS[kind](emb.parameters())
    train(emb, steps, stream(6))
    held = {k: v for k, v in steps.state[emb.memory].items() if isinstance(v, torch.Tensor) and v.dim()}
    with pytest.raises(ValueError, match="none of the optimisers trains"):
        emb.cluster(optimizer=torch.optim.SGD([emb.projection], lr=0.1))
    with pytest.raises(ValueError, match="do not come along"):
        emb.cluster(optimizer=steps, averaged=copy.deepcopy(emb))
    emb.cluster(optimizer=steps, bits=2)
    now = steps.state[emb.memory]
    assert all(len(now[k]) == len(emb.memory) and now[k].any() for k, v in held.items() if len(v) != 1)
    train(emb, steps, stream(3, seed=2))
    emb.reopen(optimizer=steps, moments="reset")
    assert not any(torch.as_tensor(v).any() for v in steps.state[emb.memory].values())
    train(emb, steps, stream(3, seed=3))


def test_models_with_it_are_clustered_table_by_table():
    model = nn.Sequential(made("narrow"), nn.Linear(DIM, 1))
    steps = FusedSGD(model.parameters(), lr=0.1)
    train(model[0], steps, stream(6))
    assert cluster_(model) == {}
    model[0].cluster(optimizer=steps, num_bytes=1000)
    assert model[0].ledger().total <= 1000
    with pytest.raises(ValueError, match="nothing to reopen"):
        reopen_(model)


def test_lookups_in_other_threads_see_map_and_memory_together():
    """With a learning rate of 0, and nothing folded back, no id's vector ever changes, whoever has a row."""
    emb, batches, stop, wrong = made(fold=False, num_bytes=600), stream(150), threading.Event(), []
    ids = torch.cat(batches).unique()
    expected, steps = emb(ids).detach(), FusedSGD(emb.parameters(), lr=0.0)

    def look():
        while not stop.is_set():
            with torch.no_grad():
                wrong.append(not torch.equal(emb(ids), expected))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        train(emb, steps, batches)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(wrong) > 10
    assert not any(wrong)
    assert emb.table.stats().evictions > 20


# --- states, copies and files -----------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("how", ["state", "pickle", "copy"])
def test_saved_in_the_middle_training_goes_on_to_the_same_bits(name, how):
    emb, batches = made(name), stream(16)
    make = lambda module: FusedAdagrad(module.parameters(), lr=0.1, rowwise=True)  # noqa: E731
    steps = make(emb)
    train(emb, steps, batches[:8])
    held = copy.deepcopy(steps.state_dict())
    if how == "state":
        file = io.BytesIO()
        torch.save(emb.state_dict(), file)
        file.seek(0)
        other = made(name, seed=8)
        other(batches[0]).sum().backward()  # forgotten
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        emb(batches[8]).sum().backward()  # noted ids are copied along; the gradient may not be, and is made anew
        other = pickle.loads(pickle.dumps(emb)) if how == "pickle" else copy.deepcopy(emb)
    for module in (emb, other):
        module.zero_grad()
        module.memory.grad = torch.zeros(module.memory.shape)
    again = make(other)
    again.load_state_dict(held)
    for module, optimizer in ((emb, steps), (other, again)):
        optimizer.step()
        train(module, optimizer, batches[8:])
    assert_same(other, numbers(emb))
    assert torch.equal(steps.state[emb.memory]["squares"], again.state[other.memory]["squares"])
    same(emb.table, other.table)


@EVERY
def test_files_and_copies_of_the_core(name, tmp_path):
    emb = made(name)
    steps = FusedSGD(emb.parameters(), lr=0.1)
    train(emb, steps, stream(5))
    copied, signature = copy.deepcopy(emb.table), emb.table.signature()
    train(emb, steps, stream(5, seed=2))
    ids = torch.cat(stream(5, seed=2))
    emb.table.save(tmp_path / "t.safetensors")
    expected = emb(ids).detach().numpy()
    np.testing.assert_allclose(cce.load(tmp_path / "t.safetensors").lookup(ids.numpy()), expected, rtol=1e-5, atol=1e-6)
    copied.apply_delta(emb.table.delta(signature))
    np.testing.assert_allclose(copied.lookup(ids.numpy()), expected, rtol=1e-5, atol=1e-6)
    stats = emb.table.stats()
    assert stats.own_rows[0] > 5
    assert stats.inserts[0] >= stats.own_rows[0]
    assert emb.ledger().total == emb.table.ledger().total <= SETTINGS["num_bytes"]
    assert emb.table.explain(int(ids[0])).count >= 0


@pytest.mark.parametrize("name", ["float32", "stochastic"])
def test_ids_are_erased(name):
    emb = made(name)
    steps = FusedSGD(emb.parameters(), lr=0.1)
    train(emb, steps, stream(4))
    emb(torch.tensor([7, -2])).sum().backward()
    asked = torch.tensor([[-2, 12345]])
    assert emb.erase(asked).tolist() == [[True, False]]
    assert emb.erase(asked).tolist() == [[False, False]]
    made(name).load_state_dict(emb.state_dict())
    emb.table.erase([-1])  # by the core: the state is that of the map as it is now
    made(name).load_state_dict(emb.state_dict())
    with pytest.raises(ValueError, match="do not earn rows"):
        Embedding(9, DIM).erase(asked)
    with pytest.raises(TypeError, match="a tensor of integers, or strings"):
        emb.erase(3)


def test_states_that_do_not_belong_together_are_refused():
    emb, other = made(), made()
    train(emb, FusedSGD(emb.parameters(), lr=0.1), stream(4))
    state, before = emb.state_dict(), numbers(other)
    for wrong in (
        {**state, "pointers": before["pointers"]},
        made(num_bytes=2000).state_dict(),
        made("narrow").state_dict(),
    ):
        with pytest.raises(RuntimeError):
            other.load_state_dict(wrong)
        assert_same(other, before)
    meta = made(device="meta")
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta(stream(1)[0]), emb(stream(1)[0]))
    empty = made(device="meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert not empty.pointers.any()


def test_averages_of_rows_that_changed_hands_are_refused():
    emb, ids = made(), stream(1)[0]
    average = AveragedModel(emb)
    steps = FusedSGD(emb.parameters(), lr=0.1)
    emb(ids).sum().backward()
    average.update_parameters(emb)
    average(ids)
    train(emb, steps, stream(3))
    average.update_parameters(emb)
    average.update_parameters(emb)
    with pytest.raises(RuntimeError, match="is no id's vector"):
        average(ids)
