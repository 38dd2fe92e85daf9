"""The adapter's way over the Triton kernels: on a GPU, or on the CPU's tensors under Triton's interpreter.

Kernels against plain torch and the core; whole modules against themselves on the CPU; what is done where kernels are missing.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_tables import DEVICE, INTERPRETED, poisoned, torch
from torch.autograd import gradcheck, gradgradcheck
from torch_tables import CASES, DIM, NAMES, VOCAB

from cce_core.adapters.torch import Embedding, EmbeddingBag, FusedAdagrad, FusedAdam, FusedSGD, cuda, ops, plain, steps
from cce_core.adapters.torch.plan import part_of

pytestmark = pytest.mark.triton
few = settings(max_examples=20, suppress_health_check=list(HealthCheck))
_ = poisoned
ON_GPU = (cuda.gather, cuda.scatter, cuda.dot, cuda.signs, cuda.features, cuda.rounded)
BLOCKS = [k for k, (method, _) in enumerate(CASES) if method not in ("tt", "dhe")]
IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])


@pytest.fixture
def gpu(monkeypatch):
    """Tensors on the CPU take the way of those on a GPU, where there is none."""
    if not INTERPRETED:
        yield
        return
    monkeypatch.setattr(cuda, "here", lambda tensor: True)
    library = torch.library.Library("cce", "IMPL")
    for function in ON_GPU:
        library.impl(function.__name__, function, "CPU", allow_override=True)
    yield
    library._destroy()


def table(case, **more):
    method, options = case
    return Embedding(VOCAB, DIM, method=method, seed=7, **{**options, **more})


def near(got, want, scale=1.0):
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-4, atol=2e-5 * scale)


@few
@given(data=st.data())
def test_sums_are_those_of_plain_torch_and_of_the_core(data):
    """Every layout, weights or none, duplicates, no ids at all; bfloat16 up to its rounding."""
    emb = table(CASES[data.draw(st.sampled_from(BLOCKS))]).to(DEVICE)
    parts = [p for p in ("memory", "weights") if p in emb._parameters]
    part, kind = data.draw(st.sampled_from(parts)), data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layout, text = part_of(emb._plan.text, part).layout, emb._plan.text
    ids = torch.tensor(data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=30)), dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(ids))
    memory, grads = (
        torch.randn(*shape, generator=generator).to(kind)
        for shape in ((layout.n_units, layout.unit), (len(ids), layout.dim))
    )
    weights = torch.randn(len(ids), len(layout.columns), generator=generator).to(kind)
    weights = weights if data.draw(st.booleans()) else None
    rest = emb._buffers.get("keys"), emb._buffers.get("pointers"), text, part
    there = [None if t is None else t.to(DEVICE) for t in (memory, grads, weights, ids)]
    m, g, w, i = there
    got = {
        "gather": cuda.gather(m, i, w, *rest),
        "scatter": cuda.scatter(g, i, w, *rest),
        "dot": cuda.dot(m, g, i, *rest),
        "sparse": cuda.scatter_sparse(g, i, w, *rest),
    }
    assert got["sparse"].is_coalesced()
    with torch.sparse.check_sparse_tensor_invariants():
        got["sparse"] = got["sparse"].clone().to_dense()
    exact = {
        "gather": plain.gather(m.double(), i, None if w is None else w.double(), *rest),
        "scatter": plain.scatter(g.double(), i, None if w is None else w.double(), *rest),
        "dot": plain.dot(m.double(), g.double(), i, *rest),
    }
    exact["sparse"] = exact["scatter"]
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if kind == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for name, value in got.items():
        assert value.dtype == kind
        torch.testing.assert_close(value.double(), exact[name], **tolerance, msg=lambda s, name=name: f"{name}: {s}")
    if kind == torch.float32:
        here = [None if t is None else t.cpu() for t in rest[:2]]
        core = ops.gather(memory, ids, weights, *here, text, part)
        assert torch.equal(got["gather"].cpu(), core)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_signs_features_and_rounded_memories(kind):
    signed = table(CASES[NAMES.index("hash-signed=True")]).to(DEVICE)
    ids, text = torch.arange(VOCAB, device=DEVICE), signed._plan.text
    like = torch.empty(0, dtype=kind, device=DEVICE)
    assert torch.equal(cuda.signs(ids, signed.keys, like, text), plain.signs(ids, signed.keys, text, kind))
    for name in ("dhe", "dhe-transform=gaussian"):
        network = table(CASES[NAMES.index(name)]).to(DEVICE)
        near(
            cuda.features(ids, network.keys, network._plan.text), plain.features(ids, network.keys, network._plan.text)
        )
        if INTERPRETED:
            with pytest.raises(IndexError, match="outside"):
                cuda.features(ids + 1, network.keys, network._plan.text)
    for name in ("int8", "int4", "full-codec=bfloat16"):
        coded = table(CASES[NAMES.index(name)]).to(DEVICE)
        memory = torch.randn(coded.memory.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, kind)
        got = cuda.rounded(memory, None, None, None, coded._plan.text)
        assert got.dtype == kind
        assert torch.equal(got, plain.rounded(memory, None, None, None, coded._plan.text))


@pytest.mark.parametrize("name", ["full", "robe", "cce-rank=4", "sparse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_torchs_own_checks_of_operators(name, weighted, gpu):
    """Schema, shapes, tracing; and gradients of both orders, whose sums are linear in each argument: large steps are exact."""
    emb = table(CASES[NAMES.index(name)]).to(DEVICE)
    layout, ids = part_of(emb._plan.text, "memory").layout, torch.tensor([3, 0, 96, 3], device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    shapes = (layout.n_units, layout.unit), (4, len(layout.columns)), (4, layout.dim)
    memory, weights, grads = (torch.randn(*s, generator=generator).to(DEVICE).requires_grad_() for s in shapes)
    rest = emb._buffers.get("keys"), emb._buffers.get("pointers"), emb._plan.text, "memory"
    w = weights if weighted else None
    for op, arguments in (
        (ops.gather, (memory, ids, w, *rest)),
        (ops.scatter, (grads, ids, w, *rest)),
        (ops.dot, (memory, grads, ids, *rest)),
    ):
        torch.library.opcheck(op, arguments)
    some = {"eps": 0.5, "atol": 1e-2, "rtol": 1e-2, "fast_mode": True, "nondet_tol": 1e-3}
    cases = [(lambda m, g: ops.dot(m, g, ids, *rest), (memory, grads))]
    if weighted:
        cases.append((lambda m, v: ops.gather(m, ids, v, *rest), (memory, weights)))
    for function, arguments in cases:
        assert gradcheck(function, arguments, **some)
        assert gradgradcheck(function, arguments, **some)


def both(case, **more):
    """A module, and the same on the device."""
    emb = table(case, **more)
    return emb, copy.deepcopy(emb).to(DEVICE)


def test_other_float_types_take_plain_torch(monkeypatch, gpu):
    """No kernel is asked for float16 and float64."""
    monkeypatch.setattr(cuda, "_frame", None)
    for kind in (torch.float16, torch.float64):
        emb, there = both(("cce", {"num_params": 300}), dtype=kind)
        torch.testing.assert_close(there(IDS.to(DEVICE)).cpu(), emb(IDS))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_whole_modules(case, sparse, gpu):
    """Vectors, gradients, second derivatives and a padding row, as on the CPU."""
    emb, there = both(case, sparse=sparse, padding_idx=3)
    core = emb.table
    vectors = there(IDS.to(DEVICE))
    np.testing.assert_allclose(vectors.detach().cpu().numpy()[0], core.lookup(IDS[0].numpy()), rtol=1e-5, atol=1e-6)
    assert not vectors[1, 0].any()
    grads = torch.linspace(-1, 1, vectors.numel()).view(vectors.shape)
    vectors.backward(grads.to(DEVICE))
    kept = IDS.clone()
    masked = grads * (kept != 3)[..., None]
    for name, expected in core.backward(kept.numpy(), masked.numpy(), dense=True).items():
        got = getattr(there, name).grad
        got = got.to_dense() if got.is_sparse else got
        near(got.reshape(-1), torch.from_numpy(np.ascontiguousarray(expected)).reshape(-1), 5)


@pytest.mark.parametrize(
    "name", ["full", "hash-signed=True", "hemb", "robe-signed=True", "cce-rank=4", "sparse", "int8"]
)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags(name, mode, gpu):
    method, options = CASES[NAMES.index(name)]
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, method=method, seed=7, **options)
    offsets = torch.tensor([0, 0, 3, 8])
    there = copy.deepcopy(bag).to(DEVICE)
    got = there(IDS.view(-1).to(DEVICE), offsets.to(DEVICE))
    vectors = torch.from_numpy(bag.table.lookup(IDS.view(-1).numpy()))
    want = torch.stack([vectors[low:high].sum(0) for low, high in ((0, 0), (0, 3), (3, 8), (8, 8))])
    near(got.detach(), want / torch.tensor([1, 3, 5, 1])[:, None] if mode == "mean" else want)


@pytest.mark.parametrize("name", ["full", "hemb", "cce-rank=4", "int8", "dhe"])
def test_compiled_as_one_graph(name, gpu):
    torch._dynamo.reset()
    emb, there = both(CASES[NAMES.index(name)], padding_idx=3)
    compiled = torch.compile(there, fullgraph=True, backend="aot_eager", dynamic=True)
    for ids in (IDS, IDS[:, :3]):
        found = []
        for module, where in ((compiled, DEVICE), (emb, "cpu")):
            module.zero_grad()
            vectors = module(ids.to(where))
            vectors.square().sum().backward()
            found.append([vectors.detach(), *(p.grad for p in module.parameters())])
        for a, b in zip(*found, strict=True):
            near(a, b, 10)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_leaves_an_embedding_as_it_is(kind, gpu):
    _, there = both(("cce", {"num_params": 300}))
    with torch.autocast(DEVICE, kind):
        vectors = there(IDS.to(DEVICE))
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, there(IDS.to(DEVICE)))


def test_a_fixed_order_is_torchs_word(monkeypatch, gpu):
    from cce_kernels import segments

    seen, run = [], segments.run
    monkeypatch.setattr(segments, "run", lambda *a: seen.append(1) or run(*a))
    _, there = both(("hemb", {"num_params": 400}))
    ids, found = IDS.repeat(5, 5).to(DEVICE), []
    there(ids).square().sum().backward()
    assert not seen
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            there.zero_grad()
            there(ids).square().sum().backward()
            found.append([p.grad.clone() for p in there.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(seen) == 4  # memory and weights, twice
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Optimisers

FUSED = {
    "sgd": lambda p: FusedSGD(p, lr=0.1),
    "momentum": lambda p: FusedSGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda p: FusedAdagrad(p, lr=0.1),
    "rowwise": lambda p: FusedAdagrad(p, lr=0.1, rowwise=True),
    "adamw": lambda p: FusedAdam(p, lr=0.01, weight_decay=0.1),
    "lazy": lambda p: FusedAdam(p, lr=0.01, lazy=True),
}


def train(emb, optimizer, n=3):
    where = emb.memory.device
    for _ in range(n):
        optimizer.zero_grad()
        (emb(IDS.to(where)) - 1.0).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["full", "hemb", "cce-rank=4"])
@pytest.mark.parametrize("rule", FUSED)
def test_fused_optimisers(rule, name, sparse, fused, gpu, monkeypatch):
    """Steps and state as on the CPU, by the kernels and by plain torch, and on from a state that was loaded."""
    emb, there = both(CASES[NAMES.index(name)], sparse=sparse)
    mine, theirs = FUSED[rule](emb.parameters()), FUSED[rule](there.parameters())
    if INTERPRETED:  # the peer takes the core's way
        with pytest.MonkeyPatch.context() as cpu:
            cpu.setattr(cuda, "here", lambda tensor: False)
            train(emb, mine)
    else:
        train(emb, mine)
    if not fused:
        monkeypatch.setattr(cuda, "kernels", lambda: None)
    else:
        monkeypatch.setattr(steps, "update", None)
    version = there.memory._version
    train(there, theirs, 2)
    assert there.memory._version > version
    kept = copy.deepcopy(theirs.state_dict())
    theirs = FUSED[rule](there.parameters())
    theirs.load_state_dict(kept)
    train(there, theirs, 1)
    for a, b in zip(there.parameters(), emb.parameters(), strict=True):
        near(a.detach(), b.detach())
        assert theirs.state[a].keys() == mine.state[b].keys()
        for key, value in mine.state[b].items():
            if isinstance(value, torch.Tensor):
                assert theirs.state[a][key].shape == value.shape
                near(theirs.state[a][key], value)
            else:
                assert theirs.state[a][key] == value


# Clusterings


def trained(method="cce", num_params=8 * 40, **options):
    """A module that was clustered once and trained since, on the CPU."""
    emb = Embedding(300, DIM, method=method, num_params=num_params, seed=3, **options)
    emb.cluster(n_iter=3)
    with torch.no_grad():
        emb.memory += torch.randn(emb.memory.shape, generator=torch.Generator().manual_seed(1))
    return emb


def same_state(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        if x.is_floating_point():
            near(x, y)
        else:
            assert torch.equal(x.cpu(), y.cpu()), name


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": 4}, {"rank": 0, "codec": "int8"}, {"method": "cce_robe", "num_params": 90}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_warm_clustering_is_that_of_the_cpu(options, weighted, gpu, monkeypatch):
    """Pointers, keys and memory; moments go along; parameters and buffers keep their places."""
    with pytest.MonkeyPatch.context() as cpu:
        cpu.setattr(cuda, "here", lambda tensor: False)
        emb = trained(**options)
    there = copy.deepcopy(emb).to(DEVICE)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(5)) if weighted else None
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0, momentum=0.9) for m in (emb, there)]
    for module, optimizer in zip((emb, there), optimizers, strict=True):
        module(torch.arange(300, device=module.memory.device)).square().sum().backward()
        optimizer.step()
    places, version = [t.data_ptr() for t in there.state_dict().values()], there.memory._version
    setting = {"n_iter": 4, "points_per_centroid": 8, "weights": weights}
    with pytest.MonkeyPatch.context() as cpu:
        if INTERPRETED:
            cpu.setattr(cuda, "here", lambda tensor: False)
        want = emb.cluster(optimizer=optimizers[0], **setting)
    monkeypatch.setattr(Embedding, "table", property(lambda self: pytest.fail("nothing is to go over the CPU")))
    got = there.cluster(optimizer=optimizers[1], **setting)
    monkeypatch.undo()
    same_state(there, emb)
    assert [t.data_ptr() for t in there.state_dict().values()] == places
    assert there.memory._version > version
    near(*(o.state[m.memory]["momentum_buffer"] for o, m in zip(optimizers[::-1], (there, emb), strict=True)), 10)
    assert (got.generation, got.iterations, got.empty_clusters) == (2, want.iterations, want.empty_clusters)
    np.testing.assert_allclose(got.inertia_after, want.inertia_after, rtol=1e-5)


def test_a_first_clustering_of_other_types(gpu):
    """From given vectors, and of bfloat16 parameters: nearer than before, the same at each run."""
    rows = torch.randn(300, DIM, generator=torch.Generator().manual_seed(2))
    for method, more, given_ in (
        ("pq", {}, rows),
        ("sparse", {}, rows),
        ("sparse2", {"dtype": torch.bfloat16}, rows),
        ("cce", {"dtype": torch.bfloat16}, None),
    ):
        found = []
        for _ in range(2):
            emb = Embedding(300, DIM, method=method, num_params=8 * 40, seed=3, **more).to(DEVICE)
            report = emb.cluster(vectors=given_, n_iter=5, show_progress=False)
            assert report.inertia_after < report.inertia_before
            found.append({name: value.clone() for name, value in emb.state_dict().items()})
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        if method in ("pq", "sparse"):  # hashed weights are means, and their report is of those before
            error = (emb(torch.arange(300, device=DEVICE)).float().cpu() - rows).square().sum().item() / 300
            assert error == pytest.approx(report.inertia_after, rel=0.1)
        assert emb.memory.dtype == more.get("dtype", torch.float32)
        assert int(emb.generation) == 1


def test_what_the_kernels_do_not_cluster_goes_to_the_core(gpu, monkeypatch):
    with pytest.raises(ValueError, match="weights must have shape"):
        table(("cce", {"num_params": 300})).to(DEVICE).cluster(weights=torch.ones(3))
    monkeypatch.setattr(cuda, "cluster", None)
    rows = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(2)).numpy()
    for case, more in (
        (("cce", {"num_params": 300, "rank": 4}), {"vectors": rows}),
        (("cce", {"num_params": 300}), {"max_bytes": 1 << 22}),
    ):
        emb = table(case).to(DEVICE)
        assert emb.cluster(**more).generation == 1
    with pytest.raises(ValueError, match="does not learn"):
        table(("full", {})).to(DEVICE).cluster()


# What is missing, and what is wrong


def test_kernels_are_registered_for_gpus():
    for function in ON_GPU:
        name = f"cce::{function.__name__}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name


ALONE = """
import sys, warnings
{before}
import torch
from cce_core.adapters.torch import Embedding, cuda, ops, plain

assert not any(name.startswith("cce_kernels.") for name in sys.modules)
emb, ids = Embedding(97, 8, method="hemb", num_params=400, seed=1), torch.tensor([1, 2, 2])
rest = None, emb.keys, None, emb._plan.text, "memory"
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        got = cuda.gather(emb.memory.detach(), ids, *rest)
        cuda.scatter(got, ids, *rest)
assert torch.equal(got, plain.gather(emb.memory.detach(), ids, *rest))
torch.testing.assert_close(got, ops.gather(emb.memory.detach(), ids, *rest))
print([str(one.message) for one in said if "kernels" in str(one.message)])
"""


@pytest.mark.parametrize(
    ("before", "more", "expected"),
    [
        ("sys.modules['triton'] = None", {}, "triton is missing. pip install 'cce-core[torch,triton]'"),
        ("sys.modules['cce_kernels'] = None", {}, "cce_kernels is missing. pip install 'cce-core[torch,triton]'"),
        ("sys.modules['triton'] = None", {"CCE_KERNELS": "0"}, "[]"),
    ],
)
def test_without_kernels_plain_torch_gives_the_same_and_says_so_once(before, more, expected):
    import cce_core
    import cce_kernels.needs

    paths = [os.path.dirname(os.path.dirname(module.__file__)) for module in (cce_kernels.needs, cce_core)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(before=before)],
        capture_output=True,
        text=True,
        env={**os.environ, **more, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert done.stdout.count("missing") == ("[]" not in expected)


def test_what_operators_refuse():
    emb = table(("cce", {"num_params": 300, "rank": 0})).to(DEVICE)
    rest = emb.keys, emb.pointers, emb._plan.text, "memory"
    memory, ids = emb.memory.detach(), IDS[0].to(DEVICE)
    with pytest.raises(RuntimeError, match="keys on meta.*move the ids, and the whole module, with .to"):
        cuda.gather(memory, ids, None, rest[0].to("meta"), *rest[1:])
    with pytest.raises(RuntimeError, match="ids on meta"):
        cuda.dot(memory, torch.zeros(4, DIM, device=DEVICE), ids.to("meta"), *rest)
    with pytest.raises(RuntimeError, match="pointers on meta"):
        cuda.scatter_sparse(torch.zeros(4, DIM, device=DEVICE), ids, None, rest[0], rest[1].to("meta"), *rest[2:])
    with pytest.raises(RuntimeError, match="int64 ids"):
        cuda.gather(memory, ids.int(), None, *rest)
    with pytest.raises(RuntimeError, match="memory must have shape"):
        cuda.gather(memory[1:], ids, None, *rest)
    with pytest.raises(RuntimeError, match=r"grads must have shape \(4, 8\) here, got \(2, 8\)"):
        cuda.scatter(torch.zeros(2, DIM, device=DEVICE), ids, None, *rest)
    with pytest.raises(RuntimeError, match=r"weights must have shape \(4, 8\)"):
        cuda.gather(memory, ids, torch.zeros(4, 3, device=DEVICE), *rest)
    with pytest.raises(RuntimeError, match="pointers must hold .* words, got 1"):
        cuda.gather(memory, ids, None, rest[0], rest[1][:1], *rest[2:])
    with pytest.raises(RuntimeError, match="keys must hold 4 words, got 0"):
        cuda.gather(memory, ids, None, None, *rest[1:])
    if INTERPRETED:  # on a GPU the assertion would end the process's use of it
        for bad in (VOCAB, -1):
            with pytest.raises(RuntimeError, match="outside this table's vocabulary: ids go from 0 to 96"):
                cuda.gather(memory, torch.tensor([0, bad]), None, *rest)
    unbounded = Embedding(None, DIM, method="ce", num_params=200, seed=1).to(DEVICE)
    ids = torch.tensor([-1, 2**62], device=DEVICE)
    got = cuda.gather(unbounded.memory.detach(), ids, None, unbounded.keys, None, unbounded._plan.text, "memory")
    assert torch.equal(
        got, plain.gather(unbounded.memory.detach(), ids, None, unbounded.keys, None, unbounded._plan.text, "memory")
    )
