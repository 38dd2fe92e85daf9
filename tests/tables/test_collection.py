"""Many tables and bags in one call, against table by table and row by row."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.bags import pooled, unpooled

import cce_core as cce
from cce_core._jit import COMPILED

VOCAB = 23
MAKERS = {
    "cce": lambda k: cce.make_table("cce", VOCAB, 8, num_params=120, n_chunks=2, rank=0, seed=k),
    "cce projected": lambda k: cce.make_table("cce", VOCAB, 12, num_params=160, n_chunks=2, rank=4, seed=k),
    "ldim": lambda k: cce.make_table("ldim", VOCAB, 6, num_params=120, seed=k),
    "full": lambda k: cce.make_table("full", VOCAB, 5, seed=k),
    "ce": lambda k: cce.make_table("ce", VOCAB, 8, num_params=60, seed=k),
    "product": lambda k: cce.make_table("ce", VOCAB, 4, num_params=80, n_chunks=2, combine="mul", seed=k),
    "robe": lambda k: cce.make_table("robe", VOCAB, 8, num_params=19, n_chunks=2, seed=k),
    "int8": lambda k: cce.make_table("full", VOCAB, 8, codec="int8", seed=k),
    "int4": lambda k: cce.make_table("full", VOCAB, 3, codec="int4", seed=k),
    "bfloat16": lambda k: cce.make_table("hash", VOCAB, 8, num_params=64, codec="bfloat16", seed=k),
    "signed": lambda k: cce.make_table("hash", VOCAB, 8, num_params=64, signed=True, seed=k),
    "hemb": lambda k: cce.make_table("hemb", VOCAB, 4, num_params=60, seed=k),
    "sparse": lambda k: cce.make_table("sparse", VOCAB, 4, num_params=60, seed=k),
    "tt": lambda k: cce.make_table("tt", VOCAB, 8, num_params=200, seed=k),
    "dhe": lambda k: cce.make_table("dhe", VOCAB, 4, num_params=400, seed=k),
    "hnet": lambda k: cce.make_table("hnet", VOCAB, 5, num_params=30, seed=k),
}
KINDS = st.lists(st.sampled_from(sorted(MAKERS)), min_size=1, max_size=4)


def collection(kinds):
    return cce.Collection([MAKERS[kind](k) for k, kind in enumerate(kinds)])


@st.composite
def bags(draw, n_tables):
    """Ids, lengths and an rng for each table."""
    rows = draw(st.integers(0, 6))
    lengths = [draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)) for _ in range(n_tables)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from([np.int64, np.int32, np.uint8, np.uint64]))
    ids = [rng.integers(0, VOCAB, sum(own)).astype(kind) for own in lengths]
    return ids, lengths, rng


@given(st.data(), KINDS)
def test_rows_are_those_of_the_tables(data, kinds):
    both = collection(kinds)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ids = rng.integers(0, VOCAB, (data.draw(st.integers(0, 300)), len(kinds)))
    expected = np.concatenate([t.lookup(ids[:, k]) for k, t in enumerate(both.tables)], axis=1)
    for given_ids in (ids, list(ids.T), np.asfortranarray(ids), ids.astype(np.uint8)):
        got = both.lookup(given_ids)
        assert got.dtype == np.float32
        assert got.shape == (len(ids), both.dim)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert [part.shape[1] for part in both.split(expected)] == [t.spec.dim for t in both.tables]


@given(st.data(), KINDS, st.sampled_from(["sum", "mean", "max"]), st.booleans(), st.booleans())
def test_bags_and_their_gradients_follow_the_plain_loops(data, kinds, mode, weighted, padded):
    both = collection(kinds)
    ids, lengths, rng = data.draw(bags(len(kinds)))
    weighted, padding = weighted and mode == "sum", 3 if padded else None
    weights = [rng.standard_normal(len(own)).astype(np.float32) for own in ids] if weighted else None
    seen = both.forward(ids, lengths=lengths, weights=weights, mode=mode, padding_id=padding)
    ends = [np.concatenate([[0], np.cumsum(own)]).astype(int) for own in lengths]
    again = both.lookup(ids, ends, weights, mode, padding_id=padding)
    np.testing.assert_array_equal(seen.vectors, again)
    grads = rng.standard_normal(seen.vectors.shape).astype(np.float32)
    gradients = both.backward(seen, grads)
    slopes = both.weight_gradients(seen, grads) if mode == "sum" else [None] * len(kinds)
    parts = zip(both.tables, both.split(seen.vectors), both.split(grads), gradients, slopes)
    for t, (table, got, grad, gradient, slope) in enumerate(parts):
        vectors, own = table.lookup(ids[t]), None if weights is None else weights[t]
        rows = pooled(vectors, ends[t], own, mode, padding, ids[t])
        np.testing.assert_allclose(got, rows, rtol=1e-4, atol=1e-5)
        of_ids, of_weights = unpooled(vectors, ends[t], own, mode, padding, ids[t], grad)
        expected = table.backward(ids[t], of_ids.astype(np.float32), dense=True)
        for name, value in expected.items():
            here = gradient[name]
            here = here.dense() if isinstance(here, cce.SparseGradient) else here
            np.testing.assert_allclose(here.reshape(-1), value.reshape(-1), rtol=1e-3, atol=1e-4)
        if slope is not None:
            np.testing.assert_allclose(slope, of_weights, rtol=1e-3, atol=1e-4)


@given(st.data(), st.none() | st.integers(0, 4))
def test_a_maximum_over_nan_is_nan(data, padding):
    """Wherever it stands in its bag, and its gradient goes to the first; infinities are numbers like others."""
    values = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 2.0])
    table = cce.make_table("full", vocab=5, dim=2)
    table.parameters()["memory"][:] = data.draw(st.lists(values, min_size=10, max_size=10))
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=4))
    ends = np.cumsum([0, *lengths])
    ids = np.array(data.draw(st.lists(st.integers(0, 4), min_size=sum(lengths), max_size=sum(lengths))), np.int64)
    one = cce.Collection([table])
    seen = one.forward([ids], [ends], mode="max", padding_id=padding)
    vectors = table.lookup(ids)
    want = pooled(vectors, ends, None, "max", padding, ids)
    np.testing.assert_array_equal(seen.vectors, want)
    of_ids, _ = unpooled(vectors, ends, None, "max", padding, ids, np.ones(want.shape))
    rows = np.zeros((5, 2))
    np.add.at(rows, ids, of_ids)
    got = one.backward(seen, np.ones(want.shape), dense=True)[0]["memory"]
    np.testing.assert_array_equal(got.reshape(5, 2), rows)


def test_results_do_not_depend_on_the_threads():
    both, rng = collection(["cce", "cce projected", "robe", "int8", "tt"]), np.random.default_rng(0)
    n = 20_000 if COMPILED else 300
    ids = rng.integers(0, VOCAB, (n, 5))
    lengths = [np.full(n // 4, 4)] * 5
    found = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        bag = both.forward(list(ids.T), lengths=lengths)
        found.append((both.lookup(ids), bag.vectors, both.backward(bag, bag.vectors, dense=True)[1]["memory"]))
    cce.set_num_threads(None)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_sums_of_ragged_bags_do_not_depend_on_the_threads(padded):
    """Nor do they where a bag is larger than what is looked up at a time."""
    both, rng = collection(["cce", "hemb", "robe", "int8"]), np.random.default_rng(0)
    lengths = rng.integers(0, 40, 15_000 if COMPILED else 40)
    lengths[[2, 17, 33]] = 300, 1100, 256
    ids = [rng.integers(0, VOCAB, lengths.sum()) for _ in both.tables]
    found = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        found.append(both.lookup(ids, lengths=lengths, padding_id=3 if padded else None))
    cce.set_num_threads(None)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    starts = np.append(0, np.cumsum(lengths))
    for table, part, own in zip(both.tables, both.split(found[0]), ids):
        for bag in (2, 16, 17, 18, 33, len(lengths) - 1):
            words = own[starts[bag] : starts[bag + 1]]
            expected = table.lookup(words[words != 3] if padded else words).astype(np.float64).sum(0)
            np.testing.assert_allclose(part[bag], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dim", "rank"), [(8, 4), (12, 4), (32, 12)])
def test_a_vector_has_the_same_bits_however_it_is_looked_up(dim, rank):
    """Alone, in a batch, or in a collection."""
    table = cce.make_table("cce", VOCAB, dim, num_params=VOCAB * dim, rank=rank, seed=1)
    alone = np.stack([table.lookup(i) for i in range(VOCAB)])
    np.testing.assert_array_equal(table.lookup(np.arange(VOCAB)), alone)
    np.testing.assert_array_equal(
        cce.Collection([table, table]).lookup(np.tile(np.arange(VOCAB)[:, None], 2))[:, dim:], alone
    )


def test_matrices_of_bags():
    both, rng = collection(["cce", "full"]), np.random.default_rng(1)
    ids = rng.integers(0, VOCAB, (4, 2, 3))
    expected = np.concatenate([t.lookup(ids[:, k]).sum(1) for k, t in enumerate(both.tables)], axis=1)
    np.testing.assert_allclose(both.lookup(ids), expected, rtol=1e-5, atol=1e-6)
    one = cce.Collection(both.tables[:1])
    flat = one.lookup(np.array([1, 2, 3]), offsets=[0, 1, 3])  # one table takes plain arrays
    np.testing.assert_allclose(flat[1], one.tables[0].lookup([2, 3]).sum(0), rtol=1e-5)


def test_a_table_may_come_twice():
    table = MAKERS["cce"](0)
    both, ids = cce.Collection([table, table]), np.array([[1, 2], [2, 1]])
    grads = np.ones((2, 16), np.float32)
    first, second = both.backward(ids, grads, dense=True)
    np.testing.assert_allclose(first["memory"], second["memory"])
    before = table.lookup([1, 2])
    cce.SGD(lr=0.5).update(both, both.forward(ids), grads)
    twin = MAKERS["cce"](0)
    cce.SGD(lr=0.5).update(twin, [1, 2, 2, 1], np.ones((4, 8)))
    np.testing.assert_allclose(table.lookup([1, 2]), twin.lookup([1, 2]), rtol=1e-5)
    assert not np.array_equal(before, table.lookup([1, 2]))


def test_copies_are_tables_of_their_own():
    both = collection(["cce projected", "full", "hemb"])
    ids = np.array([[1, 2, 3]])
    before = both.lookup(ids)
    for other in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        np.testing.assert_array_equal(other.lookup(ids), before)
        for table in other.tables:
            for array in table.parameters().values():
                array += 1
        np.testing.assert_array_equal(both.lookup(ids), before)
        assert not np.array_equal(other.lookup(ids), before)


def test_a_pass_outlives_the_callers_array_and_a_step():
    both = collection(["cce", "cce projected", "tt"])
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    seen, grads = both.forward(ids), np.ones((2, both.dim), np.float32)
    expected = both.backward(ids.copy(), grads, dense=True)
    ids[:] = 0
    for got, want in zip(both.backward(seen, grads, dense=True), expected):
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    for table in both.tables:  # a step: what was kept is out of date, and found again
        for array in table.parameters().values():
            array *= 2
        table.requantize()
    now = both.backward(np.array([[1, 2, 3], [4, 5, 6]]), grads, dense=True)
    for got, want in zip(both.backward(seen, grads, dense=True), now):
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
    both.tables[0].cluster()
    with pytest.raises(ValueError, match="clustered since"):
        both.backward(seen, grads)


BAD = {
    "not a table": (TypeError, "takes tables", lambda c: cce.Collection([1])),
    "none": (TypeError, "at least one", lambda c: cce.Collection([])),
    "too few columns": (ValueError, r"\(batch, 2\)", lambda c: c.lookup(np.zeros((3, 1), int))),
    "a flat array": (TypeError, "list of arrays", lambda c: c.lookup(np.zeros(3, int))),
    "a number": (TypeError, "list of arrays", lambda c: c.lookup(3)),
    "floats": (TypeError, "integers", lambda c: c.lookup(np.zeros((3, 2)))),
    "ragged": (ValueError, "as many ids", lambda c: c.lookup([[1], [1, 2]])),
    "deep": (ValueError, "flat", lambda c: c.lookup([[[1]], [[1]]])),
    "negative": (IndexError, "table 1: id -1 at position 1", lambda c: c.lookup(np.array([[0, 0], [0, -1]]))),
    "too large": (IndexError, f"table 0: id {VOCAB}", lambda c: c.lookup([[VOCAB], [0]])),
    "too large in a bag": (IndexError, "table 1: id 99", lambda c: c.lookup([[0], [1, 99]], lengths=[[1], [2]])),
    "falling offsets": (ValueError, "never fall", lambda c: c.lookup([[1, 2], [1, 2]], [0, 2, 1, 2])),
    "late offsets": (ValueError, "begin with 0", lambda c: c.lookup([[1, 2], [1, 2]], [1, 2])),
    "starts alone": (ValueError, "np.append", lambda c: c.lookup([[1, 2], [1, 2]], [0, 1])),
    "other lengths": (ValueError, "add up to 3", lambda c: c.lookup([[1, 2], [1, 2]], lengths=[1, 2])),
    "lengths that wrap round": (ValueError, "add up to", lambda c: c.lookup([[1], [1]], lengths=[2**62] * 4 + [1])),
    "offsets that wrap round": (
        ValueError,
        "never fall",
        lambda c: c.lookup([[1], [1]], [0, 2**62 + 1, -(2**62), 1]),
    ),
    "unsigned offsets that wrap round": (
        ValueError,
        "never fall",
        lambda c: c.lookup([[1], [1]], np.array([0, 2**62 + 1, 2**64 - 2**62, 1], np.uint64)),
    ),
    "negative length": (ValueError, "negative", lambda c: c.lookup([[1], [1]], lengths=[2, -1])),
    "other bags": (ValueError, "as many bags", lambda c: c.lookup([[1], [1]], lengths=[[1], [1, 0]])),
    "both": (ValueError, "not both", lambda c: c.lookup([[1], [1]], [0, 1], lengths=[1])),
    "float offsets": (TypeError, "integers", lambda c: c.lookup([[1], [1]], [0.0, 1.0])),
    "offsets a table": (ValueError, "one a table", lambda c: c.lookup([[1], [1]], [[0, 1]])),
    "a matrix with offsets": (ValueError, "flat arrays", lambda c: c.lookup(np.zeros((1, 2), int), [0, 1])),
    "one length": (TypeError, "lengths must be", lambda c: c.lookup([[1], [1]], lengths=1)),
    "one weight": (TypeError, "weights must come", lambda c: c.lookup([[1], [1]], weights=2.0)),
    "mode": (ValueError, "sum, mean, max", lambda c: c.lookup(np.zeros((1, 2), int), mode="median")),
    "weights of a mean": (
        ValueError,
        "mode 'sum'",
        lambda c: c.lookup([[1], [1]], weights=[[1.0], [1.0]], mode="mean"),
    ),
    "too few weights": (ValueError, "weights", lambda c: c.lookup([[1], [1]], weights=[[1.0]])),
    "NaN weights": (ValueError, "finite", lambda c: c.lookup([[1], [1]], weights=[[np.nan], [1.0]])),
    "padding": (ValueError, "one a table", lambda c: c.lookup([[1], [1]], padding_id=[1, 2, 3])),
    "float padding": (TypeError, "padding_id", lambda c: c.lookup([[1], [1]], padding_id=1.5)),
    "gradient's shape": (ValueError, "shape", lambda c: c.backward(np.zeros((2, 2), int), np.zeros((2, 3)))),
    "NaN gradient": (ValueError, "finite", lambda c: c.backward(np.zeros((1, 2), int), np.full((1, c.dim), np.nan))),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_teaches(name):
    kind, words, call = BAD[name]
    with pytest.raises(kind, match=words):
        call(collection(["cce", "full"]))


def test_another_collections_pass_is_refused():
    one, two = collection(["full"]), collection(["cce"])
    seen = one.forward(np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="another collection"):
        two.backward(seen, np.zeros((2, two.dim)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_padding_row_that_is_nan_counts_for_nothing(mode):
    tables = [cce.make_table("full", 5, 2, seed=t) for t in range(2)]
    tables[0].parameters()["memory"][2:4] = np.nan
    ids, lengths = [[0, 1, 1, 3, 1], [4, 0, 1]], [[3, 2, 0], [0, 1, 2]]
    both = cce.Collection(tables)
    got = both.lookup(ids, lengths=lengths, mode=mode, padding_id=1)
    expected = both.lookup([[0, 3], [4, 0]], lengths=[[1, 1, 0], [0, 1, 1]], mode=mode)
    np.testing.assert_array_equal(got, expected)
    seen = both.forward(ids, lengths=lengths, mode=mode, padding_id=1)
    touched = [sorted(g["memory"].index) for g in both.backward(seen, np.ones((3, 4)))]
    assert touched == [[0, 3], [0, 4]]
    with pytest.raises(IndexError, match="table 0: id 7 at position 3"):
        both.lookup([[0, 1, 1, 7, 1], [4, 0, 1]], lengths=lengths, mode=mode, padding_id=1)
