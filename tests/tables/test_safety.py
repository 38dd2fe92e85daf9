"""What must never corrupt memory, lose a table or go wrong in silence; each of these once did."""

from __future__ import annotations

import numpy as np
import pytest

import cce_core as cce
from cce_core.clustering import MiniBatchKMeans

RULES = {m.name: m for m in cce.methods()}


def make(method, vocab=50, dim=8, **more):
    budget = {"num_params": 1200} if RULES[method].budgeted else {}
    return cce.make_table(method, vocab, dim, **budget, **more)


def whole(gradients):
    return {n: g.dense() if isinstance(g, cce.SparseGradient) else np.ravel(g) for n, g in gradients.items()}


@pytest.mark.parametrize("method", RULES)
def test_a_forward_pass_belongs_to_its_table(method):
    with pytest.raises(ValueError, match="another table's"):
        make(method).backward(make(method, vocab=300).forward([200]), np.ones((1, 8)))


@pytest.mark.parametrize("method", RULES)
def test_a_forward_pass_from_before_a_step_gives_the_gradient_of_now(method):
    table, g = make(method, seed=1), np.ones((3, 8), np.float32)
    seen = table.forward([1, 2, 3])
    cce.SGD(0.5).update(table, [1, 2], np.ones((2, 8)))
    now, then = whole(table.backward([1, 2, 3], g)), whole(table.backward(seen, g))
    for name in now:
        np.testing.assert_array_equal(now[name], then[name])


@pytest.mark.parametrize("method", RULES)
def test_the_callers_ids_may_change_after_a_forward_pass(method):
    table, g, ids = make(method, seed=1), np.ones((3, 8), np.float32), np.array([1, 2, 3])
    expected, seen = whole(table.backward(ids, g)), table.forward(ids)
    ids[:] = 5_000_000
    got = whole(table.backward(seen, g))
    for name in expected:
        np.testing.assert_array_equal(expected[name], got[name])


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("dense", [False, True])
def test_every_gradient_fits_a_step(method, dense):
    one, other = make(method, seed=1), make(method, seed=1)
    cce.SGD(0.1).step(one, one.backward([1, 2], np.ones((2, 8)), dense=dense))
    cce.SGD(0.1).update(other, [1, 2], np.ones((2, 8)))
    np.testing.assert_allclose(one.lookup(np.arange(50)), other.lookup(np.arange(50)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([10**12], IndexError, r"must be in \[0, 10\)"),
        ([10], IndexError, r"must be in \[0, 10\)"),
        ([-1], IndexError, r"must be in \[0, 10\)"),
        ([1.0], TypeError, "one row of integers"),
        ([[1]], TypeError, "one row of integers"),
        ([True], TypeError, "one row of integers"),
        ([1, 1], ValueError, "names a unit twice"),
    ],
)
def test_the_index_of_a_sparse_gradient_is_checked(index, error, message):
    table = cce.make_table("full", 10, 4)
    before = table.lookup(np.arange(10))
    index = np.array(index)
    for optimizer in (cce.SGD(0.1), cce.Adagrad(), cce.Adam(lazy=True)):
        with pytest.raises(error, match=message):
            optimizer.step(table, {"memory": cce.SparseGradient(index, np.ones((index.size, 4), np.float32), 40)})
    np.testing.assert_array_equal(before, table.lookup(np.arange(10)))


@pytest.mark.parametrize("method", ["pq", "cce", "cce_robe", "sparse", "sparse2"])
def test_pointers_of_a_damaged_file_stay_inside_the_memory(method):
    table = make(method, seed=1)
    arrays = {name: array.copy() for name, array in table.arrays().items()}
    arrays["pointers"][:] = 2**64 - 1
    damaged = cce.Table(table.spec, arrays)
    rows = table.spec.sizes[0]
    assert rows & (rows - 1), "a power of two would show nothing"
    touched = damaged.backward(np.arange(50), np.ones((50, 8)))["memory"]
    assert touched.index.max() < touched.size // touched.values.shape[1]
    assert np.isfinite(damaged.lookup(np.arange(50))).all()


@pytest.mark.parametrize("method", RULES)
def test_gradients_that_add_up_to_infinity_change_nothing(method):
    table = make(method, seed=1)
    before = {name: array.copy() for name, array in table.arrays().items()}
    with pytest.raises(ValueError, match="gradient of .* must be finite"), np.errstate(all="ignore"):
        cce.SGD(1.0).update(table, [1, 1, 1, 1], np.full((4, 8), 3e38, np.float32))
    assert all(np.array_equal(before[name], array) for name, array in table.arrays().items())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: cce.Adagrad(0.1, eps=1e-60), lambda: cce.Adam(0.1, eps=1e-46), lambda: cce.SGD(1e300),
        lambda: cce.AdamW(1e3, weight_decay=1e37),
    ],
)  # fmt: skip
def test_numbers_that_float32_cannot_hold_are_refused(wrong):
    with pytest.raises(ValueError, match="float32 holds|at most 1"):
        wrong()


@pytest.mark.parametrize("method", ["hash", "bloom", "robe", "hnet"])
@pytest.mark.parametrize("signed", [2, "0", None, 1.0, 2**70])
def test_a_yes_or_no_is_true_or_false(method, signed):
    with pytest.raises(TypeError, match="signed must be True or False"):
        make(method, signed=signed)


@pytest.mark.parametrize("method", ["ce", "qr"])
def test_a_product_of_no_ids(method):
    table = make(method, combine="mul")
    assert table.lookup([]).shape == (0, 8)
    assert not whole(table.backward(table.forward([]), np.empty((0, 8))))["memory"].any()


def test_more_atoms_than_ids_are_refused_at_once():
    with pytest.raises(ValueError, match="n_atoms 2 must be at most the vocabulary's 1 ids"):
        make("sparse", vocab=1)


def test_a_mapped_table_cannot_be_settled(tmp_path):
    make("int8").save(tmp_path / "t")
    with pytest.raises(ValueError, match="mapped read-only"):
        cce.load(tmp_path / "t", mmap=True).requantize()


@pytest.mark.parametrize("scale", [1e30, 1e19, 1e-25])
def test_mini_batches_know_their_inertia_at_every_scale(scale):
    x = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    plain = MiniBatchKMeans(4, seed=1).fit(x)
    scaled = MiniBatchKMeans(4, seed=1).fit(x * np.float32(scale))
    right = np.square(x.astype(np.float64) * scale - scaled.cluster_centers_[scaled.labels_].astype(np.float64)).sum()
    assert scaled.inertia_ == pytest.approx(right, rel=1e-4)
    assert plain.inertia_ > 0
