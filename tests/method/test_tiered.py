"""Tables for ids without end: against a dict of owners with plain gradient descent; bytes, files, threads and bad input."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tiered as naive

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.method import get_method
from cce_core.storage.codec import CODECS
from cce_core.tiers.policies import ADMISSIONS, EVICTIONS

DIM = 4
OPTIMISERS = {
    "sgd": lambda: cce.SGD(0.1),
    "momentum": lambda: cce.SGD(0.1, momentum=0.9),
    "adagrad": lambda: cce.Adagrad(0.1),
    "row-wise": lambda: cce.Adagrad(0.1, rowwise=True),
    "adamw": lambda: cce.AdamW(0.1),
    "lazy": lambda: cce.AdamW(0.1, lazy=True),
    "clipped": lambda: cce.Adam(0.1, max_norm=0.5),
}


def made(vocab=None, dim=DIM, num_bytes=600, rank=0, seed=0, **more):
    return cce.make_table("tiered", vocab, dim, num_bytes=num_bytes, rank=rank, seed=seed, **more)


def stream(n, size=40, seed=0):
    """Batches in which most ids come once."""
    rng = np.random.default_rng(seed)
    return [rng.zipf(1.3, size) % 2**40 for _ in range(n)]


def train(table, batches, optimiser=None):
    optimiser = cce.SGD(0.1) if optimiser is None else optimiser
    for ids in batches:
        seen = table.forward(ids)
        optimiser.update(table, seen, np.sin(seen.vectors + np.arange(table.spec.dim, dtype=np.float32)))
    return optimiser


def same(one, other):
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


# The definition


@pytest.mark.parametrize("way", ["table", "collection", "step", "dense"])
@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_training_is_that_of_the_definition(admission, eviction, way):
    """Vectors, owners and counts after every step, whichever way the gradient goes."""
    fold, bits = eviction != "lfu", 32 if admission == "duel" else 16
    settings = {
        "admission": admission,
        "eviction": eviction,
        "half_life": 4,
        "ttl": 2,
        "grace": 4 * (way == "step"),
        "lead": 1,
    }
    table = made(codec="float32", num_bytes=700, fold=fold, bits=bits, seed=3, **settings)
    (n,), policy = table.spec.sizes, table.owners.policy
    twin = naive.Tiered(n, table.owners.sketch.width, policy, table.stored.master().reshape(-1, DIM), bits, 3, fold)
    optimiser, both, moved = cce.SGD(0.1), cce.Collection([table]), 0
    for ids in stream(25 if COMPILED else 6):
        grads = np.random.default_rng(int(ids.sum() % 2**32)).standard_normal((len(ids), DIM)).astype(np.float32)
        np.testing.assert_allclose(table.lookup(ids), twin.lookup(ids.tolist()), rtol=1e-4, atol=1e-5)
        if way == "table":
            optimiser.update(table, table.forward(ids), grads)
        elif way == "collection":
            optimiser.update(both, both.forward(ids[:, None]), grads)
        else:
            optimiser.step(table, table.backward(ids, grads, dense=way == "dense"))
        moved += sum(change[3] > 0 for change in twin.step(ids.tolist(), grads, 0.1))
        assert table.arrays()["pointers"].tolist() == twin.owners.map.words()
        assert table.arrays()["own_counts"].tolist() == twin.owners.counts
        assert table.owners.sketch.mass == twin.owners.sketch.mass
        np.testing.assert_allclose(table.stored.master().reshape(-1, DIM), twin.values, rtol=1e-4, atol=1e-5)
    assert moved or not COMPILED


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_new_owners_have_a_state_of_their_own(name, codec):
    """Right after a step that gave rows away, what is known of these rows is nothing."""
    table, optimiser, given = made(codec=codec, half_life=3, lead=1), OPTIMISERS[name](), 0
    for ids in stream(12):
        before = table.owners.find(ids)
        train(table, [ids], optimiser)
        after = table.owners.find(ids)
        rows = np.unique(after[(before < 0) & (after >= 0)])
        given += len(rows)
        for state in optimiser.states_of_memory(table):
            by_row = state.reshape(table.layout.n_units, -1)
            assert not by_row[rows].any()
            assert by_row.any()
    assert given > table.spec.sizes[0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_collection_trains_as_its_tables_do(codec, rank):
    apart = [made(codec=codec, rank=rank, seed=seed, num_bytes=900) for seed in (1, 2)]
    together = [made(codec=codec, rank=rank, seed=seed, num_bytes=900) for seed in (1, 2)]
    both, one, other = cce.Collection(together), cce.Adagrad(0.1), cce.Adagrad(0.1)
    for ids in stream(6):
        seen = both.forward(np.stack([ids, ids[::-1]], 1))
        grads = np.cos(seen.vectors)
        one.update(both, seen, grads)
        for table, own, g in zip(apart, (ids, ids[::-1]), both.split(grads)):
            other.update(table, table.forward(own), np.ascontiguousarray(g))
    for table, twin in zip(together, apart):
        assert table.owners.digest() == twin.owners.digest()
        np.testing.assert_allclose(table.lookup(np.arange(50)), twin.lookup(np.arange(50)), rtol=1e-4, atol=1e-4)


# What is promised


def test_lookups_and_passes_count_nothing():
    table = made()
    train(table, stream(3))
    before = table.owners.digest()
    for ids in stream(3, seed=1):
        table.lookup(ids)
        table.forward(ids)
        cce.Collection([table]).lookup(ids[:, None])
    assert table.owners.digest() == before


def test_no_vector_jumps_at_admission():
    table, ids = made(codec="float32", num_bytes=3000), np.arange(20)
    before = table.lookup(ids)
    cce.SGD(0.0).update(table, ids, np.ones((20, DIM)))
    assert (table.owners.find(ids) >= 0).all()
    np.testing.assert_array_equal(table.lookup(ids), before)


def test_a_gradient_under_way_finds_the_row_that_its_id_has_by_then():
    """A forward pass is read again; a gradient that names rows is refused, once rows have changed hands."""
    table, ids = made(codec="float32"), np.arange(1000, 1020)
    seen, grads = table.forward(ids), np.ones((20, DIM), np.float32)
    sparse = table.backward(ids, grads)
    train(table, [ids])
    assert (table.owners.find(ids) >= 0).any()
    now, then = table.backward(ids, grads)["memory"], table.backward(seen, grads)["memory"]
    np.testing.assert_array_equal(now.dense(), then.dense())
    before = {name: array.copy() for name, array in table.arrays().items()}
    with pytest.raises(ValueError, match="rows that the table may have given to other ids"):
        cce.SGD(0.1).step(table, sparse)
    for name, array in before.items():
        np.testing.assert_array_equal(array, table.arrays()[name])
    cce.SGD(0.1).step(table, {"memory": now})


def test_gradients_that_are_not_finite_change_nothing():
    table, ids = made(codec="float32"), np.arange(10)
    both, before = cce.Collection([table]), {name: array.copy() for name, array in table.arrays().items()}
    bad = np.full((10, DIM), np.nan, np.float32)
    with pytest.raises(ValueError, match="finite"):
        cce.SGD(0.1).update(table, ids, bad)
    with pytest.raises(ValueError, match="finite"):
        cce.SGD(0.1).update(both, both.forward(ids[:, None]), bad)
    for name, array in before.items():
        np.testing.assert_array_equal(array, table.arrays()[name])


def test_several_backward_passes_before_a_step_all_count():
    one, other = made(codec="float32"), made(codec="float32")
    batches, grads = stream(3), np.ones((40, DIM), np.float32)
    parts = [one.backward(ids, grads)["memory"] for ids in batches]
    cce.SGD(0.1).step(one, {"memory": parts[0] + parts[1] + parts[2]})
    whole = np.concatenate(batches)
    cce.SGD(0.1).step(other, other.backward(whole, np.ones((120, DIM), np.float32)))
    assert one.owners.digest() == other.owners.digest()
    np.testing.assert_allclose(one.lookup(whole), other.lookup(whole), rtol=1e-5, atol=1e-6)


def test_every_id_is_legal():
    table, ids = made(num_bytes=2000), np.array([0, 1, -1, 2**63 - 1, -(2**63)])
    train(table, [ids] * 3)
    assert len(set(table.owners.find(ids).tolist())) == 5
    assert table.owners.find(ids).min() >= 0
    names = cce.hash_strings(["a", "b"])
    train(table, [names])
    assert table.lookup(names).shape == (2, DIM)


@pytest.mark.skipif(not COMPILED, reason="thousands of ids")
def test_frequent_ids_are_learned_where_a_hashed_table_of_the_same_bytes_mixes_them():
    """Each id has a vector of its own to be learned; most ids come once."""
    rng, errors = np.random.default_rng(0), {}
    hot = rng.integers(0, 2**62, 100)
    for method in ("tiered", "hash"):
        table, rng = (
            cce.make_table(method, None, 8, num_bytes=3000, codec="int8", rank=0, seed=0),
            np.random.default_rng(1),
        )
        optimiser = cce.Adagrad(0.3)
        for _ in range(150):
            ids = rng.permutation(np.concatenate([rng.choice(hot, 200), rng.integers(0, 2**62, 200)]))
            wanted = np.sin(ids[:, None] % 1009 * np.arange(1, 9)).astype(np.float32)
            seen = table.forward(ids)
            optimiser.update(table, seen, (seen.vectors - wanted) / 10)
        wanted = np.sin(hot[:, None] % 1009 * np.arange(1, 9))
        errors[method] = np.square(table.lookup(hot) - wanted).mean()
    assert errors["tiered"] < 0.1 * errors["hash"]


# Bytes


@given(
    dim=st.integers(1, 24),
    rank=st.sampled_from([0, 1, 3, "auto"]),
    codec=st.sampled_from(CODECS),
    bits=st.sampled_from([16, 32]),
    eviction=st.sampled_from(EVICTIONS),
    grace=st.sampled_from([0, 5]),
    budget=st.integers(1, 5000),
)
def test_a_budget_is_kept_and_used(dim, rank, codec, bits, eviction, grace, budget):
    rank = rank if rank == "auto" else min(rank, dim)
    more = {"dim": dim, "rank": rank, "codec": codec, "bits": bits, "eviction": eviction, "grace": grace}
    try:
        table = made(num_bytes=budget, **more)
    except cce.BudgetError as error:
        least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
        assert budget < least
        assert made(num_bytes=least, **more).ledger().total == least
        return
    (n,) = table.spec.sizes
    sizes = dim, table.spec.rank, codec, bits, eviction in ("lru", "ttl"), grace > 0
    assert table.ledger().total == naive.table_bytes(n, *sizes) <= budget < naive.table_bytes(n + 4, *sizes)
    assert table.ledger().total == sum(array.nbytes for array in table.arrays().values())
    train(table, stream(2))
    assert table.ledger().total == naive.table_bytes(n, *sizes), "not a byte more while training"


def test_training_holds_a_gradient_and_little_else():
    table = made(dim=32, rank=4, num_bytes=20_000)
    train(table, stream(5), cce.Adagrad(0.1, rowwise=True))
    training = table.ledger().training
    assert training["values"] == 0, "stochastic rounding keeps no floats between steps"
    assert training["optimiser"] == 4 * table.layout.n_units + 4 * 5
    assert training["newcomers"] <= 8 * 40


# Files, copies, threads


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_run_that_is_saved_in_the_middle_goes_on_with_the_same_bits(codec, eviction, tmp_path):
    table = made(
        codec=codec, rank=2, num_bytes=900, eviction=eviction, half_life=3, grace=4, ttl=2, admission="probability"
    )
    train(table, stream(5))
    table.save(tmp_path / "t")
    others = [copy.deepcopy(table), pickle.loads(pickle.dumps(table))]
    if codec != "int4":  # whose sixteenths of a step are kept while training and not saved
        others.append(cce.load(tmp_path / "t"))
    mapped = cce.load(tmp_path / "t", mmap=True)
    np.testing.assert_array_equal(mapped.lookup(np.arange(99)), table.lookup(np.arange(99)))
    with pytest.raises(ValueError, match="mapped read-only"):
        train(mapped, stream(1))
    train(table, stream(5, seed=1))
    for other in others:
        assert other.owners.digest() != table.owners.digest()
        train(other, stream(5, seed=1))
        same(table, other)
    assert mapped.owners.digest() == cce.load(tmp_path / "t").owners.digest()


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_threads_change_nothing(codec):
    found = []
    for threads in (1, 2, 8):
        cce.set_num_threads(threads)
        table = made(dim=16, rank=4, num_bytes=60_000, codec=codec, half_life=2)
        train(table, stream(4, 30_000), cce.Adagrad(0.1, rowwise=True))
        found.append([array.tobytes() for array in table.arrays().values()])
    assert found[0] == found[1] == found[2]


# With a vocabulary


def test_a_vocabulary_bounds_the_ids_and_gives_a_matrix():
    table = made(vocab=60, codec="float32", num_bytes=500)
    train(table, [np.arange(60) // 2, np.arange(20)])
    h, m, w = table.factors()
    np.testing.assert_allclose(h @ m @ w, table.lookup(np.arange(60)), rtol=1e-5, atol=1e-6)
    assert (table.owners.find(np.arange(60)) >= 0).sum() > 10
    with pytest.raises(IndexError, match="id 60 at position 0 is outside"):
        table.lookup([60])


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"admission": "coin"}, "admission must be one of duel, frequency, probability; got 'coin'"),
        ({"eviction": "fifo"}, "eviction must be one of"),
        ({"bits": 8}, "bits must be 16 or 32, got 8"),
        ({"half_life": 0}, "half_life must be between 1 and"),
        ({"num_bytes": 40}, "40 bytes are too few for 'tiered' .* the least that fits is"),
        ({"n_rows": 5}, "unknown option 'n_rows' for method 'tiered'"),
    ],
)
def test_bad_settings_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_bad_types_say_what_is_wrong():
    for options, message in (
        ({"fold": 2}, "fold must be True or False"),
        ({"lead": 1.5}, "lead must be a whole number"),
    ):
        with pytest.raises(TypeError, match=message):
            made(**options)
    with pytest.raises(TypeError, match="hash strings with cce_core.hash_strings"):
        made().lookup(["a"])


def test_files_whose_clock_is_wrong_are_refused(tmp_path):
    table = made()
    table.owners.sketch.clock[0] = -1
    table.save(tmp_path / "t")
    with pytest.raises(cce.FileFormatError, match="the step must be between 0 and"):
        cce.load(tmp_path / "t")


@pytest.mark.parametrize("sizes", [(), (4, 4), (6,), (0,), (2**31,)])
def test_sizes_of_no_table_are_refused(sizes):
    table = made()
    request = get_method("tiered")
    with pytest.raises(ValueError, match="one size|multiple of 4|must be between"):
        request.check_sizes(None, sizes)
    assert table.method.check_sizes(None, table.spec.sizes) is None


def test_the_name_says_what_was_chosen():
    assert repr(made()).startswith("<tiered table: vocab unbounded, dim 4, rank 0, 1 chunks, sizes (")
    assert list(itertools.islice((m.name for m in cce.methods() if m.owned), 2)) == ["tiered"]
