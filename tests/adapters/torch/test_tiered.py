"""Tables whose ids earn rows in torch's modules: the rows, counts and admissions of the core's, whoever steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from strategies import pairwise
from tiered_tables import same

import cce_core as cce

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiered_modules import DIM, changed, made, of_core, slopes, stream, train  # noqa: E402
from torch import nn  # noqa: E402
from torch_modules import OPTIMIZERS, assert_same, numbers  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    FusedSGD,
    compress_,
)
from cce_core.adapters.torch.modules import owned  # noqa: E402
from cce_core.hashing import hash_strings  # noqa: E402

pytestmark = pytest.mark.torch


# --- the core's -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sparse"), pairwise(["float32", "narrow", "int8", "lru", "frequency"], [False, True]))
def test_a_module_is_a_table_of_the_core_to_the_bit(name, sparse):
    """The same ids and gradients, stepped by the core's optimiser: rows, counts, clock and vectors."""
    emb, core = made(name, sparse=sparse), of_core(name)
    steps, optimizer = FusedSGD(emb.parameters(), lr=0.1), cce.SGD(0.1)
    for ids in stream(14):
        train(emb, steps, [ids])
        optimizer.update(core, ids.numpy(), slopes(torch.from_numpy(core.lookup(ids.numpy()))).numpy())
        same(core, emb.table)
    assert str(emb.table.stats()) == str(core.stats())
    assert core.stats().evictions[0] > 5


@pytest.mark.parametrize("name", ["float32", "narrow"])
@pytest.mark.parametrize("sparse", [False, True])
def test_torchs_own_steps_admit_the_same_ids(name, sparse):
    emb, core = made(name, sparse=sparse), of_core(name)
    steps, optimizer = torch.optim.SGD(emb.parameters(), lr=0.02), cce.SGD(0.02)
    for ids in stream(14):
        train(emb, steps, [ids])
        optimizer.update(core, ids.numpy(), slopes(torch.from_numpy(core.lookup(ids.numpy()))).numpy())
    for key, value in core.arrays().items():
        np.testing.assert_allclose(emb.table.arrays()[key], value, rtol=1e-4, atol=1e-5 * (value.dtype == np.float32))


WORDS = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**63 - 1, -(2**63), 2**32]))


@given(st.lists(st.lists(WORDS, max_size=20), min_size=1, max_size=8), st.sampled_from([None, 0, 7]))
def test_training_counts_and_nothing_else_does(batches, padding):
    """Each id once for each backward pass of a lookup in training mode, padding left out; and rows change with steps alone."""
    emb, core = made(num_bytes=300, padding_idx=padding), of_core(num_bytes=300)
    steps, optimizer = FusedSGD(emb.parameters(), lr=0.1), cce.SGD(0.1)
    for batch in batches:
        ids = torch.tensor(batch, dtype=torch.int64)
        before = numbers(emb)
        with torch.no_grad():
            emb(ids)
        emb(ids)  # with a graph that nobody walks
        emb.eval()(ids).sum().backward()
        steps.zero_grad(set_to_none=False)
        vectors = emb.train()(ids)
        vectors.backward(torch.ones_like(vectors))
        assert_same(emb, before)
        steps.step()
        met = np.array([i for i in batch if i != padding], np.int64)
        optimizer.update(core, met, np.ones((len(met), DIM), np.float32))
        same(core, emb.table)


@pytest.mark.parametrize("name", ["stochastic", "stochastic halves"])
def test_codes_are_moved_as_the_core_moves_them(name):
    """The draws are others; who has a row is not, and a new owner begins within a rounding of what it was served before."""
    emb, core = made(name), of_core(name)
    steps, optimizer = FusedSGD(emb.parameters(), lr=0.05), cce.SGD(0.05)
    for ids in stream(14):
        train(emb, steps, [ids])
        optimizer.update(core, ids.numpy(), slopes(torch.from_numpy(core.lookup(ids.numpy()))).numpy())
    for key in ("pointers", "own_counts", "sketch", "clock"):
        np.testing.assert_array_equal(emb.table.arrays()[key], core.arrays()[key])
    assert emb.memory.untyped_storage().nbytes() == 4
    newcomer = torch.tensor([12345] * 30)
    before, table = emb.eval()(newcomer[:1]), copy.deepcopy(emb.table)
    train(emb.train(), FusedSGD(emb.parameters(), lr=0.0), [newcomer])
    assert len(changed(table, emb)) == 1
    torch.testing.assert_close(emb(newcomer[:1]), before, rtol=0.02, atol=0.03)
    with pytest.raises(RuntimeError, match="take FusedSGD"):
        torch.optim.SGD(emb.parameters(), lr=0.1).step()


def test_backward_passes_without_a_step_are_counted_in_parts(monkeypatch):
    emb, twin = made(), made()
    batches = stream(9)
    for module, most in ((emb, 1 << 20), (twin, 50)):
        monkeypatch.setattr(owned, "_MOST", most)
        steps = FusedSGD(module.parameters(), lr=0.1)
        for ids in batches:
            module(ids).sum().backward()
        assert sum(map(len, module._stream.met)) <= most
        steps.step()
    assert_same(twin, numbers(emb))
    assert twin.table.stats().met == 9 * 24


@pytest.mark.parametrize(("mode", "padding"), pairwise(["sum", "mean", "max"], [None, 0]))
def test_bags_count_their_ids(mode, padding):
    bag, emb = made(kind=EmbeddingBag, mode=mode, padding_idx=padding), made()
    for ids in stream(6):
        ids = ids.view(4, 6)
        for module, of in ((bag, ids), (emb, ids[ids != padding] if padding is not None else ids)):
            steps = FusedSGD(module.parameters(), lr=0.0)
            module(of).sum().backward()
            steps.step()
    for name in ("pointers", "own_counts", "sketch", "clock", "memory"):
        assert torch.equal(getattr(bag, name), getattr(emb, name)), name
    if padding is None:
        each = emb(ids)
        torch.testing.assert_close(bag(ids), each.amax(1) if mode == "max" else getattr(each, mode)(1))


def test_strings_are_hashed():
    emb, bag = made(), made(kind=EmbeddingBag, mode="sum")
    names = [["ada", "bob"], ["ada", "eve"]]
    ids = torch.from_numpy(hash_strings(names).view(np.int64))
    steps = FusedSGD(emb.parameters(), lr=0.1)
    emb(np.array(names)).sum().backward()
    steps.step()
    assert bool((emb.table.owners.find(ids.numpy()) >= 0).all())
    assert torch.equal(emb(names), emb(ids))
    assert torch.equal(bag(names), bag(ids))
    assert emb.erase("ada").item() is True
    other = Embedding(None, DIM, method="hash", num_params=100)
    assert torch.equal(other(names), other(ids))
    with pytest.raises(TypeError, match="got None of type NoneType at position 1"):
        emb(["ada", None])
    with pytest.raises(TypeError, match=r"torch\.as_tensor\(ids\)"):
        emb([1, 2])
    with pytest.raises(TypeError, match="a tensor of integers, got list"):
        Embedding(9, DIM)(["ada"])


# --- what an optimiser knows, and gradients under way -----------------------------------------------------------------


MANY = torch.arange(2, 300)  # more than there are rows


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_new_owners_begin_without_a_past(kind, sparse):
    """Of all that has a part for each row, in the state and in the gradient; the others keep theirs."""
    if sparse and kind in ("Adagrad", "AdamW", "Adafactor"):
        sparse = False  # which do not take them, or not of such tables
    emb = made("narrow", sparse=sparse)
    steps = OPTIMIZERS[kind](emb.parameters())
    train(emb, steps, [MANY])
    for k in range(3):
        table = copy.deepcopy(emb.table)
        train(emb, steps, [torch.cat([MANY, torch.tensor([-k] * 30)])])  # all owners before have a gradient
        rows, n, first = changed(table, emb), len(emb.memory), 0.5 if kind == "Adagrad" else 0.0
        for value in steps.state[emb.memory].values():
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == n:
                value = value.to_dense()
                assert (value[rows] == first).all()
                assert (value != first).any()
        grad = emb.memory.grad.to_dense()
        assert not grad[rows].any()
        assert grad.any()
        assert len(rows)
    kept = steps.state[emb.projection]
    assert all(torch.as_tensor(v).any() for v in kept.values())


@pytest.mark.parametrize("name", ["float32", "narrow", "stochastic"])
def test_a_graph_of_before_is_refused_once_rows_have_changed_hands(name):
    emb = made(name)
    steps = FusedSGD(emb.parameters(), lr=0.1)
    train(emb, steps, stream(3))
    late = emb(torch.tensor([5, 6]))
    train(emb, steps, [torch.tensor([99] * 30)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.sum().backward()


def test_a_step_with_an_old_gradient_does_not_move_new_owners():
    emb = made()
    steps = FusedSGD(emb.parameters(), lr=0.1)
    train(emb, steps, [MANY])
    table = copy.deepcopy(emb.table)
    train(emb, steps, [torch.cat([MANY, torch.tensor([-1] * 30)])])
    rows = changed(table, emb)
    before = emb.memory.detach()[rows].clone()
    steps.step()  # nobody has called zero_grad
    assert len(rows)
    assert torch.equal(emb.memory[rows], before)


def test_a_step_of_others_gives_nobody_a_row():
    """One that trains another parameter, or finds no gradient of the memory."""
    emb = made("narrow")
    emb(torch.tensor([1, 2])).sum().backward()
    torch.optim.SGD([emb.projection], lr=0.1).step()
    assert emb.clock[0] == 0
    emb.memory.grad, kept = None, emb.memory.grad
    every = torch.optim.SGD(emb.parameters(), lr=0.1)
    every.step()
    assert emb.clock[0] == 0
    emb.memory.grad = kept
    every.step()
    assert emb.clock[0] == 1
    assert emb.own_counts.sum() == 2
    emb.memory.requires_grad_(False)
    emb(torch.tensor([1, 2])).sum().backward()
    assert not emb._stream.met


# --- what it cannot be, whole models, graphs --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_what_cannot_be_done_is_said(kind):
    for options, said in (
        ({"dtype": torch.bfloat16}, "change hands in torch.float32, got torch.bfloat16"),
        ({"shard_pointers": True}, "leave shard_pointers out"),
        ({"codec": "int4", "rounding": "stochastic"}, "take codec='int8'"),
        ({"max_norm": 1.0}, "leave max_norm"),
        ({"scale_grad_by_freq": True}, "num_embeddings"),
    ):
        with pytest.raises(ValueError, match=said):
            made(kind=kind, **options)
    emb = made(kind=kind)
    ids = torch.tensor([[1, 2]])
    emb(ids).sum().backward()
    with pytest.raises(ValueError, match="train the table first"):
        emb.cluster()
    with pytest.raises(ValueError, match="nothing to reopen"):
        emb.reopen()
    with pytest.raises(RuntimeError, match=r"finds and gives rows on the CPU.*torch.float16 on cpu"):
        emb.half()(ids)
    grad = emb.memory.grad
    with pytest.raises(RuntimeError, match=r"module\.cpu\(\)\.float\(\)"):
        torch.optim.SGD(emb.parameters(), lr=0.1).step()
    assert grad is not None
    assert emb.float().to("meta")(ids.to("meta")).device.type == "meta"


def test_a_model_with_vocabularies_is_compressed():
    model = nn.ModuleDict(
        {"emb": nn.Embedding(2000, DIM, padding_idx=0), "bag": nn.EmbeddingBag(2000, DIM, mode="sum")}
    )
    model["emb"].weight.data *= 3
    report = compress_(model, method="tiered", ratio=10, fresh=True, seed=1)
    assert report.ratio >= 10
    emb, bag = model["emb"], model["bag"]
    assert emb.spec.method == bag.spec.method == "tiered"
    assert 2 < emb.weight.detach()[1:].std() < 4.5
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.tensor([[0, 3, 4], [3, 3, 1999]])
    (emb(ids).sum() + bag(ids).sum()).backward()
    steps.step()
    assert emb.own_counts.sum() == 5
    assert bag.own_counts.sum() == 6
    emb.weight.sum().backward()  # a whole table that is read is not met
    assert not emb._stream.met
    with pytest.raises(IndexError, match="id 2000 at position 0"):
        emb(torch.tensor([2000]))
    trained = nn.Sequential(nn.Embedding(2000, DIM))
    with torch.no_grad():
        trained[0].weight.copy_(torch.ones(2000, DIM))
    compress_(trained, method="tiered", ratio=10, seed=1, codec="float32")
    torch.testing.assert_close(trained[0].weight.detach(), torch.ones(2000, DIM), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["float32", "narrow", "stochastic"])
def test_compiled_modules_count_outside_of_their_graphs(name):
    torch._dynamo.reset()
    emb, twin = made(name), made(name)
    compiled = torch.compile(emb, backend="aot_eager")
    for module, call in ((emb, compiled), (twin, twin)):
        steps = FusedSGD(module.parameters(), lr=0.1)
        for ids in stream(4):
            steps.zero_grad()
            call(ids).sum().backward()
            steps.step()
    for key in ("pointers", "own_counts", "sketch", "clock"):
        assert torch.equal(getattr(emb, key), getattr(twin, key))
    assert emb.clock[0] == 4
    torch._dynamo.reset()
    whole = torch.compile(emb, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        whole(stream(1)[0])
    emb.eval()
    ids = stream(5)[4]
    torch.testing.assert_close(whole(ids), emb(ids))
    program = torch.export.export(nn.Sequential(emb.train()), (ids,))
    torch.testing.assert_close(program.module()(ids), emb(ids))


def test_transforms_say_that_they_find_no_rows():
    emb = made()
    parameters = {name: p.detach() for name, p in emb.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(emb, parameters, (torch.tensor([1, 2]),)).sum()

    with pytest.raises(NotImplementedError, match="found on the CPU, by the compiled loops, alone"):
        torch.func.grad(loss)(parameters)
