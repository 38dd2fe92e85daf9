"""Tables with one memory: against dicts of owners with plain gradient descent, whichever way ids come; bytes, files, threads."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import tiered as naive
from reference.bags import pooled

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.storage.codec import CODECS

DIM = 4


def made(tables=3, dim=DIM, num_bytes=1500, rank=0, codec="float32", seed=0, **more):
    return cce.make_collection("tiered", tables, dim, num_bytes=num_bytes, rank=rank, codec=codec, seed=seed, **more)


def stream(n, tables=3, size=30, seed=0):
    """Batches in which most ids come once, and small ids in all tables."""
    rng = np.random.default_rng(seed)
    return [(rng.zipf(1.3, (size, tables)) % 2**40).astype(np.int64) for _ in range(n)]


def train(both, batches, optimiser=None):
    optimiser = cce.SGD(0.1) if optimiser is None else optimiser
    for ids in batches:
        seen = both.forward(ids)
        optimiser.update(both, seen, np.sin(seen.vectors + np.arange(both.dim, dtype=np.float32)))
    return optimiser


def same(one, other):
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


def twin_of(both):
    (n,), values = both.spec.sizes, both.shared.stored.master().reshape(-1, DIM)
    sizes = both.spec.option("bits"), both.spec.seed, both.spec.option("fold"), both.spec.n_tables
    return naive.Tiered(n, both.owners.sketch.width, both.owners.policy, values, *sizes)


# The definition


@pytest.mark.parametrize("way", ["update", "step", "dense"])
@pytest.mark.parametrize(
    ("bits", "admission", "fold"), [(16, "duel", True), (32, "probability", True), (16, "duel", False)]
)
def test_training_is_that_of_the_definition(way, bits, admission, fold):
    """Vectors, owners and counts after every step, of bags too."""
    both = made(bits=bits, admission=admission, half_life=4, lead=1, fold=fold, seed=3)
    twin, optimiser, moved = twin_of(both), cce.SGD(0.1), 0
    for k, ids in enumerate(stream(20 if COMPILED else 5)):
        columns = [ids[:, t].tolist() for t in range(3)]
        rng = np.random.default_rng(k)
        lengths = None if k % 2 else [rng.multinomial(30, np.full(10, 0.1)).tolist() for _ in range(3)]
        seen = both.forward(ids) if lengths is None else both.forward(columns, lengths=lengths)
        grads = rng.standard_normal(seen.vectors.shape).astype(np.float32)
        for t, part in enumerate(both.split(seen.vectors)):
            wanted = twin.lookup(columns[t], t)
            if lengths is not None:
                wanted = np.array([w.sum(0) for w in np.split(wanted, np.cumsum(lengths[t])[:-1])])
            np.testing.assert_allclose(part, wanted, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(both[t].lookup(columns[t]), twin.lookup(columns[t], t), rtol=1e-4, atol=1e-4)
        of_ids = both.split(grads)
        if lengths is not None:
            of_ids = [np.repeat(g, counts, axis=0) for g, counts in zip(of_ids, lengths)]
        if way == "update":
            optimiser.update(both, seen, grads)
        else:
            optimiser.step(both.shared, both.backward(seen, grads, dense=way == "dense")[0])
        moved += sum(change[3] > 0 for change in twin.step_all(columns, of_ids, 0.1))
        assert both.arrays()["pointers"].tolist() == twin.owners.map.words()
        assert both.arrays()["own_counts"].tolist() == twin.owners.counts
        assert both.owners.sketch.mass == twin.owners.sketch.mass
        np.testing.assert_allclose(both.shared.stored.master().reshape(-1, DIM), twin.values, rtol=1e-4, atol=1e-4)
    assert moved or not COMPILED


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_pooled_rows_and_their_gradients_are_those_of_the_tables_one_by_one(codec, rank, mode):
    """The adjoint: what a small step does to ⟨lookup, G⟩ is what the gradients say."""
    both, rng = made(codec=codec, rank=rank, num_bytes=2000), np.random.default_rng(0)
    train(both, stream(4))
    ids, ends = [rng.integers(0, 20, 12) for _ in range(3)], [0, 3, 3, 12]
    rows = both.lookup(ids, ends, mode=mode)
    for t, part in enumerate(both.split(rows)):
        wanted = pooled(both[t].lookup(ids[t]), ends, None, mode, None, ids[t])
        np.testing.assert_allclose(part, wanted, rtol=1e-4, atol=1e-4)
    grads = rng.standard_normal(rows.shape).astype(np.float32)
    (found,) = both.backward(both.forward(ids, ends, mode=mode), grads)
    memory, slope = both.shared.stored.decoded(), found["memory"].dense()
    assert np.isclose((rows * grads).sum(), slope @ memory + both_bias(both, found), rtol=1e-3, atol=1e-3)
    assert len(set(found["memory"].index.tolist())) == len(found["memory"].index)


def both_bias(both, found):
    """What the biases give to ⟨lookup, G⟩."""
    if not both.spec.rank:
        return 0.0
    rows = both.spec.rank + 1
    biases = both.arrays()["projection"].reshape(3, rows, -1)[:, -1]
    return (found["projection"].reshape(3, rows, -1)[:, -1] * biases).sum()


def test_the_ids_of_one_table_are_not_those_of_another():
    both = made(2)
    for _ in range(3):
        cce.SGD(0.1).update(both, np.array([[7, 8]]), np.ones((1, 8)))
    assert [both.owners.find([7, 8], t).tolist().index(-1) for t in (0, 1)] == [1, 0]
    assert both.owners.map.tables()[both.owners.find(7, 0)] == 0
    assert both.owners.map.tables()[both.owners.find(8, 1)] == 1


@pytest.mark.skipif(not COMPILED, reason="thousands of ids")
def test_rows_go_where_they_are_worth_most():
    """Of a table with few ids and one with many, met equally often, the few have rows, and the many have the rest."""
    both, rng = made(2, num_bytes=6000), np.random.default_rng(0)
    for _ in range(150):
        train(both, [np.stack([rng.integers(0, 20, 100), rng.integers(0, 4000, 100)], 1)])
    assert (both.owners.find(np.arange(20), 0) >= 0).all()
    owned = np.bincount(both.owners.map.tables() + 1, minlength=3)
    assert owned[1] == 20
    assert owned[2] > 0.9 * (both.spec.sizes[0] - 20)


@pytest.mark.skipif(not COMPILED, reason="a hundred thousand lookups")
@pytest.mark.parametrize("tables", [1, 4, 26])
def test_false_hits_are_as_stated(tables):
    """At most the stated rate, in a table that owns all rows too."""
    both = made(tables, dim=1, num_bytes=40_000)
    rng, table = np.random.default_rng(0), tables - 1
    both.owners.map.insert(rng.integers(0, 2**62, 4 * both.spec.sizes[0]), table)
    found = (both.owners.find(rng.integers(2**62, 2**63 - 1, 200_000), table) >= 0).mean()
    assert both.owners.map.false_hit_rate == pytest.approx(
        1 - (1 - 1 / (65_535 // tables)) ** (8 * both.owners.map.load)
    )
    assert abs(found - both.owners.map.false_hit_rate) < 5 * (both.owners.map.false_hit_rate / 200_000) ** 0.5
    for other in range(tables - 1):
        assert not (both.owners.find(rng.integers(0, 2**62, 2000), other) >= 0).any(), "of another table"


# Bytes


@given(
    tables=st.integers(1, 30),
    dim=st.integers(1, 20),
    rank=st.sampled_from([0, 1, 3]),
    codec=st.sampled_from(CODECS),
    bits=st.sampled_from([16, 32]),
    budget=st.integers(1, 20_000),
)
def test_a_budget_is_kept_and_used(tables, dim, rank, codec, bits, budget):
    rank = min(rank, dim)
    try:
        both = made(tables, dim, budget, rank, codec, bits=bits)
    except cce.BudgetError as error:
        least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
        assert budget < least
        assert made(tables, dim, least, rank, codec, bits=bits).ledger().total == least
        return
    (n,), sizes = both.spec.sizes, (dim, rank, codec, bits, False, False, tables)
    assert both.ledger().total == naive.table_bytes(n, *sizes) <= budget < naive.table_bytes(n + 4, *sizes)
    train(both, stream(1, tables))
    assert both.ledger().total == naive.table_bytes(n, *sizes) == sum(a.nbytes for a in both.arrays().values())


# Files, copies, threads


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_run_that_is_saved_in_the_middle_goes_on_with_the_same_bits(codec, tmp_path):
    both = made(["user", "item", "shop"], 8, 2500, 2, codec, admission="probability", half_life=3, grace=4)
    train(both, stream(5))
    both.save(tmp_path / "t")
    again, mapped = cce.load(tmp_path / "t"), cce.load(tmp_path / "t", mmap=True)
    others = [again, copy.deepcopy(both), pickle.loads(pickle.dumps(both))]
    assert again.names == ["user", "item", "shop"]
    ids = stream(1, seed=2)[0]
    np.testing.assert_array_equal(mapped.lookup(ids), both.lookup(ids))
    with pytest.raises(ValueError, match="mapped read-only"):
        train(mapped, stream(1))
    train(both, stream(5, seed=1))
    for other in others:
        assert other.owners.digest() != both.owners.digest()
        train(other, stream(5, seed=1))
        same(both, other)


@pytest.mark.skipif(not COMPILED, reason="small batches stay on one thread")
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_threads_change_nothing(codec):
    found = []
    for threads in (1, 2, 8):
        cce.set_num_threads(threads)
        both = made(3, 16, 60_000, 4, codec, half_life=2)
        train(both, stream(3, size=20_000), cce.Adagrad(0.1, rowwise=True))
        found.append([array.tobytes() for array in both.arrays().values()])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("optimiser", [cce.Adam(0.01), cce.AdamW(0.01, lazy=True), cce.Adagrad(0.1, max_norm=0.5)])
def test_every_optimiser_keeps_one_state_for_all_tables(optimiser):
    both = made(codec="int8", rank=2)
    train(both, stream(4), optimiser)
    train(pickle.loads(pickle.dumps(both)), stream(1), optimiser)
    floats = {array.size for array in optimiser.states_of_memory(both.shared)}
    assert floats <= {both.shared.layout.size, both.shared.layout.n_units}
    assert both.ledger().training["optimiser"] == optimiser.state_bytes(both.shared)


# Bad input


def test_gradients_that_are_not_finite_change_nothing():
    both, (ids,) = made(rank=2), stream(1)
    before = {name: array.copy() for name, array in both.arrays().items()}
    bad = np.full((30, both.dim), np.nan, np.float32)
    for call in (lambda: cce.SGD(0.1).update(both, ids, bad), lambda: both.backward(ids, bad)):
        with pytest.raises(ValueError, match="finite"):
            call()
    for name, array in before.items():
        np.testing.assert_array_equal(array, both.arrays()[name])


def test_a_gradient_of_rows_that_have_other_owners_is_refused():
    both, (ids,) = made(), stream(1)
    (gradients,) = both.backward(ids, np.ones((30, both.dim)))
    train(both, [ids])
    with pytest.raises(ValueError, match="rows that the table may have given to other ids"):
        cce.SGD(0.1).step(both.shared, gradients)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cce.make_collection("hash", 3, 8, num_bytes=900), ValueError, "tables of method 'hash' share nothing"),
        (lambda: made(["a", "a"]), ValueError, "names must be a JSON list of different names"),
        (lambda: made([1, 2]), TypeError, "tables must be a number, or names"),
        (lambda: made(True), TypeError, "tables must be a number, or names"),
        (lambda: made(0), ValueError, "tables must be at least 1"),
        (lambda: made(1025, num_bytes=10**6), ValueError, "tables must be between 1 and 1,024"),
        (lambda: made(num_bytes=50), cce.BudgetError, "50 bytes are too few for 'tiered'"),
        (lambda: made(["a", "b"])["c"], KeyError, "there is no table 'c'; the tables are 'a', 'b'"),
        (lambda: made(2)[2], KeyError, "there is no table 2"),
        (lambda: made(2).lookup(np.zeros((3, 4), int)), ValueError, r"ids must be a matrix \(batch, 2\)"),
        (lambda: cce.make_table("tiered", None, 8, num_bytes=900, tables=3), ValueError, "make_collection makes them"),
        (lambda: cce.Table(made(2).spec), ValueError, "several tables with one memory"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
