"""`EmbeddingBag`: torch's own behaviour for a full table, and sums of `Embedding`'s vectors for all others."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_tables import CASES, DIM, NAMES, VOCAB

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


def test_what_follows_the_last_offset_is_left_out():
    bag = EmbeddingBag(9, 2, mode="sum", include_last_offset=True)
    ids = torch.tensor([0, 1, 2, 3, 4])
    torch.testing.assert_close(bag(ids, torch.tensor([0, 2, 4])), bag.weight[:4].view(2, 2, 2).sum(1))
    assert bag(ids, torch.tensor([0])).shape == (0, 2)


def test_calls_that_are_refused():
    bag, ids = EmbeddingBag(9, 2, mode="sum", method="hash", num_params=10, seed=0), torch.tensor([0, 1, 2])
    zero = torch.tensor([0])
    for arguments, error, match in (
        ((ids,), ValueError, "1D Tensor"),
        ((ids, zero[None]), ValueError, "1D Tensor"),
        ((ids[None], zero), ValueError, "must be None"),
        ((ids[None, None],), ValueError, "1D or 2D"),
        ((ids, zero, torch.ones(2)), ValueError, "same shape"),
        ((ids, zero.float()), RuntimeError, "int64 or int32"),
        ((ids.float(), zero), RuntimeError, "must be integers"),
        ((ids, torch.tensor([1])), RuntimeError, r"offsets\[0\] has to be 0"),
        ((ids, torch.tensor([0, 4])), RuntimeError, r"offsets\[-1\] can not be greater"),
        ((ids, torch.tensor([0, 2, 1])), RuntimeError, "must not decrease, got 2 and then 1"),
        ((torch.tensor([9]), zero), IndexError, "id 9 at position 0"),
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


def test_a_trained_bag_is_compressed():
    weight = torch.randn(20, DIM).repeat(15, 1)
    bag = EmbeddingBag.from_pretrained(weight, mode="sum", method="pq", num_params=600, seed=0)
    assert not bag.memory.requires_grad
    torch.testing.assert_close(bag(torch.tensor([[1, 2]]))[0], weight[1] + weight[2], rtol=0.1, atol=0.1)
