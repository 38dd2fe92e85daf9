"""The operators of plain tables, over ids and over bags: torch's own checks, gradients of every order, any device's way."""

from __future__ import annotations

import pytest
from strategies import pairwise
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402
from cce_core.adapters.torch.operators import pooled, registry  # noqa: E402
from cce_core.adapters.torch.operators.facts import part_of  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.tensor([3, 0, 96, 3, 50, 7])
TABLES = {
    "full": {},
    "bloom": {"num_params": 200, "n_hashes": 2},
    "robe": {"num_params": 100},
    "cce": {"num_params": 300, "rank": 4},
    "pq": {"num_params": 200},
}
# Where bags begin, and the end of the last: an empty bag first, in the middle and last; one bag.
BAGS = {"ids": None, "bags": [0, 0, 2, 2, 6, 6], "one": [0, 6]}


def table(method, dtype=torch.float32, **more):
    return Embedding(VOCAB, DIM, method=method, seed=7, dtype=dtype, **{**TABLES[method], **more})


def call(emb, bags, weighted, dtype):
    """Arguments of `vectors`, and gradients of what it gives."""
    generator, plan = torch.Generator().manual_seed(0), emb._facts
    layout = part_of(plan.text, "memory").layout
    offsets = BAGS[bags]
    rows = len(IDS) if offsets is None else len(offsets) - 1

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    memory = random(layout.n_units, layout.unit)
    projection = random(plan.rank + 1, DIM) if plan.rank else None
    per_sample_weights = random(len(IDS)) if weighted else None
    of = (IDS, None if offsets is None else torch.tensor(offsets))
    rest = (emb._buffers.get("keys"), emb._buffers.get("pointers"), plan.text)
    return memory, projection, per_sample_weights, of, rest, random(rows, DIM), random(rows, layout.dim)


@pytest.mark.parametrize(("method", "bags", "weighted"), pairwise(["full", "cce"], ["ids", "bags"], [False, True]))
def test_torchs_own_checks(method, bags, weighted):
    memory, projection, per_sample_weights, of, rest, grads, inner = call(table(method), bags, weighted, torch.float32)
    torch.library.opcheck(torch.ops.cce.vectors.default, (memory, projection, *of, per_sample_weights, *rest, False))
    torch.library.opcheck(torch.ops.cce.spread.default, (inner, *of, per_sample_weights, *rest))
    torch.library.opcheck(torch.ops.cce.weigh.default, (torch.randn(len(IDS), DIM, requires_grad=True), grads, *of))
    if projection is not None:
        x = torch.randn(len(grads), len(projection), requires_grad=True)
        torch.library.opcheck(torch.ops.cce.unwiden.default, (grads, x, projection))


# In float32 the core's loops run. Every operator is linear in each argument, so that large steps are exact ones.
KINDS = {"plain": (torch.float64, {}), "core": (torch.float32, {"eps": 0.5, "atol": 1e-2, "rtol": 1e-2})}


@pytest.mark.parametrize(("method", "bags", "weighted", "kind"), pairwise([*TABLES], [*BAGS], [False, True], [*KINDS]))
@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_gradients_of_both_orders(method, bags, weighted, kind):
    dtype, settings = KINDS[kind]
    memory, projection, per_sample_weights, of, rest, grads, inner = call(table(method), bags, weighted, dtype)
    given = [t for t in (projection, per_sample_weights) if t is not None]

    def named(tensors):
        tensors = list(tensors)
        return tensors.pop(0) if projection is not None else None, tensors[0] if weighted else None

    def vectors(m, *more):
        w, a = named(more)
        return pooled.vectors(m, w, *of, a, *rest, False)

    def spread(g, *more):
        return pooled.spread(g, *of, *(more or (None,)), *rest)

    each = torch.randn(len(IDS), DIM, dtype=dtype, requires_grad=True)
    cases = [
        (lambda e, g: pooled.weigh(e, g, *of), (each, grads)),
        (vectors, (memory, *given)),
        (spread, (inner, *([per_sample_weights] if weighted else []))),
    ]
    if projection is not None:
        x = torch.randn(len(grads), len(projection), dtype=dtype, requires_grad=True)
        cases.append((pooled.unwiden, (grads, x, projection)))
    for function, arguments in cases:
        assert gradcheck(function, arguments, fast_mode=True, **settings)
        assert gradgradcheck(function, arguments, fast_mode=True, **settings)


@pytest.mark.parametrize(("name", "ended", "sparse"), pairwise(NAMES, [False, True], [False, True]))
def test_bags_of_every_table_in_both_types(name, ended, sparse):
    """Sums, and gradients of parameters and weights, are those of float64, which takes torch's own operations."""
    method, options = CASES[NAMES.index(name)]
    offsets = BAGS["bags"] if ended else BAGS["bags"][:-1]
    make = {"mode": "sum", "padding_idx": 3, "include_last_offset": ended, "sparse": sparse, "seed": 1, **options}
    narrow, wide = (
        EmbeddingBag(VOCAB, DIM, method=method, dtype=dtype, **make) for dtype in (torch.float32, torch.float64)
    )
    wide.load_state_dict(narrow.state_dict())
    found = []
    for bag in (narrow, wide):
        dtype = next(bag.parameters()).dtype
        weights = torch.linspace(-1, 2, len(IDS), dtype=dtype, requires_grad=True)
        out = bag(IDS, torch.tensor(offsets), weights)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape))
        gradients = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in bag.parameters()]
        found.append([t.double() for t in (out, weights.grad, *gradients)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_large_batch_of_bags(mode):
    """More ids than addresses are kept of, by several threads."""
    ids = torch.arange(30_000) * 7919 % VOCAB
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, method="cce", num_params=300, rank=4, seed=0)
    each = bag.weight[ids].view(-1, 3, DIM)
    both = bag(ids, torch.arange(0, 30_000, 3)), each.sum(1) if mode == "sum" else each.mean(1)
    found = [[out, *torch.autograd.grad(out.sin().sum(), list(bag.parameters()))] for out in both]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("frozen", ["memory", "projection"])
def test_a_part_that_is_frozen(frozen):
    emb = table("cce")
    getattr(emb, frozen).requires_grad_(False)
    emb(IDS).square().sum().backward()
    whole = table("cce")
    whole(IDS).square().sum().backward()
    for name, parameter in emb.named_parameters():
        if name == frozen:
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, getattr(whole, name).grad)


def test_results_do_not_hold_on_to_freed_memory():
    """Tables that come and go, whose tensors may lie where others lay before."""
    for seed in range(20):
        emb = Embedding(VOCAB, DIM, method="cce", num_params=300, rank=0, seed=seed)
        assert torch.equal(emb(IDS), torch.from_numpy(emb.table.lookup(IDS.numpy())))
        del emb


def test_any_memory_layout_of_the_arguments():
    memory, projection, _, of, rest, grads, _ = call(table("cce"), "ids", False, torch.float32)
    expected = pooled.vectors(memory, projection, *of, None, *rest, False)
    turned = [t.detach().t().contiguous().t() for t in (memory, projection)]
    ids = IDS.repeat_interleave(2)[::2]
    assert torch.equal(pooled.vectors(*turned, ids, None, None, *rest, False), expected)
    for grad in (torch.ones(()).expand(grads.shape), torch.ones(DIM, len(IDS)).t()):
        found = torch.autograd.grad(expected, (memory, projection), grad, retain_graph=True)
        plain = torch.autograd.grad(expected, (memory, projection), torch.ones(grads.shape), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_what_operators_refuse():
    memory, projection, _, of, rest, grads, inner = (
        t.detach() if isinstance(t, torch.Tensor) else t for t in call(table("cce"), "bags", False, torch.float32)
    )
    ids, offsets = of

    def vectors(memory=memory, projection=projection, ids=ids, offsets=offsets, per_sample_weights=None):
        return pooled.vectors(memory, projection, ids, offsets, per_sample_weights, *rest, False)

    for wrong, error, match in (
        ({"memory": memory[1:]}, RuntimeError, "takes float32"),
        ({"projection": projection[1:]}, RuntimeError, "takes float32"),
        ({"ids": ids.int()}, RuntimeError, "int64 ids"),
        ({"ids": ids + VOCAB}, IndexError, "id 100 at position 0"),
        ({"per_sample_weights": torch.ones(2)}, RuntimeError, "takes float32"),
        ({"offsets": offsets.int()}, RuntimeError, "int64 offsets"),
        ({"offsets": offsets + 1}, RuntimeError, r"offsets\[0\] has to be 0"),
        ({"offsets": torch.tensor([0, 7])}, RuntimeError, "can not be greater"),
        ({"offsets": torch.tensor([0, 2, 1, 6])}, RuntimeError, "must not decrease, got 2 and then 1 at 2"),
        ({"offsets": torch.tensor([0, 2, 5])}, RuntimeError, "must end with the number of ids, 6, got 5"),
        ({"offsets": offsets[:0]}, RuntimeError, "at least the end of the last bag"),
    ):
        with pytest.raises(error, match=match):
            vectors(**wrong)
    with pytest.raises(RuntimeError, match="takes float32"):
        pooled.spread(inner[1:], *of, None, *rest)
    with pytest.raises(RuntimeError, match="takes float32"):
        pooled.unwiden(grads, torch.ones(2, len(projection)), projection)


@pytest.mark.parametrize("bags", BAGS)
def test_sums_and_rows_are_each_others_adjoint(bags):
    offsets = BAGS[bags]
    of = (IDS, None if offsets is None else torch.tensor(offsets))
    rows = len(IDS) if offsets is None else len(offsets) - 1
    x, y = torch.randn(len(IDS), 3, dtype=torch.float64), torch.randn(rows, 3, dtype=torch.float64)
    torch.testing.assert_close((pooled.sums(x, *of) * y).sum(), (x * pooled.of_ids(y, *of)).sum())


def test_nothing_is_left_behind_for_another_call():
    """Neither by a pass that is not differentiated, nor by one that fails."""
    emb = table("cce")
    with torch.no_grad():
        emb(IDS)
    with pytest.raises(IndexError):
        emb(IDS + VOCAB)
    emb(IDS).sum().backward()
    assert registry.handover.addresses is None
    assert registry.handover.inner is None
    assert not registry.handover.wanted


def test_whoever_listens_to_the_dispatcher_hears_of_the_operators():
    """It is left out for ordinary tensors alone."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(str(func))
            return func(*args, **(kwargs or {}))

    emb, names = table("cce"), set()
    with Seen():
        emb(IDS).sum().backward()
    assert {"cce.vectors.default", "cce.unwiden.default", "cce.spread.default"} <= names

    def vectors(memory, ids):
        return torch.func.functional_call(emb, {"memory": memory}, ids)

    memory, other = emb.memory.detach(), IDS.flip(0)
    assert torch.equal(make_fx(vectors)(memory, IDS)(2 * memory, other), vectors(2 * memory, other))
    with torch.no_grad():
        graph = str(torch.jit.trace(emb, IDS, check_trace=False).inlined_graph)
        assert "cce::vectors" in graph
        torch.testing.assert_close(torch.func.vmap(emb)(IDS.view(2, 3)), emb(IDS.view(2, 3)))


@pytest.mark.parametrize("method", ["full", "cce"])
def test_batched_gradients(method):
    """Backward passes side by side, whose gradients are ordinary tensors by their type alone."""
    emb, directions = table(method), torch.randn(3, len(IDS), DIM)
    vectors, parameters = emb(IDS), list(emb.parameters())
    together = torch.autograd.grad(vectors, parameters, directions, is_grads_batched=True, retain_graph=True)
    for k, direction in enumerate(directions):
        for a, b in zip(together, torch.autograd.grad(vectors, parameters, direction, retain_graph=True), strict=True):
            torch.testing.assert_close(a[k], b)


def test_inference_mode():
    emb = table("cce")
    expected = emb(IDS).detach()
    with torch.inference_mode():
        assert torch.equal(emb(IDS), expected)
        assert torch.equal(emb(IDS.clone()), expected)
