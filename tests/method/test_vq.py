"""Vector quantisation: rows of their own while ids learn, one pointer per stage once they have settled, and back."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import tables as naive_tables
from reference import vq as naive
from vq_tables import DIM, IDS, VOCAB, arrays, made, same, trained

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.method import get_method
from cce_core.method.base import Request
from cce_core.storage import Packing, bits_for
from cce_core.storage.codec import CODECS
from cce_core.storage.codec import codec as get_codec
from cce_core.storage.counters import count, estimates

OPTIMISERS = {
    "sgd": lambda: cce.SGD(0.1),
    "momentum": lambda: cce.SGD(0.1, momentum=0.9),
    "adagrad": lambda: cce.Adagrad(0.1),
    "row-wise": lambda: cce.Adagrad(0.1, rowwise=True),
    "adamw": lambda: cce.AdamW(0.1),
    "lazy": lambda: cce.AdamW(0.1, lazy=True),
    "clipped": lambda: cce.Adam(0.1, max_norm=0.5),
}


def codebooks(table):
    """Pointers (stages, vocab) and centroids (stages, rows, inner) as they are stored."""
    (rows,), stages, spec = table.spec.sizes, table.spec.option("stages"), table.spec
    packing = Packing(spec.vocab, (bits_for(rows),) * stages)
    words = table.arrays()["pointers"]
    at = np.stack([packing.read(words, s, 0, spec.vocab) for s in range(stages)])
    return at, table.stored.decoded().reshape(stages, rows, spec.inner)


def projected(table, rows):
    w = table.arrays().get("projection")
    return rows if w is None else rows @ w[:-1] + w[-1]


# Sizes


@given(
    vocab=st.integers(1, 3000 if COMPILED else 40),
    dim=st.integers(1, 24),
    rank=st.sampled_from([0, 1, 3, "auto"]),
    stages=st.integers(1, 3),
    codec=st.sampled_from(CODECS),
    share=st.floats(0.001, 1.0),
)
def test_a_budget_of_bytes_is_that_of_the_codes_and_is_used(vocab, dim, rank, stages, codec, share):
    budget = max(1, int(share * 4 * vocab * dim))
    rank = rank if rank == "auto" else min(rank, dim)
    make = {"vocab": vocab, "dim": dim, "rank": rank, "stages": stages, "codec": codec}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = made(**make, num_bytes=budget)
        except cce.BudgetError as error:
            least = int(str(error).split("the least that fits is ")[1].split()[0].replace(",", ""))
            assert budget < least
            assert made(**make, num_bytes=least).ledger().clustered <= least
            return
    (rows,), then = table.spec.sizes, table.ledger().clustered
    sizes = vocab, dim, table.spec.rank, stages, codec
    if then > 4 * vocab * dim:
        return  # even the smallest outgrows the full table, and has said so
    assert rows == naive.most_rows(budget, *sizes)
    assert then == naive.code_bytes(rows, *sizes) <= budget
    assert table.ledger().total == naive.row_bytes(vocab, dim, table.spec.rank, codec)
    full, last = rows == min(vocab, 2**16), rows & (rows - 1) == 0
    a_row = naive.memory_bytes(stages * (table.spec.rank or dim), codec) + 8
    # Last: a row more would be a bit more for every id.
    assert full or last or then >= min(0.9 * budget, budget - a_row)
    table.cluster(n_iter=1)
    assert table.ledger().total == then


@given(st.integers(2, 500 if COMPILED else 40), st.sampled_from([0, 2]), st.integers(1, 3), st.integers(1, 4000))
def test_a_budget_of_parameters_is_that_of_the_codes(vocab, rank, stages, budget):
    make = {"vocab": vocab, "dim": 6, "rank": rank, "stages": stages, "num_bytes": None}
    floats, fixed = stages * (rank or 6), 6 * (rank + 1) if rank else 0
    budget = min(budget, 6 * vocab)  # the full table's: more is cut, with a warning
    if budget < 2 * floats + fixed:
        with pytest.raises(cce.BudgetError, match=f"the least that fits is {2 * floats + fixed} parameters"):
            made(**make, num_params=budget)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = made(**make, num_params=budget)
    rows, most = table.spec.sizes[0], min(vocab, (budget - fixed) // floats)
    table.cluster(n_iter=1)
    if rows == 2 and table.ledger().total > 4 * vocab * 6:
        return  # even the smallest outgrows the full table, and has said so
    assert table.num_params == rows * floats + fixed <= budget
    assert rows == most or table.ledger().total <= 4 * vocab * 6 < naive.code_bytes(
        rows + 1, vocab, 6, rank, stages, "int8"
    )


def test_more_rows_than_two_to_the_sixteenth_are_not_made():
    request = Request(
        200_000, 64, 0, 1, None, 40_000_000, {"phase": "rows", "stages": 1, "bits": 0, "share": True}, get_codec("int8")
    )
    assert get_method("vq").sizes(request) == (2**16,)


def test_rvq_is_vq_with_two_stages():
    table = cce.make_table("rvq", VOCAB, DIM, num_bytes=400)
    assert (table.spec.method, table.spec.option("stages")) == ("vq", 2)


def test_the_ledger_and_the_name_say_what_is_stored_and_what_will_be():
    table = made()
    now, then = table.ledger().total, table.ledger().clustered
    assert now == sum(array.nbytes for array in table.arrays().values())
    assert f"rows: {now:,} bytes" in repr(table)
    assert f"after cluster() {then:,}, {4 * VOCAB * DIM / then:.1f}x" in repr(table)
    assert "after cluster()" in str(table.ledger())
    both = table.ledger() + cce.make_table("full", 10, 4).ledger()
    assert both.clustered == then + 160
    table.cluster()
    assert (table.ledger().total, table.ledger().clustered) == (then, None)
    assert f"codes: {then:,} bytes" in repr(table)
    assert "after" not in repr(table) + str(table.ledger())


# The life of a table


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_every_small_table_lives_and_is_its_definition(codec, rank, stages, tmp_path):
    """Rows, codes, rows, codes: lookups are the definition's, files and copies are the table."""
    for vocab, dim in itertools.product((1, 2, 3, 7) if COMPILED else (1, 3), (2, 5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = made(vocab=vocab, dim=dim, rank=rank, stages=stages, codec=codec, num_bytes=4000)
        ids = np.arange(vocab)
        for phase in ("rows", "codes", "rows", "codes"):
            if table.phase != phase:
                table.cluster() if phase == "codes" else table.reopen()
            assert table.phase == table.spec.option("phase") == phase
            spec = {"vocab": vocab, "inner": rank or dim, "n_chunks": 1, "sizes": table.spec.sizes, "keys": []}
            spec |= {"options": dict(table.spec.options), "words": table.arrays().get("pointers", [])}
            read = {**table.parameters(), "memory": table.stored.decoded()}
            expected = naive_tables.lookup("vq", ids, read, **spec)
            np.testing.assert_allclose(table.lookup(ids), expected, rtol=1e-5, atol=1e-6)
            h, m, w = table.factors()
            np.testing.assert_allclose(table.lookup(ids), h @ m @ w, rtol=1e-5, atol=1e-6)
            table.save(tmp_path / "t")
            again = (cce.load(tmp_path / "t"), cce.load(tmp_path / "t", mmap=True), copy.deepcopy(table))
            for other in (*again, pickle.loads(pickle.dumps(table))):
                assert (other.spec, other.phase, repr(other)) == (table.spec, phase, repr(table))
                same(arrays(other), arrays(table))
                np.testing.assert_array_equal(other.lookup(ids), table.lookup(ids))
            first = (tmp_path / "t").read_bytes()
            again[0].save(tmp_path / "t")
            assert (tmp_path / "t").read_bytes() == first
            cce.Adam(0.1).update(table, ids, np.ones((vocab, dim)))


@given(st.sampled_from([0, 1, 4]), st.integers(0, 9), st.sampled_from(CODECS), st.sampled_from([150, 330, 700]))
def test_every_id_points_to_its_nearest_centroid(rank, seed, codec, num_bytes):
    """Nearest as vectors of dim floats, and among the centroids as they are stored."""
    table = trained(rank=rank, seed=seed, codec=codec, num_bytes=num_bytes + 4 * (rank + 1) * DIM * bool(rank))
    vectors = table.lookup(IDS)
    report = table.cluster()
    at, centroids = codebooks(table)
    _, least = naive.nearest(vectors, projected(table, centroids[0]))
    np.testing.assert_allclose(np.square(vectors - table.lookup(IDS)).sum(1), least, rtol=1e-3, atol=1e-4)
    assert report.empty_clusters == table.spec.sizes[0] - len(np.unique(at))
    assert report.inertia_after <= report.inertia_before


def test_as_many_centroids_as_ids_lose_nothing_but_the_rounding():
    table = trained(num_bytes=2000, rank=2, codec="float32")
    vectors = table.lookup(IDS)
    assert table.spec.sizes == (VOCAB,)
    assert table.cluster().inertia_after < 1e-9
    np.testing.assert_allclose(table.lookup(IDS), vectors, atol=1e-5)


def test_stages_cluster_what_those_before_leave_over():
    errors = []
    for stages in (1, 2, 3):
        table = trained(stages=stages, rank=0, codec="float32", num_bytes=None, num_params=4 * DIM * stages, seed=3)
        assert table.spec.sizes == (4, VOCAB)
        vectors, report = table.lookup(IDS), table.cluster(weights=np.ones(VOCAB))
        error = np.square(table.lookup(IDS) - vectors).sum(1).mean()
        assert report.inertia_after == pytest.approx(error, rel=0.2)  # ids are assigned stage by stage
        assert len(report.iterations) == stages
        errors.append(error)
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


@pytest.mark.parametrize("rank", [0, 4])
def test_it_learns_from_a_table_or_an_array(rank):
    teacher = cce.make_table("full", VOCAB, DIM, seed=5)
    vectors = teacher.lookup(IDS).astype(np.float64)
    tables = [made(num_bytes=700, rank=rank) for _ in range(2)]
    for table, given_ in zip(tables, (teacher, vectors)):
        table.cluster(vectors=given_)
        assert table.phase == "codes"
    same(*map(arrays, tables))
    error = np.square(tables[0].lookup(IDS) - vectors).sum(1).mean()
    spread = np.square(vectors - vectors.mean(0)).sum(1).mean()
    assert error < 0.85 * spread
    random = np.square(made(num_bytes=700, rank=rank, phase="codes").lookup(IDS) - vectors).sum(1).mean()
    assert error < random


@given(st.sampled_from([0, 3]), st.sampled_from(CODECS), st.integers(0, 9))
def test_a_table_that_is_opened_again_gives_what_it_gave(rank, codec, seed):
    table = trained(rank=rank, codec=codec, seed=seed, num_bytes=500, stages=1 + seed % 2)
    table.cluster()
    before, w = table.lookup(IDS), table.arrays().get("projection")
    generation = table.generation
    table.reopen()
    assert (table.phase, table.generation) == ("rows", generation + 1)
    assert table.arrays().get("projection") is w
    assert not table.arrays()["counts"].any()
    inner = table.stored.decoded().reshape(VOCAB, -1)
    off = {"float32": 0.0, "bfloat16": 2.0**-7, "int8": 1 / 127, "int4": 1 / 7}[codec] * np.abs(inner).max() * 0.51
    weight = 1.0 if w is None else np.abs(w[:-1]).sum(0).max()
    np.testing.assert_allclose(table.lookup(IDS), before, atol=off * weight + 1e-5)
    cce.Adam(0.1).update(table, IDS, np.ones((VOCAB, DIM)))
    table.cluster()
    assert table.phase == "codes"


def test_equal_seeds_and_any_number_of_threads_give_equal_tables():
    tables = []
    for threads in (1, 2, 3):
        cce.set_num_threads(threads)
        tables.append(trained(stages=2, num_bytes=500))
        tables[-1].cluster()
    same(arrays(tables[0]), arrays(tables[1]))
    same(arrays(tables[0]), arrays(tables[2]))


# Counters


@given(
    st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, 255), min_size=6, max_size=6), strategies.words
)
def test_counters_are_their_definition(ids, start, key):
    counts = np.array(start, np.uint8)
    count(counts, np.array(ids, np.uint64), key)
    assert counts.tolist() == naive.count(start, ids, key)
    np.testing.assert_allclose(estimates(counts), [naive.estimate(c) for c in counts], rtol=1e-5)


@pytest.mark.parametrize("times", [1, 3, 30, 1000] if COMPILED else [1, 3])
def test_counters_are_right_on_average(times):
    n = 2000 if COMPILED else 50
    counts = np.zeros(n, np.uint8)
    for turn in range(times):
        count(counts, np.arange(n, dtype=np.uint64), key=turn)
    found = estimates(counts).astype(np.float64)
    deviation = math.sqrt(times * (times - 1) / 32)
    assert abs(found.mean() - times) <= 5 * deviation / math.sqrt(n)
    assert found.std() <= 1.3 * deviation


def test_training_counts_ids_and_looking_up_does_not():
    table, ids, grads = made(), np.array([3, 3, 5]), np.ones((3, DIM))
    both, counts = cce.Collection([table, cce.make_table("full", 9, 2)]), lambda: arrays(table)["counts"]
    table.lookup(ids), table.forward(ids), both.forward(np.array([[1, 1]]))
    assert not counts().any()
    table.backward(table.forward(ids), grads)
    assert np.flatnonzero(counts()).tolist() == [3, 5]
    cce.SGD(0.1).update(table, [7], np.ones((1, DIM)))
    assert np.flatnonzero(counts()).tolist() == [3, 5, 7]
    seen = both.forward([[9, 11, 12], [1]], lengths=[[2, 1], [1, 0]], padding_id=[11, 0])
    cce.SGD(0.1).update(both, seen, seen.vectors)
    assert np.flatnonzero(counts()).tolist() == [3, 5, 7, 9, 12]  # padding is not met
    with pytest.raises(ValueError, match="finite"):
        table.backward([20], np.full((1, DIM), np.nan))
    assert counts()[20] == 0


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_step_of_a_collection_counts_once_and_is_the_tables_own(name, codec):
    alone, within = made(codec=codec, rank=2), made(codec=codec, rank=2)
    both, steps = cce.Collection([within]), [OPTIMISERS[name](), OPTIMISERS[name]()]

    def is_found():
        np.testing.assert_allclose(both.lookup(IDS[:, None]), within.lookup(IDS), rtol=1e-5, atol=1e-6)

    rng = np.random.default_rng(0)
    for phase in ("rows", "codes", "rows"):
        for _ in range(2):
            ids = rng.integers(0, VOCAB, 30)
            grads = rng.standard_normal((30, DIM)).astype(np.float32)
            steps[0].update(alone, ids, grads)
            steps[1].update(both, both.forward(ids[:, None]), grads)
            np.testing.assert_allclose(
                alone.lookup(IDS), within.lookup(IDS), rtol=1e-4, atol=1e-4 if codec == "float32" else 0.05
            )
            assert (
                alone.arrays().get("counts", np.zeros(1)).tolist()
                == within.arrays().get("counts", np.zeros(1)).tolist()
            )
            is_found()
        old = both.forward(IDS[:, None])
        for table in (alone, within):
            table.cluster() if phase == "rows" else table.reopen()
        is_found()
        with pytest.raises(ValueError, match="clustered since"):
            steps[1].update(both, old, old.vectors)


def test_ids_weigh_by_the_square_root_of_their_counts():
    tables = [trained(steps=20) for _ in range(3)]
    seen = estimates(tables[0].arrays()["counts"])
    assert seen.max() > 3 * seen.min() > 0
    tables[0].cluster()
    tables[1].cluster(weights=np.sqrt(seen))
    tables[2].cluster(weights=np.ones(VOCAB))
    same(arrays(tables[0]), arrays(tables[1]))
    assert not np.array_equal(tables[1].arrays()["memory"], tables[2].arrays()["memory"])


def test_training_goes_on_from_a_file_or_a_pickle(tmp_path):
    optimizer = cce.Adam(0.1)
    table = trained(optimizer=optimizer)
    other, its = pickle.loads(pickle.dumps((table, optimizer)))
    for one, steps in ((table, optimizer), (other, its)):
        steps.update(one, IDS, np.ones((VOCAB, DIM)))
        one.cluster()
        steps.update(one, IDS, np.ones((VOCAB, DIM)))
    same(arrays(table), arrays(other))
    whole = trained()
    whole.save(tmp_path / "t")
    loaded = cce.load(tmp_path / "t")
    whole.cluster(), loaded.cluster()
    same(arrays(whole), arrays(loaded))


def test_the_projection_keeps_its_moments_and_centroids_begin_anew():
    optimizer = cce.Adam(0.1)
    table = trained(steps=3, optimizer=optimizer)
    kept = optimizer.state_of(table, "projection").arrays["m"].copy()
    for change, size in ((table.cluster, table.spec.sizes[0]), (table.reopen, VOCAB)):
        change()
        np.testing.assert_array_equal(optimizer.state_of(table, "projection").arrays["m"], kept)
        assert optimizer.state_of(table, "memory").step == 0
        optimizer.update(table, IDS, np.zeros((VOCAB, DIM)))
        assert optimizer.state_of(table, "memory").arrays["m"].size == size * table.spec.inner
        kept = optimizer.state_of(table, "projection").arrays["m"].copy()
