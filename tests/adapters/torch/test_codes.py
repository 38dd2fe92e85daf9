"""Memories that lie in their codec while they are trained: rounding='stochastic', by the fused optimisers."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from reference import codec as codecs

import cce_core as cce

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.library import opcheck  # noqa: E402

from cce_core.adapters.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    FusedAdagrad,
    FusedAdam,
    FusedSGD,
    TiedLinear,
    compress_,
)
from cce_core.adapters.torch.operators import blocks, eager, rounding  # noqa: E402
from cce_core.storage.codec import CODECS, codec  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, DIM = 61, 8
IDS = torch.arange(VOCAB)
TABLES = {
    "vq": {"method": "vq", "num_bytes": 400},
    "vq of two stages": {"method": "vq", "num_bytes": 500, "stages": 2, "codec": "int4"},
    "int8": {"method": "full", "codec": "int8"},
    "narrow int4": {"method": "full", "codec": "int4", "rank": 3},
    "bfloat16": {"method": "hash", "codec": "bfloat16", "num_bytes": 300},
    "cce": {"method": "cce", "codec": "int8", "num_bytes": 600, "rank": 4},
    "weights in the memory": {"method": "rhemb", "codec": "int8", "num_bytes": 300},
    "weights beside it": {"method": "hemb", "codec": "int8", "num_bytes": 600},
    "wrapping": {"method": "robe", "codec": "int8", "num_bytes": 120},
}
EVERY = pytest.mark.parametrize("name", TABLES)
STEPS = {
    "SGD": (lambda p: FusedSGD(p, lr=0.01, momentum=0.5), lambda: cce.SGD(0.01, 0.5)),
    "Adagrad": (lambda p: FusedAdagrad(p, lr=0.1), lambda: cce.Adagrad(0.1)),
    "rows": (lambda p: FusedAdagrad(p, lr=0.1, rowwise=True), lambda: cce.Adagrad(0.1, rowwise=True)),
    "Adam": (lambda p: FusedAdam(p, lr=0.1), lambda: cce.Adam(0.1)),
    "lazy": (lambda p: FusedAdam(p, lr=0.1, lazy=True), lambda: cce.Adam(0.1, lazy=True)),
}


def made(name="vq", kind=Embedding, seed=1, **more):
    return kind(VOCAB, DIM, seed=seed, **{"rounding": "stochastic", **TABLES[name], **more})


def train(emb, steps, n=5, ids=IDS):
    for _ in range(n):
        steps.zero_grad()
        loss = (emb(ids) - ids[:, None] / VOCAB).square().sum()
        loss.backward()
        steps.step()
    return float(loss)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_hollow(emb):
    """The parameter has the memory's shape, and room for one float."""
    assert emb.memory.shape == (emb.table.layout.n_units, emb.table.layout.unit)
    assert emb.memory.untyped_storage().nbytes() == 4
    assert emb.memory.stride() == (0, 0)
    assert emb.codes.nbytes == emb.table.arrays()["memory"].nbytes
    assert "memory" not in emb.state_dict()


# --- blocks of the codec ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CODECS if name != "float32"])
def test_blocks_are_decoded_and_rounded_as_the_whole(name):
    """Every size up to three blocks' edges, every choice of blocks: places of others are 0, or keep their bytes."""
    kept, rng = codec(name), np.random.default_rng(0)
    for size in (1, 2, 63, 64, 65, 127, 128, 129, 191):
        values, n = rng.standard_normal(size, np.float32), -(-size // 64)
        codes, scales = kept.encode(values)
        whole, held = kept.decode(codes, scales, size), codes.view(np.uint8)
        for choice in range(2**n):
            chosen = np.array([b for b in range(n) if choice >> b & 1], np.int64)
            inside = np.isin(np.arange(size) // 64, chosen)
            got = rounding.decoded(held, scales, kept, size, chosen)
            np.testing.assert_array_equal(got, np.where(inside, whole, 0))
            new, of_new = held.copy(), scales.copy()
            rounding.encode(2 * got, new, of_new, kept, chosen, 7)
            after = rounding.decoded(new, of_new, kept, size, None)
            np.testing.assert_array_equal(after[~inside], whole[~inside])
            _, half = codecs.rounded(name, 2 * values)
            assert (np.abs(after - 2 * whole)[inside] <= 2.01 * half[inside] + 1e-6).all()


@EVERY
def test_the_operator_that_reads_codes(name):
    emb = made(name)
    ids, spec = torch.tensor([3, 3, 60]), emb._facts.text
    read = None if name.startswith("weights in") else ids
    given = emb.memory, emb.codes, emb.scales, read, emb._buffers.get("keys"), emb._buffers.get("pointers"), spec
    opcheck(torch.ops.cce.decoded, given, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
    expected = torch.from_numpy(emb.table.stored.decoded()).view(emb.memory.shape)
    torch.testing.assert_close(eager.decoded(*given), expected)
    assert torch.equal(blocks.decoded(*given[:3], None, *given[4:]), expected)
    with pytest.raises(RuntimeError, match="takes codes of"):
        blocks.decoded(emb.memory, emb.codes[:-1], *given[2:])


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, options in TABLES.items() if options.get("codec") != "int4"])
@pytest.mark.parametrize("kind", STEPS)
def test_steps_are_the_cores(name, kind):
    """The same draws, and so the same codes, but where a gradient's last bit decides."""
    emb = made(name)
    ours, core = STEPS[kind][0](emb.parameters()), STEPS[kind][1]()
    table, rng = emb._copied(), np.random.default_rng(0)
    for _ in range(4):
        ids = rng.integers(0, VOCAB, 40)
        slopes = rng.standard_normal((40, DIM)).astype(np.float32)
        ours.zero_grad()
        vectors = emb(torch.from_numpy(ids))
        np.testing.assert_allclose(vectors.detach(), table.lookup(ids), rtol=1e-3, atol=2e-3)
        vectors.backward(torch.from_numpy(slopes))
        ours.step()
        core.step(table, table.backward(ids, slopes, dense=True))
    expected = table.stored.decoded()
    got = rounding.decoded(emb.codes.numpy(), emb.scales.numpy(), codec(emb.spec.codec), expected.size, None)
    assert (np.abs(got - expected) > 1e-5).mean() < 0.02
    assert_hollow(emb)


@pytest.mark.parametrize("name", ["vq", "narrow int4", "bfloat16"])
@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "rows", "lazy"])
def test_sparse_steps_touch_the_blocks_of_their_ids_alone(name, kind):
    emb = made(name, sparse=True)
    steps, width = STEPS[kind][0](emb.parameters()), emb.memory.shape[1]
    values = emb.table.stored.decoded()
    emb(torch.tensor([2, 2, 40])).sum().backward()
    units = emb.memory.grad.coalesce().indices()[0].numpy()
    steps.step()
    touched = {p // 64 for u in units for p in range(u * width, (u + 1) * width)}
    inside = np.isin(np.arange(values.size) // 64, list(touched))
    after = emb.table.stored.decoded()
    np.testing.assert_array_equal(after[~inside], values[~inside])
    moved = np.isin(np.arange(values.size) // width, units)
    assert (after[moved] != values[moved]).any()
    before = train(emb, steps, 1)
    assert train(emb, steps, 60) < before


def test_rounding_is_right_on_average():
    """Steps far smaller than a code, which to the nearest would stand still."""
    total = np.zeros(VOCAB * DIM)
    for seed in range(40):
        emb = made("int8", seed=seed)
        before = emb.table.stored.decoded()
        steps = FusedSGD(emb.parameters(), lr=1e-4)
        for _ in range(20):
            steps.zero_grad()
            emb(IDS).sum().backward()
            steps.step()
        total += emb.table.stored.decoded() - before
    assert abs(total.mean() / 40 / (-20 * 1e-4) - 1) < 0.1


@EVERY
def test_they_learn_and_go_through_clusterings(name):
    emb = made(name)
    steps = FusedAdagrad(emb.parameters(), lr=0.1)
    before = train(emb, steps, 1)
    assert train(emb, steps, 40) < before
    if not emb.table.method.learns:
        return
    for change in (emb.cluster, emb.reopen if emb.phase else emb.cluster, emb.cluster):
        place, vectors = emb.memory, emb.weight.detach().clone()
        change(optimizer=steps)
        assert emb.memory is place
        assert_hollow(emb)
        assert steps.state[emb.memory]["squares"].shape == emb.memory.shape
        assert (emb.weight - vectors).square().mean() < vectors.square().mean()
        before = train(emb, steps, 1)
        assert train(emb, steps, 20) < before + 1


def test_bags_and_tied_layers_read_codes():
    bag, emb = made("narrow int4", EmbeddingBag, mode="mean"), made("narrow int4")
    torch.testing.assert_close(bag(IDS[:, None]), emb(IDS))
    head = TiedLinear(emb)
    torch.testing.assert_close(head(torch.eye(DIM)), emb.weight.T.clone())
    model = nn.ModuleList([emb, head])
    steps = FusedSGD(model.parameters(), lr=0.01)
    head(emb(IDS)).square().mean().backward()
    steps.step()


@pytest.mark.parametrize("name", ["vq", "bfloat16"])
def test_compiled(name):
    torch._dynamo.reset()
    emb, twin = made(name), made(name)
    call = torch.compile(emb, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        for module, run in ((emb, call), (twin, twin)):
            steps = FusedSGD(module.parameters(), lr=0.1)
            run(IDS).square().sum().backward()
            steps.step()
            module.zero_grad()
    assert (emb.codes != twin.codes).float().mean() < 0.02


# --- states, copies, and what cannot be -------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("assign", [False, True])
def test_states_and_copies_hold_codes(name, assign):
    emb = made(name)
    steps = FusedSGD(emb.parameters(), lr=0.1)
    train(emb, steps, 2)
    file = io.BytesIO()
    torch.save(emb.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, meta = made(name, seed=2), made(name, device="meta")
    for module in (other, made(name, device="meta").to_empty(device="cpu")):
        module.load_state_dict(state, assign=assign)
        assert_same(module.state_dict(), emb.state_dict())
        assert torch.equal(module(IDS), emb(IDS))
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta(IDS), emb(IDS))
    for module in (copy.deepcopy(emb), pickle.loads(pickle.dumps(emb)), other, other.to("cpu"), other.float()):
        assert_hollow(module)
        assert_same(module.state_dict(), emb.state_dict())
    before = {key: value.clone() for key, value in emb.state_dict().items()}
    twin = copy.deepcopy(emb)
    train(twin, FusedSGD(twin.parameters(), lr=0.1), 2)
    assert not torch.equal(twin.codes, emb.codes)
    assert_same(emb.state_dict(), before)
    assert emb.ledger().total == emb.table.ledger().total
    assert "values" not in emb.ledger().training
    if emb.phase is not None:
        other.cluster()
        emb.load_state_dict(other.state_dict(), assign=assign)
        assert emb.phase == "codes"
        assert torch.equal(emb(IDS), other(IDS))
        assert_hollow(emb)
        torn = {key: value for key, value in before.items() if key != "codes"}
        with pytest.raises(RuntimeError):
            emb.load_state_dict(torn)
        assert_same(emb.state_dict(), other.state_dict())


def test_trained_tables_are_compressed_to_codes():
    rows = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))[IDS % 5]
    for fresh in (False, True):
        model = nn.Sequential(nn.Embedding.from_pretrained(rows, freeze=False))
        compress_(model, method="int8", rounding="stochastic", min_rows=1, fresh=fresh)
        assert_hollow(model[0])
        torch.testing.assert_close(model[0].weight.square().mean(), rows.square().mean(), rtol=0.1, atol=0.0)
        assert fresh or (model[0].weight - rows).abs().max() < 0.02


def test_what_codes_cannot_be():
    emb = made()
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad):
        emb.zero_grad()
        steps = kind([{"params": [nn.Parameter(torch.ones(2))]}, {"params": list(emb.parameters())}], lr=0.1)
        emb(IDS).sum().backward()
        before = {key: value.clone() for key, value in emb.state_dict().items()}
        with pytest.raises(RuntimeError, match=f"{kind.__name__} trains floats.*take FusedSGD"):
            steps.step()
        assert_same(emb.state_dict(), before)
    emb.memory.grad[0, 0] = float("nan")
    for steps in (FusedSGD([emb.memory], lr=0.1), FusedAdam([emb.memory])):
        with pytest.raises(RuntimeError, match="NaN or infinity"):
            steps.step()
        assert_same(emb.state_dict(), before)
    with pytest.raises(ValueError, match=r"steps in torch\.float32, not torch\.float64"):
        made(dtype=torch.float64)
    with pytest.raises(ValueError, match="rounding must be"):
        made(rounding="up")
    plain = Embedding(VOCAB, DIM, seed=1, **TABLES["vq"])
    with pytest.raises(RuntimeError, match="rounding: 'stochastic' in the state, 'straight-through' here"):
        plain.load_state_dict(emb.state_dict())
    floats = Embedding(VOCAB, DIM, method="hash", num_bytes=300, rounding="stochastic")  # nothing to round
    assert floats.memory.is_contiguous()
    torch.optim.SGD(floats.parameters(), lr=0.1).step()


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), st.sampled_from(list(TABLES)))
def test_ids_are_read_as_from_the_whole(ids, name):
    """Of a large memory the blocks of a few ids alone are decoded."""
    budget = {"num_bytes": 2000} if "num_bytes" in TABLES[name] else {}
    emb = Embedding(VOCAB, 32, seed=1, rounding="stochastic", **{**TABLES[name], **budget})
    np.testing.assert_allclose(emb(torch.tensor(ids)).detach(), emb.table.lookup(ids), rtol=1e-5, atol=1e-6)
