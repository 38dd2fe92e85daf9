"""The reader of files that needs NumPy alone: the library's bits, for every method, codec, phase and kind of id."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import serving_cases as cases
from campaigns.trial import many
from golden.make_tables import CASES, FOLDER, IDS
from hypothesis import given
from hypothesis import strategies as st
from reference import fused as naive

import cce_core as cce
from cce_core.serving import Reader, reader
from cce_core.storage.codec import CODECS

METHODS = [m.name for m in cce.methods()]
VECTORS = dict(np.load(FOLDER / "vectors.npz"))


# The library's bits


@pytest.mark.parametrize("method", METHODS)
def test_drawn_tables(method, tmp_path):
    """10,080 in a campaign: each codec, each option and each phase in turn, with drawn ids and bags."""
    codecs = CODECS if method in cases.LINEAR else ("float32",)
    for n in range(many(12, 480)):
        rng = np.random.default_rng([METHODS.index(method), n])
        codec = codecs[n % len(codecs)]
        table = cases.drawn(rng, method, codec, cases.PHASES[n % 3], n // len(codecs))
        cases.compared(rng, table, tmp_path / "table", cases.exact(table.spec), 2)


@pytest.mark.parametrize("name", CASES)
def test_files_of_the_first_version(name):
    found = Reader(FOLDER / f"{name}.safetensors", verify="all")
    table = cce.load(FOLDER / f"{name}.safetensors")
    if not name.startswith("dhe"):  # whose exponentials are each processor's own
        np.testing.assert_array_equal(found.lookup(IDS), VECTORS[name])
    cases.same(found.lookup(IDS), table.lookup(IDS), cases.exact(table.spec), name)


def test_a_tiered_table_says_of_every_id_what_the_library_says(tmp_path):
    """Owners, and the ids that share rows: also such as no training has met, and unknown strings."""
    table = cce.make_table("tiered", None, 8, num_bytes=3000, seed=3)
    rng = np.random.default_rng(0)
    for _ in range(10):
        cce.SGD(0.1).update(table, rng.zipf(1.3, 200), rng.standard_normal((200, 8)))
    ids = np.concatenate(
        [np.arange(200, dtype=np.uint64), rng.integers(0, 2**64, 200, np.uint64), np.array([0, 2**64 - 1], np.uint64)]
    )
    rows = table.owners.find(ids, 0)
    assert (rows >= 0).sum() > 20
    assert (rows < 0).sum() > 20
    found = cases.compared(rng, table, tmp_path / "table", cases.exact(table.spec))
    np.testing.assert_array_equal(
        found._indices(ids, 0, found._sketch.layout.terms[0])[:, 0][rows >= 0], rows[rows >= 0]
    )
    words = ["unknown", "é", ""]
    np.testing.assert_array_equal(found.lookup(words), found.lookup(cce.hash_strings(words)))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("num_bytes", [None, 6000, 3500])
def test_settled_ids_have_the_rows_that_the_library_gives_them(num_bytes, bits, tmp_path):
    """Owners, settled ids and all others, in a map that is folded little and much; also where owners have settled twice."""
    both = cce.make_collection("tiered", ["user", "item"], 8, num_bytes=9000, seed=3, bits=bits)
    rng, ids = np.random.default_rng(0), np.arange(400, dtype=np.uint64)
    for turn in range(2):
        for _ in range(8):
            cce.SGD(0.1).update(both, rng.zipf(1.3, (200, 2)) % 2**40, rng.standard_normal((200, 16)))
        both.cluster(num_bytes=num_bytes, bits=3)
        both.save(tmp_path / f"{turn}")
        found = Reader(tmp_path / f"{turn}", verify="all")
        for name in both.names:
            table = both[name]
            cases.same(found.lookup(ids, name), table.lookup(ids), cases.exact(both.spec), name)
        assert len(both.export()["settled"]) > 0
    for k in range(3):  # newcomers, in free rows
        cce.SGD(0.1).update(both, np.arange(40).reshape(20, 2) + 1000 * k, np.ones((20, 16)))
    both.save(tmp_path / "after")
    cases.same(
        Reader(tmp_path / "after").lookup(ids, "user"), both["user"].lookup(ids), cases.exact(both.spec), "after"
    )


def test_of_two_rows_that_may_be_an_owners_the_first_is_taken(tmp_path):
    """Every slot holds the fingerprint of one id."""
    table = cce.make_table("tiered", None, 8, num_bytes=3000, seed=4)
    cce.SGD(0.1).update(table, [5], np.ones((1, 8)))
    row, words = int(table.owners.find([5], 0)[0]), table.arrays()["pointers"]
    words.view(np.uint16)[:] = words.view(np.uint16)[row]
    found = cases.compared(np.random.default_rng(0), table, tmp_path / "table", cases.exact(table.spec))
    ids = np.array([5], np.uint64)
    assert found._indices(ids, 0, found._sketch.layout.terms[0]).item() == table.owners.find([5], 0).item()


def test_tables_of_one_file_have_names(tmp_path):
    both = cce.make_collection("tiered", ["user", "item"], 8, num_bytes=3000)
    for k in range(3):
        cce.SGD(0.1).update(both, np.arange(40).reshape(20, 2) + k, np.ones((20, 16)))
    both.save(tmp_path / "both")
    found = Reader(tmp_path / "both")
    assert found.names == ["user", "item"]
    for number, name in enumerate(found.names):
        cases.same(found.lookup([1, 2, -3], name), both[name].lookup([1, 2, -3]), cases.exact(both.spec), name)
        np.testing.assert_array_equal(found.lookup(7, name), found.lookup(7, number))
    with pytest.raises(KeyError, match="no table 'shop'; the tables are 'user', 'item'"):
        found.lookup(1, "shop")


def test_bags_without_lengths_are_the_rows_of_a_matrix(tmp_path):
    table = cce.make_table("cce", 100, 8, num_params=256, rank=0)
    table.save(tmp_path / "table")
    found, ids = Reader(tmp_path / "table"), np.arange(30).reshape(10, 3)
    np.testing.assert_array_equal(found.bags(ids), found.bags(ids.reshape(-1), lengths=[3] * 10))
    weights = np.linspace(-1, 1, 30).reshape(10, 3)
    expected = cce.Collection([table]).lookup(ids[:, None], weights=weights[:, None])
    cases.same(found.bags(ids, weights=weights), expected, True, "weights")


def test_a_coded_memory_is_decoded_as_a_whole_or_a_row_at_a_time(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    for method in ("pq", "robe", "cce_robe", "rhemb", "hnet", "vq"):
        for codec in CODECS[1:]:
            table = cases.drawn(rng, method, codec, "codes", 0)
            found = [cases.compared(rng, table, tmp_path / "table", cases.exact(table.spec))]
            with monkeypatch.context() as patch:
                patch.setattr(reader, "_DECODED", 0)
                found.append(cases.compared(rng, table, tmp_path / "table", cases.exact(table.spec)))
            assert found[0]._decoded is not None
            assert found[1]._decoded is None


def test_without_a_blas_that_adds_in_order_products_are_the_same(tmp_path, monkeypatch):
    rng, table = np.random.default_rng(2), cce.make_table("full", 300, 16, rank=8)
    table.save(tmp_path / "table")
    quick = Reader(tmp_path / "table").lookup(range(300))
    monkeypatch.setattr(reader, "_by_blas", lambda x, w, n: np.dot(x[:, n - 1 :: -1], w[n - 1 :: -1]))
    slow = Reader(tmp_path / "table")
    assert slow._lead == 0
    np.testing.assert_array_equal(slow.lookup(range(300)), quick)
    cases.compared(rng, table, tmp_path / "table", cases.exact(table.spec))


# Products


@given(st.integers(0, 2**32))
def test_products_round_every_step_once(seed):
    """Against fractions; also where float64 rounds a sum to a number halfway between two float32."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((4, 3)).astype(np.float32)
    right = rng.standard_normal((3, 5)).astype(np.float32)
    right *= np.float32(2.0) ** rng.integers(-20, 20, right.shape).astype(np.float32)
    left[0], left[1, 1] = rng.choice([1, 0, -0.0, -1, 3, 0.5], 3), 1
    same_bits(reader._fused(left[None], right[None])[0], naive.product(left, right))


def test_signs_of_zeros(tmp_path):
    """A sum begins at 0: it stays 0 with -0 · 1, and becomes -0 with a product below all floats."""
    tiny, one = np.full((1, 1, 1), 1e-30, np.float32), np.ones((1, 1, 2), np.float32)
    same_bits(reader._fused(tiny * np.float32(-0.0), one), one * 0)
    same_bits(reader._fused(-tiny, one * tiny), one * np.float32(-0.0))
    table = cce.make_table("full", 3, 16, rank=8)
    table.parameters()["memory"][:] = np.repeat([1e-30, 0, 1], 8)
    table.parameters()["projection"][:] = np.repeat([-1e-30, -0.0], [8, 1])[:, None]
    found = cases.compared(np.random.default_rng(0), table, tmp_path / "table", cases.exact(table.spec))
    same_bits(found.lookup([0, 1]), np.repeat(np.array([[-0.0], [0.0]], np.float32), 16, axis=1))


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_a_sum_beside_halfway_goes_to_where_it_lies():
    """1 + a·b / 2^70 with a·b nearly 2^46: to float64 it is halfway between two float32, whichever side it is on."""
    rng, sides = np.random.default_rng(0), set()
    while len(sides) < 8:
        a = int(rng.integers(2**22, 2**24))
        b = round(2**46 / a)
        if not 0 < abs(a * b - 2**46) < 2**17 or b >= 2**24:
            continue
        start, sign = 1 + rng.integers(2) * 2.0**-23, rng.choice([-1, 1])
        sides.add((a * b > 2**46, start, sign))
        left = np.array([[sign * start, sign * a * 2.0**-35]], np.float32)
        right = np.array([[1], [b * 2.0**-35]], np.float32)
        same_bits(reader._fused(left[None], right[None])[0], naive.product(left, right))


# Threads and processes


def test_threads_and_forks_give_the_same_vectors(tmp_path):
    table = cases.drawn(np.random.default_rng(0), "vq", "int8", "codes", 0)
    table.save(tmp_path / "table")
    found, ids = Reader(tmp_path / "table"), np.arange(table.spec.vocab)
    expected, got = found.lookup(ids), []

    def look() -> None:
        got.extend(np.array_equal(Reader.lookup(found, ids), expected) for _ in range(5))

    workers = [threading.Thread(target=look) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [True] * 20
    forked = [
        multiprocessing.get_context("fork").Process(target=look_and_exit, args=(found, ids, expected)) for _ in range(2)
    ]
    for child in forked:
        child.start()
    for child in forked:
        child.join(60)
        assert child.exitcode == 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).lookup(ids), expected)


def look_and_exit(found: Reader, ids: np.ndarray, expected: np.ndarray) -> None:
    os._exit(0 if np.array_equal(found.lookup(ids), expected) else 1)


def test_a_file_that_is_replaced_is_read_on_as_it_was(tmp_path):
    one, other = (cce.make_table("hash", 50, 4, num_params=80, seed=seed) for seed in (1, 2))
    one.save(tmp_path / "table")
    found = Reader(tmp_path / "table")
    other.save(tmp_path / "table")
    np.testing.assert_array_equal(found.lookup(range(50)), one.lookup(range(50)))
    np.testing.assert_array_equal(Reader(tmp_path / "table").lookup(range(50)), other.lookup(range(50)))
    assert not found.arrays["memory"].flags.writeable
