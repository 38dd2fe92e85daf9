"""The synthetic generator: its rows, its truth, and what it claims about both."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import datasets as twin

from cce_core._jit import COMPILED
from cce_core._threads import set_num_threads
from cce_core.datasets import Synthetic, load, synthetic_like
from cce_core.datasets import synthetic as module
from cce_core.hashing import derive_key

MANY = 200_000 if COMPILED else 1_500  # rows of a statistical test
exponents = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 1e-7, 1.5, 4.0]) | st.floats(0, 4).filter(lambda z: abs(z - 1) > 1e-5)
specs = st.builds(
    Synthetic,
    st.integers(1, 200),
    st.integers(1, 50) | st.sampled_from([10**6, 2**33 + 1, 2**40]),
    st.integers(1, 50) | st.sampled_from([4, 5, 16, 17, 10**7]),
    dim=st.integers(1, 9),
    zipf=exponents,
    user_zipf=exponents,
    scale=st.floats(0.01, 100),
    center=st.floats(-10, 10),
    bias=st.floats(-1000, 1000),
    seed=st.integers(0, 2**64 - 1),
)


def keys_of(spec):
    return [derive_key(spec.seed, k) for k in range(9 + 2 * spec.dim)]


def as_rows(rows):
    return list(zip(rows.users.tolist(), rows.items.tolist(), rows.labels.tolist()))


def digest(*rows):
    columns = [a.astype(a.dtype.newbyteorder("<")).tobytes() for r in rows for a in (r.users, r.items, r.labels)]
    return hashlib.sha256(b"".join(columns)).hexdigest()[:16]


# The stream


@given(specs, st.integers(0, 2**40))
def test_rows_equal_the_twin(spec, start):
    rows = spec.block(start, start + 5)
    assert [a.dtype for a in (rows.users, rows.items, rows.labels)] == [np.int64, np.int64, np.float32]
    keys = keys_of(spec)
    plain = replace(spec, zipf=1.0 if abs(spec.zipf - 1) < 1e-6 else spec.zipf)
    plain = replace(plain, user_zipf=1.0 if abs(spec.user_zipf - 1) < 1e-6 else spec.user_zipf)
    wanted = [twin.synthetic_row(start + k, keys, plain) for k in range(5)]
    # The twin's logarithms differ in the last place, so over very many ids a rank may fall one beside: compare what is
    # under way to it, and the rest exactly.
    if spec.n_users <= 50:
        assert as_rows(rows) == wanted if spec.n_items <= 50 else rows.users.tolist() == [w[0] for w in wanted]
    p = spec.probabilities(rows.users, rows.items)
    true = [
        twin.probability(u, i, keys, spec.dim, spec.scale, spec.center, spec.bias)
        for u, i in zip(rows.users.tolist(), rows.items.tolist())
    ]
    np.testing.assert_allclose(p, true, rtol=1e-9, atol=1e-300)
    assert rows.users.max() < spec.n_users
    assert rows.items.max() < spec.n_items
    assert min(rows.users.min(), rows.items.min()) >= 0


@given(specs, st.integers(1, 250), st.data())
def test_the_blocks_size_does_not_change_the_stream(spec, size, data):
    whole = as_rows(spec.block(0, len(spec)))
    batches = list(spec.batches(size))
    assert [row for batch in batches for row in as_rows(batch)] == whole
    assert all(len(batch) == size for batch in batches[:-1])
    start = data.draw(st.integers(0, len(spec)))
    stop = data.draw(st.integers(start, len(spec)))
    assert [row for batch in spec.batches(size, start=start, stop=stop) for row in as_rows(batch)] == whole[start:stop]


def test_threads_do_not_change_the_stream(monkeypatch):
    monkeypatch.setattr(module, "_GRAIN", 16)
    spec = Synthetic(1000, 100, 50, seed=5)
    drawn = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        rows, split = spec.block(0, 300), spec.histories()
        p = spec.probabilities(rows.users, rows.items)
        drawn.append((digest(rows, split.train, split.valid), p.tobytes()))
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_rows_are_the_same_on_every_machine():
    assert digest(Synthetic(10**9, 10**7, 10**6, seed=1).block(10**8, 10**8 + 500)) == "8d4fa08df62de3a5"
    assert (
        digest(Synthetic(10**9, 1000, 500, zipf=0.7, user_zipf=1.0, dim=3, seed=2).block(0, 500)) == "18dd9fdbd6c0934c"
    )
    split = Synthetic(600, 40, 100, dim=4, zipf=0.7, seed=3).histories()
    assert digest(split.train, split.valid) == "e7a82dc8985aaba8"


def test_seeds_give_other_streams():
    drawn = {digest(Synthetic(100, 1000, 1000, seed=seed).block(0, 100)) for seed in (0, 1, 2, 2**64 - 1)}
    assert len(drawn) == 4


def test_ten_billion_rows_of_a_trillion_ids_cost_no_memory():
    spec = Synthetic(10**10, 2**40, 2**40)
    rows = spec.block(len(spec) - 10, len(spec))
    assert len(rows) == 10
    assert rows.users.max() > 2**32
    assert len(next(spec.batches(7))) == 7


# Its parts


def test_logarithm_and_exponential():
    rng = np.random.default_rng(0)
    for x in [*np.exp2(rng.uniform(-1000, 1000, 500)), 1.0, 2.0, 0.5, 1 + 2**-52, 1 - 2**-53, 2.0**-1000]:
        assert module._log2(float(x)) == pytest.approx(math.log2(x), rel=1e-14, abs=1e-15)
    for x in [*rng.uniform(-900, 900, 500), 0.0, 1.0, -1.0, 0.5, -0.5, 0.49999999999999994]:
        assert module._exp2(float(x)) == pytest.approx(2.0 ** float(x), rel=1e-13)
    assert 0 <= module._exp2(-1e9) < 1e-300
    assert math.isfinite(module._exp2(1e9))


@pytest.mark.parametrize("n", [*range(1, 34), 63, 64, 65, 100])
def test_scattered_ranks_are_a_permutation(n):
    keys = np.array([11, 2**64 - 1, 3], np.uint64)
    half = np.uint64(Synthetic(1, n, 1)._arguments[1][1])
    got = [int(module._scatter_rank(np.uint64(k), np.uint64(n), half, keys)) for k in range(n)]
    assert sorted(got) == list(range(n))
    assert got == [twin.scattered(k, n, keys.tolist()) for k in range(n)]
    assert n < 20 or got != list(range(n))


@pytest.mark.parametrize("zipf", [0.0, 0.5, 1.0, 1.2, 3.0])
def test_popularity_is_what_it_says(zipf):
    n = 20
    spec = Synthetic(MANY, n, n, dim=1, zipf=zipf, user_zipf=zipf, seed=4)
    rows, keys = spec.block(0, MANY), keys_of(spec)
    for ids, part in ((rows.users, keys[3:6]), (rows.items, keys[6:9])):
        share = np.empty(n)
        for rank in range(n):
            share[twin.scattered(rank, n, part)] = twin.zipf_share(rank, n, zipf)
        assert share.sum() == pytest.approx(1)
        count = np.bincount(ids, minlength=n)
        chi2 = ((count - MANY * share) ** 2 / (MANY * share)).sum()
        assert chi2 < 50  # 19 degrees of freedom: about 1 in 10,000 lies above


def test_coordinates_have_their_mean_and_deviation_and_are_independent():
    n = MANY // 10
    keys = [derive_key(9, k) for k in range(2)]
    from cce_core.hashing import mix_hash

    drawn = []
    for k, key in enumerate(keys):
        words = mix_hash(np.arange(n), seed=9, stream=k)
        assert int(words[7]) == twin.hashed(7, key)
        drawn.append(np.array([module._coordinate(w, np.int64(37_837)) for w in words]) / 37_837)
    for x in drawn:
        assert abs(x.mean() - 1) < 5 / math.sqrt(n)
        assert abs(x.std() - 1) < 5 / math.sqrt(2 * n)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 5 / math.sqrt(n)


# The truth


def test_labels_follow_the_probabilities():
    spec = Synthetic(MANY, 1000, 500, dim=4, bias=-1.0, seed=6)
    rows = spec.block(0, MANY)
    p = spec.probabilities(rows.users, rows.items)
    assert 0.2 < p.mean() < 0.9
    order = np.argsort(p)
    for part in np.array_split(order, 10):  # calibrated in every tenth
        expected, deviation = p[part].sum(), math.sqrt((p[part] * (1 - p[part])).sum())
        assert abs(rows.labels[part].sum() - expected) < 5 * deviation + 1


def test_the_best_reachable_beats_what_knows_less():
    n = 20_000 if COMPILED else 600
    spec = Synthetic(n, 500, 300, dim=4, bias=-1.0, seed=7)
    rows = spec.block(0, n)
    auc, logloss = spec.best(rows)
    p = spec.probabilities(rows.users, rows.items)
    rng = np.random.default_rng(0)
    assert auc > 0.85
    for other in (rng.permutation(p), np.clip(p + 0.3 * rng.standard_normal(n), 0.01, 0.99)):
        worse, more = module._auc_and_logloss(other, rows.labels > 0.5)
        assert worse < auc - 0.01
        assert more > logloss + 0.01
    assert abs(module._auc_and_logloss(rng.permutation(p), rows.labels > 0.5)[0] - 0.5) < 5 / math.sqrt(n)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])), min_size=1, max_size=30))
def test_auc_and_logloss_equal_the_twin(pairs):
    labels, p = [y for y, _ in pairs], [p for _, p in pairs]
    auc, logloss = module._auc_and_logloss(np.array(p), np.array(labels))
    assert auc == (None if twin.auc(labels, p) is None else pytest.approx(twin.auc(labels, p)))
    true = -sum(math.log(max(q if y else 1 - q, 2**-53)) for y, q in zip(labels, p)) / len(p)
    assert logloss == pytest.approx(true)
    assert math.isfinite(logloss)


@given(specs)
def test_probabilities_are_probabilities(spec):
    p = spec.probabilities(np.arange(min(spec.n_users, spec.n_items)), np.arange(min(spec.n_users, spec.n_items))[::-1])
    assert ((p >= 0) & (p <= 1)).all()


def test_probabilities_take_any_shape_and_integer_type():
    spec = Synthetic(1, 300, 200)
    users, items = np.arange(12).reshape(3, 4), np.arange(12, 24).reshape(3, 4)
    p = spec.probabilities(users, items)
    assert p.shape == (3, 4)
    assert (spec.probabilities(users.astype(np.uint8).T, items.astype(">i4").T) == p.T).all()
    assert spec.probabilities(5, 17) == p[1, 1]
    assert spec.probabilities([], []).shape == (0,)


# Splits


@given(specs, st.integers(0, 20))
def test_a_split_is_the_stream_and_what_follows(spec, n_valid):
    split = spec.split(n_valid)
    assert as_rows(split.train) == as_rows(spec.block(0, len(spec)))
    assert as_rows(split.valid) == as_rows(spec.block(len(spec), len(spec) + n_valid))
    assert (split.best_auc, split.best_logloss) == spec.best(split.valid)
    assert (split.best_logloss is None) == (n_valid == 0)
    assert (split.n_users, split.n_items) == (spec.n_users, spec.n_items)


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 3), exponents, st.integers(0, 9))
def test_histories_hold_different_items_and_the_sizes_promised(n_users, more, n_last, zipf, seed):
    n = n_users * (n_last + 1) + more
    split = Synthetic(n, n_users, n, dim=1, zipf=zipf, seed=seed).histories(n_last, name="mine")
    assert (len(split.train), len(split.valid), split.name) == (n - n_last * n_users, n_last * n_users, "mine")
    assert (np.bincount(split.valid.users, minlength=n_users) == n_last).all()
    assert (np.bincount(split.train.users, minlength=n_users) >= 1).all()
    pairs = [row[:2] for rows in (split.train, split.valid) for row in as_rows(rows)]
    assert len(set(pairs)) == n


def test_one_user_may_meet_every_item_however_steep_popularity_is():
    split = Synthetic(40, 1, 40, zipf=4.0, dim=1).histories(2)
    assert sorted([*split.train.items.tolist(), *split.valid.items.tolist()]) == list(range(40))
    with pytest.raises(ValueError, match=r"one user would meet 41 different items of 40; give more items"):
        Synthetic(41, 1, 40, dim=1).histories(2)
    with pytest.raises(ValueError, match="29 interactions are too few for 10 users with 3 each"):
        Synthetic(29, 10, 40, dim=1).histories(2)
    with pytest.raises(ValueError, match="n_last must be at least 0"):
        Synthetic(30, 10, 40, dim=1).histories(-1)


def test_labels_of_histories_follow_the_probabilities():
    spec = Synthetic(MANY // 10, 300 if COMPILED else 10, 500, dim=4, bias=-1.0, seed=8)
    split = spec.histories()
    p = spec.probabilities(split.train.users, split.train.items)
    assert abs(split.train.labels.sum() - p.sum()) < 5 * math.sqrt((p * (1 - p)).sum())
    assert module._auc_and_logloss(p, split.train.labels > 0.5)[0] > 0.7
    assert spec.best(split.valid) == (split.best_auc, split.best_logloss)


@pytest.mark.skipif(not COMPILED, reason="73,000 rows take a quarter of a minute uncompiled")
def test_the_set_like_movielens_100k_has_its_shape():
    split = load("synthetic-ml-100k", seed=1)
    assert split.name == "synthetic-ml-100k"
    assert (len(split.train), len(split.valid), split.n_users, split.n_items) == (70_969, 1_886, 943, 1_642)
    assert 0.7 < split.train.labels.mean() < 0.8
    assert 0.88 < split.best_auc < 0.96
    counts = np.bincount(split.train.users)
    assert counts.min() < 12
    assert counts.max() > 400
    assert (np.bincount(split.train.items, minlength=1_642) > 0).mean() > 0.95
    again, other = synthetic_like("ml-100k", 1), synthetic_like("ml-100k", 2)
    assert digest(again.train, again.valid) == digest(split.train, split.valid)
    assert digest(other.train, other.valid) != digest(split.train, split.valid)
    assert split.best_auc != other.best_auc


# Bad input

WRONG = {
    "n_interactions": (0, "x", 1.5, 2**62 + 1),
    "n_users": (0, -1, 2**40 + 1, True),
    "n_items": (0, -1, 2**40 + 1, None),
    "dim": (0, 1025, 2.0),
    "zipf": (-0.1, 4.1, float("nan"), "1"),
    "user_zipf": (-0.1, 4.1, float("inf")),
    "scale": (0.0, -1.0, 101.0, float("nan")),
    "center": (-10.1, 10.1, float("nan")),
    "bias": (-1001, 1001, float("nan")),
    "seed": (-1, 2**64, 0.5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_bad_parameters(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        Synthetic(**{"n_interactions": 10, "n_users": 10, "n_items": 10, name: value})


def test_bad_calls():
    spec = Synthetic(10, 10, 10)
    with pytest.raises(ValueError, match="start must be"):
        spec.block(-1, 3)
    with pytest.raises(ValueError, match="stop must be"):
        spec.block(5, 3)
    with pytest.raises(ValueError, match="size must be at least 1"):
        next(spec.batches(0))
    with pytest.raises(ValueError, match="n_valid must be at least 0"):
        spec.split(-1)
    with pytest.raises(IndexError, match="id 10 at position 1"):
        spec.probabilities([0, 10], [0, 0])
    with pytest.raises(IndexError, match="id -1 at position 0"):
        spec.probabilities([0, 1], [-1, 0])
    with pytest.raises(TypeError, match="ids must be integers"):
        spec.probabilities([0.0], [0])
    with pytest.raises(ValueError, match="users and items must have one shape"):
        spec.probabilities([0, 1], [0])
    with pytest.raises(ValueError, match="name must be one of ml-100k, ml-1m, .*, ml-latest-small; got 'ml-2k'"):
        synthetic_like("ml-2k")
    assert spec.best(spec.block(0, 0)) == (None, None)
