"""`cce compress` as a shell runs it: what it prints, what it leaves, and its exit codes."""

from __future__ import annotations

import numpy as np
import pytest
from reference import vectors as twin

import cce_core
from cce_core.__main__ import main
from cce_core.commands import compressing
from cce_core.datasets import read_vectors
from cce_core.tables.faithful import faithfulness, held_out

pytest.importorskip("typer", reason="Typer is not installed (the extra `cli`)")
WORDS = [f"a b{n}c" if n % 7 == 5 else f"w{n}" for n in range(400)]  # some have blanks


def vectors():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((400, 5)) @ rng.standard_normal((5, 16)) + 0.1 * rng.standard_normal((400, 16))).astype(
        "f4"
    )


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_words_are_compressed_measured_and_looked_up(tmp_path, capsys):
    named = ["été", *WORDS[1:]]
    path, to = tmp_path / "v.txt", tmp_path / "t.safetensors"
    path.write_bytes(twin.glove(named, vectors()))
    code, out, err = run(capsys, "compress", path, "--ratio", 8, "--out", to, "--seed", 3, "--queries", 20)
    assert (code, err) == (0, "")
    table, x = cce_core.load(to), read_vectors(path).values
    assert table.ledger().total <= x.nbytes / 8
    kept = faithfulness(table, x, held_out(400, 20, 3))
    assert str(kept) in out
    assert repr(table) in out
    assert f"{x.nbytes:,} bytes -> {table.ledger().total:,}" in out
    code, out, _ = run(capsys, "lookup", to, named[5], "été")
    assert code == 0
    for line, row in zip(out.splitlines(), (5, 0), strict=True):
        name, *floats = line.split("\t")
        assert name == named[row]
        assert np.array(floats, float) == pytest.approx(table.lookup(row), rel=1e-5)
    code, _, err = run(capsys, "lookup", to, "nobody")
    assert code == 2
    assert "has no id 'nobody'" in err
    # rows without names, into the same file: what it was called before is forgotten
    np.save(tmp_path / "v.npy", vectors())
    code, out, _ = run(
        capsys, "compress", tmp_path / "v.npy", "--method", "int8", "--ratio", 3, "--out", to, "--queries", 0
    )
    assert code == 0
    assert "recall" not in out
    assert run(capsys, "lookup", to, "5")[0] == 0
    assert run(capsys, "lookup", to, named[5])[0] == 2


def test_what_is_left_is_by_definition():
    x = vectors()
    table, rows = cce_core.compress(x, ratio=8), held_out(400, 30, 1)
    got, y = faithfulness(table, x, rows, 5), table.lookup(np.arange(400))
    truth, found, near, before, own = [], [], [], [], []
    for row in rows:
        ids, cosines = twin.most_similar(x, x[row], 5, "cosine", (row,))
        others, _ = twin.most_similar(y, x[row], 5, "cosine", (row,))
        truth.append(ids)
        found.append(others)
        before.append(cosines)
        near.append([twin.most_similar(x[[i]], x[row], 1, "cosine")[1][0] for i in others])
        own.append(twin.most_similar(y[[row]], x[row], 1, "cosine")[1][0])
    assert got.queries == len(rows) == 30
    assert got.recall == pytest.approx(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(truth, found, strict=True)]))
    assert (got.near_before, got.near_after) == pytest.approx((np.mean(before), np.mean(near)), rel=1e-5)
    assert got.cosine == pytest.approx(np.mean(own), rel=1e-5)
    assert 0.3 < got.recall < 1
    with pytest.raises(ValueError, match="neighbours need two rows and a query"):
        faithfulness(table, x, [])


def test_errors_are_one_line_and_two_and_ctrl_c_is_130(tmp_path, capsys, monkeypatch):
    good, bad, empty = tmp_path / "v.txt", tmp_path / "bad.txt", tmp_path / "empty.txt"
    good.write_bytes(twin.glove(["a", "b", "c"], np.eye(3)))
    bad.write_bytes(b"a 1 2\nb 1 2\nc 1\n")
    empty.write_bytes(b"")
    for words, message in [
        (["compress"], "Missing argument 'VECTORS'"),
        (["compress", tmp_path / "none.txt"], "none.txt"),
        (["compress", tmp_path], "is a folder"),
        (["compress", empty], "is empty; expected vectors"),
        (["compress", bad], "bad.txt, line 3: expected a word and 2 numbers"),
        (["compress", good, "--ratio", 3, "--num-bytes", 9], "give ratio or num_bytes, not both"),
        (["compress", good, "--ratio", 0], "ratio must be above 0"),
        (["compress", good, "--num-bytes", 3], "the least that fits is"),
        (["compress", good, "--method", "nope"], "unknown method 'nope'"),
        (["compress", good, "--kind", "nope"], "kind must be one of auto, npy"),
    ]:
        code, _, err = run(capsys, *words)
        assert code == 2, words
        assert err.count("\n") == 1, err
        assert err.startswith("cce: error: ")
        assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "empty.txt", "v.txt"]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compressing, "compress", stopped)
    code, _, err = run(capsys, "compress", good)
    assert (code, err) == (130, "\ninterrupted\n")
