"""Readers that follow a tiered table by its deltas: the table's bits, in order, all or none."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import serving_cases as cases

import cce_core as cce
from cce_core.serving import FileFormatError, Reader
from cce_core.serving.reader import read_link
from cce_core.storage.files import load_arrays, save_arrays


def train(table, k):
    n = getattr(table, "dim", None) or table.spec.dim
    ids = np.random.default_rng(k).zipf(1.2, (300, n // table.spec.dim)) % 2**40
    cce.SGD(0.1).update(
        table, ids if ids.shape[1] > 1 else ids[:, 0], np.random.default_rng(k).standard_normal((300, n))
    )


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("codec", ["float32", "int8"])
@pytest.mark.parametrize("several", [False, True])
def test_a_reader_follows(tmp_path, codec, several, complete):
    if several:
        table = cce.make_collection("tiered", 2, 8, num_bytes=4000, codec=codec)
    else:
        table = cce.make_table("tiered", None, 8, num_bytes=4000, codec=codec)
    train(table, 0)
    table.save(tmp_path / "table")
    first = found = Reader(tmp_path / "table")
    signature, ids = table.signature(complete=complete), np.concatenate([np.arange(300), 2**40 + np.arange(50)])
    before = found.lookup(ids)
    for k in (1, 2, 3):
        train(table, k)
        delta = table.delta(signature)
        delta.save(tmp_path / f"delta{k}")
        assert read_link(tmp_path / f"delta{k}") == (found.spec, k, found.digest(complete), delta.child)
        signature, found = delta.signature, found.apply(tmp_path / f"delta{k}")
        for whole in {False, complete}:  # what training alone reads is not in other deltas
            assert found.digest(whole) == table.signature(complete=whole).digest
        for number in range(1 + several):
            expected = (table[number] if several else table).lookup(ids)
            cases.same(found.lookup(ids, number), expected, cases.exact(table.spec), k)
        assert found.apply(tmp_path / f"delta{k}") is found
    np.testing.assert_array_equal(first.lookup(ids), before)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).lookup(ids), found.lookup(ids))
    with pytest.raises(ValueError, match="apply those between first"):
        first.apply(tmp_path / "delta2")


def test_what_is_no_delta_of_the_table_is_refused(tmp_path):
    table, other = (cce.make_table("tiered", None, 8, num_bytes=n) for n in (4000, 5000))
    for one, name in ((table, "table"), (other, "other")):
        one.save(tmp_path / name)
        signature = one.signature()
        train(one, 1)
        one.delta(signature).save(tmp_path / f"{name}.delta")
    found, raw = Reader(tmp_path / "table"), (tmp_path / "table.delta").read_bytes()
    with pytest.raises(ValueError, match="of another table"):
        found.apply(tmp_path / "other.delta")
    with pytest.raises(FileFormatError, match="no delta"):
        found.apply(tmp_path / "table")
    for n in range(8 + int.from_bytes(raw[:8], "little"), len(raw), 97):
        (tmp_path / "bad").write_bytes(raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :])
        with pytest.raises(FileFormatError):
            found.apply(tmp_path / "bad")
    np.testing.assert_array_equal(found.apply(tmp_path / "table.delta").lookup(range(99)), table.lookup(range(99)))


@pytest.mark.parametrize("pages", [[0, 0], [1, 0], [-1, 0], [0, 10**6], [2**62, 2**62 + 1]], ids=str)
def test_pages_that_a_table_has_not_are_refused_before_they_are_copied(tmp_path, pages):
    table = cce.make_table("tiered", None, 8, num_bytes=4000)
    table.save(tmp_path / "table")
    signature = table.signature()
    train(table, 1)
    table.delta(signature).save(tmp_path / "delta")
    arrays, values = load_arrays(tmp_path / "delta")
    arrays |= {"memory pages": np.array(pages), "memory data": np.zeros(128 * len(pages), np.uint8)}
    save_arrays(tmp_path / "crafted", arrays, values)
    with pytest.raises(FileFormatError, match="pages of 'memory' are not in their order"):
        Reader(tmp_path / "table").apply(tmp_path / "crafted")
    for sequence in (0, "1", None, True):
        chain = {**values["delta"], "sequence": sequence}
        save_arrays(tmp_path / "crafted", arrays, {**values, "delta": chain})
        with pytest.raises(FileFormatError, match="no delta"):
            read_link(tmp_path / "crafted")
