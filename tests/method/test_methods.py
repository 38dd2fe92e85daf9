"""Tables against their naive twins, their matrices, their budgets, and what callers may hand in wrongly."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.method.block import BlockMethod
from cce_core.sketching import blocks
from cce_core.sketching.layout import HASH
from cce_core.storage.codec import CODECS

METHODS = [m.name for m in cce.methods() if isinstance(m, BlockMethod)]
BUDGETED = [m.name for m in cce.methods() if isinstance(m, BlockMethod) and m.budgeted]
HASHED = ["hash", "bloom", "hemb", "rhemb", "ce", "robe", "hnet"]
OPTIONS = {
    "hash": {"signed": [False, True]},
    "bloom": {"signed": [False, True], "n_hashes": [1, 2, 3]},
    "hnet": {"signed": [False, True]},
    "hemb": {"n_hashes": [1, 2, 3], "weights": ["shared", "independent", "flat", "concat"]},
    "rhemb": {"n_hashes": [1, 2]},
    "sparse": {"n_atoms": [1, 2], "weight_bits": [1, 3]},
    "sparse2": {"n_atoms": [1, 2]},
    "robe": {"signed": [False, True], "chunk_size": [None, 1]},
    "ce": {"combine": ["concat", "add", "mul"]},
    "qr": {"combine": ["concat", "add", "mul"]},
}


@st.composite
def tables(draw, methods=METHODS, linear=False, **fixed):
    method = draw(st.sampled_from(methods))
    chunks = draw(st.sampled_from([1, 2, 3, 4]))
    width = draw(st.integers(1, 5))
    rank = draw(st.sampled_from([0, chunks]))
    dim = chunks * width
    vocab = draw(st.integers(1, 60))
    options = {name: draw(st.sampled_from(values)) for name, values in OPTIONS.get(method, {}).items()}
    if options.get("combine") == "mul" and (chunks == 1 or linear):
        options["combine"] = "add"
    if options.get("n_atoms", 1) > min(rank or dim, vocab):  # two atoms want two floats, and two ids
        options["n_atoms"] = 1
    if options.get("weights") == "concat" and options["n_hashes"] >= (rank or dim):
        options["weights"] = "shared"
    budget = {}
    if method in BUDGETED:
        least = 4 * dim * (2 * vocab + 4) + (rank + 1) * dim
        budget = {"num_params": draw(st.integers(least, 3 * least))}
        if method == "cce" and draw(st.booleans()):  # its two codebooks may then differ
            budget = {"num_bytes": 4 * budget["num_params"]}
    return cce.make_table(
        method, vocab, dim, n_chunks=chunks, rank=None if method == "ldim" else rank, seed=draw(strategies.seeds),
        **budget, **options, **fixed,
    )  # fmt: skip


def spec_of(table):
    spec, buffers = table.spec, table.buffers()
    return {
        "vocab": spec.vocab, "inner": spec.inner, "n_chunks": spec.n_chunks, "sizes": spec.sizes,
        "options": dict(spec.options), "keys": buffers.get("keys", []), "words": buffers.get("pointers", []),
    }  # fmt: skip


def arrays_of(table):
    """The trained arrays as lookups read them: decoded, where there is a codec."""
    return {**table.parameters(), "memory": table.stored.decoded()}


def naive_lookup(table, ids):
    return naive.lookup(table.spec.method, np.asarray(ids).reshape(-1), arrays_of(table), **spec_of(table))


@given(st.data())
def test_lookup_equals_its_definition(data):
    table = data.draw(tables(codec=data.draw(st.sampled_from(CODECS))))
    ids = data.draw(strategies.ids(vocab=table.spec.vocab))
    expected = naive_lookup(table, ids)
    got = table.lookup(ids)
    assert got.dtype == np.float32
    assert got.shape == (*ids.shape, table.spec.dim)
    np.testing.assert_allclose(got.reshape(-1, table.spec.dim), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table.forward(ids).vectors, got)


@given(st.data())
def test_lookup_equals_the_matrices(data):
    table = data.draw(tables(linear=True, codec=data.draw(st.sampled_from(CODECS))))
    h, m, w = table.factors()
    ids = np.arange(table.spec.vocab)
    np.testing.assert_allclose(table.lookup(ids), (h @ m @ w)[ids], rtol=1e-5, atol=1e-6)
    assert (table.sketch_matrix() != h).nnz == 0
    if table.weight_sketch is None:
        assert abs(h).sum() == table.spec.vocab * (len(table.layout.columns) + bool(table.spec.rank))


def test_a_product_has_no_matrix():
    table = cce.make_table("ce", 10, 8, num_params=400, combine="mul")
    with pytest.raises(ValueError, match="'ce' is not linear"):
        table.sketch_matrix()


@given(st.data())
def test_backward_equals_its_definition_and_is_the_adjoint(data):
    table = data.draw(tables(codec=data.draw(st.sampled_from(CODECS))))
    ids = data.draw(strategies.ids(vocab=table.spec.vocab, shape=st.integers(0, 12)))
    grads = data.draw(strategies.float32_arrays((*ids.shape, table.spec.dim), -8, 8))
    expected = naive.backward(table.spec.method, ids, grads, arrays_of(table), **spec_of(table))
    sparse, dense = table.backward(ids, grads), table.backward(ids, grads, dense=True)
    seen = table.backward(table.forward(ids), grads, dense=True)
    assert set(dense) == set(expected) == set(table.parameters())
    for name in dense:
        np.testing.assert_allclose(dense[name], expected[name], rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(dense[name], seen[name])
        if isinstance(sparse[name], cce.SparseGradient):
            assert len(set(sparse[name].index.tolist())) == len(sparse[name].index)
            np.testing.assert_allclose(sparse[name].dense(), dense[name], rtol=1e-5, atol=1e-5)
    if table.method.is_linear(table.spec) and table.weight_sketch is None and not table.spec.rank:
        # <lookup(M), G> = <M, backward(G)>
        left = float((table.lookup(ids).astype(np.float64) * grads).sum())
        right = float((expected["memory"] * table.stored.decoded()).sum())
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3)


def test_a_forward_pass_is_not_taken_across_a_clustering():
    table = cce.make_table("cce", 60, 8, num_params=256, seed=1)
    seen = table.forward([1, 2])
    table.cluster()
    with pytest.raises(ValueError, match="clustered since"):
        table.backward(seen, np.ones((2, 8)))


@given(tables(), st.data())
def test_only_what_is_looked_up_is_touched(table, data):
    ids = data.draw(strategies.ids(vocab=table.spec.vocab, shape=st.integers(1, 3)))
    if table.weight_sketch is not None:
        return  # weights in the memory are touched too
    gradient = table.backward(ids, np.ones((*ids.shape, table.spec.dim)))["memory"]
    layout, words = table.layout, np.asarray(ids).astype(np.uint64).reshape(-1)
    at, inside = blocks.addresses(table.sketch, words), np.arange(layout.width)
    spans = [c.base + (at[:, j, None] - c.base + inside) % c.size for j, c in enumerate(layout.columns)]
    assert set(gradient.index.tolist()) == set((np.array(spans) // layout.unit).ravel().tolist())
    again = table.backward(ids, np.ones((*ids.shape, table.spec.dim)))["memory"]  # the scratch is as it was
    assert (gradient.index.tobytes(), gradient.values.tobytes()) == (again.index.tobytes(), again.values.tobytes())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_results_do_not_depend_on_the_number_of_threads(method, width, monkeypatch):
    n = 20_000 if COMPILED else 300
    monkeypatch.setattr(blocks, "_BLOCKS_A_THREAD", 50)
    budget = {"num_params": 40_000} if method in BUDGETED else {}
    table = cce.make_table(method, 1000, 4 * width, n_chunks=4, rank=2 if method == "ldim" else 0, seed=3, **budget)
    rng = np.random.default_rng(0)
    ids, grads = rng.integers(0, 1000, n), rng.standard_normal((n, 4 * width), np.float32)
    seen = []
    for threads in (1, 2, 3, 5):
        cce.set_num_threads(threads)
        sparse = table.backward(ids, grads)["memory"]
        seen.append((table.lookup(ids), table.backward(ids, grads, dense=True)["memory"], sparse.index, sparse.values))
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", BUDGETED)
@pytest.mark.parametrize("kind", ["num_params", "num_bytes"])
@given(data=st.data())
def test_a_budget_is_kept_and_used(method, kind, data):
    chunks = data.draw(st.sampled_from([1, 2, 4]))
    dim = chunks * data.draw(st.integers(1, 8))
    vocab = data.draw(st.integers(1, 3000))
    rank = data.draw(st.sampled_from([0, chunks]))
    if method in ("sparse", "sparse2"):
        dim, rank, vocab = 2 * dim, 2 * rank, max(2, vocab)  # two atoms want two floats, and two ids
    budget = data.draw(st.integers(1, min(60_000, vocab * dim * {"num_params": 1, "num_bytes": 4}[kind])))  # full's
    make = {"vocab": vocab, "dim": dim, "n_chunks": chunks, "rank": None if method == "ldim" else rank}
    if data.draw(st.booleans()):
        make["codec"] = data.draw(st.sampled_from(CODECS))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            table = cce.make_table(method, **make, **{kind: budget})
        except cce.BudgetError as error:
            least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
            assert least > budget
            table, budget = cce.make_table(method, **make, **{kind: least}), least
            with pytest.raises(cce.BudgetError):
                cce.make_table(method, **make, **{kind: least - 1})
    used = strategies.served(table).num_params if kind == "num_params" else strategies.served(table).ledger().total
    assert used <= budget
    if method == "ldim":
        a_row, full = 4 * (vocab + dim) + 64, table.spec.rank == dim  # the rank is a whole number
    else:
        a_row = 2 * dim * 4 + (vocab * max(chunks, 2) // 8 + 8)  # a row more in float32, or a bit more a pointer
        full = method in ("qr", "pq", "vq", "sparse", "sparse2") and table.spec.sizes[0] >= vocab
    if not (full or said):  # said: with pointers and keys the full table would be outgrown
        assert used >= min(0.9 * budget, budget - a_row)


@given(tables())
def test_the_ledger_is_the_arrays(table):
    if table.spec.codec == "float32":
        arrays = [*table.parameters().values(), *table.buffers().values()]
    else:  # the trained values stand beside the codes, which are among the buffers
        trained = [array for name, array in table.parameters().items() if name != "memory"]
        arrays = [*trained, *table.buffers().values()]
        assert table.ledger().training["values"] == table.parameters()["memory"].nbytes
    assert table.ledger().total == sum(a.nbytes for a in arrays)
    assert table.ledger().full == 4 * table.spec.vocab * table.spec.dim
    assert "table" in repr(table)


@pytest.mark.parametrize("n_chunks", [1, 4, 5, 6, 8])
@pytest.mark.parametrize("rows", [1, 2, 300, 900, 2049])
def test_pointers_of_any_size_are_followed(n_chunks, rows):
    """Those of an id fit in one word, just do not, or need several; the last id's end the file."""
    table = cce.Table(cce.TableSpec("cce", 37, n_chunks, 0, n_chunks, (rows,), 0))  # more rows than `make_table` gives
    packing, rng = table.method.packing(table.spec), np.random.default_rng(rows)
    chosen = rng.integers(0, rows, (37, n_chunks))
    words = packing.empty()
    for field in range(n_chunks):
        packing.write(words, field, 0, chosen[:, field])
    at = blocks.addresses(table.sketch._replace(pointers=words), np.arange(37, dtype=np.uint64))[:, ::2]
    bases = [column.base for column in table.layout.columns[::2]]
    np.testing.assert_array_equal(at, chosen + bases)


@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("num_bytes", [200, 1000, 2000, 4000, 20_000])
def test_pointers_take_at_most_half_of_a_budget_of_bytes(num_bytes, codec):
    """And what they leave over buys hashed rows, down to a table that is all hashed."""
    table = cce.make_table("cce", vocab=1000, dim=8, num_bytes=num_bytes, n_chunks=2, rank=0, codec=codec)
    rows, hashed = table.spec.sizes[0], table.spec.sizes[-1]
    stored = table.ledger().stored
    assert stored["pointers"] <= num_bytes / 2
    assert hashed == rows or 16 * (hashed - rows) >= rows
    if num_bytes == 200:
        assert rows == 1 < hashed
    if hashed > rows:  # one bit more an id and chunk would be too much, and so would one row
        bits = (rows - 1).bit_length()
        assert 2 * 1000 * (bits + 1) / 8 + 8 > num_bytes / 2
        assert table.ledger().total + (36 if codec == "float32" else 13) > num_bytes
    for ids in (np.arange(1000), np.arange(0)):
        assert table.lookup(ids).shape == (len(ids), 8)
    assert len(np.unique(table.lookup(np.arange(1000)), axis=0)) > min(hashed, 900)


def test_pointers_of_no_bits_cost_no_time():
    table = cce.make_table("cce", vocab=2**48, dim=32, num_bytes=100_000)  # to hash its ids would take years
    assert table.spec.sizes[0] == 1
    assert table.lookup([0, 2**48 - 1]).shape == (2, 32)


def test_a_million_ids_cost_four_bytes_of_pointers_each():
    table = cce.make_table("cce", 1_000_000 if COMPILED else 10_000, 32, num_params=256 * 64, n_chunks=4, rank=0)
    assert table.spec.sizes == (256,)
    assert table.ledger().stored["pointers"] == 4 * table.spec.vocab


@pytest.mark.once  # statistics of values that the twin gives in every environment
@pytest.mark.parametrize(
    ("method", "dim", "rank", "rows"), strategies.pairwise(METHODS, [4, 32, 64], [0, 4], [40, 400])
)
def test_first_vectors_have_the_same_norm_at_every_size(method, dim, rank, rows):
    norms = []
    for seed in range(10):
        budget = {"num_params": 2 * rows * (rank or dim) + (rank and (rank + 1) * dim)} if method in BUDGETED else {}
        if method == "ldim":
            budget = {"num_params": rows * (500 + dim)}
        table = cce.make_table(method, 500, dim, rank=None if method == "ldim" else rank, seed=seed, **budget)
        norms.append(np.square(table.lookup(np.arange(500))).sum(1).mean() ** 0.5)
    assert 0.18 < np.mean(norms) < 0.33


def test_seeds_differ_and_repeat():
    make = [cce.make_table("cce", 50, 8, num_params=256, seed=s).lookup(np.arange(50)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(make[0], make[1])
    assert not np.array_equal(make[0], make[2])


def test_addresses_are_frozen():
    """Files depend on these: a change needs a new version of the format."""
    table = cce.make_table("cce", 100, 8, num_params=512, n_chunks=2, rank=0, seed=7)
    assert table.spec.sizes == (32,)
    keys = [11693039690325709932, 2646848991610794870]
    assert table.buffers()["keys"].tolist() == keys
    expected = [[naive.bucket(i, key, 32) for key in keys] for i in range(5)]
    at = blocks.addresses(table.sketch, np.arange(5, dtype=np.uint64))
    hashed = [c for c in table.layout.columns if c.kind == HASH]
    got = [[int(at[i, 2 * c + 1] - hashed[c].base) // hashed[c].stride for c in range(2)] for i in range(5)]
    assert got == expected


@pytest.mark.parametrize("method", METHODS)
def test_an_id_outside_is_named_with_its_position(method):
    table = cce.make_table(method, 10, 8, **({"num_params": 400} if method in BUDGETED else {}))
    ids = np.zeros((3, 4), np.int64)
    for wrong in (-1, 10, 2**40, 2**63 - 1, -(2**63)):
        ids[1, 2] = wrong
        for call in (table.lookup, lambda x: table.backward(x, np.zeros((3, 4, 8)))):
            with pytest.raises(IndexError, match=rf"id {wrong} at position \(1, 2\).*0 to 9"):
                call(ids)


@pytest.mark.parametrize("method", HASHED)
def test_an_unbounded_table_takes_every_64_bit_id(method):
    table = cce.make_table(method, None, 8, num_params=400)
    ids = np.array([0, 1, 2**63 - 1, -1, -(2**63)])
    np.testing.assert_array_equal(table.lookup(ids), table.lookup(ids.astype(np.uint64)))
    assert table.ledger().ratio is None
    with pytest.raises(ValueError, match="unbounded"):
        table.sketch_matrix()


@pytest.mark.parametrize("bad", [1.5, [0.0], ["a"], None, [True]])
def test_ids_must_be_integers(bad):
    with pytest.raises(TypeError, match="ids must be integers"):
        cce.make_table("full", 10, 2).lookup(bad)


def test_an_empty_batch_is_an_empty_result():
    table = cce.make_table("cce", 10, 8, num_params=200, rank=4)
    assert table.lookup([]).shape == (0, 8)
    gradient = table.backward([], np.empty((0, 8)))
    assert not gradient["projection"].any()
    assert len(gradient["memory"].index) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_must_be_finite(bad):
    grads = np.zeros((2, 8))
    grads[1, 3] = bad
    with pytest.raises(ValueError, match=r"finite.*\(1, 3\)"):
        cce.make_table("ce", 10, 8, num_params=80).backward([1, 2], grads)


def test_gradients_must_have_the_vectors_shape():
    with pytest.raises(ValueError, match=r"shape \(2, 8\), got \(2, 7\)"):
        cce.make_table("ce", 10, 8, num_params=80).backward([1, 2], np.zeros((2, 7)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "nope"}, ValueError, "the methods are full, ldim"),
        ({"dim": 30}, ValueError, "dim 30 is not divisible by n_chunks 4"),
        ({"rank": 6}, ValueError, "rank 6 is not divisible by n_chunks 4"),
        ({"rank": 64}, ValueError, "rank must be between 0 and 32"),
        ({"rank": "much"}, ValueError, 'rank must be a whole number or "auto"'),
        ({"dim": 0}, ValueError, "dim must be at least 1"),
        ({"dim": 4.0}, TypeError, "dim must be a whole number"),
        ({"vocab": 0}, ValueError, "vocab must be between 1"),
        ({"vocab": None}, ValueError, "needs a vocab"),
        ({"seed": -1}, ValueError, "seed must be between"),
        ({"num_params": None}, ValueError, "needs a budget"),
        ({"num_params": 0}, ValueError, "num_params must be at least 1"),
        ({"num_params": 10}, ValueError, "the least that fits is"),
        ({"num_bytes": 10}, ValueError, "not both"),
        ({"colour": "red"}, ValueError, "unknown option 'colour'"),
        ({"codec": "int2"}, ValueError, "codec must be one of float32, bfloat16, int8, int4"),
        ({"rounding": "up"}, ValueError, "rounding must be one of straight-through, stochastic"),
        ({"method": "ce", "combine": "mean"}, ValueError, "combine must be one of concat, add, mul"),
        ({"method": "ce", "combine": "mul", "n_chunks": 1}, ValueError, "n_chunks of at least 2"),
        ({"method": "bloom", "n_hashes": 0}, ValueError, "n_hashes must be between 1 and 64"),
        ({"method": "robe", "chunk_size": 5}, ValueError, "chunk_size 5 must divide"),
        ({"method": "robe", "chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"method": "hemb", "weights": "none"}, ValueError, "weights must be one of"),
        ({"method": "hemb", "weights": "concat", "n_hashes": 32}, ValueError, "n_hashes below 32"),
        ({"method": "ldim", "num_params": 100}, ValueError, "the least that fits is 164 parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cce.make_table(**{"method": "cce", "vocab": 100, "dim": 32, "num_params": 4096, **arguments})


def test_options_may_be_numpys_numbers(tmp_path):
    table = cce.make_table("bloom", 50, 8, num_params=80, n_hashes=np.int64(3), signed=np.bool_(True))
    table.save(tmp_path / "t")
    assert cce.load(tmp_path / "t").spec == table.spec


def test_full_says_what_it_would_take():
    with pytest.raises(cce.BudgetError, match="800 parameters"):
        cce.make_table("full", 100, 8, num_params=799)


def test_arrays_of_the_callers_own():
    table = cce.make_table("ce", 100, 8, num_params=160)
    arrays = {**table.parameters(), **table.buffers()}
    other = cce.Table(table.spec, arrays)
    assert other.parameters()["memory"] is arrays["memory"]
    for spoiled in (
        {},
        {**arrays, "memory": arrays["memory"][:-1]},
        {**arrays, "memory": arrays["memory"].astype(float)},
    ):
        with pytest.raises(ValueError, match="arrays|must be"):
            cce.Table(table.spec, spoiled)


@given(strategies.words, st.integers(1, 2**32 - 1))
def test_the_short_range_reduction_is_the_long_one(word, n):
    from cce_core.hashing.mix import multiply_high, multiply_high_32

    a, b = np.uint64(word), np.uint64(n)
    assert int(multiply_high_32(a, b)) == int(multiply_high(a, b)) == word * n >> 64


NAMES = (
    *(
        "robe",
        "ce",
        "simple",
        "cce",
        "full",
        "tt",
        "cce_robe",
        "dhe",
        "bloom",
        "rhemb",
        "hnet",
        "ldim",
        "sparse",
        "sparse2",
    ),
    *("hemb_original", "hemb_flat", "hemb_indep", "hemb_optional"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_the_papers_own_code_make_tables(name):
    budget = {} if name == "full" else {"num_params": 6400}
    table = cce.make_table(name, 100, 32, **budget)
    assert table.lookup([1, 2]).shape == (2, 32)
    if name.startswith("hemb_"):
        kind = {"original": "shared", "flat": "flat", "indep": "independent", "optional": "concat"}[name[5:]]
        assert table.spec.option("weights") == kind
        name = "hemb"
        name = "hemb"
    assert table.spec.method == {"simple": "hash"}.get(name, name)
