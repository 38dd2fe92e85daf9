"""Vector quantisation in graphs that torch compiles, exports and keeps, before and after a change of phase."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, DIM = 53, 8
IDS = torch.arange(2 * VOCAB).reshape(2, VOCAB) % VOCAB


def made(kind=Embedding, **more):
    return kind(VOCAB, DIM, method="vq", seed=1, **{"num_bytes": 330, **more})


def steps_of(model, call, parameters, ids, n=2):
    """Losses and gradients of some steps."""
    optimizer, out = torch.optim.SGD(parameters, lr=0.1), []
    for k in range(n):
        optimizer.zero_grad()
        loss = (call(ids) - ids[..., None] / VOCAB).square().mean()
        loss.backward()
        optimizer.step()
        out += [loss.detach(), *(p.grad.clone() for p in parameters)]
        assert k < 0 or model.memory.grad.shape == model.memory.shape
    return out


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_module_goes_through_all_phases(stages, backend):
    """It is compiled anew where the memory has another shape; gradients are those of eager modules, and ids are counted."""
    torch._dynamo.reset()
    compiled, eager = made(stages=stages), made(stages=stages)
    call = torch.compile(compiled, fullgraph=True, backend=backend)
    for change in ("cluster", "reopen", "cluster", None):
        for ids in (IDS, IDS[:, :7]):
            got, expected = (steps_of(m, c, list(m.parameters()), ids) for m, c in ((compiled, call), (eager, eager)))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        if eager.phase == "rows":
            assert torch.equal(compiled.passes, eager.passes)
            assert torch.equal(compiled.counts, eager.counts)
            before = compiled.counts.clone()
            compiled.eval()
            call(IDS)
            with torch.no_grad():
                compiled.train()
                call(IDS)
            assert torch.equal(compiled.counts, before)
        if change is not None:
            for m in (compiled, eager):
                getattr(m, change)()
            eager.load_state_dict(compiled.state_dict())  # the last bits of a step may lead k-means elsewhere


def test_compiled_bags_count_what_they_train():
    torch._dynamo.reset()
    bag = made(EmbeddingBag, mode="sum", padding_idx=3)
    call, twin = torch.compile(bag, backend="aot_eager"), copy.deepcopy(bag)
    for m in (call, twin):
        for _ in range(3):
            m(IDS).sum().backward()
    assert torch.equal(bag.counts, twin.counts)
    assert bag.counts[3] == 0 < bag.counts[4]
    bag.cluster()
    twin.load_state_dict(bag.state_dict())
    torch.testing.assert_close(call(IDS), twin(IDS))


@pytest.mark.parametrize("change", ["cluster", "reopen"])
def test_an_exported_program_is_of_one_phase(change):
    """One of before says so, rather than read what is no longer there; it counts nothing."""
    emb = made()
    if change == "reopen":
        emb.cluster()
    shapes = ({1: torch.export.Dim("n", min=2, max=1000)},)
    program = torch.export.export(nn.Sequential(emb), (IDS,), dynamic_shapes=shapes)
    assert "cce.count" not in str(program.graph)
    torch.testing.assert_close(program.module()(IDS[:, :9]), emb(IDS[:, :9]))
    getattr(emb, change)()
    with pytest.raises((RuntimeError, AssertionError)) as raised:
        program.module()(IDS)
    assert "memory" in str(raised.value) or "takes float32" in str(raised.value)
    again = torch.export.export(nn.Sequential(emb), (IDS,), dynamic_shapes=shapes)
    torch.testing.assert_close(again.module()(IDS[:, :5]), emb(IDS[:, :5]))


def test_transforms_take_both_phases():
    emb = made(codec="float32", num_bytes=500)
    for _ in range(2):
        parameters = {name: p.detach() for name, p in emb.named_parameters()}

        def loss(parameters, ids):
            return torch.func.functional_call(emb, parameters, ids).square().sum()

        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, IDS)
        emb.zero_grad()
        emb(IDS).square().sum().backward()
        for name, p in emb.named_parameters():
            torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-4, atol=1e-5)
        if emb.phase == "rows":
            emb.cluster()


def test_counting_is_an_operator_in_order():
    from torch.library import opcheck

    emb = made()
    opcheck(torch.ops.cce.count, (emb.counts, emb.passes, IDS.reshape(-1), emb.seed, None))
    opcheck(torch.ops.cce.count, (emb.counts, emb.passes, IDS.reshape(-1), emb.seed, 4))
    held = torch.zeros(2 * VOCAB, dtype=torch.uint8)[
        ::2
    ]  # with strides, as on other devices: of the ids alone that are met
    twice = torch.cat([IDS.reshape(-1), IDS[0, :5]])
    passes = emb.passes.clone()
    torch.ops.cce.count(held, passes, twice, emb.seed, 4)
    other = torch.zeros(VOCAB, dtype=torch.uint8)
    torch.ops.cce.count(other, emb.passes.clone(), twice, emb.seed, 4)
    assert torch.equal(held, other)
    assert held.any()
    with pytest.raises(IndexError, match="53"):
        torch.ops.cce.count(other, passes, torch.tensor([VOCAB]), emb.seed, None)
