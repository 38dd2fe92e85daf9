"""cluster(): interrupts, threads, bounds on memory, and numbers of any size."""

from __future__ import annotations

import _thread
import dataclasses
import re
import threading
import time
import tracemalloc

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED
from cce_core.learning import codebooks


def arrays(table):
    return {k: v.copy() for k, v in {**table.parameters(), **table.buffers()}.items()}


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("turn", range(12))
def test_an_interrupt_at_any_moment_leaves_one_table_or_the_other(turn, monkeypatch):
    """Ctrl-C at moments that nobody chose, with chunks side by side: the table is as it was or wholly new."""
    monkeypatch.setattr(codebooks, "_APART", 0)
    monkeypatch.setattr(codebooks, "_LEAST_BATCH", 16)
    cce.set_num_threads(3)
    vocab = 4000 if COMPILED else 60
    table = cce.make_table("cce", vocab, 16, n_chunks=4, rank=0, num_params=2048 if COMPILED else 256, seed=3)
    before = arrays(table)
    twin = cce.Table(table.spec, arrays(table))
    started = time.perf_counter()
    twin.cluster(batch_size=64, n_iter=5)
    whole = time.perf_counter() - started
    timer = threading.Timer(whole * turn / 10, _thread.interrupt_main)
    try:
        timer.start()
        table.cluster(batch_size=64, n_iter=5)
        timer.join()
        time.sleep(0.01)  # where the interrupt came late it is raised here
        done = True
    except KeyboardInterrupt:
        done = table.generation == 1
    timer.join()
    for left in [t for t in threading.enumerate() if t.name.startswith("cce-chunk")]:
        left.join(30)  # it was interrupted while it was started, so nobody waited for it: it has been told to end
        assert not left.is_alive()
    assert same(arrays(twin) if done else before, arrays(table))
    table.cluster(batch_size=64, n_iter=5)  # no lock is left behind
    assert table.generation == 1 + done


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_an_error_in_a_chunk_beside_ends_them_all(fails_at, monkeypatch):
    monkeypatch.setattr(codebooks, "_APART", 0)
    cce.set_num_threads(4)
    table = cce.make_table("cce", 300, 16, n_chunks=4, rank=0, num_params=256, seed=3)
    before, calls, whole, here = arrays(table), [], codebooks.assign, threading.current_thread()

    def failing(*args):
        if threading.current_thread() is not here:
            calls.append(1)
            if len(calls) == fails_at:
                raise MemoryError("no room")
        return whole(*args)

    monkeypatch.setattr(codebooks, "assign", failing)
    with pytest.raises(MemoryError, match="no room"):
        table.cluster(batch_size=100)
    assert same(before, arrays(table))
    assert not [t for t in threading.enumerate() if t.name.startswith("cce-chunk")]


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_side_by_side_give_the_same_table(chunks, weighted, monkeypatch):
    vocab = 3000 if COMPILED else 100
    table = cce.make_table("cce", vocab, 12, n_chunks=chunks, rank=0, num_params=768, seed=5)
    weights = np.random.default_rng(0).integers(0, 5, vocab) if weighted else None
    seen, beside = [], set()
    for threads, apart in ((1, 1 << 60), (2, 0), (3, 0), (7, 0)):
        monkeypatch.setattr(codebooks, "_APART", apart)
        cce.set_num_threads(threads)
        twin = cce.Table(table.spec, arrays(table))
        reports = [twin.cluster(batch_size=700, weights=weights, points_per_centroid=20, n_iter=8) for _ in range(2)]
        seen.append((arrays(twin), [dataclasses.replace(r, seconds=0, scratch_bytes=0) for r in reports]))
        beside.add(min(threads, chunks) if apart == 0 else 1)
    assert len(beside) > 1 or chunks == 1
    assert all(same(seen[0][0], other[0]) and seen[0][1] == other[1] for other in seen[1:])


def test_two_threads_cluster_two_tables_or_the_same_one():
    made = [
        cce.make_table("cce", 2000 if COMPILED else 60, 8, n_chunks=2, rank=0, num_params=512, seed=s) for s in (1, 2)
    ]
    expected = []
    for table in (*made, made[0]):
        twin = cce.Table(table.spec, arrays(table))
        for _ in range(2 if len(expected) == 2 else 1):
            twin.cluster()
        expected.append(arrays(twin))
    shared = cce.Table(made[0].spec, arrays(made[0]))
    jobs = [threading.Thread(target=t.cluster) for t in (*made, shared, shared)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert all(same(arrays(t), e) for t, e in zip((*made, shared), expected))
    assert shared.generation == 2


@pytest.mark.skipif(not COMPILED, reason="plain Python makes arrays of its own in every loop")
@pytest.mark.parametrize(("side", "given_vectors"), [(1, False), (3, True)])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cce", {"n_chunks": 4, "rank": 0, "num_params": 4096}),
        ("cce", {"n_chunks": 2, "rank": 0, "num_params": 65_536}),
        ("cce", {"rank": 4, "num_params": 8192, "codec": "int8"}),
        ("pq", {"n_chunks": 16, "num_params": 4096}),
        ("cce_robe", {"n_chunks": 4, "num_params": 2048}),
        ("sparse", {"num_params": 2048}),
        ("sparse2", {"num_params": 2048}),
    ],
)
def test_extra_memory_is_what_the_ledger_says(method, options, given_vectors, side, monkeypatch):
    """NumPy tells tracemalloc of every array, so a peak that is above what is reported shows."""
    monkeypatch.setattr(codebooks, "_APART", 0)
    cce.set_num_threads(side)
    vocab, dim = 20_000, 16
    table = cce.make_table(method, vocab, dim, seed=1, **options)
    counts = np.random.default_rng(0).integers(0, 9, vocab)
    settings = {"weights": counts if side == 1 else None, "n_iter": 2}
    if given_vectors:
        settings["vectors"] = np.random.default_rng(1).normal(size=(vocab, dim))
    own = sum(a.nbytes for a in table.arrays().values())
    for max_bytes in (1 << 29, 1 << (25 if method.startswith("sparse") else 23)):
        for _ in range(2):  # what is compiled, at the first start or at a warm one, is not scratch
            table.cluster(max_bytes=max_bytes, points_per_centroid=60, **settings)
        tracemalloc.start()
        report = table.cluster(max_bytes=max_bytes, points_per_centroid=60, **settings)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= report.scratch_bytes == table.ledger().training["cluster"]
        memory = 12 * table.layout.size  # new values, and with a codec the old ones, and the new ones coded
        assert report.scratch_bytes <= max_bytes + own + memory


def test_a_small_max_bytes_takes_fewer_points_and_says_when_it_is_too_few():
    vocab = 5000 if COMPILED else 1500
    table = cce.make_table("cce", vocab, 8, n_chunks=2, rank=0, num_params=1024, seed=2)
    start, seen = arrays(table), []
    for max_bytes in (1 << 29, 300_000):
        twin = cce.Table(table.spec, {k: v.copy() for k, v in start.items()})
        seen.append(twin.cluster(max_bytes=max_bytes, n_iter=5))
        assert seen[-1].inertia_after <= seen[-1].inertia_before
    assert seen[1].scratch_bytes < 300_000 + sum(a.nbytes for a in start.values()) < seen[0].scratch_bytes
    with pytest.raises(
        ValueError, match=r"max_bytes must be at least [\d,]+ for 64 clusters of width 4, got 1,000"
    ) as e:
        table.cluster(max_bytes=1000)
    assert same(start, arrays(table))
    least = int(re.search(r"least ([\d,]+)", str(e.value))[1].replace(",", ""))
    table.cluster(max_bytes=least, n_iter=2)
    with pytest.raises(ValueError, match="max_bytes"):
        table.cluster(max_bytes=least - 1)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("method", ["cce", "pq", "cce_robe", "sparse"])
def test_numbers_of_any_size_are_safe(method, scale):
    vocab = 200
    table = cce.make_table(method, vocab, 8, num_params=256, seed=1, **({"rank": 0} if method == "cce" else {}))
    vectors = np.random.default_rng(0).uniform(-1, 1, (vocab, 8)) * scale
    vectors[::7] = vectors[0]
    vectors[5] = 0
    if method == "sparse" and scale > 1e38:  # a weight times an atom of length 1
        before = arrays(table)
        with pytest.raises(ValueError, match="needs a weight beyond float32"):
            table.cluster(vectors=vectors)
        assert same(before, arrays(table))
        return
    report = table.cluster(vectors=vectors, residual=False)
    assert np.isfinite(table.lookup(np.arange(vocab))).all()
    assert np.isfinite([report.inertia_before, report.inertia_after]).all()


def test_a_vocabulary_of_one_id():
    for method, options in (("cce", {}), ("pq", {}), ("cce_robe", {}), ("sparse", {"n_atoms": 1})):
        table = cce.make_table(method, 1, 8, num_params=64, **options)
        for _ in range(2):
            report = table.cluster(weights=[3])
            assert report.empty_clusters >= 0
            assert np.isfinite(table.lookup([0])).all()


def test_the_bar_counts_to_its_end_and_is_silent_when_piped(capfd, monkeypatch):
    from cce_core.learning import cluster

    bars, real = [], cluster.progress

    def kept(*args, **kwargs):
        bars.append(real(*args, **kwargs, delay=0))
        return bars[-1]

    table = cce.make_table("cce", 500, 8, n_chunks=2, rank=0, num_params=256)
    table.cluster()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(cluster, "progress", kept)
    for method in ("cce", "cce_robe", "sparse"):
        cce.make_table(method, 300, 8, num_params=256).cluster(show_progress=True)
        assert bars[-1].n == bars[-1].total > 0
    out, err = capfd.readouterr()
    assert "cluster" in err
    assert out == ""
