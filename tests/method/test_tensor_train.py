"""Tensor trains against their naive twin, their budgets, and what callers may hand in wrongly."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import tt as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.method import tensor_train as tt_method
from cce_core.sketching import tensor_train
from cce_core.sketching.small_matmul import add_product


@st.composite
def tables(draw):
    vocab, dim, cores = draw(st.integers(1, 80)), draw(st.integers(1, 24)), draw(st.integers(2, 5))
    least = sum(v * d for v, d in zip(naive.radix(vocab, cores), naive.factors(dim, cores), strict=True))
    budget = least * draw(st.integers(1, 40))
    return cce.make_table("tt", vocab, dim, num_params=budget, cores=cores, seed=draw(strategies.seeds))


def train_of(table):
    return naive.cores(table.parameters().values(), table.spec.vocab, table.spec.dim, table.spec.sizes)


@given(st.data())
def test_lookup_equals_its_definition(data):
    table = data.draw(tables())
    ids = data.draw(strategies.ids(vocab=table.spec.vocab))
    got = table.lookup(ids)
    assert got.dtype == np.float32
    assert got.shape == (*ids.shape, table.spec.dim)
    np.testing.assert_allclose(
        got.reshape(-1, table.spec.dim), naive.lookup(ids.reshape(-1), train_of(table)), atol=1e-5
    )
    np.testing.assert_array_equal(got, table.forward(ids).vectors)


@given(st.data())
def test_backward_equals_its_definition(data):
    table = data.draw(tables())
    ids = data.draw(strategies.ids(vocab=table.spec.vocab, shape=st.integers(0, 12)))
    grads = data.draw(strategies.float32_arrays((len(ids), table.spec.dim), -8, 8))
    expected = naive.backward(ids, grads, train_of(table))
    sparse, dense = table.backward(ids, grads), table.backward(table.forward(ids), grads, dense=True)
    bases = [len(g) for g in train_of(table)]
    for k, (name, array) in enumerate(table.parameters().items()):
        np.testing.assert_allclose(dense[name].reshape(-1), expected[k].reshape(-1), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(sparse[name].dense(), dense[name].reshape(-1))
        touched = [naive.digits(int(i), bases)[k] for i in ids]
        assert sorted(sparse[name].index.tolist()) == sorted(set(touched))
        assert sparse[name].size == array.size
        assert sparse[name].values.shape[1] == table.block_sizes()[name]


@given(tables(), st.integers(0, 2**32))
def test_differences_are_what_the_gradient_says(table, seed):
    """Vectors are linear in any one core, so a step of any length in it must change them by just the gradient's word."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, table.spec.vocab, 9)
    grads = rng.standard_normal((9, table.spec.dim))
    gradient = table.backward(ids, grads, dense=True)
    before = (table.lookup(ids).astype(np.float64) * grads).sum()
    for name, array in table.parameters().items():
        kept, step = array.copy(), rng.standard_normal(array.shape)
        array += step
        after = (table.lookup(ids).astype(np.float64) * grads).sum()
        array[:] = kept
        expected = (gradient[name].astype(np.float64) * step).sum()
        assert after - before == pytest.approx(expected, rel=1e-3, abs=1e-3)
        # <T, G> = <core, its gradient> for every core
        assert (gradient[name] * array).sum() == pytest.approx(before, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["num_params", "num_bytes"])
@given(
    vocab=st.integers(1, 2**48) | st.integers(1, 3000),
    dim=st.integers(1, 64),
    cores=st.integers(2, 6),
    budget=st.integers(1, 80_000),
)
def test_a_budget_is_kept_and_used(kind, vocab, dim, cores, budget):
    vocab = min(vocab, 4000 ** (cores - 1))  # so that a core of rank 1 is small enough to make
    make = {"method": "tt", "vocab": vocab, "dim": dim, "cores": cores}
    budget = min(budget, (1 if kind == "num_params" else 4) * vocab * dim)  # what is above has tests of its own
    try:
        table = cce.make_table(**make, **{kind: budget})
    except cce.BudgetError as error:
        least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
        assert least > budget
        if least > 10**6:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may be more than the full table
            table, budget = cce.make_table(**make, **{kind: least}), least
        with pytest.raises(cce.BudgetError):
            cce.make_table(**make, **{kind: least - 1})
    used = table.num_params if kind == "num_params" else table.ledger().total
    assert used <= budget
    ranks, sides = table.spec.sizes, [g.base * g.d for g in table.method.cores(table)]
    most = [min(math.prod(sides[:k]), math.prod(sides[k:])) for k in range(1, cores)]
    assert all(1 <= r <= m for r, m in zip(ranks, most, strict=True))
    free = [r for r, m in zip(ranks, most, strict=True) if r < m]
    if free:
        assert max(free) - min(free) <= 1
        assert max(ranks) <= min(free) + 1
        assert used * (1 + 1 / min(free)) > budget - 4  # 90 % from rank 9 on
    for name, array in table.parameters().items():
        assert array.dtype == np.float32
        assert table.block_sizes()[name] == array.shape[1]


@pytest.mark.parametrize(("dim", "cores", "size"), strategies.pairwise([1, 7, 32, 64], [2, 3, 4], [1, 4, 40]))
def test_first_vectors_have_the_same_norm_at_every_size(dim, cores, size):
    vocab = 500 if COMPILED else 100
    least = sum(v * d for v, d in zip(naive.radix(vocab, cores), naive.factors(dim, cores), strict=True))
    norms = []
    for seed in range(5):
        table = cce.make_table("tt", vocab, dim, num_params=size * least, cores=cores, seed=seed)
        norms.append(np.square(table.lookup(np.arange(vocab))).sum(1).mean() ** 0.5)
    assert 0.22 < np.mean(norms) < 0.28


@pytest.mark.parametrize("cores", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(cores, monkeypatch):
    monkeypatch.setattr(tensor_train, "_WORK", 100)  # so that slices are many
    n = 20_000 if COMPILED else 200  # compiled, more than are taken at once
    table = cce.make_table("tt", 3000, 12, num_params=3000, cores=cores, seed=3)
    rng = np.random.default_rng(0)
    ids, grads = rng.integers(0, 3000, n), rng.standard_normal((n, 12), np.float32)
    seen = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        found = [table.lookup(ids), *table.backward(ids, grads, dense=True).values()]
        for gradient in table.backward(table.forward(ids), grads).values():
            found += [gradient.index, gradient.values]
        seen.append(found)
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@given(tables(), st.integers(0, 2**32))
def test_a_large_batch_is_taken_in_parts(table, seed):
    rng = np.random.default_rng(seed)
    ids, grads = rng.integers(0, table.spec.vocab, 20), rng.standard_normal((20, table.spec.dim))
    whole = table.lookup(ids), table.backward(ids, grads, dense=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt_method, "IDS_PER_TREE", 7)
        np.testing.assert_array_equal(table.lookup(ids), whole[0])
        sparse, dense = table.backward(table.forward(ids), grads), table.backward(ids, grads, dense=True)
    for name in dense:
        np.testing.assert_allclose(dense[name], whole[1][name], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(sparse[name].dense(), dense[name].reshape(-1))


@pytest.mark.parametrize("width", [*range(1, 20), 31, 32, 37])
def test_small_products_exhaustively(width):
    rng = np.random.default_rng(width)
    for rows in (1, 2, 5):
        for inner in range(6):
            left, right = (
                rng.standard_normal((rows, inner), np.float32),
                rng.standard_normal((inner, width), np.float32),
            )
            for flat, down, along in ((left, inner, 1), (left.T, 1, rows)):
                for gap in (0, 3):  # between the rows of the product, and between those of the right matrix
                    wide, n = width + gap, 2 + rows * (width + gap) + 3
                    start = rng.standard_normal(n).astype(np.float32)
                    out, spread = start.copy(), np.full((inner, wide), 9, np.float32)
                    spread[:, :width] = right
                    source = np.concatenate([[7], flat.ravel()]).astype(np.float32)
                    o, a, b, *numbers = [np.uint64(x) for x in (2, 1, 1, wide, down, along, wide, rows, inner, width)]
                    step, down_, along_, apart, *shape = numbers
                    add_product(
                        out, o, step, source, a, down_, along_, np.append(np.float32(9), spread), b, apart, *shape
                    )
                    expected = start.copy()
                    part = expected[2 : 2 + rows * wide].reshape(rows, wide)[:, :width]
                    part += (left.astype(np.float64) @ right).astype(np.float32)
                    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
                    untouched = np.ones(n, bool)
                    untouched[2 : 2 + rows * wide].reshape(rows, wide)[:, :width] = False
                    np.testing.assert_array_equal(out[untouched], start[untouched])


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("cores", [2, 3, 4])
def test_save_and_load_give_the_same_bits(mmap, cores, tmp_path):
    table = cce.make_table("tt", 100, 16, num_params=2000, cores=cores, seed=2**64 - 1)
    table.save(tmp_path / "t")
    again = cce.load(tmp_path / "t", mmap=mmap)
    assert again.spec == table.spec
    assert again.parameters().keys() == {f"core{k}" for k in range(cores)}
    np.testing.assert_array_equal(table.lookup(np.arange(100)), again.lookup(np.arange(100)))
    if not mmap:
        for t in (table, again):
            cce.AdamW().update(t, [1, 2], np.ones((2, 16)))
        np.testing.assert_array_equal(table.lookup(np.arange(100)), again.lookup(np.arange(100)))


@pytest.mark.parametrize(
    "optimizer", [lambda: cce.SGD(0.1), lambda: cce.AdamW(0.01), lambda: cce.Adam(0.01, lazy=True)]
)
def test_training_brings_vectors_to_their_targets(optimizer):
    table, rng = cce.make_table("tt", 30, 8, num_params=10_000, seed=1), np.random.default_rng(0)
    ids, target, optimizer = np.arange(30), rng.standard_normal((30, 8), np.float32) / 4, optimizer()
    first = np.square(table.lookup(ids) - target).mean()
    for _ in range(300 if COMPILED else 60):
        seen = table.forward(ids)
        optimizer.update(table, seen, seen.vectors - target)
    assert np.square(table.lookup(ids) - target).mean() < first / 3


def test_seeds_differ_and_repeat():
    make = [cce.make_table("tt", 50, 8, num_params=256, seed=s).lookup(np.arange(50)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(make[0], make[1])
    assert not np.array_equal(make[0], make[2])


def test_no_two_ids_are_equal():
    vectors = cce.make_table("tt", 300, 8, num_params=200, seed=0).lookup(np.arange(300))
    assert len(np.unique(vectors, axis=0)) == 300


def test_an_empty_batch_is_an_empty_result():
    table = cce.make_table("tt", 10, 8, num_params=200)
    assert table.lookup([]).shape == (0, 8)
    for ids in ([], table.forward([])):
        for gradient in table.backward(ids, np.empty((0, 8))).values():
            assert len(gradient.index) == 0
            assert not gradient.dense().any()
        assert not any(g.any() for g in table.backward(ids, np.empty((0, 8)), dense=True).values())


@pytest.mark.parametrize("wrong", [-1, 10, 2**40, 2**63 - 1, -(2**63)])
def test_an_id_outside_is_named_with_its_position(wrong):
    table = cce.make_table("tt", 10, 8, num_params=400)  # its digits reach further than the vocabulary
    ids = np.zeros((3, 4), np.int64)
    ids[1, 2] = wrong
    for call in (table.lookup, lambda x: table.backward(x, np.zeros((3, 4, 8)))):
        with pytest.raises(IndexError, match=rf"id {wrong} at position \(1, 2\).*0 to 9"):
            call(ids)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cores": 1}, ValueError, "cores must be between 2 and 64, got 1"),
        ({"cores": 0}, ValueError, "cores must be between 2"),
        ({"cores": 3.0}, TypeError, "cores must be a whole number"),
        ({"cores": None}, TypeError, "cores must be a whole number"),
        ({"rank": 4}, ValueError, "takes no rank"),
        ({"codec": "int8"}, ValueError, "in float32"),
        ({"vocab": None}, ValueError, "method 'tt' needs a vocab"),
        ({"num_params": None}, ValueError, "needs a budget"),
        ({"num_params": 10}, cce.BudgetError, "the least that fits is 46 parameters"),
        ({"num_params": None, "num_bytes": 183}, cce.BudgetError, "the least that fits is 184 bytes"),
        ({"colour": "red"}, ValueError, "its own options are: cores"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cce.make_table(**{"method": "tt", "vocab": 100, "dim": 32, "num_params": 4096, **arguments})


def test_it_has_no_sketch():
    table = cce.make_table("tt", 100, 32, num_params=4096)
    with pytest.raises(ValueError, match="'tt' is not linear"):
        table.sketch_matrix()
    with pytest.raises(ValueError, match="'tt'"):
        table.cluster()
    assert "tt table: vocab 100" in repr(table)
