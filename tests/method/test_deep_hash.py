"""Deep Hash Embedding against its naive twin, finite differences, its budget, and what callers may hand in wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import dhe as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.method import deep_hash

TRANSFORMS = ("uniform", "gaussian")


@pytest.fixture(autouse=True, scope="module")
def _fewer_ids_to_scale_by_in_plain_python():
    with pytest.MonkeyPatch.context() as patch:
        if not COMPILED:
            patch.setattr(deep_hash, "_SAMPLE", 64)
        yield


def make(vocab=100, dim=8, num_params=600, **settings):
    return cce.make_table("dhe", vocab, dim, num_params=num_params, **settings)


@st.composite
def tables(draw, vocab=None):
    """Small tables; weights are scaled up so that Mish is seen away from 0."""
    transform, depth, dim = draw(st.sampled_from(TRANSFORMS)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    table = make(
        vocab, dim, draw(st.integers(60, 500)), transform=transform, depth=depth, seed=draw(strategies.seeds)
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    for name, array in table.parameters().items():
        array *= np.float32(draw(st.sampled_from([1.0, 3.0])))
        if name.startswith("b"):
            array += rng.standard_normal(array.shape, np.float32)
    return table


def expected(table, ids, arrays=None):
    spec = table.spec
    arrays = table.parameters() if arrays is None else arrays
    return naive.lookup(ids, arrays, spec.seed, spec.sizes[2], spec.option("transform"))


@given(st.data())
def test_lookup_equals_its_definition(data):
    vocab = data.draw(st.sampled_from([None, 1, 50]))
    table = data.draw(tables(vocab))
    shape = st.sampled_from([(), (0,), (3,), (2, 2)])
    ids = data.draw(strategies.ids(vocab=vocab, shape=shape))
    got = table.lookup(ids)
    assert got.dtype == np.float32
    assert got.shape == (*ids.shape, table.spec.dim)
    words = [int(i) % 2**64 for i in ids.reshape(-1)]
    np.testing.assert_allclose(got.reshape(-1, table.spec.dim), expected(table, words), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(table.forward(ids).vectors, got)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_features_are_the_papers_and_the_last_bits_of_ids_count(transform):
    ids = np.array([0, 1, 2**32, 2**63, 2**64 - 1, 2**64 - 2], np.uint64)
    table = make(None, n_hashes=64, transform=transform, seed=2**64 - 1)
    got = deep_hash.encode(table.spec, ids)
    want = [naive.encoding(int(i), 2**64 - 1, 64, transform) for i in ids]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)
    many = deep_hash.encode(table.spec, np.arange(500, dtype=np.uint64))
    assert abs(many.mean()) < 0.05
    assert many.var() == pytest.approx(1.0 if transform == "gaussian" else 1 / 3, rel=0.1)
    assert np.isfinite(many).all()
    if transform == "uniform":
        assert np.abs(many).max() <= 1


def test_gaussian_features_are_finite_at_the_ends_of_the_buckets():
    """The key whose hash of id 0 falls into the first bucket, and into the last, undone by hand: u = 1/m and u = 1."""

    def key_of(wanted):  # F is a bijection and 0 premixed is 0: take F back, step by step
        back = lambda x, by: x ^ x >> by if by == 32 else x ^ x >> 29 ^ x >> 58  # noqa: E731
        for factor, by in ((0x243F6A8885A308D3, 32), (0x9FB21C651E98DF25, 29), (0xD6E8FEB86659FD93, 32)):
            wanted = back(wanted, by) * pow(factor, -1, 2**64) % 2**64
        return wanted

    keys = np.array([key_of(0), key_of(0), key_of(2**64 - 1), key_of(2**64 - 1)], np.uint64)
    out = np.empty((1, 4), np.float32)
    deep_hash._gaussian(0, 1, np.zeros(1, np.uint64), keys, out)
    np.testing.assert_allclose(out[0], [np.sqrt(2 * np.log(1e6)), 0, 0, 0], rtol=1e-5, atol=1e-5)
    deep_hash._uniform(0, 1, np.zeros(1, np.uint64), keys, out)
    np.testing.assert_allclose(out[0], [-1, -1, 1, 1], atol=1e-6)


def test_mish_and_its_slope():
    z = np.concatenate([np.linspace(-100, 100, 2001), [-1e30, 1e30, 0.0, -0.0, 1e-20]]).astype(np.float32)
    got, slope = z.copy(), np.empty_like(z)
    deep_hash._mish(0, z.size, got, slope)
    x = z.astype(np.float64)
    want = np.array([naive.mish(v) for v in x])
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-12)
    t, sigma = np.tanh(np.logaddexp(0, x)), np.exp(-np.logaddexp(0, -x))
    np.testing.assert_allclose(slope, t + np.where(t < 1, x, 0) * (1 - t * t) * sigma, rtol=1e-5, atol=1e-6)
    spoiled = np.full(40, np.nan, np.float32)  # never a number that looks right
    deep_hash._mish(0, 40, spoiled, np.empty_like(spoiled))
    assert np.isnan(spoiled).all()


@given(st.data())
def test_backward_agrees_with_finite_differences_for_every_number(data):
    table = data.draw(tables(None))
    ids = np.array([3, 2**63, 3], np.uint64)  # one comes twice
    g = np.random.default_rng(0).standard_normal((3, table.spec.dim)).astype(np.float32)
    gradients = table.backward(table.forward(ids), g)
    assert gradients.keys() == table.parameters().keys()
    arrays = {name: array.astype(np.float64) for name, array in table.parameters().items()}
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape
        for at in rng.choice(array.size, min(array.size, 3), replace=False):
            sides = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved.flat[at] += step
                sides.append((expected(table, ids, {**arrays, name: moved}) * g).sum())
            slope = (sides[0] - sides[1]) / 2e-5
            assert gradients[name].flat[at] == pytest.approx(slope, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("kind", ["num_params", "num_bytes"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@given(data=st.data())
def test_a_budget_is_kept_and_used(kind, transform, data):
    dim, depth = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 4))
    budget, hashes = data.draw(st.integers(1, 200_000)), data.draw(st.sampled_from([None, 2, 64, 1024]))
    settings = {"transform": transform, "depth": depth, "n_hashes": hashes}
    try:
        table = cce.make_table("dhe", 2**40, dim, **settings, **{kind: budget})
    except cce.BudgetError as error:
        least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
        assert least > budget
        table, budget = cce.make_table("dhe", 2**40, dim, **settings, **{kind: least}), least
        with pytest.raises(cce.BudgetError):
            cce.make_table("dhe", 2**40, dim, **settings, **{kind: least - 1})
    k, width, _ = table.spec.sizes
    assert table.num_params == (k + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * dim
    assert table.ledger().total == 4 * table.num_params
    used = table.num_params if kind == "num_params" else table.ledger().total
    assert used <= budget
    wider = (k + 1) + (depth - 1) * (2 * width + 2) + dim  # what a unit of width more would cost
    assert used > budget - (4 if kind == "num_bytes" else 1) * wider
    if hashes is None and k < 1023:
        assert used > budget - (4 if kind == "num_bytes" else 1) * 2 * max(width, 2)
    if used > 20_000 and hashes is None:
        assert used >= 0.9 * budget
    assert hashes in (None, k)
    assert k <= 1024
    assert transform == "uniform" or k % 2 == 0


@given(st.data())
def test_first_vectors_have_the_same_norm_at_every_size(data):
    dim, depth = data.draw(st.sampled_from([1, 4, 32, 64])), data.draw(st.integers(1, 4))
    vocab = data.draw(st.sampled_from([None, 1, 7, 300, 10_000] if COMPILED else [1, 7, 60]))
    settings = {
        "transform": data.draw(st.sampled_from(TRANSFORMS)),
        "depth": depth,
        "seed": data.draw(strategies.seeds),
    }
    table = make(vocab, dim, data.draw(st.integers(300, 20_000 if COMPILED else 2000)), **settings)
    norms = np.square(table.lookup(np.arange(vocab or 2000))).sum(1)
    few = vocab is not None and vocab <= 600
    assert norms.mean() ** 0.5 == pytest.approx(0.25, rel=1e-4 if few else 0.2)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_results_do_not_depend_on_the_number_of_threads_or_on_what_is_kept(transform, monkeypatch):
    monkeypatch.setattr(deep_hash, "_GRAIN", 64)
    monkeypatch.setattr(deep_hash, "_BLOCK", 128)
    table = make(None, 8, 900, transform=transform)
    n = 1000 if COMPILED else 200
    rng = np.random.default_rng(0)
    ids, grads = rng.integers(0, 300, n), rng.standard_normal((n, 8), np.float32)
    seen = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        gradients = table.backward(ids, grads)
        seen.append([table.lookup(ids), *(gradients[name] for name in table.parameters())])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(deep_hash, "_BLOCK", 4096)  # in one block, from a forward pass: the same sums in another order
    whole = table.forward(ids)
    np.testing.assert_allclose(whole.vectors, seen[0][0], rtol=1e-5, atol=1e-6)
    gradients = table.backward(whole, grads)
    for name, b in zip(table.parameters(), seen[0][1:], strict=True):
        np.testing.assert_allclose(gradients[name], b, rtol=1e-4, atol=1e-4)


def test_seeds_differ_and_repeat():
    a, b, c = (make(seed=s).lookup(np.arange(100)) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert len(np.unique(a, axis=0)) == 100


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load_give_the_same_bits(transform, mmap, tmp_path):
    table = make(None, transform=transform, depth=3, seed=7)
    table.save(tmp_path / "t")
    again = cce.load(tmp_path / "t", mmap=mmap)
    assert again.spec == table.spec
    ids = np.array([0, -1, 2**62])
    np.testing.assert_array_equal(again.lookup(ids), table.lookup(ids))
    if mmap:
        with pytest.raises(ValueError, match="read-only"):
            cce.SGD(0.1).update(again, ids, np.ones((3, 8)))


def test_training_fits_vectors_that_are_asked_for():
    table, optimizer = make(None, 4, 800), cce.Adam(0.01)
    ids, target = np.arange(20), np.random.default_rng(0).standard_normal((20, 4))
    first = np.square(table.lookup(ids) - target).mean()
    for _ in range(300 if COMPILED else 30):
        seen = table.forward(ids)
        optimizer.update(table, seen, seen.vectors - target)
    assert np.square(table.lookup(ids) - target).mean() < first * (0.01 if COMPILED else 0.9)
    assert optimizer.state_bytes(table) == 2 * 4 * table.num_params


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rank": 4}, ValueError, "takes no rank"),
        ({"codec": "int8"}, ValueError, "float32"),
        ({"transform": "cauchy"}, ValueError, "transform must be one of uniform, gaussian; got 'cauchy'"),
        ({"transform": None}, TypeError, "transform must be one of"),
        ({"depth": 0}, ValueError, "depth must be between 1 and 64, got 0"),
        ({"depth": 1.5}, TypeError, "depth must be a whole number"),
        ({"depth": None}, TypeError, "depth must be a whole number"),
        ({"n_hashes": 0}, ValueError, "n_hashes must be between 1"),
        ({"n_hashes": 33, "transform": "gaussian"}, ValueError, "in pairs: n_hashes must be even, got 33"),
        ({"num_params": 10}, ValueError, r"vocab 100, dim 8.*the least that fits is 20 parameters"),
        ({"num_params": None}, ValueError, "needs a budget"),
        ({"width": 3}, ValueError, "unknown option 'width'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        cce.make_table("dhe", **{"vocab": 100, "dim": 8, "num_params": 600, **settings})


def test_ids_outside_and_gradients_that_do_not_fit_are_refused():
    table = make(10)
    with pytest.raises(IndexError, match="id 10 at position 1"):
        table.lookup([0, 10])
    with pytest.raises(ValueError, match="finite"):
        table.backward([0], np.full((1, 8), np.nan))
    with pytest.raises(ValueError, match="not linear"):
        table.factors()
    with pytest.raises(ValueError, match="does not learn"):
        table.cluster()
