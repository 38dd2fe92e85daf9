"""Vector quantisation in torch's modules: rows, then codes, under the same parameters."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
from reference import bags
from reference import codec as codecs
from reference import vq as twin
from strategies import pairwise

import cce_core as cce

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_model, save_model  # noqa: E402
from torch import nn  # noqa: E402
from torch_modules import assert_same, numbers  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, compress_  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, DIM = 61, 8
IDS = torch.arange(VOCAB)
OPTIONS = {
    "vq": {"num_bytes": 400},
    "two stages": {"num_bytes": 400, "stages": 2},
    "float32": {"num_bytes": 700, "codec": "float32"},
    "as wide as the vector": {"num_bytes": 600, "rank": 0},
    "int4": {"num_bytes": 400, "codec": "int4", "rank": 3},
    "bfloat16 of two stages": {"num_bytes": 700, "codec": "bfloat16", "rank": 2, "stages": 2},
}
EVERY = pytest.mark.parametrize("name", OPTIONS)
PHASES = pytest.mark.parametrize("phase", ["rows", "codes"])


def made(name="vq", kind=Embedding, phase="rows", seed=1, **more):
    """A small table; of the phase "codes", one that was clustered."""
    emb = kind(VOCAB, DIM, method="vq", seed=seed, **{**OPTIONS[name], **more})
    if phase == "codes":
        emb.cluster()
    assert emb.phase == phase
    assert "device" in more or emb.table.phase == phase
    return emb


def read(emb):
    """Memory as lookups see it, the rows of ids, and the projection: arrays for the twin."""
    memory = emb.memory.detach().double().numpy()
    rounded, _ = codecs.rounded(emb.spec.codec, memory.reshape(-1))
    words = emb.pointers.numpy().view(np.uint64).tolist() if emb.phase == "codes" else None
    rows = twin.rows_of(words, VOCAB, emb.spec.sizes[0], emb.spec.option("stages"))
    projection = emb.projection.detach().double().numpy() if emb.spec.rank else None
    return rounded.reshape(memory.shape), rows, projection


def assert_gradients(emb, expected):
    for name, wanted in zip(("memory", "projection"), expected, strict=True):
        if wanted is not None:
            got = getattr(emb, name).grad.to_dense().double().numpy()
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


# --- vectors and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "phase", "sparse", "dtype"),
    pairwise([*OPTIONS], ["rows", "codes"], [False, True], [torch.float32, torch.float64]),
)
def test_vectors_and_gradients_are_their_definitions(name, phase, sparse, dtype):
    emb = made(name, phase=phase, sparse=sparse, dtype=dtype)
    ids = torch.cat([IDS, torch.tensor([3, 3, 60, 0])]).reshape(5, 13)
    vectors, grads = emb(ids), torch.linspace(-1, 1, 65 * DIM, dtype=dtype).sin().reshape(5, 13, DIM)
    vectors.backward(grads)
    flat, memory = ids.reshape(-1).numpy(), read(emb)
    np.testing.assert_allclose(
        vectors.detach().numpy().reshape(-1, DIM), twin.vectors(*memory, flat), rtol=1e-4, atol=1e-5
    )
    assert_gradients(emb, twin.gradients(*memory, flat, grads.numpy().reshape(-1, DIM)))


@pytest.mark.parametrize(
    ("name", "phase", "mode", "padding"),
    pairwise(["vq", "two stages", "as wide as the vector"], ["rows", "codes"], ["sum", "mean", "max"], [None, 5]),
)
def test_bags_are_their_definitions(name, phase, mode, padding):
    bag = made(name, EmbeddingBag, phase, mode=mode, padding_idx=padding)
    ids, ends = torch.tensor([4, 5, 5, 60, 4, 7, 8, 1]), [0, 3, 3, 6, 8]
    weights = torch.linspace(0.5, 2, 8, requires_grad=True) if mode == "sum" else None
    out = bag(ids, torch.tensor(ends[:-1]), weights)
    grads = torch.linspace(-1, 1, 4 * DIM).sin().reshape(4, DIM)
    out.backward(grads)
    memory, flat = read(bag), ids.numpy()
    each = twin.vectors(*memory, flat)
    factors = None if weights is None else weights.detach().numpy()
    np.testing.assert_allclose(
        out.detach().numpy(), bags.pooled(each, ends, factors, mode, padding, flat), rtol=1e-4, atol=1e-5
    )
    slopes, of_weights = bags.unpooled(each, ends, factors, mode, padding, flat, grads.numpy())
    assert_gradients(bag, twin.gradients(*memory, flat, slopes))
    if weights is not None:
        np.testing.assert_allclose(weights.grad.numpy(), of_weights, rtol=1e-4, atol=1e-5)


# --- counters ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=30), max_size=6), st.sampled_from([None, 0, 7]))
def test_training_counts_as_the_core_does_and_evaluation_does_not(batches, padding):
    """Once for every backward pass, padding left out, with the same draws as a table of the core."""
    emb, bag = made(padding_idx=padding), made(kind=EmbeddingBag, mode="sum", padding_idx=padding)
    core = cce.make_table("vq", VOCAB, DIM, seed=1, **OPTIONS["vq"])
    for batch in batches:
        ids = torch.tensor(batch, dtype=torch.int64)
        with torch.no_grad():
            emb(ids)
        emb(ids)  # with a graph that nobody walks
        emb.eval()(ids)
        emb.train()(ids).sum().backward()
        bag(ids[None]).sum().backward()
        met = np.array([i for i in batch if i != padding], np.int64)
        core.backward(met, np.zeros((len(met), DIM), np.float32))
        np.testing.assert_array_equal(emb.counts.numpy(), core.arrays()["counts"])
        assert emb.passes.tolist() == [core._passes]
    if padding is None:
        assert torch.equal(bag.counts, emb.counts)
    np.testing.assert_array_equal(emb.table.arrays()["counts"], emb.counts.numpy())


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_counters_are_right_on_average(mode):
    bag, ids = made(kind=EmbeddingBag, mode=mode), torch.tensor([[1, 2, 2, 2]]).repeat(25, 1)
    for _ in range(4):
        bag(ids).sum().backward()
    met = [twin.estimate(c) for c in bag.counts[1:3].tolist()]
    assert 30 < met[0] < 220 < met[1] < 500
    assert not bag.counts[3:].any()


def test_whole_tables_that_are_read_are_not_met():
    emb = made()
    emb.weight.square().sum().backward()
    nn.functional.linear(torch.ones(2, DIM), emb.weight).sum().backward()
    assert not emb.counts.any()
    emb.projection.requires_grad_(False)
    emb.memory.requires_grad_(False)
    emb(IDS)
    assert not emb.counts.any()


# --- clustering, and its errors ---------------------------------------------------------------------------------------


@EVERY
def test_a_clustering_is_the_cores(name):
    emb = made(name)
    emb(IDS).sum().backward()
    core, before, places = emb._copied(), emb.weight.detach().clone(), list(map(id, emb.parameters()))
    report = emb.cluster(n_iter=7)
    core.cluster(n_iter=7)
    assert report.generation == emb.table.generation == 1
    for key, value in core.arrays().items():
        np.testing.assert_array_equal(emb.table.arrays()[key], value)
    assert list(map(id, emb.parameters())) == places
    assert emb.memory.grad is None
    assert emb.counts is None
    assert emb.memory.numel() + (emb.projection.numel() if emb.spec.rank else 0) == emb.table.num_params
    assert (emb.weight - before).square().mean() < before.var() + 0.01
    np.testing.assert_allclose(emb.weight.detach(), core.lookup(IDS.numpy()), rtol=1e-5, atol=1e-6)


@EVERY
def test_opened_again_ids_have_rows_near_what_they_had(name):
    emb = made(name, phase="codes")
    before, places = emb.weight.detach().clone(), list(map(id, emb.parameters()))
    emb.reopen()
    assert emb.phase == "rows"
    assert emb.table.generation == 2
    assert not emb.counts.any()
    assert list(map(id, emb.parameters())) == places
    torch.testing.assert_close(emb.weight.detach(), before, rtol=0.3, atol=0.05)
    emb.cluster()
    torch.testing.assert_close(emb.weight.detach(), before, rtol=0.3, atol=0.1)


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_what_cannot_be_done_is_said_and_leaves_all_as_it_was(kind):
    rows, codes = made(kind=kind), made(kind=kind, phase="codes")
    for module, call, said in (
        (codes, codes.cluster, r"phase 'codes' and has no rows to cluster: reopen\(\)"),
        (rows, rows.reopen, "it is in phase 'rows'"),
        (rows, lambda: rows.cluster(weights=np.ones(3)), "weights must have shape"),
        (rows, lambda: rows.cluster(moments="keep"), "remap, reset"),
        (rows, lambda: rows.cluster(optimizer=torch.optim.SGD(codes.parameters(), lr=1.0)), "none of the optimisers"),
        (codes, lambda: codes.reopen(optimizer=torch.optim.SGD(rows.parameters(), lr=1.0)), "none of the optimisers"),
    ):
        before, version = numbers(module), module.memory._version
        with pytest.raises(ValueError, match=said):
            call()
        assert_same(module, before)
        assert module.memory._version == version
    with pytest.raises(TypeError, match="optimizer must be a torch optimiser"):
        rows.cluster(optimizer="Adam")
    with pytest.raises(ValueError, match="has no phases"):
        Embedding(9, 2).reopen()
    with pytest.raises(ValueError, match="no pointers to share out"):
        made(shard_pointers=True)
    with pytest.raises(ValueError, match="needs a vocab"):
        kind(None, DIM, method="vq", num_bytes=400)
    rows = made("float32", kind)
    with torch.no_grad():
        rows.projection[0, 0] = float("inf")
    before = numbers(rows)
    with pytest.raises(ValueError, match="must be finite, got inf"):
        rows.cluster()
    assert rows.phase == "rows"
    assert_same(rows, before)


@pytest.mark.parametrize("name", ["vq", "as wide as the vector"])
def test_graphs_of_before_and_after(name):
    """A loss that is still held does not stand in the way of the next one; walking it again raises."""
    emb = made(name)
    loss, late = emb(IDS).sum(), emb(IDS).sum()
    loss.backward()
    for change in (emb.cluster, emb.reopen, emb.cluster):
        change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            late.backward()
        assert emb.memory.grad is None
        late = emb(IDS).sum()
        emb(IDS).sum().backward()
        assert emb.memory.grad.shape == emb.memory.shape
    del loss


# --- states, copies and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "phases", "assign"),
    pairwise([*OPTIONS], [*itertools.product(["rows", "codes"], repeat=2)], [False, True]),
)
def test_a_state_of_either_phase_is_taken_and_followed(name, phases, assign):
    phase, of = phases
    emb, other = made(name, phase=of), made(name, phase=phase, seed=2)
    places = list(map(id, other.parameters()))
    other(IDS).sum().backward()
    other.load_state_dict(copy.deepcopy(emb.state_dict()), assign=assign)
    assert_same(other, emb.state_dict())
    assert other.spec == emb.spec
    assert assign or list(map(id, other.parameters())) == places
    assert torch.equal(other(IDS), emb(IDS))
    other.zero_grad()
    other(IDS).sum().backward()
    (other.cluster if of == "rows" else other.reopen)()
    meta = made(name, device="meta")
    meta.load_state_dict(emb.state_dict(), assign=True)
    assert torch.equal(meta(IDS), emb(IDS))
    empty = made(name, device="meta").to_empty(device="cpu")
    empty.load_state_dict(emb.state_dict())
    assert torch.equal(empty(IDS), emb(IDS))


def test_states_of_clustered_models_go_through_files(tmp_path):
    model = nn.ModuleDict({"user": made(phase="codes"), "item": made("two stages", EmbeddingBag)})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_model(model, tmp_path / "model.safetensors")
    for load in (
        lambda m: m.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)),
        lambda m: load_model(m, tmp_path / "model.safetensors"),
    ):
        again = nn.ModuleDict({"user": made(seed=7), "item": made("two stages", EmbeddingBag, seed=8)})
        load(again)
        assert_same(again, model.state_dict())
        assert [m.phase for m in again.values()] == ["codes", "rows"]


@PHASES
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("harm", ["memory", "pointers", "seed", "other", "wide", "stamp"])
def test_a_torn_state_of_the_other_phase_is_refused(phase, strict, harm):
    """And the module is as it was, gradients and all."""
    module, other = made(phase=phase), made(phase="codes" if phase == "rows" else "rows", seed=5)
    module(IDS).sum().backward()
    state, before = dict(other.state_dict()), numbers(module)
    grads = [p.grad.clone() for p in module.parameters()]
    if harm in ("memory", "pointers"):
        state.pop(harm, None) if harm in state else state.pop("counts")
    elif harm == "seed":
        state["seed"] = state["seed"] + 1
    elif harm == "other":
        state = dict(made(phase=other.phase, num_bytes=401 + 99).state_dict())
    elif harm == "wide":
        state["memory"] = torch.zeros(3, 3)
    else:
        state["stamp"] = state["stamp"] ^ 1
    with pytest.raises(RuntimeError):
        module.load_state_dict(state, strict=strict)
    assert_same(module, before)
    assert module.phase == phase
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    module(IDS).sum().backward()


@EVERY
@PHASES
@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_copies_pickles_and_tables(name, phase, kind, tmp_path):
    emb = made(name, kind, phase)
    (emb(IDS[:, None]) if kind is EmbeddingBag else emb(IDS)).sum().backward()
    file = io.BytesIO()
    torch.save(emb, file)
    file.seek(0)
    before = numbers(emb)
    for other in (copy.deepcopy(emb), pickle.loads(pickle.dumps(emb)), torch.load(file, weights_only=False)):
        assert other.phase == phase
        assert_same(other, before)
        with torch.no_grad():
            other.memory.add_(1.0)
        (other.cluster if phase == "rows" else other.reopen)()
        assert_same(emb, before)
    emb.table.save(tmp_path / "table.safetensors")
    table = cce.load(tmp_path / "table.safetensors")
    assert table.phase == phase
    np.testing.assert_allclose(table.lookup(IDS.numpy()), emb.weight.detach(), rtol=1e-5, atol=1e-6)
    assert emb.ledger().total == table.ledger().total
    assert emb.ledger().clustered == (None if phase == "codes" else table.ledger().clustered)


def test_trained_tables_become_codes():
    """By `from_pretrained`, `compress_` and an assignment, in either phase."""
    rows = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))[IDS % 5]
    emb = Embedding.from_pretrained(rows, method="vq", num_bytes=500, seed=0)
    assert emb.phase == "codes"
    torch.testing.assert_close(emb.weight.detach(), rows, rtol=0.1, atol=0.1)
    model = nn.Sequential(nn.Embedding.from_pretrained(rows, freeze=False), nn.Linear(DIM, 1))
    report = compress_(model, method="vq", num_bytes=500, min_rows=1, seed=0)
    assert model[0].phase == "codes"
    assert model[0].memory.requires_grad
    assert report.after == model[0].ledger().total <= 500
    torch.testing.assert_close(model[0].weight.detach(), rows, rtol=0.1, atol=0.1)
    model[0].weight = rows.flip(0)
    assert model[0].phase == "codes"
    torch.testing.assert_close(model[0].weight.detach(), rows.flip(0), rtol=0.1, atol=0.1)
    fresh = nn.Sequential(nn.Embedding(VOCAB, DIM))
    compress_(fresh, method="vq", num_bytes=500, min_rows=1, fresh=True)
    assert fresh[0].phase == "rows"
    torch.testing.assert_close(fresh[0].weight.square().mean(), torch.tensor(1.0), rtol=0.3, atol=0.0)


@EVERY
@PHASES
def test_more_ids_than_rows_give_the_bits_of_each_alone(name, phase):
    emb = made(name, phase=phase)
    alone = torch.cat([emb(IDS[i : i + 1]) for i in range(VOCAB)])
    ids = IDS.repeat(5)
    for vectors in (emb(ids), emb.eval()(ids)):
        assert torch.equal(vectors, alone.repeat(5, 1))
    with torch.no_grad():
        assert torch.equal(emb(ids), alone.repeat(5, 1))
