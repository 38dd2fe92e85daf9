"""`weight` of compressed tables: reading it costs what it must and trains, writing into it raises, assigning to it is learnt."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from strategies import pairwise
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402
from cce_core.adapters.torch.modules.module import Compressed  # noqa: E402

pytestmark = pytest.mark.torch

COMPRESSED = [k for k, name in enumerate(NAMES) if name != "full"]
EVERY = pytest.mark.parametrize("case", [CASES[k] for k in COMPRESSED], ids=[NAMES[k] for k in COMPRESSED])
W = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4, 96], [0, 4, 4]])
ALL = torch.arange(VOCAB)


def table(method="cce", cls=Embedding, **options):
    return cls(
        VOCAB, DIM, method=method, seed=0, **({"num_params": 300} if method == "cce" and not options else options)
    )


FREE = {
    "shape": lambda w: w.shape,
    "dtype": lambda w: w.dtype,
    "device": lambda w: w.device,
    "size": lambda w: (w.size(), w.size(0)),
    "dim": lambda w: (w.dim(), w.ndim, len(w)),
    "numel": lambda w: (w.numel(), w.nelement(), torch.numel(w)),
    "bytes": lambda w: (w.element_size(), w.itemsize, w.nbytes),
    "kind": lambda w: (w.is_cuda, w.is_sparse, w.is_floating_point(), w.type(), w.layout),
    "stride": lambda w: (w.stride(), w.is_contiguous()),
    "requires_grad": lambda w: w.requires_grad,
    "data": lambda w: (w.data.dtype, w.data.shape, w.detach().device, w.detach().requires_grad),
    "kinds": lambda w: (isinstance(w, torch.Tensor), torch.is_tensor(w)),
}


@pytest.mark.parametrize("what", FREE)
@pytest.mark.parametrize("cls", [Embedding, EmbeddingBag])
def test_what_is_known_without_numbers_costs_nothing(what, cls, monkeypatch):
    emb, plain = table(cls=cls), nn.Parameter(W)
    weight = emb.weight
    monkeypatch.setattr(Compressed, "_vectors", None)  # no lookup, or it fails
    assert FREE[what](weight) == FREE[what](plain)
    with torch.no_grad():
        assert FREE[what](emb.weight) == FREE[what](plain)


def test_a_weight_that_is_held_follows_its_table():
    emb = table()
    weight = emb.weight
    before = weight.clone()
    with torch.no_grad():
        emb.memory.mul_(2)
    assert not torch.equal(weight, before)
    emb.double()
    assert weight.dtype == torch.float64
    assert weight.sum().dtype == torch.float64
    emb.requires_grad_(False)
    assert not weight.requires_grad


READS = {
    "linear": lambda w: F.linear(torch.ones(2, DIM), w),
    "linear with bias": lambda w: F.linear(torch.ones(3, 2, DIM), w, torch.ones(VOCAB)),
    "matmul": lambda w: torch.ones(2, DIM) @ w.T,
    "vector": lambda w: w @ torch.ones(DIM),
    "ids": lambda w: w[IDS],
    "negative ids": lambda w: w[IDS - 50],
    "list": lambda w: w[[3, -1]],
    "mask": lambda w: w[torch.arange(VOCAB) > 90],
    "row": lambda w: w[3],
    "last row": lambda w: w[np.int64(-1)],
    "range": lambda w: w[5:-3:2],
    "number": lambda w: w[3, 2],
    "column": lambda w: w[..., 0],
    "embedding": lambda w: F.embedding(IDS, w),
    "embedding with padding": lambda w: F.embedding(IDS, w, padding_idx=0),
    "bag": lambda w: F.embedding_bag(IDS, w),
    "norm": lambda w: w.norm(),
    "to": lambda w: w.to(torch.float64),
    "float": lambda w: w.float(),
    "view": lambda w: w.view(-1),
    "clone": lambda w: w.clone(),
    "cat": lambda w: torch.cat([w, w.detach()]),
    "rows": lambda w: torch.stack(list(w)),
    "add": lambda w: 1 + w * 2,
    "topk": lambda w: w.topk(3)[0],
    "normalised": lambda w: F.normalize(w),
    "compiled": lambda w: torch.compile(lambda v: torch.ones(2, DIM) @ v.T, backend="aot_eager")(w),
}


@pytest.mark.parametrize("what", READS)
@pytest.mark.parametrize("name", ["cce", "cce-rank=4", "hemb-weights=concat", "int8", "tt"])
def test_reading_is_reading_a_tensor_and_trains(what, name):
    method, options = CASES[NAMES.index(name)]
    emb = table(method, **options, padding_idx=7)
    plain = emb(ALL).detach().requires_grad_()
    expected, got = READS[what](plain), READS[what](emb.weight)
    torch.testing.assert_close(got.detach().clone(), expected.detach(), rtol=1e-4, atol=1e-5)
    expected.sum().backward()
    emb(ALL).backward(plain.grad)
    wanted = [p.grad.clone() for p in emb.parameters()]
    emb.zero_grad()
    got.sum().backward()
    for p, gradient in zip(emb.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(READS[what](emb.weight), READS[what](plain.detach()), rtol=1e-4, atol=1e-5)


@EVERY
def test_copies_are_tensors_of_their_own(case):
    emb = table(case[0], **case[1])
    expected = emb(ALL).detach()
    file = io.BytesIO()
    torch.save(emb.weight.detach(), file)
    file.seek(0)
    for again in (
        emb.weight.detach().clone(), copy.deepcopy(emb.weight), torch.load(file), pickle.loads(pickle.dumps(emb.weight.data)),
        torch.tensor(emb.weight.detach().cpu().numpy()), torch.tensor(emb.weight.tolist()),
        torch.zeros(VOCAB, DIM).copy_(emb.weight),
    ):  # fmt: skip
        assert type(again) is torch.Tensor
        torch.testing.assert_close(again.detach(), expected)
        with torch.no_grad():
            again.add_(1)
    torch.testing.assert_close(emb(ALL), expected)


def test_autograd_functions_and_lookups_by_ids():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            ctx.save_for_backward(w)
            return (w * w).sum()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad * ctx.saved_tensors[0]

    emb = table()
    Square.apply(emb.weight).backward()
    got = emb.memory.grad.clone()
    emb.zero_grad()
    emb(ALL).square().sum().backward()
    torch.testing.assert_close(got, emb.memory.grad)
    seen = []
    look_up = emb._vectors
    emb._vectors = lambda ids: seen.append(len(ids)) or look_up(ids)
    _ = emb.weight[IDS], emb.weight[5], emb.weight[2:4], F.embedding(IDS, emb.weight)
    assert seen == [6, 1, 2, 6]
    with pytest.raises(IndexError):
        _ = emb.weight[VOCAB]


def inference(e):
    with torch.inference_mode():
        e.weight[3].zero_()


def initialise(e, name):
    more = {"constant_": (3.0,), "sparse_": (0.1,)}.get(name, ())
    getattr(nn.init, name)(e.weight, *more)


def step(e):
    optimizer = torch.optim.SGD([e.weight], 0.1)
    e(IDS).sum().backward()
    optimizer.step()


WRITES = {
    "swap_tensors": lambda e: torch.utils.swap_tensors(e.weight, torch.nn.Parameter(W.clone())),
    "data.copy_": lambda e: e.weight.data.copy_(W),
    "data =": lambda e: setattr(e.weight, "data", W),
    "data.data": lambda e: e.weight.data.data.zero_(),
    "copy_": lambda e: e.weight.copy_(W),
    "[i] =": lambda e: e.weight.__setitem__(3, 0.0),
    "[..., j] =": lambda e: e.weight.__setitem__((..., 0), 0.0),
    "detach()[i] =": lambda e: e.weight.detach().__setitem__(3, 0.0),
    "[i].fill_": lambda e: e.weight[3].fill_(0),
    "data[i].zero_": lambda e: e.weight.data[3].zero_(),
    "data[i:j].zero_": lambda e: e.weight.data[2:5].zero_(),
    "[i:j][k].zero_": lambda e: e.weight[2:5][0].zero_(),
    "T.mul_": lambda e: e.weight.T.mul_(2),
    "view": lambda e: e.weight.view(-1).__setitem__(0, 1.0),
    "select": lambda e: e.weight.select(0, 1).zero_(),
    "narrow": lambda e: e.weight.narrow(0, 0, 2).zero_(),
    "unbind": lambda e: e.weight.unbind()[3].zero_(),
    "rows": lambda e: next(iter(e.weight)).zero_(),
    "expand": lambda e: e.weight.expand(1, VOCAB, DIM).zero_(),
    "to": lambda e: e.weight.to("cpu").zero_(),
    "float": lambda e: e.weight.float().zero_(),
    "contiguous": lambda e: e.weight.contiguous().zero_(),
    "+=": lambda e: e.weight.__iadd__(1),
    "uniform_": lambda e: e.weight.data.uniform_(),
    "lerp_": lambda e: e.weight.lerp_(W, 0.5),
    "index_copy_": lambda e: e.weight.index_copy_(0, torch.tensor([1]), W[:1]),
    "masked_fill_": lambda e: e.weight.masked_fill_(W > 0, 0.0),
    "scatter_": lambda e: e.weight.scatter_(0, torch.zeros(1, DIM, dtype=torch.long), W),
    "torch.zero_": lambda e: torch.zero_(e.weight),
    "foreach": lambda e: torch._foreach_mul_([e.weight], 2.0),
    "out=": lambda e: torch.add(W, 1, out=e.weight),
    "out= data": lambda e: torch.mul(W, 1, out=e.weight.data),
    "out= of several": lambda e: torch.max(W[None], 0, out=(e.weight, torch.zeros(VOCAB, DIM, dtype=torch.long))),
    "inplace=": lambda e: F.relu(e.weight, inplace=True),
    "max_norm": lambda e: F.embedding(IDS, e.weight, max_norm=0.01),
    "renorm": lambda e: torch.embedding_renorm_(e.weight, IDS.view(-1), 0.01, 2.0),
    "vector_to_parameters": lambda e: nn.utils.vector_to_parameters(torch.zeros(VOCAB * DIM), [e.weight]),
    "set_": lambda e: e.weight.set_(W),
    "resize_": lambda e: e.weight.resize_(3, 3),
    "grad =": lambda e: setattr(e.weight, "grad", W),
    "aten": lambda e: torch.ops.aten.mul_.Scalar(e.weight, 2),
    "Parameter": lambda e: nn.Parameter(e.weight),
    "optimiser": step,
    "numpy": lambda e: e.weight.detach().numpy().fill(0),
    "asarray": lambda e: np.asarray(e.weight.detach()).fill(0),
    "numpy of a view": lambda e: e.weight.detach().T.numpy().sort(),
    "inference mode": inference,
    "storage": lambda e: e.weight.untyped_storage().fill_(0),
    "data_ptr": lambda e: e.weight.data_ptr(),
    "hook": lambda e: e.weight.register_hook(print),
    "another's": lambda e: setattr(e, "weight", table().weight),
    "no tensor": lambda e: setattr(e, "weight", [1.0]),
    **{f"init.{name}": lambda e, name=name: initialise(e, name) for name in dir(nn.init) if name[-1] == "_" and name[0] != "_"},
}  # fmt: skip
ELSEWHERE = {
    "optimiser": "non-leaf",
    "swap_tensors": "weakref",
    "init.dirac_": "3, 4, or 5 dimensions",
    "numpy": "read-only",
    "asarray": "read-only",
    "numpy of a view": "read-only",
}


@pytest.mark.parametrize(("what", "grad", "cls"), pairwise([*WRITES], [False, True], [Embedding, EmbeddingBag]))
def test_writing_raises_and_says_what_to_do(what, grad, cls):
    emb = table(cls=cls)
    before = emb.memory.detach().clone()
    message = ELSEWHERE.get(what, "weight =|embedding.weight|to learn from")
    if what == "optimiser" and not grad:
        message = "non-leaf|does not require grad"
    with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, TypeError, ValueError), match=message):
        WRITES[what](emb)
    assert torch.equal(emb.memory, before)


@EVERY
def test_what_is_assigned_is_learnt_or_refused(case):
    rows = W[:5][ALL % 5]
    emb = table(case[0], **case[1], padding_idx=1)
    bag = table(case[0], cls=EmbeddingBag, **case[1])
    for module in (emb, bag):
        place = (
            torch.Tensor.data_ptr if module.phase is None else id
        )  # with phases, the parameters are the same, with others' numbers
        places = {name: place(p) for name, p in module.named_parameters()}
        before = (module.weight.detach() - rows).square().sum()
        try:
            module.weight = nn.Parameter(rows)
        except ValueError as error:
            assert "solved for" in str(error) or "another kind" in str(error)  # noqa: PT017
        else:
            assert (module.weight.detach() - rows).square().sum() < before
        module.weight = module.weight  # as models tie what is tied already
        assert {name: place(p) for name, p in module.named_parameters()} == places
    with pytest.raises(AssertionError, match="shape"):
        emb.weight = W[1:]


def test_a_full_tables_weight_is_the_parameter():
    emb = Embedding(VOCAB, DIM)
    given = nn.Parameter(W.clone())
    emb.weight = given
    assert emb.weight is emb.memory is given
    emb.weight = W * 2
    assert emb.weight is given
    assert torch.equal(given, W * 2)
    with torch.no_grad():
        emb.weight[3] = 0.0
    assert not emb(torch.tensor(3)).any()


def test_freezing_by_the_weight():
    emb = table(rank=4, num_params=300)
    assert emb.weight.requires_grad_(False) is not None
    assert not any(p.requires_grad for p in emb.parameters())
    assert not emb.weight.requires_grad
    emb.weight.requires_grad = True
    assert all(p.requires_grad for p in emb.parameters())


def test_no_other_weight_is_lent_by_functional_call():
    model = torch.nn.Sequential(table())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match="functional_call can't lend"):
        torch.func.functional_call(model, {"0.weight": W}, (ALL,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unbounded_table_has_no_weight_to_ask_for():
    emb = Embedding(None, DIM, method="hash", num_params=80)
    assert not hasattr(emb, "weight")
    with pytest.raises(RuntimeError, match="a vector for every 64-bit id"):
        _ = emb.weight
    with pytest.raises(AttributeError, match="no attribute 'wait'"):
        _ = emb.wait
