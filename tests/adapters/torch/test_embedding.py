"""`Embedding`: torch's own behaviour for a full table, and the library's for all others."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import shapes
from torch_tables import CASES, DIM, NAMES, VOCAB

import cce_core as cce

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, make_embedding  # noqa: E402

pytestmark = pytest.mark.torch

# ids of any kind that torch takes, and of some that it does not: what comes of them must be the same
TYPES = ("int32", "int64", "float32", "bool")


@st.composite
def calls(draw):
    """A constructor's arguments, and ids."""
    rows, dim = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    arguments = {
        "padding_idx": draw(st.none() | st.integers(-rows, rows - 1)),
        "max_norm": draw(st.none() | st.sampled_from([0.3, 2.0])),
        "norm_type": draw(st.sampled_from([2.0, 1.0])),
        "scale_grad_by_freq": draw(st.booleans()),
        "sparse": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }
    shape, kind = draw(shapes()), draw(st.sampled_from(TYPES[:2] * 4 + TYPES))
    most = rows if draw(st.integers(0, 9)) == 0 else rows - 1  # now and then one too large
    ids = draw(
        st.lists(
            st.integers(-1 if most == rows else 0, most), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
        )
    )
    ids = torch.tensor(ids, dtype=torch.int64).reshape(shape).to(getattr(torch, kind))
    if ids.dim() > 1 and draw(st.booleans()):
        ids = ids.transpose(0, 1)
    return rows, dim, arguments, ids


def outcome(module, ids):
    """The vectors, the gradient of the weight and the weight itself; or the kind of error."""
    try:
        vectors = module(ids)
        vectors.backward(torch.arange(1.0, vectors.numel() + 1, dtype=vectors.dtype).reshape(vectors.shape).sin())
    except (IndexError, RuntimeError) as error:
        return type(error)
    gradient = next(iter(module.parameters())).grad
    if module.sparse:
        assert gradient.is_sparse
        gradient = gradient.coalesce()
        assert gradient.is_coalesced()
        gradient = gradient.to_dense()
    return vectors, gradient, module.weight


@given(calls())
def test_a_full_table_is_torchs_embedding(call):
    rows, dim, arguments, ids = call
    # What torch itself refuses, or trips over: counts beside sparse gradients, and the padding id as a sparse 0-D tensor.
    assume(not (arguments["sparse"] and arguments["scale_grad_by_freq"]))
    assume(not (arguments["sparse"] and arguments["padding_idx"] is not None and ids.dim() == 0))
    torch.manual_seed(rows)
    theirs = nn.Embedding(rows, dim, **arguments)
    torch.manual_seed(rows)
    ours = Embedding(rows, dim, method="full", **arguments)
    assert torch.equal(ours.weight, theirs.weight)  # the same first values
    expected, got = outcome(theirs, ids), outcome(ours, ids)
    if isinstance(expected, type):
        assert got is expected
    else:
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_constructors_arguments_are_torchs():
    """The same names, order and defaults, and ours as keywords behind them."""
    for function in ("__init__", "from_pretrained"):
        theirs = inspect.signature(getattr(nn.Embedding, function)).parameters
        ours = inspect.signature(getattr(Embedding, function)).parameters
        assert [(p.name, p.default) for p in theirs.values()] == [
            (p.name, p.default) for p in ours.values() if p.kind == p.POSITIONAL_OR_KEYWORD
        ]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_method_looks_up_and_trains(case):
    method, options = case
    torch.manual_seed(0)
    emb = Embedding(VOCAB, DIM, method=method, **options)
    ids = torch.randint(VOCAB, (64,))
    target = torch.randn(VOCAB, DIM)[ids] / 4
    optimizer = torch.optim.Adam(emb.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (emb(ids) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert "method=" in repr(emb)
    assert f"num_params={sum(p.numel() for p in emb.parameters())}" in repr(emb)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_ids_of_every_shape_and_integer_type(case):
    method, options = case
    emb = Embedding(VOCAB, DIM, method=method, seed=1, **options)
    ids = torch.tensor([[5, 96, 0], [5, 1, 2]])
    expected = emb(ids)
    for kind in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(emb(ids.to(kind)), expected)
        assert torch.equal(emb(ids.to(kind).t()), expected.transpose(0, 1))
    torch.testing.assert_close(emb(ids[0, 0]), expected[0, 0], rtol=1e-5, atol=1e-6)
    assert emb(ids[:0]).shape == (0, 3, DIM)
    emb(ids[:0]).sum().backward()
    assert emb(torch.zeros(2, 0, 3, dtype=torch.int32)).shape == (2, 0, 3, DIM)
    torch.testing.assert_close(emb.weight[ids], expected)
    for wrong in (VOCAB, -1, 2**62):
        with pytest.raises(IndexError, match=r"position"):
            emb(torch.tensor([0, wrong]))
    with pytest.raises(IndexError, match=str(2**64 - 2)):
        emb(torch.tensor([0, 2**64 - 2], dtype=torch.uint64))
    with pytest.raises(TypeError, match="got list"):
        emb([1, 2])
    for wrong in (ids.float(), ids > 3):
        with pytest.raises(RuntimeError, match="must be integers"):
            emb(wrong)
    with pytest.raises(RuntimeError, match="device|meta"):
        emb(ids.to("meta"))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_padding_is_zero_and_without_gradient(case):
    method, options = case
    emb = Embedding(VOCAB, DIM, padding_idx=-1, method=method, seed=1, **options)
    assert emb.padding_idx == VOCAB - 1
    ids = torch.tensor([VOCAB - 1, 3, VOCAB - 1])
    vectors = emb(ids)
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()
    assert not emb.weight[VOCAB - 1].any()
    vectors.sum().backward()
    got = [p.grad.clone() for p in emb.parameters()]
    emb.zero_grad()
    emb(torch.tensor([3])).sum().backward()
    for a, p in zip(got, emb.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


LEARNT = [
    "full-rank=3",
    "int8",
    "hash",
    "bloom-signed=True-n_hashes=3",
    "ce",
    "robe",
    "hnet",
    "cce",
    "cce-rank=4",
    "pq",
    "sparse",
]


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("cls", [Embedding, EmbeddingBag])
def test_a_trained_padding_row_survives(name, cls):
    """As for torch's own: the row as it stands, without a gradient; one of 0 stays 0, and for bags it counts for nothing."""
    method, options = CASES[NAMES.index(name)]
    options = {**options, "seed": 0, "method": method, "freeze": False}
    rows = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, VOCAB - 1], [5, VOCAB - 1]])
    for padding, last in ((-1, rows[-1]), (VOCAB - 1, torch.zeros(DIM))):
        rows = torch.cat([rows[:-1], last[None]])
        emb = cls.from_pretrained(rows, padding_idx=padding, **options)
        if cls is EmbeddingBag:
            torch.testing.assert_close(emb(ids), emb(ids[:, :1]))
            assert not any("padding" in key for key in emb.state_dict())
            continue
        assert torch.equal(emb(ids)[:, 1], torch.stack([last, last]))
        assert torch.equal(emb.weight[-1], last)
        plain = cls.from_pretrained(rows, **options)
        emb(ids).square().sum().backward()
        plain(ids[:, 0]).square().sum().backward()
        if "num_bytes" not in options:
            for a, b in zip(emb.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)
        kept = 4 * DIM if last.any() else 0
        assert emb.ledger().total == emb.table.ledger().total + kept
        if emb.table.method.learns and not emb.table.method.post_training:
            emb.cluster()
        fresh = Embedding(VOCAB, DIM, padding_idx=-1, **{k: v for k, v in options.items() if k != "freeze"})
        before = fresh.state_dict()
        assert not fresh(ids)[:, 1].any()
        for again in (copy.deepcopy(emb), fresh):
            again.load_state_dict(emb.state_dict())
            assert torch.equal(again(ids), emb(ids))
            assert torch.equal(again.half()(ids)[0, 1], last.half())
        fresh.load_state_dict(before)  # of a table whose padding is 0, as all were
        assert not fresh(ids)[:, 1].any()


def test_a_padding_row_is_within_the_budget():
    rows = torch.randn(1000, DIM)
    for budget in (3000, 3001, 5000):
        emb = Embedding.from_pretrained(rows, padding_idx=0, method="cce", num_bytes=budget, seed=0)
        assert torch.equal(emb(torch.tensor(0)), rows[0])
        assert emb.ledger().total <= budget
    emb.reset_parameters()
    assert not emb(torch.tensor(0)).any()


@pytest.mark.parametrize("method", ["cce", "hash", "full"])
def test_gradients_by_frequency(method):
    options = {} if method == "full" else {"num_params": 300}
    emb = Embedding(VOCAB, DIM, scale_grad_by_freq=True, method=method, seed=1, **options)
    once = Embedding(VOCAB, DIM, method=method, seed=1, **options)
    once.load_state_dict(emb.state_dict())
    emb(torch.tensor([3, 3, 3, 4])).sum().backward()
    once(torch.tensor([3, 4])).sum().backward()
    for a, b in zip(emb.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_an_unbounded_table_takes_every_word():
    emb = Embedding(None, DIM, method="hash", num_params=80, seed=0)
    ids = torch.tensor([-1, 2**63 - 1, -(2**63), 0])
    np.testing.assert_array_equal(emb(ids).detach().numpy(), emb.table.lookup(ids.numpy()))
    words = cce.hash_strings(["user_1", "user_2"])
    for kind in (np.uint64, np.uint32, np.uint16, np.uint8):
        cut = words.astype(kind)
        np.testing.assert_array_equal(emb(torch.from_numpy(cut)).detach().numpy(), emb.table.lookup(cut))
    assert "unbounded" in repr(emb)
    with pytest.raises(RuntimeError, match="has no weight"):
        _ = emb.weight


def test_the_core_takes_tensors():
    """Of any integer type, wherever it takes ids, offsets and weights."""
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=5)
    table, ids = emb.table, torch.tensor([[5, 96, 0], [5, 1, 2]])
    for kind in (torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint64):
        for given_ids in (ids.to(kind), ids.to(kind).t(), list(ids.to(kind))):
            np.testing.assert_array_equal(table.lookup(given_ids), table.lookup(np.asarray(given_ids)))
        both = cce.Collection([table, table])
        matrix = ids.to(kind).t().contiguous()
        np.testing.assert_array_equal(both.lookup(matrix), both.lookup(matrix.numpy()))
        one, ends, weights = cce.Collection([table]), torch.tensor([0, 1, 3]), torch.tensor([0.5, 1.0, 2.0])
        bags = one.lookup(ids[0].to(kind), ends, weights)
        np.testing.assert_array_equal(bags, one.lookup([ids[0].numpy()], [ends.numpy()], [weights.numpy()]))
        np.testing.assert_array_equal(one.lookup(ids[0], lengths=ends.diff()), one.lookup(ids[0], ends))
    for wrong in (ids.float(), ids > 3, ids.bfloat16(), ids.to("meta"), ids.to_sparse()):
        with pytest.raises(TypeError, match="ids must be integers"):
            table.lookup(wrong)
        with pytest.raises(TypeError, match="ids must be integers"):
            cce.Collection([table]).lookup(wrong)


def test_the_core_sees_the_same_memory():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=5)
    table = emb.table
    assert table.spec.seed == 5
    table.parameters()["memory"][:] = 1.0
    assert (emb.memory == 1.0).all()
    assert (
        emb.ledger().total == table.ledger().total == cce.make_table("cce", VOCAB, DIM, num_params=300).ledger().total
    )
    optimizer, ids = cce.SGD(0.1), [1, 2]
    optimizer.step(table, table.backward(ids, np.ones((2, DIM), np.float32)))
    assert (emb.memory != 1.0).any()


def test_a_codec_is_counted_and_seen():
    emb = Embedding(VOCAB, DIM, method="full", codec="int8", seed=0)
    ledger = emb.ledger()
    assert ledger.stored["memory"] == VOCAB * DIM
    assert ledger.training["values"] == 4 * VOCAB * DIM
    with torch.no_grad():
        emb.memory += 0.01 * torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(0))
    kept = emb.table.arrays()
    assert kept["memory"].dtype == np.int8
    ids = torch.arange(VOCAB)
    np.testing.assert_array_equal(emb(ids).detach().numpy(), emb.table.lookup(ids.numpy()))
    assert not torch.equal(emb(ids), emb.memory)  # the exact values are trained, the rounded ones seen
    with pytest.raises(ValueError, match="straight-through"):
        Embedding(VOCAB, DIM, codec="int8", rounding="to the nearest")


def test_the_seed_is_torchs_generators_where_none_is_given():
    def one():
        return Embedding(VOCAB, DIM, method="ce", num_params=200)

    torch.manual_seed(3)
    a, b = one(), one()
    torch.manual_seed(3)
    c = one()
    assert torch.equal(a.memory, c.memory)
    assert torch.equal(a.keys, c.keys)
    assert a.spec == c.spec
    assert not torch.equal(a.memory, b.memory)
    assert not torch.equal(a.keys, b.keys)


@pytest.mark.parametrize(
    ("method", "most"),
    [("full", 0.0), ("pq", 0.02), ("cce", 0.3), ("cce_robe", 0.3), ("sparse", 0.3), ("sparse2", 0.7), ("ldim", 0.7),
     ("int8", 1e-3), ("hash", 0.95), ("ce", 0.95), ("qr", 0.95), ("robe", 0.95), ("hnet", 0.95), ("bloom", 0.95), ("hemb", 0.95)],
)  # fmt: skip
def test_a_trained_table_is_compressed(method, most):
    """Groups of near-equal rows; the share of the squares that is lost. Least squares leaves nothing that its gradient sees."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(20, DIM, generator=generator)
    weight = groups[torch.arange(300) % 20] + 0.05 * torch.randn(300, DIM, generator=generator)
    options = {} if method in ("full", "int8") else {"num_params": 3 * 300 + 64 if method == "ldim" else 600}
    emb = Embedding.from_pretrained(weight, method=method, seed=0, **options)
    assert not any(p.requires_grad for p in emb.parameters())
    lost = float((emb.weight - weight).square().sum() / (weight - weight.mean(0)).square().sum())
    assert lost <= most
    again = Embedding.from_pretrained(nn.Parameter(weight), freeze=False, method=method, seed=0, **options)
    assert all(p.requires_grad for p in again.parameters())
    assert torch.equal(again.weight, emb.weight)
    if method in ("hash", "ce", "qr", "robe", "hnet", "bloom", "hemb"):
        (again.weight - weight).square().sum().backward()
        scale = float(weight.norm())
        assert float(again.memory.grad.norm()) < 1e-3 * scale


@pytest.mark.parametrize(
    ("method", "options"),
    [("tt", {}), ("dhe", {}), ("rhemb", {}), ("ce", {"combine": "mul"}), ("hemb", {"weights": "concat"})],
)
def test_what_cannot_be_solved_for_is_refused(method, options):
    with pytest.raises(ValueError, match="solved for|another kind"):
        Embedding.from_pretrained(torch.randn(300, DIM), method=method, num_params=600, **options)


def test_what_makes_a_full_table_torchs():
    """Its weight is then the parameter itself."""
    for options in ({}, {"rank": 0}, {"rank": "auto"}, {"codec": "float32"}, {"rank": 0, "num_params": 40}):
        torch.manual_seed(0)
        emb = Embedding(10, 4, **options)
        torch.manual_seed(0)
        assert emb.weight is emb.memory
        assert torch.equal(emb.weight, nn.Embedding(10, 4).weight)
    for options in ({"rank": 2}, {"codec": "int8"}, {"method": "hash", "num_params": 40}):
        emb = Embedding(10, 4, **options)
        assert emb.weight is not emb.memory
        assert emb.weight.shape == (10, 4)


def test_bad_arguments():
    with pytest.raises(AssertionError, match="2-dimensional"):
        Embedding.from_pretrained(torch.zeros(3))
    with pytest.raises(AssertionError, match="padding_idx"):
        Embedding(5, 2, padding_idx=5)
    with pytest.raises(AssertionError, match="shape"):
        Embedding(5, 2, _weight=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="float type"):
        Embedding(5, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="max_norm rescales"):
        Embedding(100, 8, max_norm=1.0, method="hash", num_params=80)
    with pytest.raises(ValueError, match="unknown method 'no'"):
        Embedding(100, 8, method="no")
    with pytest.raises(ValueError, match="unknown option 'chunks'"):
        Embedding(100, 8, chunks=3)
    with pytest.raises(cce.BudgetError, match="too few"):
        Embedding(100, 8, method="cce", num_params=3)
    with pytest.raises(ValueError, match="counts ids"):
        Embedding(None, 8, method="hash", num_params=80, scale_grad_by_freq=True)


def test_torchs_own_state_is_taken():
    theirs = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 1))
    ours = nn.Sequential(Embedding(7, 3), nn.Linear(3, 1))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours[0].weight, theirs[0].weight)


# The names of the paper's own code, and what they are here.
OLD_NAMES = {
    "robe": "robe", "ce": "ce", "simple": "hash", "cce": "cce", "full": "full", "tt": "tt", "cce_robe": "cce_robe", "dhe": "dhe",
    "bloom": "bloom", "hemb_original": "hemb", "hemb_flat": "hemb", "hemb_indep": "hemb", "hemb_optional": "hemb",
    "rhemb": "rhemb", "hnet": "hnet", "ldim": "ldim", "sparse": "sparse", "sparse2": "sparse2",
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_NAMES)
def test_the_papers_own_names(name):
    emb = make_embedding(VOCAB, 500, DIM, name, 4, True)
    assert emb.spec.method == OLD_NAMES[name]
    assert sum(p.numel() for p in emb.parameters()) <= (VOCAB * DIM if name == "full" else 500)
    assert emb.sparse
    assert emb(torch.tensor([[1, 2]])).shape == (1, 2, DIM)
    if name == "cce":
        assert emb.spec.rank == 0
    if name.startswith("hemb"):
        kinds = {"original": "shared", "flat": "flat", "indep": "independent", "optional": "concat"}
        assert emb.spec.option("weights") == kinds[name.removeprefix("hemb_")]
