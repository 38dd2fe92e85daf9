"""Vector quantisation: what is refused, what an interrupt leaves, and what threads see."""

from __future__ import annotations

import json
import threading
import tracemalloc

import numpy as np
import pytest
from vq_tables import DIM, IDS, VOCAB, arrays, made, same, trained

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.learning import pointers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": np.ones(VOCAB - 1)}, r"weights must have shape \(60,\)"),
        ({"weights": -np.ones(VOCAB)}, "at least 0 and not all 0"),
        ({"weights": np.zeros(VOCAB)}, "at least 0 and not all 0"),
        ({"weights": np.full(VOCAB, np.nan)}, "finite"),
        ({"vectors": np.ones((VOCAB - 1, DIM))}, "vectors must have shape"),
        ({"vectors": np.ones((VOCAB, DIM + 1))}, "vectors must have shape"),
        ({"vectors": np.full((VOCAB, DIM), np.inf)}, "finite"),
        ({"vectors": cce.make_table("full", VOCAB, DIM + 1)}, "vectors must be a table of vocab 60 and dim 8"),
        ({"max_bytes": 10}, "max_bytes must be at least"),
        ({"n_iter": 0}, "n_iter must be at least 1"),
    ],
)
def test_a_clustering_that_makes_no_sense_leaves_the_table_as_it_was(settings, message):
    table = trained()
    before, spec = arrays(table), table.spec
    with pytest.raises(ValueError, match=message):
        table.cluster(**settings)
    same(before, arrays(table))
    assert table.spec is spec


def test_a_phase_is_entered_from_the_other_alone(tmp_path):
    table = trained()
    with pytest.raises(ValueError, match="nothing to reopen: its ids have rows"):
        table.reopen()
    table.save(tmp_path / "t")
    with pytest.raises(ValueError, match="mapped read-only"):
        cce.load(tmp_path / "t", mmap=True).cluster()
    table.cluster()
    before = arrays(table)
    with pytest.raises(ValueError, match=r"in phase 'codes' and has no rows to cluster: reopen\(\)"):
        table.cluster()
    same(before, arrays(table))
    table.save(tmp_path / "t")
    with pytest.raises(ValueError, match="mapped read-only"):
        cce.load(tmp_path / "t", mmap=True).reopen()
    with pytest.raises(ValueError, match="method 'full' has no phases"):
        cce.make_table("full", 5, 2).reopen()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocab": None}, ValueError, "needs a vocab"),
        ({"num_bytes": 8}, cce.BudgetError, "the least that fits is"),
        # A bit per id is 12,500 bytes.
        ({"vocab": 100_000, "num_bytes": 12_000}, cce.BudgetError, "the least that fits is 12,"),
        ({"stages": 0}, ValueError, "stages must be between 1 and 16"),
        ({"stages": 1.5}, TypeError, "stages must be a whole number"),
        ({"phase": "dust"}, ValueError, "phase must be one of rows, codes"),
        ({"phase": 1}, TypeError, "phase must be one of rows, codes"),
        ({"rank": "some"}, ValueError, 'rank must be a whole number or "auto"'),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        made(**arguments)


@pytest.mark.parametrize(
    "edit", [{"phase": "dust"}, {"phase": None}, {"stages": 0}, {"sizes": [2**17]}, {"sizes": [1]}]
)
def test_a_file_of_another_phase_or_size_is_refused(edit, tmp_path):
    from edited_headers import joined, split

    made().save(tmp_path / "t")
    header, data = split((tmp_path / "t").read_bytes())
    spec = json.loads(header["__metadata__"]["spec"])
    spec |= {name: value for name, value in edit.items() if name == "sizes"}
    spec["options"] |= {name: value for name, value in edit.items() if name != "sizes"}
    header["__metadata__"]["spec"] = json.dumps(spec, sort_keys=True)
    (tmp_path / "t").write_bytes(joined(header, data))
    with pytest.raises(cce.FileFormatError):
        cce.load(tmp_path / "t", verify="header")


def test_pointers_of_a_damaged_file_stay_inside_the_centroids():
    table = trained(num_bytes=360)
    table.cluster()
    assert table.spec.sizes[0] & (table.spec.sizes[0] - 1), "a power of two would show nothing"
    found = arrays(table)
    found["pointers"][:] = 2**64 - 1
    assert np.isfinite(cce.Table(table.spec, found).lookup(IDS)).all()


def test_what_is_not_finite_is_not_clustered():
    table = trained(codec="float32")
    table.parameters()["memory"][5] = np.nan
    with pytest.raises(ValueError, match="rows must be finite"):
        table.cluster()
    assert table.phase == "rows"


def test_an_interrupted_clustering_leaves_the_table_as_it_was(monkeypatch):
    table = trained()
    before = arrays(table)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pointers, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.cluster()
    same(before, arrays(table))
    monkeypatch.undo()
    table.cluster()
    assert table.phase == "codes"


@pytest.mark.skipif(not COMPILED, reason="plain Python would see a few changes in a minute")
def test_lookups_beside_a_change_of_phase_see_the_table_whole():
    """Readers of a table and of a collection meet every phase; each finds the vectors from before or after a change."""
    table = trained(rank=4, num_bytes=700, stages=2)
    both, found, ended = cce.Collection([table]), [], threading.Event()

    def seen():
        return table.lookup(IDS).tobytes(), both.lookup(IDS[:, None]).tobytes()

    def read():
        while not ended.is_set():
            found.append(seen())

    known = [seen()]

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        table.cluster(n_iter=1, weights=np.ones(VOCAB))
        known.append(seen())
        table.reopen()
        known.append(seen())
    ended.set()
    for reader in readers:
        reader.join()
    assert len(set(known)) > 2
    for whole, got in zip(zip(*known), zip(*found)):  # of the table, of the collection
        assert set(got) <= set(whole)


@pytest.mark.skipif(not COMPILED, reason="what is small beside a large vocabulary takes hours in plain Python")
def test_memory_does_not_grow_with_the_vocabulary_times_dim():
    vocab, dim = 100_000, 64
    table = made(vocab=vocab, dim=dim, num_bytes=vocab // 2 + 20_000, rank=0)
    report = table.cluster(n_iter=1, points_per_centroid=16, batch_size=1024, max_bytes=1 << 22)
    assert report.scratch_bytes < vocab * dim  # a quarter of the full table
    assert table.ledger().training["cluster"] == report.scratch_bytes


@pytest.mark.skipif(not COMPILED, reason="a large vocabulary takes hours in plain Python")
def test_no_floats_are_made_of_all_rows_and_of_all_counters():
    """Measured the second time: the first compiles, and what that allocates is Python's too."""
    vocab = 1_000_000
    for _ in range(2):
        tracemalloc.start()
        table = made(vocab=vocab, dim=32, num_bytes=vocab // 2 + 2000, rank=4)
        making = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert making < table.ledger().total + 10_000_000  # parts of 4 MB; all rows are 16 MB in float32
    for turn in range(2):
        if turn:
            table.reopen()
        table.arrays()["counts"][:] = 1 + np.arange(vocab) % 9
        tracemalloc.start()
        report = table.cluster(n_iter=1, max_bytes=1 << 21)
        clustering = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert clustering < report.scratch_bytes + 500_000  # the roots of all counters are 4 MB in float32
