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
from torch_gpu import IDS, both, gpu, near, table
from torch_tables import CASES, DIM, NAMES, VOCAB

from cce_core.adapters.torch import Embedding, EmbeddingBag
from cce_core.adapters.torch.operators import blocks, cuda, eager, registry
from cce_core.adapters.torch.operators.facts import part_of

pytestmark = pytest.mark.triton
few = settings(max_examples=20, suppress_health_check=list(HealthCheck))
_ = poisoned, gpu
THERE = registry.ON_GPU
BLOCKS = [k for k, (method, _) in enumerate(CASES) if method not in ("tt", "dhe")]


@few
@given(data=st.data())
def test_sums_are_those_of_plain_torch_and_of_the_core(data):
    """Every layout, weights or none, duplicates, no ids at all; of bfloat16, added up in float32, and float32 weights of it."""
    emb = table(CASES[data.draw(st.sampled_from(BLOCKS))]).to(DEVICE)
    parts = [p for p in ("memory", "weights") if p in emb._parameters]
    part, kind = data.draw(st.sampled_from(parts)), data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layout, text = part_of(emb._facts.text, part).layout, emb._facts.text
    ids = torch.tensor(data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=30)), dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(ids))
    memory, grads = (
        torch.randn(*shape, generator=generator).to(kind)
        for shape in ((layout.n_units, layout.unit), (len(ids), layout.dim))
    )
    weights = torch.randn(len(ids), len(layout.columns), generator=generator)
    weights = weights if data.draw(st.booleans()) else None
    rest = emb._buffers.get("keys"), emb._buffers.get("pointers"), text, part
    there = [None if t is None else t.to(DEVICE) for t in (memory, grads, weights, ids)]
    m, g, w, i = there
    got = {
        "gather": THERE["gather"](m, i, w, *rest),
        "scatter": THERE["scatter"](g, i, w, *rest),
        "dot": THERE["dot"](m, g, i, *rest),
        "sparse": cuda.scatter_sparse(g, i, w, *rest),
    }
    assert got["sparse"].is_coalesced()
    with torch.sparse.check_sparse_tensor_invariants():
        got["sparse"] = got["sparse"].clone().to_dense()
    exact = {
        "gather": eager.gather(m.double(), i, None if w is None else w.double(), *rest),
        "scatter": eager.scatter(g.double(), i, None if w is None else w.double(), *rest),
        "dot": eager.dot(m.double(), g.double(), i, *rest),
    }
    exact["sparse"] = exact["scatter"]
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    for name, value in got.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], **tolerance, msg=lambda s, name=name: f"{name}: {s}")
    if kind == torch.float32:
        here = [None if t is None else t.cpu() for t in rest[:2]]
        core = blocks.gather(memory, ids, weights, *here, text, part)
        assert torch.equal(got["gather"].cpu(), core)


@few
@given(data=st.data())
def test_bags_and_projections_in_one_launch(data):
    """Ids or bags of them, empty ones too, amounts or none, a projection or none; and back. Types of all kinds mixed."""
    case = data.draw(st.sampled_from(["full", "full-rank=3", "hash", "robe", "hnet", "cce", "cce-rank=4", "pq"]))
    emb = table(CASES[NAMES.index(case)]).to(DEVICE)
    layout, text = part_of(emb._facts.text, "memory").layout, emb._facts.text
    words = emb._buffers.get("keys"), emb._buffers.get("pointers")
    lengths, bagged = data.draw(st.lists(st.integers(0, 4), max_size=6)), data.draw(st.booleans())
    kind = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    cuts = np.cumsum([0, *lengths])
    n = int(cuts[-1])
    ids = torch.tensor(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n)), dtype=torch.int64)
    generator = torch.Generator().manual_seed(n)
    per_sample_weights = torch.randn(n, generator=generator) if data.draw(st.booleans()) else None
    memory = torch.randn(layout.n_units, layout.unit, generator=generator).to(kind)
    projection = emb._parameters.get("projection") if data.draw(st.booleans()) else None
    offsets = torch.from_numpy(cuts) if bagged else None
    to = lambda t, kind=None: None if t is None else t.detach().to(DEVICE, kind)  # noqa: E731
    bags = to(ids), to(offsets), to(per_sample_weights)
    got = cuda.vectors(to(memory), to(projection), *bags, *words, text, False)
    each = eager.gather(to(memory).double(), to(ids), None, *words, text, "memory").cpu()
    a = torch.ones(n) if per_sample_weights is None else per_sample_weights
    each = torch.cat([each, torch.ones(n, 1)], 1) * a.double()[:, None]
    owner = np.repeat(np.arange(len(lengths)), lengths) if bagged else np.arange(n)
    want = torch.zeros(len(lengths) if bagged else n, layout.dim + 1, dtype=torch.float64)
    want.index_add_(0, torch.from_numpy(owner), each[: len(owner)])
    grads = torch.randn(len(want), layout.dim, generator=generator).to(kind)
    want = want[:, :-1] if projection is None else want @ to(projection).cpu().double()
    loose = {"rtol": 1e-4, "atol": 1e-4}
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu().double(), want, **loose)
    back = cuda.spread(to(grads), *bags, *words, text)
    of_ids = torch.zeros(n, layout.dim, dtype=torch.float64)
    of_ids[: len(owner)] = grads.double()[owner]
    wide = (of_ids * a.double()[:, None]).to(DEVICE)
    want = eager.scatter(wide, to(ids), None, *words, text, "memory")
    torch.testing.assert_close(back.double(), want, **loose)


def test_offsets_that_are_none():
    emb = table(CASES[NAMES.index("cce")]).to(DEVICE)
    rest = None, emb.keys, emb.pointers, emb._facts.text
    memory, ids = emb.memory.detach(), torch.arange(5, device=DEVICE)
    for bad in (torch.tensor([0], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="one row of int64 offsets"):
            cuda.vectors(memory, None, ids, bad.to(DEVICE), *rest, False)
    with pytest.raises(RuntimeError, match="at least the end of the last bag"):
        cuda.vectors(memory, None, ids, ids[:0], *rest, False)
    with pytest.raises(RuntimeError, match="offsets on meta"):
        cuda.vectors(memory, None, ids, torch.tensor([0, 5], device="meta"), *rest, False)
    if INTERPRETED:
        for bad in ([1, 5], [0, 3, 2, 5], [0, 6], [0, 4], [0]):
            with pytest.raises(RuntimeError, match="offsets|last bag must end"):
                cuda.vectors(memory, None, ids, torch.tensor(bad), *rest, False)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_signs_features_and_rounded_memories(kind):
    signed = table(CASES[NAMES.index("hash-signed=True")]).to(DEVICE)
    ids, text = torch.arange(VOCAB, device=DEVICE), signed._facts.text
    like = torch.empty(0, dtype=kind, device=DEVICE)
    assert torch.equal(THERE["signs"](ids, signed.keys, like, text), eager.signs(ids, signed.keys, like, text))
    for name in ("dhe", "dhe-transform=gaussian"):
        network = table(CASES[NAMES.index(name)]).to(DEVICE)
        near(
            THERE["features"](ids, network.keys, network._facts.text),
            eager.features(ids, network.keys, network._facts.text),
        )
        if INTERPRETED:
            with pytest.raises(IndexError, match="outside"):
                THERE["features"](ids + 1, network.keys, network._facts.text)
    for name in ("int8", "int4", "full-codec=bfloat16"):
        coded = table(CASES[NAMES.index(name)]).to(DEVICE)
        memory = torch.randn(coded.memory.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, kind)
        got = THERE["rounded"](memory, None, None, None, coded._facts.text)
        assert got.dtype == eager.wide_type(kind)
        assert torch.equal(got, eager.rounded(memory, None, None, None, coded._facts.text))


@pytest.mark.parametrize(
    ("name", "weighted"), [("full", False), ("robe", True), ("cce-rank=4", True), ("sparse", False)]
)
def test_torchs_own_checks_of_operators(name, weighted, gpu):
    """Schema, shapes, tracing; and gradients of both orders, whose sums are linear in each argument: large steps are exact."""
    emb = table(CASES[NAMES.index(name)]).to(DEVICE)
    layout, ids = part_of(emb._facts.text, "memory").layout, torch.tensor([3, 0, 96, 3], device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    shapes = (layout.n_units, layout.unit), (4, len(layout.columns)), (4, layout.dim)
    memory, weights, grads = (torch.randn(*s, generator=generator).to(DEVICE).requires_grad_() for s in shapes)
    rest = emb._buffers.get("keys"), emb._buffers.get("pointers"), emb._facts.text, "memory"
    w = weights if weighted else None
    for op, arguments in (
        (blocks.gather, (memory, ids, w, *rest)),
        (blocks.scatter, (grads, ids, w, *rest)),
        (blocks.dot, (memory, grads, ids, *rest)),
    ):
        torch.library.opcheck(op, arguments)
    some = {"eps": 0.5, "atol": 1e-2, "rtol": 1e-2, "fast_mode": True, "nondet_tol": 1e-3}
    cases = [(lambda m, g: blocks.dot(m, g, ids, *rest), (memory, grads))]
    if weighted:
        cases.append((lambda m, v: blocks.gather(m, ids, v, *rest), (memory, weights)))
    for function, arguments in cases:
        assert gradcheck(function, arguments, **some)
        assert gradgradcheck(function, arguments, **some)


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
    if INTERPRETED and case[0] != "tt":
        assert sum(gpu.values()) > (case[0] != "dhe" and not sparse), "the kernels were not asked"
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
    from cce_kernels import ordered

    seen, run = [], ordered.run
    monkeypatch.setattr(ordered, "run", lambda *a: seen.append(1) or run(*a))
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


def test_kernels_are_registered_for_gpus():
    assert {"gather", "scatter", "dot", "signs", "features", "rounded"} <= THERE.keys()
    for name in (f"cce::{name}" for name in THERE):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name


ALONE = """
import sys, warnings
{before}
import torch
from cce_core.adapters.torch import Embedding
from cce_core.adapters.torch.operators import blocks, cuda, eager, registry

assert not any(name.startswith("cce_kernels.") for name in sys.modules)
emb, ids = Embedding(97, 8, method="hemb", num_params=400, seed=1), torch.tensor([1, 2, 2])
rest = None, emb.keys, None, emb._facts.text, "memory"
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        got = registry.ON_GPU["gather"](emb.memory.detach(), ids, *rest)
        registry.ON_GPU["scatter"](got, ids, *rest)
assert torch.equal(got, eager.gather(emb.memory.detach(), ids, *rest))
torch.testing.assert_close(got, blocks.gather(emb.memory.detach(), ids, *rest))
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
    import cce_kernels.runtime

    paths = [os.path.dirname(os.path.dirname(module.__file__)) for module in (cce_kernels.runtime, cce_core)]
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
    rest = emb.keys, emb.pointers, emb._facts.text, "memory"
    memory, ids = emb.memory.detach(), IDS[0].to(DEVICE)
    with pytest.raises(RuntimeError, match="keys on meta.*move the ids, and the whole module, with .to"):
        THERE["gather"](memory, ids, None, rest[0].to("meta"), *rest[1:])
    with pytest.raises(RuntimeError, match="ids on meta"):
        THERE["dot"](memory, torch.zeros(4, DIM, device=DEVICE), ids.to("meta"), *rest)
    with pytest.raises(RuntimeError, match="pointers on meta"):
        cuda.scatter_sparse(torch.zeros(4, DIM, device=DEVICE), ids, None, rest[0], rest[1].to("meta"), *rest[2:])
    with pytest.raises(RuntimeError, match="int64 ids"):
        THERE["gather"](memory, ids.int(), None, *rest)
    with pytest.raises(RuntimeError, match="memory must have shape"):
        THERE["gather"](memory[1:], ids, None, *rest)
    with pytest.raises(RuntimeError, match=r"grads must have shape \(4, 8\) here, got \(2, 8\)"):
        THERE["scatter"](torch.zeros(2, DIM, device=DEVICE), ids, None, *rest)
    with pytest.raises(RuntimeError, match=r"weights must have shape \(4, 8\)"):
        THERE["gather"](memory, ids, torch.zeros(4, 3, device=DEVICE), *rest)
    with pytest.raises(RuntimeError, match="pointers must hold .* words, got 1"):
        THERE["gather"](memory, ids, None, rest[0], rest[1][:1], *rest[2:])
    with pytest.raises(RuntimeError, match="keys must hold 4 words, got 0"):
        THERE["gather"](memory, ids, None, None, *rest[1:])
    if INTERPRETED:  # on a GPU the assertion would end the process's use of it
        for bad in (VOCAB, -1):
            with pytest.raises(RuntimeError, match="outside this table's vocabulary: ids go from 0 to 96"):
                THERE["gather"](memory, torch.tensor([0, bad]), None, *rest)
    unbounded = Embedding(None, DIM, method="ce", num_params=200, seed=1).to(DEVICE)
    ids = torch.tensor([-1, 2**62], device=DEVICE)
    got = THERE["gather"](unbounded.memory.detach(), ids, None, unbounded.keys, None, unbounded._facts.text, "memory")
    assert torch.equal(
        got,
        eager.gather(unbounded.memory.detach(), ids, None, unbounded.keys, None, unbounded._facts.text, "memory"),
    )
