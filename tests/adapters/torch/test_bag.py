"""`EmbeddingBag`: torch's own behaviour for a full table, and sums of `Embedding`'s vectors for all others."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference.bags import pooled, unpooled
from torch_tables import CASES, DIM, NAMES, VOCAB

import cce_core as cce

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402

pytestmark = pytest.mark.torch

MODES = ("sum", "mean", "max")


@st.composite
def calls(draw):
    """A constructor's arguments, and those of a call."""
    rows, dim, mode = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.sampled_from(MODES))
    arguments = {
        "mode": mode,
        "padding_idx": draw(st.none() | st.integers(-rows, rows - 1)),
        "max_norm": draw(st.none() | st.just(0.5)),
        "sparse": mode != "max" and draw(st.booleans()),
        "include_last_offset": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }
    numbers, kind = st.integers(0, rows - 1), draw(st.sampled_from([torch.int32, torch.int64]))
    if draw(st.booleans()):
        bags, length = draw(st.integers(0, 4)), draw(st.integers(1, 4))
        ids, offsets = draw(st.lists(numbers, min_size=bags * length, max_size=bags * length)), None
        ids = torch.tensor(ids, dtype=kind).reshape(bags, length)
    else:
        ids = torch.tensor(draw(st.lists(numbers, max_size=9)), dtype=kind)
        cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=4)))
        offsets = [0, *cuts, *([len(ids)] if arguments["include_last_offset"] else [])]
        offsets = torch.tensor(offsets, dtype=kind)
    weighted = mode == "sum" and draw(st.booleans())
    weights = torch.linspace(-1, 2, ids.numel(), dtype=arguments["dtype"]).reshape(ids.shape) if weighted else None
    return rows, dim, arguments, ids, offsets, weights


def outcome(module, ids, offsets, weights):
    weights = None if weights is None else weights.clone().requires_grad_()
    vectors = module(ids, offsets, weights)
    vectors.backward(torch.arange(1.0, vectors.numel() + 1, dtype=vectors.dtype).reshape(vectors.shape).sin())
    gradient = next(iter(module.parameters())).grad
    if module.sparse:
        assert gradient.is_sparse
        gradient = gradient.to_dense()
    return vectors, gradient, module.weight, torch.zeros(()) if weights is None else weights.grad


@given(calls())
def test_a_full_table_is_torchs_bag(call):
    rows, dim, arguments, ids, offsets, weights = call
    torch.manual_seed(rows)
    theirs = nn.EmbeddingBag(rows, dim, **arguments)
    torch.manual_seed(rows)
    ours = EmbeddingBag(rows, dim, method="full", **arguments)
    assert torch.equal(ours.weight, theirs.weight)
    expected, got = outcome(theirs, ids, offsets, weights), outcome(ours, ids, offsets, weights)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype or a.dim() == 0
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-5, atol=1e-5)


def test_the_constructors_arguments_are_torchs():
    for function in ("__init__", "from_pretrained"):
        theirs = inspect.signature(getattr(nn.EmbeddingBag, function)).parameters
        ours = inspect.signature(getattr(EmbeddingBag, function)).parameters
        assert [(p.name, p.default) for p in theirs.values()] == [
            (p.name, p.default) for p in ours.values() if p.kind == p.POSITIONAL_OR_KEYWORD
        ]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_every_method_pools(case, mode):
    method, options = case
    emb = Embedding(VOCAB, DIM, method=method, seed=1, padding_idx=2, **options)
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, method=method, seed=1, padding_idx=2, **options)
    bag.load_state_dict(emb.state_dict())
    ids, offsets = torch.tensor([5, 2, 96, 2, 7, 7, 1]), torch.tensor([0, 0, 3, 4])
    bags = [ids[:0], ids[:3], ids[3:4], ids[4:]]
    pooled = {"sum": lambda v: v.sum(0), "mean": lambda v: v.mean(0), "max": lambda v: v.amax(0)}[mode]
    expected = [pooled(emb(part[part != 2])) if (part != 2).any() else torch.zeros(DIM) for part in bags]
    torch.testing.assert_close(bag(ids, offsets), torch.stack(expected))
    torch.testing.assert_close(
        bag(ids[1:].view(2, 3)), torch.stack([bag(p, p.new_zeros(1))[0] for p in ids[1:].view(2, 3)])
    )
    assert f"mode={mode!r}" in repr(bag)


def test_gradients_by_frequency():
    """As documented; torch's own bags divide by other ids' counts."""
    bag = EmbeddingBag(3, 1, mode="sum", scale_grad_by_freq=True)
    bag(torch.tensor([0, 0, 1]), torch.tensor([0])).sum().backward()
    assert bag.weight.grad.ravel().tolist() == [1.0, 1.0, 0.0]


def test_per_sample_weights_have_a_gradient():
    bag = EmbeddingBag(VOCAB, DIM, mode="sum", method="cce", num_params=300, seed=1)
    ids, weights = torch.tensor([[5, 2], [96, 2]]), torch.tensor([[1.0, 2.0], [0.5, 0.0]], requires_grad=True)
    out = bag(ids, per_sample_weights=weights)
    torch.testing.assert_close(out, (bag.weight[ids] * weights[..., None]).sum(1))
    out.sum().backward()
    torch.testing.assert_close(weights.grad, bag.weight[ids].sum(2))


def test_calls_that_are_refused():
    bag, ids = EmbeddingBag(9, 2, mode="sum", method="hash", num_params=10, seed=0), torch.tensor([0, 1, 2])
    zero = torch.tensor([0])
    for arguments, error, match in (
        ((ids,), ValueError, "1D Tensor"),
        ((ids, zero[None]), ValueError, "1D Tensor"),
        ((ids[None], zero), ValueError, "must be None"),
        ((ids[None, None],), ValueError, "1D or 2D"),
        ((ids, zero, torch.ones(2)), ValueError, "same shape"),
        ((ids, zero.float()), RuntimeError, "offsets must be integers"),
        ((ids, zero > 0), RuntimeError, "offsets must be integers"),
        ((ids.float(), zero), RuntimeError, "must be integers"),
        ((ids, torch.tensor([1])), RuntimeError, r"offsets\[0\] has to be 0"),
        ((ids, torch.tensor([0, 4])), RuntimeError, r"offsets\[-1\] can not be greater"),
        ((ids, torch.tensor([0, 2, 1])), RuntimeError, "must not decrease, got 2 and then 1"),
        ((ids, torch.tensor([0, -1, 2])), RuntimeError, "must not decrease, got 0 and then -1"),
        ((ids, torch.tensor([0, 2**64 - 1], dtype=torch.uint64)), RuntimeError, "must not decrease, got 0 and then -1"),
        ((ids, zero[:0]), RuntimeError, "no bag, but 3 ids"),
        ((torch.tensor([9]), zero), IndexError, "id 9 at position 0"),
        (([[0, 1]],), TypeError, "ids must be a tensor of integers, got list"),
        ((ids, [0]), TypeError, "offsets must be a tensor, got list"),
        ((ids, zero, [1.0, 1.0, 1.0]), TypeError, "per_sample_weights must be a tensor, got list"),
    ):
        with pytest.raises(error, match=match):
            bag(*arguments)
    with pytest.raises(NotImplementedError, match="only supported for mode='sum'"):
        EmbeddingBag(9, 2)(ids, zero, torch.ones(3))
    with pytest.raises(ValueError, match="one of sum, mean or max"):
        EmbeddingBag(9, 2, mode="median")(ids, zero)
    for more in ({"sparse": True}, {"scale_grad_by_freq": True}):
        with pytest.raises(ValueError, match="max mode"):
            EmbeddingBag(9, 2, mode="max", **more)(ids, zero)
    with pytest.raises(RuntimeError, match="at least the end"):
        EmbeddingBag(9, 2, include_last_offset=True)(ids, ids[:0])


@given(st.data(), st.sampled_from(MODES), st.booleans())
def test_every_id_belongs_to_a_bag(data, mode, last):
    """Whatever offsets are drawn, they are a partition of the ids, or refused: as the core's collection has it."""
    method = data.draw(st.sampled_from(["full", "cce", "hemb", "tt"]))
    kind = data.draw(st.sampled_from([torch.float32, torch.float64]))
    options = {} if method == "full" else {"num_params": 400}
    bag = EmbeddingBag(9, 4, mode=mode, method=method, seed=0, include_last_offset=last, dtype=kind, **options)
    n = data.draw(st.integers(0, 4))
    numbers = st.integers(-1, n + 1) | st.just(n)
    offsets = data.draw(st.lists(numbers, max_size=4).map(sorted) | st.lists(numbers, max_size=4))
    ends = offsets if last else [*offsets, n] if offsets or n else [0]
    good = bool(ends) and ends[0] == 0 and ends[-1] == n and ends == sorted(ends)
    ids = torch.arange(n)
    if not good:
        with pytest.raises(RuntimeError, match="offsets|the last bag must end"):
            bag(ids, torch.tensor(offsets, dtype=torch.int64))
        return
    got = bag(ids, torch.tensor(offsets, dtype=torch.int64))
    core = cce.Collection([bag.table]).lookup([ids.numpy()], [np.array(ends)], mode=mode)
    np.testing.assert_allclose(got.detach().numpy(), core, rtol=1e-5, atol=1e-5)


HALVES = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


@given(st.data())
def test_long_bags_in_half_types_are_torchs(data):
    """Values and gradients of every parameter and weight, within a rounding or two of torch's own bag in float64."""
    method, options = data.draw(st.sampled_from(CASES))
    kind, mode = data.draw(st.sampled_from(sorted(HALVES, key=str))), data.draw(st.sampled_from(MODES))
    padding = data.draw(st.none() | st.just(2))
    more = {} if mode == "max" else data.draw(st.sampled_from([{}, {"sparse": True}, {"scale_grad_by_freq": True}]))
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, method=method, seed=1, padding_idx=padding, dtype=kind, **more, **options)
    ends = [0, *np.cumsum(data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=3))).tolist()]
    n, distinct = ends[-1], data.draw(st.sampled_from([1, 2, VOCAB]))
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(1 if distinct == 1 else 0, max(2, distinct), (n,), generator=generator)
    weights = None
    if mode == "sum" and data.draw(st.booleans()):
        weights = torch.rand(n, generator=generator).to(kind).requires_grad_()
    starts, twin = torch.tensor(ends[:-1]), copy.deepcopy(bag).to(torch.float64)
    assume(kind == torch.bfloat16 or mode != "sum" or twin.weight.detach().abs().max() * 5000 < 60_000)
    got = bag(ids, starts, weights)
    assert got.dtype == kind
    grads = torch.randn(got.shape, generator=generator).to(kind)
    got.backward(grads)
    weight, theirs = twin.weight, None if weights is None else weights.detach().to(torch.float64).requires_grad_()
    if mode == "max":  # the vectors among which ours chose, the gradients summed in float64
        weight = weight + (bag.weight.double() - weight).detach()
    if more.get("scale_grad_by_freq"):  # as documented: torch's own bags divide by other ids' counts
        each = weight[ids]
        each = each.detach() + (each - each.detach()) / ids.bincount(minlength=VOCAB)[ids, None]
        place, table, inner = torch.arange(n), each, padding
        if padding is not None:  # a row that no id of a bag has but padding ones
            place, table, inner = torch.where(ids == padding, n, place), torch.cat([each, each.new_zeros(1, DIM)]), n
    else:
        place, table, inner = ids, weight, padding
    want = nn.functional.embedding_bag(place, table, starts, None, 2.0, False, mode, False, theirs, False, inner)
    want.backward(grads.double())
    pairs = {"out": (got, want), "weights": (None, None) if weights is None else (weights.grad, theirs.grad)}
    pairs |= {name: (p.grad, dict(twin.named_parameters())[name].grad) for name, p in bag.named_parameters()}
    for name, (a, b) in pairs.items():
        if a is None:
            assert b is None
            continue
        a, b = (t.to_dense() if t.is_sparse else t.detach() for t in (a, b))
        near = HALVES[kind] * max(1e-6, float(b.abs().max()))
        torch.testing.assert_close(
            a.double(), b.double(), rtol=0, atol=near, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_gradients_of_repeated_ids_in_bfloat16(case, sparse):
    """One id 3,000 times, and its gradient as often: not 256 of it."""
    method, options = case
    found = []
    for kind in (torch.bfloat16, torch.float64):
        emb = Embedding(VOCAB, DIM, method=method, seed=1, sparse=sparse, **options).to(torch.bfloat16).to(kind)
        vectors = emb(torch.full((3000,), 5))
        vectors.backward(torch.linspace(0.5, 1, DIM, dtype=kind).expand(3000, -1))
        found.append([(p.grad.to_dense() if p.grad.is_sparse else p.grad).double() for p in emb.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max()))


def test_frequencies_in_half_types_are_counted():
    emb = Embedding(9, 2, scale_grad_by_freq=True, dtype=torch.bfloat16)
    emb(torch.full((3000,), 1)).sum().backward()
    torch.testing.assert_close(emb.weight.grad[1].float(), torch.ones(2), rtol=0.01, atol=0)


@given(st.data())
def test_a_maximum_over_nan_is_nan(data):
    """Wherever it stands in its bag, and its gradient goes to the first; infinities are numbers like others."""
    values = st.sampled_from([float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 2.0])
    table = torch.tensor(data.draw(st.lists(values, min_size=10, max_size=10))).view(5, 2)
    padding = data.draw(st.none() | st.integers(0, 4))
    kind = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    bag = EmbeddingBag(5, 2, mode="max", padding_idx=padding, dtype=kind)
    with torch.no_grad():
        bag.memory.copy_(table)
    ids, lengths = torch.tensor(data.draw(st.lists(st.integers(0, 4), max_size=8)), dtype=torch.int64), []
    while sum(lengths) < len(ids):
        lengths.append(data.draw(st.integers(0, len(ids) - sum(lengths))))
    ends = np.cumsum([0, *lengths])
    got = bag(ids, torch.from_numpy(ends[:-1]))
    got.sum().backward()
    vectors = table.numpy()[ids.numpy()]
    want = pooled(vectors, ends, None, "max", padding, ids.numpy())
    np.testing.assert_array_equal(got.detach().double().numpy(), want)
    slopes, _ = unpooled(vectors, ends, None, "max", padding, ids.numpy(), np.ones(want.shape))
    rows = np.zeros((5, 2))
    np.add.at(rows, ids.numpy(), slopes)
    np.testing.assert_array_equal(bag.memory.grad.double().numpy(), rows)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_infinite_vectors_stay_infinite(options):
    for module in (EmbeddingBag(3, 1, mode="sum", **options), Embedding(3, 1, **options)):
        with torch.no_grad():
            module.memory[1] = float("-inf")
        assert module(torch.tensor([[1, 2]])).min() == float("-inf")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["full", "cce-rank=4", "hemb", "tt", "int8"])
def test_bags_of_half_types_compiled_as_one_graph(name, sparse):
    """Unsigned ids, a padding id, and offsets that are checked when the graph runs."""
    torch._dynamo.reset()
    method, options = CASES[NAMES.index(name)]
    bag = EmbeddingBag(VOCAB, DIM, method=method, padding_idx=2, sparse=sparse, dtype=torch.bfloat16, seed=1, **options)
    compiled = torch.compile(bag, fullgraph=True, backend="aot_eager", dynamic=True)
    ids, found = torch.tensor([3, 3, 5, 96, 2]), []
    for module, kind in ((bag, torch.int64), (compiled, torch.uint64)):
        bag.zero_grad()
        out = module(ids.to(kind), torch.tensor([0, 2, 2]))
        out.sum().backward()
        found.append([out.detach(), *(p.grad.to_dense() for p in bag.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="can not be greater"):
        compiled(ids.to(torch.uint64), torch.tensor([0, 2, 6]))


def test_padding_of_an_unbounded_bag_is_any_word():
    words = torch.tensor([2**64 - 1, 5, 2**63 + 1], dtype=torch.uint64)
    bag = EmbeddingBag(None, DIM, mode="sum", method="hash", num_params=80, seed=0, padding_idx=2**63 + 1)
    torch.testing.assert_close(bag(words[None]), bag(words[None, :2]))


def test_a_trained_bag_is_compressed():
    weight = torch.randn(20, DIM).repeat(15, 1)
    bag = EmbeddingBag.from_pretrained(weight, mode="sum", method="pq", num_params=600, seed=0)
    assert not bag.memory.requires_grad
    torch.testing.assert_close(bag(torch.tensor([[1, 2]]))[0], weight[1] + weight[2], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_a_padding_row_that_is_nan_counts_for_nothing(mode):
    weight = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(0))
    weight[3] = float("nan")
    ids, starts = torch.tensor([1, 3, 2, 3, 3, 0]), torch.tensor([0, 3, 5])
    theirs = torch.nn.EmbeddingBag.from_pretrained(weight, mode=mode, padding_idx=3, freeze=False)
    ours = EmbeddingBag.from_pretrained(weight, mode=mode, padding_idx=3, freeze=False)
    torch.testing.assert_close(ours(ids, starts), theirs(ids, starts))
    ours(ids, starts).sum().backward()
    theirs(ids, starts).sum().backward()
    torch.testing.assert_close(ours.memory.grad.view_as(weight), theirs.weight.grad)
    with pytest.raises(IndexError, match="at position 4"):
        ours(torch.tensor([1, 3, 3, 3, VOCAB]), torch.tensor([0]))
