"""Whole tables elsewhere: an array on disk, and an index of faiss."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import serving_cases as cases

import cce_core as cce
from cce_core.serving import Reader, reader


def reader_of(table, tmp_path) -> Reader:
    table.save(tmp_path / "table")
    return Reader(tmp_path / "table")


@pytest.mark.parametrize("dtype", ["float16", np.float32, "f8", ">f4"])
def test_the_array_on_disk_is_the_table(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(reader, "_PART", 32)
    found, done = reader_of(cce.make_table("cce", 1000, 8, num_params=600, seed=1), tmp_path), []
    found.to_dense(tmp_path / "all.npy", dtype, progress=lambda *counts: done.append(counts))
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(mapped, found.lookup(range(1000)).astype(dtype))
    assert done == [(min(1000, n), 1000) for n in range(128, 1100, 128)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.npy", "table"]


def test_an_array_that_fails_leaves_the_old_one(tmp_path):
    table = cce.make_table("full", 100, 4)
    table.parameters()["memory"][-1] = 1e6
    found, path = reader_of(table, tmp_path), tmp_path / "all.npy"
    found.to_dense(path)
    old = path.read_bytes()
    with pytest.raises(ValueError, match="numbers that float16 does not"):
        found.to_dense(path, "float16")
    with pytest.raises(TypeError, match="got int64"):
        found.to_dense(path, int)
    with pytest.raises(KeyError):
        found.to_dense(path, progress=lambda done, _: {}[done])
    with pytest.raises(OSError):
        found.to_dense(tmp_path / "none" / "all.npy")
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.npy", "table"]
    unbounded = reader_of(cce.make_table("hash", None, 4, num_params=100), tmp_path)
    with pytest.raises(ValueError, match="every 64-bit id"):
        unbounded.to_dense(path)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize(
    ("method", "phase", "option", "codec"),
    [("pq", "", 0, "float32"), ("pq", "", 0, "int4"), ("vq", "codes", 0, "int8"), ("vq", "marked", 0, "int8"),
     ("vq", "codes", 2, "float32"), ("vq", "marked", 4, "int8")],
)  # fmt: skip
def test_an_index_of_faiss_finds_what_the_vectors_say(tmp_path, method, phase, option, codec, metric):
    faiss, tried = pytest.importorskip("faiss"), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        table = cases.drawn(rng, method, codec, phase, option)
        if method == "pq" and table.spec.rank:
            continue
        found, tried = reader_of(table, tmp_path), tried + 1
        for values in table.parameters().values():  # of one scale
            values[...] = rng.standard_normal(values.shape)
        table.requantize()
        found = reader_of(table, tmp_path)
        index = found.to_faiss(metric)
        vectors, queries = found.lookup(range(found.vocab)), rng.standard_normal((5, found.dim)).astype(np.float32)
        np.testing.assert_allclose(index.reconstruct_n(0, found.vocab), vectors, rtol=1e-5, atol=1e-5)
        if method == "pq" or table.spec.option("stages") == 1:
            np.testing.assert_array_equal(index.reconstruct_n(0, found.vocab), vectors)
        inner = queries @ vectors.T
        exact = np.square(queries[:, None] - vectors).sum(2) if metric == "l2" else -inner
        best, places = index.search(queries, 3)
        chosen = np.take_along_axis(exact, places, 1)
        np.testing.assert_allclose(chosen, np.sort(exact, 1)[:, :3], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(np.abs(best), np.abs(chosen), rtol=1e-3, atol=1e-3)
        faiss.write_index(index, str(tmp_path / "index"))
        assert faiss.read_index(str(tmp_path / "index")).ntotal == found.vocab
    assert tried > 1


def test_what_has_no_codes_has_no_index(tmp_path, monkeypatch):
    table = cce.make_table("vq", 100, 8, num_bytes=300)
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="'vq', in its phase of rows"):
        reader_of(table, tmp_path).to_faiss()
    with pytest.raises(ValueError, match="'pq' with a rank"):
        reader_of(cce.make_table("pq", 100, 8, num_bytes=900, rank=4), tmp_path).to_faiss()
    with pytest.raises(ValueError, match="this is 'cce'"):
        reader_of(cce.make_table("cce", 100, 8, num_bytes=900), tmp_path).to_faiss()
    found = reader_of(cce.make_table("pq", 100, 8, num_bytes=900), tmp_path)
    with pytest.raises(ValueError, match="l2 or inner_product, got 'cosine'"):
        found.to_faiss("cosine")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        found.to_faiss()
