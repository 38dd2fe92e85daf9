"""The modules under what people do with modules: compile, export, autocast, copies, states, checkpoints, sharding."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import shutil

import pytest
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])
FEW = ["full", "hash-signed=True", "hemb-weights=concat", "tt", "dhe", "cce-rank=4", "int8"]
EVERY = pytest.mark.parametrize("case", CASES, ids=NAMES)
MORE = [*FEW, "full-rank=3", "rhemb", "ce-combine=mul-n_chunks=2", "robe", "sparse"]
MANY = pytest.mark.parametrize("case", [CASES[NAMES.index(name)] for name in MORE], ids=MORE)
SOME = pytest.mark.parametrize("case", [CASES[NAMES.index(name)] for name in FEW], ids=FEW)


class Model(nn.Module):
    """An embedding, and something that it feeds."""

    def __init__(self, case, **more):
        super().__init__()
        method, options = case
        self.emb = Embedding(VOCAB, DIM, method=method, seed=1, **{**options, **more})
        self.out = nn.Linear(DIM, 1)

    def forward(self, ids):
        return self.out(self.emb(ids)).square().sum()


def gradients(model):
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return found


def assert_same_steps(compiled, model, ids=IDS):
    """Losses and gradients agree."""
    a = compiled(ids)
    a.backward()
    got = gradients(model)
    b = model(ids)
    b.backward()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for x, y in zip(got, gradients(model), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


@MANY
def test_compiled_as_one_graph(case):
    torch._dynamo.reset()
    model = Model(case, padding_idx=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_same_steps(compiled, model)
    assert_same_steps(compiled, model, IDS[:, :3])
    with pytest.raises(IndexError, match="outside"):
        compiled(IDS + VOCAB)


@pytest.mark.parametrize("name", ["full", "hash", "hemb", "robe", "cce", "tt"])
def test_sparse_gradients_compiled(name):
    torch._dynamo.reset()
    method, options = CASES[NAMES.index(name)]
    emb = Embedding(VOCAB, DIM, method=method, seed=1, sparse=True, **options)
    compiled = torch.compile(emb, backend="aot_eager")
    found = []
    for module in (compiled, emb):
        emb.zero_grad()
        module(IDS).square().sum().backward()
        found.append([p.grad for p in emb.parameters()])
    for a, b in zip(*found, strict=True):
        assert a.is_sparse == b.is_sparse
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="inductor needs a C++ compiler")
def test_compiled_to_machine_code():
    torch._dynamo.reset()
    model = Model(("cce", {"num_params": 300, "rank": 4}))
    assert_same_steps(torch.compile(model, fullgraph=True), model)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_compiled_as_one_graph(mode, rank):
    torch._dynamo.reset()
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, padding_idx=3, method="cce", num_params=300, rank=rank, seed=0)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager", dynamic=True)
    flat, weights = IDS.view(-1), torch.linspace(0, 1, IDS.numel())
    calls = [(flat, torch.tensor(offsets)) for offsets in ([0, 0, 5], [0, 2, 4, 8])]
    calls += [(IDS,)] if mode != "sum" else [(IDS,), (flat, torch.tensor([0, 3]), weights)]
    for arguments in calls:
        found = []
        for module in (compiled, bag):
            out = module(*arguments)
            out.square().sum().backward()
            found.append([out, *gradients(bag)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_clustering_is_seen_by_compiled_code():
    torch._dynamo.reset()
    model = Model(("cce", {"num_params": 300}))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_steps(compiled, model)
    model.emb.cluster()
    assert_same_steps(compiled, model)


@EVERY
def test_exported_for_any_shape(case):
    model = Model(case, padding_idx=3)
    shapes = ({0: torch.export.Dim("rows", min=2, max=1000), 1: torch.export.Dim("columns", min=2)},)
    program = torch.export.export(model, (IDS,), dynamic_shapes=shapes)
    for ids in (IDS, IDS[:, :3], IDS.repeat(3, 5)):
        torch.testing.assert_close(program.module()(ids), model(ids))


def test_an_exported_program_is_a_file(tmp_path):
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=1)
    shapes = ({0: torch.export.Dim("n", min=2, max=1000)},)
    torch.export.save(torch.export.export(emb, (IDS[0],), dynamic_shapes=shapes), tmp_path / "emb.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "emb.pt2").module()(IDS.view(-1)), emb(IDS.view(-1)))


@EVERY
def test_autocast_leaves_an_embedding_as_it_is(case):
    emb = Embedding(VOCAB, DIM, method=case[0], seed=1, **case[1])
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            vectors = emb(IDS)
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, emb(IDS))


@EVERY
def test_other_float_types(case):
    """A moved module goes the plain way, with the same addresses."""
    emb = Embedding(VOCAB, DIM, method=case[0], seed=1, **case[1])
    expected = emb(IDS)
    for kind, near in ((torch.bfloat16, 0.1), (torch.float64, 1e-5)):
        moved = copy.deepcopy(emb).to(kind)
        vectors = moved(IDS)
        assert vectors.dtype == kind
        torch.testing.assert_close(vectors.float(), expected, rtol=near, atol=near)
        vectors.sum().backward()
        assert all(p.grad.dtype == kind for p in moved.parameters())


@EVERY
def test_copies_and_pickles(case):
    emb = Embedding(VOCAB, DIM, method=case[0], seed=1, padding_idx=0, **case[1])
    file = io.BytesIO()
    torch.save(emb, file)
    file.seek(0)
    for again in (copy.deepcopy(emb), pickle.loads(pickle.dumps(emb)), torch.load(file, weights_only=False)):
        assert torch.equal(again(IDS), emb(IDS))
        assert again.spec == emb.spec
        assert repr(again) == repr(emb)
        with torch.no_grad():
            next(again.parameters()).add_(1.0)  # a copy has memory of its own
        assert not torch.equal(again(IDS), emb(IDS))


@EVERY
def test_states_are_strict_and_whole(case):
    """Another seed's module takes the state, seed and all, also by way of a file and of the meta device."""
    emb = Embedding(VOCAB, DIM, method=case[0], seed=1, **case[1])
    if emb.table.method.learns and emb.phase != "codes":
        emb.cluster(vectors=torch.randn(VOCAB, DIM).numpy())
    file = io.BytesIO()
    torch.save(emb.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Embedding(VOCAB, DIM, method=case[0], seed=2, **case[1])
    other.load_state_dict(state)
    empty = Embedding(VOCAB, DIM, method=case[0], device="meta", **case[1])
    assert all(t.device.type == "meta" for t in (*empty.parameters(), *empty.buffers()))
    with pytest.raises(RuntimeError, match="meta"):
        _ = empty.table
    filled = copy.deepcopy(empty).to_empty(device="cpu")
    filled.load_state_dict(state)
    empty.load_state_dict(state, assign=True)
    for module in (other, filled, empty):
        assert torch.equal(module(IDS), emb(IDS))
        assert module.spec == emb.spec
        assert module.table.generation == emb.table.generation
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "seed"})
    if case[0] != "full" or case[1]:
        with pytest.raises(RuntimeError, match="Unexpected key|Missing key"):
            other.load_state_dict({**state, "weight": torch.zeros(VOCAB, DIM)})


@EVERY
def test_a_module_of_the_meta_device_begins_anew(case):
    """As deferred initialisation has it: shapes, empty memory, reset_parameters."""
    with torch.device("meta"):
        emb = Embedding(VOCAB, DIM, padding_idx=1, method=case[0], seed=5, **case[1])
    assert all(t.device.type == "meta" for t in (*emb.parameters(), *emb.buffers()))
    emb.reset_parameters()  # nothing to do yet
    emb.to_empty(device="cpu")
    for tensor in (*emb.parameters(), *emb.buffers()):
        tensor.data.fill_(3)
    torch.manual_seed(0)
    emb.reset_parameters()
    torch.manual_seed(0)
    fresh = Embedding(VOCAB, DIM, padding_idx=1, method=case[0], seed=5, **case[1])
    for (name, a), b in zip(emb.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_state_of_before_a_clustering_undoes_it():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=1)
    state, before = copy.deepcopy(emb.state_dict()), emb(IDS)
    shapes = {name: t.shape for name, t in state.items()}
    places = {name: t.data_ptr() for name, t in emb.state_dict().items()}
    emb.cluster()
    assert {name: t.shape for name, t in emb.state_dict().items()} == shapes
    assert {name: t.data_ptr() for name, t in emb.state_dict().items()} == places
    assert not torch.equal(emb(IDS), before)
    emb.load_state_dict(state)
    assert torch.equal(emb(IDS), before)
    assert emb.table.generation == 0
    first, second = copy.deepcopy(emb), copy.deepcopy(emb)
    first.cluster()
    second.cluster()
    assert torch.equal(first(IDS), second(IDS))


@SOME
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(case, reentrant):
    model = Model(case)
    scale = torch.ones((), requires_grad=True)

    def step(ids, scale):
        return model(ids) * scale

    checkpoint(step, IDS, scale, use_reentrant=reentrant).backward()
    got = gradients(model)
    model(IDS).backward()
    for a, b in zip(got, gradients(model), strict=True):
        torch.testing.assert_close(a, b)


@SOME
def test_a_functional_call(case):
    model = Model(case)
    other = {name: torch.full_like(p, 0.1) for name, p in model.named_parameters()}
    before = model(IDS)
    changed = torch.func.functional_call(model, other, (IDS,))
    assert torch.equal(model(IDS), before)
    model.load_state_dict({**model.state_dict(), **other})
    assert torch.equal(model(IDS), changed)
    assert not torch.equal(changed, before)


def test_meta_tensors_give_shapes():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, device="meta")
    assert emb(IDS.to("meta")).shape == (2, 4, DIM)
    with pytest.raises(RuntimeError, match="move the ids"):
        emb(IDS)


def test_an_edit_between_forward_and_backward_is_noticed():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=1)
    loss = emb(IDS).square().sum()
    emb.cluster()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.fixture
def process_group(tmp_path):
    """This process alone, as a group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@SOME
def test_fully_sharded_by_one_process(case, process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = Model(case)
    twin = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.emb, mesh=mesh)
    fully_shard(model, mesh=mesh)
    steps = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, twin)]
    for _ in range(3):
        losses = []
        for m, optimizer in zip((model, twin), steps, strict=True):
            optimizer.zero_grad()
            loss = m(IDS)
            loss.backward()
            optimizer.step()
            losses.append(loss)
        torch.testing.assert_close(*losses)
    expected = twin.state_dict()
    for name, value in model.state_dict().items():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        torch.testing.assert_close(value, expected[name])
    with contextlib.suppress(ValueError):
        model.emb.cluster()
        twin.emb.cluster()
    torch.testing.assert_close(model(IDS), twin(IDS))
