"""Click logs in Criteo's format: the reader, and the generator with what it claims."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import criteo as twin
from reference import datasets as base

from cce_core._jit import COMPILED
from cce_core._threads import set_num_threads
from cce_core.datasets import Clicks, CriteoFile, SyntheticCriteo, criteo, criteo_sizes, synthetic_criteo
from cce_core.hashing import derive_key, mix_hash

MANY = 40_000 if COMPILED else 300


def keys_of(seed):
    return [derive_key(seed, k) for k in range(26)]


def line_of(label="0", counts=("",) * 13, categories=("",) * 26):
    return "\t".join((label, *counts, *categories))


def read(folder, text, size=1 << 20, start=0, stop=None, **more):
    path = folder / "train.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    file = CriteoFile(path, **more)
    return file, list(file.batches(size, start=start, stop=stop))


def whole(batches):
    """All batches as one list of rows."""
    columns = ((b.labels.tolist(), b.dense.tolist(), b.categories.tolist()) for b in batches)
    return [row for column in columns for row in zip(*column, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("criteo")


counts = st.one_of(st.just(""), st.integers(-5, 30).map(str), st.integers(-(10**18) + 1, 10**18 - 1).map(str))
categories = st.one_of(
    st.just(""),
    st.text("0123456789abcdefABCDEF", min_size=1, max_size=8),
    st.sampled_from(["0", "00000000", "ffffffff"]),
)
rows = st.builds(
    line_of,
    st.sampled_from("01"),
    st.lists(counts, min_size=13, max_size=13),
    st.lists(categories, min_size=26, max_size=26),
)
vocabs = st.integers(2, 50) | st.sampled_from([2, 2**32, 2**40])


# Reading


@given(
    st.lists(rows, min_size=1, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([1, 50, 333, 1 << 22]),
    st.integers(1, 13),
    st.lists(vocabs, min_size=26, max_size=26) | vocabs,
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_reading_equals_the_twin(folder, lines, end, block, size, vocab, seed, data):
    text = "".join(line + end for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo, "_BLOCK", block)
        file, batches = read(folder, text, size, vocab=vocab, seed=seed)
        assert file.count() == len(lines)
        start = data.draw(st.integers(0, len(lines) + 2))
        stop = data.draw(st.integers(start, len(lines) + 3))
        part = whole(file.batches(size, start=start, stop=stop))
    assert [len(b) for b in batches] == [size] * (len(lines) // size) + [len(lines) % size] * (len(lines) % size > 0)
    assert {tuple(a.dtype for a in (b.labels, b.dense, b.categories)) for b in batches} == {
        (np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int64))
    }
    got = whole(batches)
    wanted = twin.parse(text, file.sizes, keys_of(seed))
    assert [row[0] for row in got] == [row[0] for row in wanted]
    assert [row[2] for row in got] == [row[2] for row in wanted]
    np.testing.assert_allclose([row[1] for row in got], [list(map(twin.logged, row[1])) for row in wanted], rtol=1e-6)
    assert part == got[start:stop]


def test_a_line_by_hand(tmp_path):
    text = line_of("1", ("1", "-1", "", "0", "5", *[""] * 7, "100"), ("68fd1e64", "", *["0"] * 23, "FFFFFFFF")) + "\n"
    _, (clicks,) = read(tmp_path, text, vocab=100, seed=3)
    assert clicks.labels.tolist() == [1]
    np.testing.assert_allclose(clicks.dense[0], np.log1p([1, 0, 0, 0, 5, *[0] * 7, 100]).astype(np.float32))
    wanted = [1 + int(mix_hash(v, 99, seed=3, stream=k)) for k, v in ((0, 0x68FD1E64), (2, 0), (25, 0xFFFFFFFF))]
    keys = keys_of(3)
    assert [1 + (base.hashed(v, keys[k]) * 99 >> 64) for k, v in ((0, 0x68FD1E64), (2, 0), (25, 0xFFFFFFFF))] == wanted
    assert clicks.categories[0, [0, 2, 25]].tolist() == wanted
    assert clicks.categories[0, 1] == 0
    assert len(set(clicks.categories[0, 2:25].tolist())) > 10  # one category, hashed apart in every column


def broken(field, value):
    fields = line_of().split("\t")
    fields[field] = value
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (broken(0, "2"), r"column 1 \(the label\) is wrong; expected 0 or 1, got '2'"),
        (broken(0, ""), r"column 1 \(the label\) .* got ''"),
        (broken(0, "10"), r"column 1 \(the label\) .* got '10'"),
        (broken(1, "x"), r"column 2 \(I1\) is wrong; expected a whole number .* got 'x'"),
        (broken(5, "1.5"), r"column 6 \(I5\) .* got '1.5'"),
        (broken(13, "-"), r"column 14 \(I13\) .* got '-'"),
        (broken(2, "1" * 19), r"column 3 \(I2\) .* got '1111111111111111111'"),
        (broken(2, "--1"), r"column 3 \(I2\) .* got '--1'"),
        (broken(14, "xyz"), r"column 15 \(C1\) is wrong; expected at most 8 hexadecimal .* got 'xyz'"),
        (broken(14, "123456789"), r"column 15 \(C1\) .* got '123456789'"),
        (broken(39, "12 "), r"column 40 \(C26\) .* got '12 '"),
        (broken(39, "é"), r"column 40 \(C26\) .* got 'é'"),
        (line_of() + "\t", r"column 40 .* in a line of 41 columns instead of 40"),
        (line_of().split("\t", 1)[1], r"column 1 \(the label\) .* in a line of 39 columns instead of 40"),
        ("1\t2", r"column 2 \(I1\) .* got '2' in a line of 2 columns instead of 40"),
        ("", r"column 1 .* in a line of 1 columns"),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_wrong_is_named(tmp_path, line, message, before):
    text = (line_of() + "\n") * before + line + "\n" + line_of() + "\n"
    with pytest.raises(ValueError, match=rf"train.txt, line {before + 1}, {message}"):
        read(tmp_path, text)
    if before:  # what is not asked for is not judged
        assert len(whole(read(tmp_path, text, stop=before)[1])) == before


def test_torn_and_empty_files(tmp_path):
    with pytest.raises(ValueError, match="line 2: the file ends within it, so it is torn"):
        read(tmp_path, line_of() + "\n" + line_of())
    with pytest.raises(ValueError, match="line 1: the line is far too long"):
        read(tmp_path, b"x" * (5 << 20))
    assert read(tmp_path, "")[1] == []
    with pytest.raises(ValueError, match="holds no row"):
        read(tmp_path, "")[0].count()
    with pytest.raises(FileNotFoundError):
        CriteoFile(tmp_path / "nowhere.txt")


def test_bad_arguments(tmp_path):
    file, _ = read(tmp_path, line_of() + "\n")
    for arguments, more in (((0,), {}), ((1,), {"start": -1}), ((1,), {"start": 3, "stop": 2})):
        with pytest.raises(ValueError, match="must be"):
            file.batches(*arguments, **more)
    with pytest.raises(ValueError, match="one number or 26 of them, one a column, got 3"):
        CriteoFile(file.path, [5, 5, 5])
    with pytest.raises(ValueError, match="vocab must be between 2"):
        CriteoFile(file.path, 1)
    with pytest.raises(TypeError, match="vocab of C2"):
        CriteoFile(file.path, [5, "x", *[5] * 24])
    with pytest.raises(ValueError, match=r"\(n,\), \(n, 13\) and \(n, 26\)"):
        Clicks(np.zeros(2, np.float32), np.zeros((2, 12), np.float32), np.zeros((2, 26), np.int64))


def test_suggested_sizes():
    assert max(criteo_sizes(10_000)) == 10_000
    assert min(criteo_sizes(10_000)) == 4096
    assert criteo_sizes(3) == (3,) * 26
    assert all(size >= 2 * n for size, n in zip(criteo_sizes(2**40), criteo.CARDINALITIES, strict=True))


# The generator

specs = st.builds(
    SyntheticCriteo,
    st.integers(1, 60),
    st.integers(2, 50) | st.lists(st.integers(2, 50), min_size=26, max_size=26).map(tuple),
    st.lists(st.integers(0, 25), min_size=2, max_size=6, unique=True).map(tuple),
    dim=st.integers(1, 5),
    zipf=st.sampled_from([0.0, 0.7, 1.0, 1.05, 2.0]),
    scale=st.floats(0.1, 10),
    center=st.floats(-2, 2),
    slope=st.floats(0, 1),
    rate=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**64 - 1),
)


@given(specs, st.integers(0, 2**40))
def test_rows_equal_the_twin(spec, start):
    keys = [derive_key(spec.seed, k) for k in range(40 + 78 + 2 * spec.dim * (len(spec.carriers) - 1))]
    slopes = [spec.slope * (2 * base.uniform(derive_key(spec.seed, 0, j)) - 1) for j in range(13)]
    clicks, chances = spec.block(start, start + 3), spec.probabilities(start, start + 3)
    for k in range(3):
        p, label, counted, ids = twin.synthetic_row(start + k, keys, slopes, spec)
        assert clicks.categories[k].tolist() == ids
        np.testing.assert_allclose(clicks.dense[k], list(map(twin.logged, counted)), rtol=1e-6)
        assert chances[k] == pytest.approx(p, rel=1e-8)
        assert clicks.labels[k] == label


@given(specs, st.integers(1, 50), st.data())
def test_blocks_and_files_are_the_stream(folder, spec, size, data):
    everything = whole([spec.block(0, len(spec))])
    assert whole(spec.batches(size)) == everything
    start = data.draw(st.integers(0, len(spec)))
    assert whole(spec.batches(size, start=start)) == everything[start:]
    path = folder / "synthetic.txt"
    spec.write(path)
    file = CriteoFile(path, vocab=2**40)  # so many that no two categories share an id here
    assert file.count() == len(spec)
    back = whole(file.batches(size))
    assert [row[:2] for row in back] == [row[:2] for row in everything]
    for k in range(26):
        pairs = {(mine[2][k], theirs[2][k]) for mine, theirs in zip(everything, back, strict=True)}
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_threads_do_not_change_the_stream(monkeypatch):
    monkeypatch.setattr(synthetic_criteo, "_GRAIN", 8)
    spec, drawn = SyntheticCriteo(100, seed=5), []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        drawn.append((spec.lines(0, 100), spec.probabilities(0, 100).tobytes()))
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({replace(spec, seed=seed).lines(0, 20) for seed in (0, 1, 2**64 - 1)}) == 3


def test_labels_follow_the_probabilities_and_the_best_is_best():
    spec = SyntheticCriteo(MANY, seed=6)
    p, labels = spec.probabilities(0, MANY), spec.block(0, MANY).labels
    assert 0.15 < labels.mean() < 0.45
    for part in np.array_split(np.argsort(p), 5):  # calibrated in every fifth
        assert abs(labels[part].sum() - p[part].sum()) < 5 * math.sqrt((p[part] * (1 - p[part])).sum()) + 1
    auc, logloss = spec.best(0, MANY)
    assert 0.75 < auc < 0.95
    spread = math.sqrt(len(p))
    assert logloss == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))
    rng = np.random.default_rng(0)
    noisy = np.clip(p + 0.2 * rng.standard_normal(MANY), 0.01, 0.99)
    worse = -np.mean(labels * np.log(noisy) + (1 - labels) * np.log1p(-noisy))
    assert worse > logloss + 1 / spread
    assert spec.best(3, 3) == (None, None)


def test_a_billion_rows_cost_no_memory():
    spec = SyntheticCriteo(10**9, seed=1)
    assert len(spec.block(10**9 - 2, 10**9)) == 2
    assert spec.sizes[2] == criteo.CARDINALITIES[2]
    assert len(next(spec.batches(7))) == 7


@given(st.integers(0, 25), st.integers(2, 2**32))
def test_tokens_are_a_bijection(column, size):
    ids = np.zeros((64, 26), np.int64)
    ids[:, column] = np.unique(np.linspace(0, size - 1, 64).astype(np.int64)).repeat(64)[:64]
    tokens = synthetic_criteo.tokens_of(ids)[:, column]
    assert tokens.min() >= 0
    assert tokens.max() < 2**32
    assert len(np.unique(tokens)) == len(np.unique(ids[:, column]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rows": 0}, "n_rows must be"),
        ({"vocab": 1}, "vocab must be between 2"),
        ({"vocab": 2**33}, "vocab must be at most 4,294,967,296"),
        ({"vocab": (3, 4)}, "one number or 26"),
        ({"carriers": (1,)}, "at least two different columns"),
        ({"carriers": (1, 1)}, "at least two different columns"),
        ({"carriers": (0, 26)}, "carriers must be between 0 and 25"),
        ({"dim": 0}, "dim must be"),
        ({"zipf": 5.0}, "zipf must be"),
        ({"scale": 0.0}, "scale must be"),
        ({"center": 11.0}, "center must be"),
        ({"slope": -1.0}, "slope must be"),
        ({"rate": 0.0}, "rate must be between 0 and 1"),
        ({"rate": 1.0}, "rate must be between 0 and 1"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticCriteo(**{"n_rows": 10, **arguments})
