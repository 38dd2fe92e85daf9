"""The operators: torch's own checks, gradients of every order, and the plain way equal to the core's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402
from cce_core.adapters.torch.operators import blocks, eager, tensor_train  # noqa: E402
from cce_core.adapters.torch.operators.facts import part_of  # noqa: E402

pytestmark = pytest.mark.torch

IDS = (3, 0, 96, 3, 50)


def table(method, options, dtype=torch.float32, **more):
    return Embedding(VOCAB, DIM, method=method, seed=7, dtype=dtype, **{**options, **more})


def inputs(emb, dtype):
    """Arguments of `gather` with weights, and gradients of its vectors."""
    generator = torch.Generator().manual_seed(0)
    layout = part_of(emb._facts.text, "memory").layout
    ids = torch.tensor(IDS)
    memory = torch.randn(layout.n_units, layout.unit, generator=generator, dtype=dtype)
    weights = torch.randn(len(ids), len(layout.columns), generator=generator, dtype=dtype)
    grads = torch.randn(len(ids), layout.dim, generator=generator, dtype=dtype)
    keys, pointers = (emb._buffers.get(name) for name in ("keys", "pointers"))
    return memory, weights, grads, ids, (keys, pointers, emb._facts.text, "memory")


def test_a_map_of_own_rows_is_left_to_the_compiled_loops():
    from cce_core.sketching.layout import MAP, Column, Layout

    layout, words = (
        Layout((Column(MAP, 0, 4, 10, a=8),), 1, 4, 40, 4, bits_per_id=16),
        torch.zeros(2, dtype=torch.int64),
    )
    with pytest.raises(NotImplementedError, match="a map of own rows are found on the CPU"):
        eager.addresses(layout, torch.arange(3), words[:1], words)


# A layout of each kind: rows, hashed rows, chunks, windows that wrap, digits, pointers.
BLOCKS = ["full", "bloom", "ce", "robe", "qr", "cce", "cce_robe", "sparse"]


def first_case(method):
    return table(
        method, next(options for name, options in CASES if name == method and "num_bytes" not in options), rank=0
    )


@pytest.mark.parametrize("method", ["full", "robe", "cce", "sparse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_torchs_own_checks_of_operators(method, weighted):
    memory, weights, grads, ids, rest = inputs(first_case(method), torch.float32)
    w = weights.requires_grad_() if weighted else None
    memory.requires_grad_()
    grads.requires_grad_()
    for op, arguments in (
        (blocks.gather, (memory, ids, w, *rest)),
        (blocks.scatter, (grads, ids, w, *rest)),
        (blocks.dot, (memory, grads, ids, *rest)),
    ):
        torch.library.opcheck(op, arguments)


def test_torchs_own_checks_of_the_other_operators():
    signed, train, network, coded = (
        table(*CASES[NAMES.index(name)]) for name in ("hash-signed=True", "tt", "dhe", "int8")
    )
    ids = torch.tensor(IDS)
    torch.library.opcheck(blocks.signs, (ids, signed.keys, signed.memory.detach(), signed._facts.text))
    torch.library.opcheck(blocks.digits, (ids, train._facts.text))
    torch.library.opcheck(blocks.features, (ids, network.keys, network._facts.text))
    torch.library.opcheck(blocks.bags, (torch.tensor([0, 2, len(ids)]), ids))
    # `rounded` is a step function whose gradient is the identity by choice: shapes and schema alone can be checked.
    for some in (None, ids):
        torch.library.opcheck(blocks.rounded, (coded.memory.detach(), some, None, None, coded._facts.text))
    flat = torch.cat([core.detach().reshape(-1) for core in train.parameters()]).requires_grad_()
    torch.library.opcheck(tensor_train.train, (flat, ids, train._facts.text))
    # Its own gradient is taken through plain products, which are not traced.
    torch.library.opcheck(tensor_train.train_back, (torch.randn(len(IDS), DIM), flat.detach(), ids, train._facts.text))


@pytest.mark.parametrize("method", BLOCKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_both_orders_in_double(method, weighted):
    memory, weights, grads, ids, rest = inputs(first_case(method), torch.float64)
    memory, weights, grads = (t.requires_grad_() for t in (memory, weights, grads))
    if weighted:
        cases = [
            (lambda m, w: blocks.gather(m, ids, w, *rest), (memory, weights)),
            (lambda g, w: blocks.scatter(g, ids, w, *rest), (grads, weights)),
        ]
    else:
        cases = [
            (lambda m: blocks.gather(m, ids, None, *rest), (memory,)),
            (lambda g: blocks.scatter(g, ids, None, *rest), (grads,)),
            (lambda m, g: blocks.dot(m, g, ids, *rest), (memory, grads)),
        ]
    for function, arguments in cases:
        assert gradcheck(function, arguments, fast_mode=True)
        assert gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("method", BLOCKS)
def test_gradients_of_both_orders_in_the_core(method):
    """In float32, where the core's loops run: every sum is linear in each argument, so that large steps are exact ones."""
    memory, weights, grads, ids, rest = inputs(first_case(method), torch.float32)
    memory, weights, grads = (t.requires_grad_() for t in (memory, weights, grads))
    settings = {"eps": 0.5, "atol": 1e-3, "rtol": 1e-3, "fast_mode": True}
    for function, arguments in (
        (lambda m, w: blocks.gather(m, ids, w, *rest), (memory, weights)),
        (lambda g, w: blocks.scatter(g, ids, w, *rest), (grads, weights)),
        (lambda m, g: blocks.dot(m, g, ids, *rest), (memory, grads)),
    ):
        assert gradcheck(function, arguments, **settings)
        assert gradgradcheck(function, arguments, **settings)


def test_gradients_of_both_orders_of_trains_in_the_core():
    """A train is linear in each single number, so that large steps are exact ones."""
    emb = table("tt", {"num_params": 120})
    flat = torch.cat([core.detach().reshape(-1) for core in emb.parameters()]).mul(10).requires_grad_()
    grads, ids = torch.randn(len(IDS), DIM, requires_grad=True), torch.tensor(IDS)
    settings = {"eps": 0.25, "atol": 1e-2, "rtol": 1e-2, "nondet_tol": 1e-6}
    assert gradcheck(lambda f: tensor_train.train(f, ids, emb._facts.text), (flat,), **settings)
    assert gradcheck(lambda g, f: tensor_train.train_back(g, f, ids, emb._facts.text), (grads, flat), **settings)
    assert gradgradcheck(lambda f: tensor_train.train(f, ids, emb._facts.text), (flat,), grads, **settings)


@pytest.mark.parametrize("further", [False, True])
def test_second_derivatives_of_trains_behind_a_loss_that_is_not_linear(further):
    """There the gradients that come back depend on the cores themselves."""
    emb = table("tt", {"num_params": 120})
    ids = torch.tensor(IDS)

    def second(module):
        cores = list(module.parameters())
        first = torch.autograd.grad(module(ids).pow(3).sum(), cores, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), cores, create_graph=further)

    with torch.no_grad():
        for core in emb.parameters():
            core.normal_(generator=torch.Generator().manual_seed(0))
    for got, wanted in zip(second(emb), second(copy.deepcopy(emb).double())):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("method", ["full", "hash", "cce"])
@pytest.mark.parametrize("dim", [8, 24, 200])
def test_rounding_what_is_read_is_rounding_all(codec, method, dim):
    """For tables where that pays, of all of whose blocks the codec's own may hold several, or parts."""
    options = {"full": {}, "hash": {"num_params": 3000 * dim}, "cce": {"num_params": 6000 * dim, "rank": 0}}[method]
    emb = Embedding(3000, dim, method=method, codec=codec, seed=1, **options)
    with torch.no_grad():
        emb.memory += 0.01 * torch.randn(emb.memory.shape, generator=torch.Generator().manual_seed(0))
    rest = (emb._buffers.get("keys"), emb._buffers.get("pointers"), emb._facts.text)
    whole = blocks.rounded(emb.memory, None, *rest)
    for ids in (
        torch.tensor([0]),
        torch.tensor([2999, 5, 5, 1700]),
        torch.arange(3000),
        torch.tensor([], dtype=torch.int64),
    ):
        some = blocks.rounded(emb.memory, ids, *rest)
        assert torch.equal(some[some != 0], whole[some != 0])
        np.testing.assert_array_equal(emb(ids).detach().numpy(), emb.table.lookup(ids.numpy()))
        if len(ids) < 9:
            assert (some == 0).float().mean() > 0.5  # most was left out
    with pytest.raises(IndexError, match="outside"):
        blocks.rounded(emb.memory, torch.tensor([3000]), *rest)


# A rounded memory is a step function, whose gradients pass straight through by choice.
CODED = ("int8", "int4", "vq")  # where nobody says otherwise
SMOOTH = [
    k for k, (method, o) in enumerate(CASES) if o.get("codec", "int8" if method in CODED else "float32") == "float32"
]


@pytest.mark.parametrize("case", [CASES[k] for k in SMOOTH], ids=[NAMES[k] for k in SMOOTH])
def test_second_derivatives_of_every_table(case):
    emb = table(*case, dtype=torch.float64)
    names, ids = [name for name, _ in emb.named_parameters()], torch.tensor(IDS)

    def vectors(*parameters):
        return torch.func.functional_call(emb, dict(zip(names, parameters, strict=True)), ids)

    values = tuple(p.detach().clone().requires_grad_() for p in emb.parameters())
    assert gradcheck(vectors, values, fast_mode=True)
    assert gradgradcheck(vectors, values, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_table_equals_the_cores(case):
    """Vectors and gradients in float32 are the core's; in float64, the plain way's, they are near."""
    emb, wide = table(*case), table(*case, dtype=torch.float64)
    wide.load_state_dict(emb.state_dict())
    core, ids = emb.table, torch.arange(VOCAB).flip(0)[:40].repeat(2).reshape(5, 16)
    vectors, grads = emb(ids), torch.linspace(-1, 1, 5 * 16 * DIM).reshape(5, 16, DIM)
    np.testing.assert_allclose(vectors.detach().numpy(), core.lookup(ids.numpy()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wide(ids).float(), vectors, rtol=1e-4, atol=1e-5)
    vectors.backward(grads)
    wide(ids).backward(grads.double())
    for name, expected in core.backward(ids.numpy(), grads.numpy(), dense=True).items():
        got = getattr(emb, name).grad
        np.testing.assert_allclose(got.numpy().reshape(-1), np.reshape(expected, -1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(getattr(wide, name).grad.float(), got, rtol=1e-3, atol=1e-4)


def test_the_plain_hash_has_the_cores_bits():
    """Addresses and signs, for words of all 64 bits and any number of rows."""
    from cce_core.hashing.mix import derive_key, mix_hash

    words = np.random.default_rng(0).integers(0, 2**64, 200, np.uint64)
    words[:4] = 0, 2**64 - 1, 2**63, 2**32
    for rows in (1, 2, 97, 2**31 + 11, 2**32 + 1, 2**47 + 5):
        key = torch.from_numpy(np.array(derive_key(5, 0), np.uint64).view(np.int64))
        got = eager.multiply_high(eager.keyed(eager.premix(torch.from_numpy(words.view(np.int64))), key), rows)
        np.testing.assert_array_equal(got.numpy().astype(np.uint64), mix_hash(words, rows, seed=5))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_forward_mode_raises(case):
    """Outside `torch.func` it is not defined, and must not drop the tangent without a word."""
    emb, ids = table(*case), torch.tensor(IDS)
    if emb._facts.kind != "blocks":
        return  # torch's own operations alone: they have one
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(emb.memory.detach(), torch.ones_like(emb.memory))
        with pytest.raises(NotImplementedError, match="forward"), torch.no_grad():
            torch.func.functional_call(emb, {"memory": dual}, ids)
        with pytest.raises(NotImplementedError, match="forward"):
            torch.func.functional_call(emb, {"memory": dual}, ids)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("more", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_the_transforms_of_torch_func(case, more):
    """Gradients, those of every sample, and both kinds of derivatives; a rounded memory passes all straight through."""
    emb, ids = table(*case, **more), torch.tensor([IDS, IDS[::-1], (3,) * len(IDS)])
    values = {name: p.detach() for name, p in emb.named_parameters()}

    def vectors(values, ids):
        return torch.func.functional_call(emb, values, (ids,))

    def loss(values, ids):
        return vectors(values, ids).pow(2).sum()

    def expected(ids):
        emb.zero_grad()
        emb(ids).pow(2).sum().backward()
        return {name: p.grad.to_dense() if p.grad.is_sparse else p.grad.clone() for name, p in emb.named_parameters()}

    near = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(torch.func.grad(loss)(values, ids), expected(ids), **near)
    each = [expected(one) for one in ids]
    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, ids)
    torch.testing.assert_close(got, {name: torch.stack([one[name] for one in each]) for name in values}, **near)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(emb, 1, 1)(ids), emb(ids), rtol=1e-4, atol=1e-5)
    out, back = torch.func.vjp(lambda v: vectors(v, ids), values)
    torch.testing.assert_close(out, emb(ids), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back(2 * out)[0], expected(ids), **near)
    if not more:
        tangents = {
            name: torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for name, v in values.items()
        }
        _, moved = torch.func.jvp(lambda v: vectors(v, ids), (values,), (tangents,))
        both = sum((g * t).sum() for g, t in zip(back(moved)[0].values(), tangents.values(), strict=True))
        torch.testing.assert_close(both, moved.square().sum(), rtol=1e-3, atol=1e-3)
    for transform in (torch.func.vmap(emb), lambda ids: torch.func.grad(loss)(values, ids)):
        with pytest.raises(IndexError, match=rf"id {VOCAB} at position 7"), torch.no_grad():
            transform(torch.tensor([IDS, (0, 1, VOCAB, 3, 4)]))


@pytest.mark.parametrize("method", ["full", "hash", "cce"])
def test_the_hessian_through_torch_func(method):
    """Of a square of what is linear: that of autograd's own."""
    emb, ids = first_case(method), torch.tensor(IDS)

    def loss(memory):
        return torch.func.functional_call(emb, {"memory": memory}, (ids,)).pow(2).sum()

    memory = emb.memory.detach()
    torch.testing.assert_close(torch.func.hessian(loss)(memory), torch.autograd.functional.hessian(loss, memory))


@pytest.mark.parametrize("name", ["full", "int8", "hemb", "cce-rank=4", "tt"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_transforms_of_torch_func_of_bags(name, mode):
    method, options = CASES[NAMES.index(name)]
    bag = EmbeddingBag(VOCAB, DIM, mode=mode, padding_idx=3, method=method, seed=7, **options)
    ids, offsets = torch.tensor([IDS, IDS[::-1]]), torch.tensor([[0, 2], [0, 4]])
    values = {name: p.detach() for name, p in bag.named_parameters()}

    def loss(values, ids, offsets):
        return torch.func.functional_call(bag, values, (ids, offsets)).pow(2).sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(values, ids, offsets)
    for k in range(2):
        bag.zero_grad()
        bag(ids[k], offsets[k]).pow(2).sum().backward()
        for name, p in bag.named_parameters():
            torch.testing.assert_close(got[name][k], p.grad, rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match="must not decrease|can not be greater"):
        torch.func.vmap(bag)(ids, offsets + torch.tensor([[0], [0]]) * 0 + torch.tensor([0, 3]))
    if mode == "sum":
        weights = torch.linspace(-1, 1, 5)
        torch.testing.assert_close(
            torch.func.grad(lambda w: bag(ids[0], offsets[0], w).sum())(weights),
            (bag(ids[0][:, None]) * (ids[0] != 3)[:, None]).sum(1),
            **{"rtol": 1e-3, "atol": 1e-4},
        )


def test_what_operators_refuse():
    emb = table("cce", {"num_params": 300})
    rest = (None, emb.keys, emb.pointers, emb._facts.text, "memory")
    memory, ids = emb.memory.detach(), torch.tensor(IDS)
    with pytest.raises(RuntimeError, match="int64 ids"):
        blocks.gather(memory, ids.int(), *rest)
    with pytest.raises(RuntimeError, match="int64 ids"):
        blocks.gather(memory, ids[None], *rest)
    with pytest.raises(RuntimeError, match="takes float32"):
        blocks.gather(memory[1:], ids, *rest)
    with pytest.raises(RuntimeError, match="takes float32"):
        blocks.scatter(torch.zeros(2, DIM), ids, *rest)
    with pytest.raises(IndexError, match="id 97 at position 1"):
        blocks.gather(memory, torch.tensor([0, VOCAB]), *rest)
    with pytest.raises(IndexError, match="outside"):
        blocks.gather(memory.double(), torch.tensor([-1]), *rest)
    with pytest.raises(ValueError, match="has no weights"):
        blocks.gather(memory, ids, None, emb.keys, emb.pointers, emb._facts.text, "weights")


def test_any_memory_layout_of_the_arguments():
    emb = table("ce", {"num_params": 200})
    ids, rest = torch.tensor(IDS), (None, emb.keys, None, emb._facts.text, "memory")
    expected = blocks.gather(emb.memory.detach(), ids, *rest)
    turned = emb.memory.detach().t().contiguous().t()
    assert torch.equal(blocks.gather(turned, ids.repeat_interleave(2)[::2], *rest), expected)
    grads = torch.ones(DIM, len(IDS)).t()
    assert torch.equal(blocks.scatter(grads, ids, *rest), blocks.scatter(grads.contiguous(), ids, *rest))
