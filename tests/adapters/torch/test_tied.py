"""An output layer that shares an embedding's table, made by hand, by assignment and by `compress_`."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cce_core.adapters.torch import Embedding, TiedLinear, cluster_, compress_  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])
EVERY = pytest.mark.parametrize("case", CASES, ids=NAMES)
FEW = ["cce", "cce-rank=4", "int8", "tt", "dhe"]
SOME = pytest.mark.parametrize("case", [CASES[NAMES.index(name)] for name in FEW], ids=FEW)


class Language(nn.Module):
    """An embedding and its output layer."""

    def __init__(self, emb, bias=True, head_first=False):
        super().__init__()
        rows, dim = emb.num_embeddings, emb.embedding_dim
        if head_first:
            self.head = nn.Linear(dim, rows, bias=bias)
            self.emb = emb
        else:
            self.emb = emb
            self.head = nn.Linear(dim, rows, bias=bias)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(self.emb(ids).tanh())


def language(case, bias=True, head_first=False, **more):
    return Language(Embedding(VOCAB, DIM, method=case[0], **{"seed": 1, **case[1], **more}), bias, head_first)


@EVERY
@pytest.mark.parametrize("padding", [None, 3])
def test_scores_and_gradients_are_those_of_the_weight(case, padding):
    model = language(case, padding_idx=padding, head_first=padding is None)
    scores = model(IDS)
    expected = F.linear(model.emb(IDS).tanh(), model.emb(torch.arange(VOCAB)), model.head.bias)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    grads = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in model.emb.parameters()) + VOCAB
    got, wanted = (torch.autograd.grad(out, parameters, grads) for out in (scores, expected))
    for name, a, b in zip(names, got, wanted, strict=True):
        if name == "emb.memory" and padding is not None and case == ("full", {}):
            continue  # torch's own layer trains the padding row, too
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@SOME
@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_model_is_a_model(case, head_first):
    """It trains; copies, pickles, states and casts keep the two ends of one table together."""
    model = language(case, head_first=head_first)
    assert type(model.head) is TiedLinear
    assert isinstance(model.head, nn.Linear)
    by_hand = TiedLinear(model.emb, bias=True)
    assert vars(by_hand).keys() == vars(model.head).keys()
    assert by_hand(torch.ones(DIM)).shape == (VOCAB,)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.05), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    state = model.state_dict()
    assert set(state) == {*(f"emb.{name}" for name in model.emb.state_dict()), "head.bias"}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other, third = language(case, seed=7), language(case, seed=7)
    other.load_state_dict(torch.load(file))
    third.load_state_dict(state, assign=True)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other, third):
        assert torch.equal(again(IDS), model(IDS))
        assert again.head.embedding is again.emb
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(IDS).float(), model(IDS), rtol=1e-3, atol=1e-4)
    if case[0] == "cce":
        cluster_(model, optimizer)
        torch.testing.assert_close(model(IDS), F.linear(model.emb(IDS).tanh(), model.emb.weight, model.head.bias))
    model.head.weight = model.emb.weight  # once more, as `tie_weights` does
    with pytest.raises(TypeError, match="no weight of its own"):
        model.head.weight = nn.Parameter(torch.zeros(VOCAB, DIM))
    with pytest.raises(RuntimeError, match="embedding.weight"):
        nn.init.zeros_(model.head.weight)
    model.head.reset_parameters()


@SOME
def test_a_tied_model_compiled_exported_and_transformed(case):
    model = language(case, padding_idx=3)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(model, (IDS,)).module()(IDS), model(IDS))
    values = {name: p.detach() for name, p in model.named_parameters()}
    got = torch.func.grad(lambda v: torch.func.functional_call(model, v, (IDS,)).square().sum())(values)
    model(IDS).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-3)


def test_an_assignment_that_cannot_be_a_tie():
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=0)

    class Own(nn.Linear):
        def forward(self, input):
            return input

    for module in (Own(DIM, VOCAB), nn.Embedding(VOCAB, DIM), nn.Bilinear(DIM, DIM, VOCAB)):
        before = module.weight
        with pytest.raises(TypeError, match=r"Keep the embedding itself .* TiedLinear"):
            module.weight = emb.weight
        assert module.weight is before
    linear = nn.Linear(DIM, VOCAB - 1)
    with pytest.raises(ValueError, match=r"\(96, 8\), the table has \(97, 8\)"):
        linear.weight = emb.weight
    assert type(linear) is nn.Linear
    with pytest.raises(TypeError, match="must be an Embedding"):
        TiedLinear(nn.Embedding(3, 2))
    with pytest.raises(ValueError, match="unbounded"):
        TiedLinear(Embedding(None, DIM, method="hash", num_params=80))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("method", "options"), [("pq", {"ratio": 4}), ("cce", {"ratio": 4}), ("int8", {}), ("full", {})]
)
def test_a_tied_language_model_is_compressed(method, options, bias):
    torch.manual_seed(0)
    rows = 600
    model = nn.ModuleDict(
        {"emb": nn.Embedding(rows, DIM), "lm": nn.ModuleDict({"head": nn.Linear(DIM, rows, bias=bias)})}
    )
    with torch.no_grad():
        model.emb.weight[:] = torch.randn(20, DIM).repeat(rows // 20, 1)
    model.lm.head.weight = model.emb.weight
    model["again"] = model.lm.head
    model.lm.head.eval()
    bias = model.lm.head.bias
    before = model.lm.head(model.emb(IDS)).detach()
    report = compress_(model, method=method, min_rows=10, seed=0, **options)
    (swap,) = report.tables
    assert (swap.why, swap.tied) == ("", ("lm.head",))
    assert "tied: lm.head" in str(report)
    assert method == "full" or report.ratio > 2
    assert type(model.lm.head) is TiedLinear
    assert model["again"] is model.lm.head
    assert model.lm.head.bias is bias
    assert not model.lm.head.training
    assert model.lm.head.embedding is model.emb
    near = {"pq": 1e-4, "full": 0.0, "int8": 0.2}.get(method)
    if near is not None:
        torch.testing.assert_close(model.lm.head(model.emb(IDS)), before, atol=near, rtol=near)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held <= 4 * rows * DIM + (0 if bias is None else 4 * rows)
