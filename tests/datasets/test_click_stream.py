"""The stream of clicks: rows by a twin, restarts anywhere, and what it claims of popularity, drift and truth."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import click_stream as twin

from cce_core._jit import COMPILED
from cce_core._threads import set_num_threads
from cce_core.datasets import ClickStream, click_stream
from cce_core.hashing import derive_key

MANY = 100_000 if COMPILED else 2_000
ID_STREAM = 0x636C69636B  # frozen: another one is another stream

specs = st.builds(
    ClickStream,
    st.integers(1, 60),
    n_users=st.integers(1, 50) | st.just(2**40),
    n_items=st.integers(1, 50),
    minute=st.integers(1, 1000),
    lifetime=st.sampled_from([1.0, 3.5, 1000.0]),
    zipf=st.sampled_from([0.0, 1.0, 1.1, 2.0]),
    user_zipf=st.sampled_from([0.0, 0.9, 1.0]),
    returning=st.sampled_from([0.0, 0.5, 1.0]),
    dim=st.integers(1, 5),
    scale=st.floats(0.1, 10),
    center=st.floats(-2, 2),
    rate=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**64 - 1),
)


@given(specs, st.integers(0, 2**62 - 3))
def test_rows_equal_the_twin(spec, start):
    sides = [derive_key(spec.seed, ID_STREAM, k) for k in range(12)]
    keys = [derive_key(spec.seed, k) for k in range(9 + 2 * spec.dim)]
    rows, chances = spec.drawn(start, start + 3)
    named = replace(spec, strings=True).block(start, start + 3)
    for k in range(3):
        user, item, p, label = twin.row(start + k, sides, keys, spec)
        assert [int(rows.users[k]) % 2**64, int(rows.items[k]) % 2**64] == [user, item]
        assert [named.users[k], named.items[k]] == [f"u{user:016x}", f"i{item:016x}"]
        assert chances[k] == pytest.approx(p, rel=1e-8)
        assert rows.labels[k] == named.labels[k] == label


@given(specs, st.integers(1, 50), st.data())
def test_it_can_be_entered_anywhere(spec, size, data):
    def whole(batches):
        return [row for b in batches for row in zip(b.users.tolist(), b.items.tolist(), b.labels.tolist(), strict=True)]

    everything = whole([spec.block(0, len(spec))])
    assert whole(spec.batches(size)) == everything
    start = data.draw(st.integers(0, len(spec)))
    assert whole(spec.batches(size, start=start)) == everything[start:]
    assert (spec.probabilities(start, len(spec)) == spec.probabilities(0, len(spec))[start:]).all()


def test_threads_do_not_change_the_stream(monkeypatch):
    monkeypatch.setattr(click_stream, "_GRAIN", 8)
    drawn = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        rows, chances = ClickStream(100, seed=5).drawn(0, 100)
        drawn.append((rows.users.tobytes(), rows.items.tobytes(), rows.labels.tobytes(), chances.tobytes()))
    assert drawn[0] == drawn[1] == drawn[2]


def test_popularity_is_zipfs_at_every_moment_whoever_holds_the_slots():
    one = ClickStream(1, n_users=1, n_items=3, zipf=1.0, minute=MANY, lifetime=1.0, returning=0.0, seed=3)
    rows = one.block(7 * MANY, 8 * MANY)
    assert len(np.unique(rows.users)) in (2, 3)  # a tenure ends somewhere within these rows
    shares = np.sort(np.unique(rows.items, return_counts=True)[1])[::-1] / MANY
    # Slot k has log2((k + 2) / (k + 1)) / 2 of the rows, split between two or three ids.
    assert len(shares) <= 9
    assert 0.5 / 3 - 0.02 < shares[0] < 0.5 + 0.02


def test_an_id_rises_and_fades_evenly():
    n = MANY
    stream = ClickStream(1, n_users=1, n_items=1, minute=n, lifetime=1.0, returning=0.0, seed=1)
    users = stream.block(0, 4 * n).users
    for user in np.unique(users):
        at = np.flatnonzero(users == user)
        if at[0] > n / 10 and at[-1] < 3.9 * n:  # seen from birth to end
            assert np.ptp(at) <= 2 * n
            middle = at.mean()
            assert abs(len(at) - n) < 5 * math.sqrt(n)
            assert abs(at.std() - n / math.sqrt(6)) < 0.02 * n  # of a triangle that is 2 n wide
            assert abs((at < middle).mean() - 0.5) < 0.02
            return
    raise AssertionError("no id was seen from its birth to its end")


def test_new_ids_come_every_minute_and_some_return():
    stream = ClickStream(1, n_users=1000, n_items=1000, minute=max(200, MANY // 100), lifetime=3.0, seed=2)
    minutes = [set(stream.block(k * stream.minute, (k + 1) * stream.minute).users.tolist()) for k in range(40)]
    seen = set(minutes[0])
    for ids in minutes[1:]:
        assert len(ids - seen) > 0.02 * len(ids)
        seen |= ids
    for returning, least, most in ((0.0, 0, 0), (1.0, 1, 10**9)):
        of = replace(stream, returning=returning, n_users=20, user_zipf=0.0)
        early, middle, late = (set(of.block(k * of.minute, (k + 1) * of.minute).users.tolist()) for k in (0, 30, 60))
        back = len(early & late) + len(middle & late)
        assert least <= back <= most


def test_labels_follow_the_probabilities_and_the_best_is_best():
    spec = ClickStream(MANY, seed=6)
    p, labels = spec.probabilities(0, MANY), spec.block(0, MANY).labels
    assert 0.15 < labels.mean() < 0.45
    for part in np.array_split(np.argsort(p), 5):  # calibrated in every fifth
        assert abs(labels[part].sum() - p[part].sum()) < 5 * math.sqrt((p[part] * (1 - p[part])).sum()) + 1
    auc, logloss = spec.best(0, MANY)
    assert 0.7 < auc < 0.95
    assert logloss == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))
    assert spec.best(3, 3) == (None, None)


def test_logits_have_the_deviation_that_was_asked_for():
    spec = ClickStream(MANY, n_users=10**6, n_items=10**6, user_zipf=0.0, zipf=0.0, scale=2.0, center=-1.3, seed=4)
    p = spec.probabilities(0, MANY)
    z = np.log(p / (1 - p))
    assert z.std() == pytest.approx(2.0, rel=0.05 if COMPILED else 0.2)
    assert z.mean() == pytest.approx(math.log(spec.rate / (1 - spec.rate)), abs=0.05 if COMPILED else 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rows": 0}, "n_rows must be"),
        ({"n_users": 0}, "n_users must be"),
        ({"n_items": 2**41}, "n_items must be"),
        ({"minute": 0}, "minute must be"),
        ({"lifetime": 0.5}, "lifetime must be"),
        ({"zipf": 5.0}, "zipf must be"),
        ({"lifetime": 1e9, "minute": 2**40}, "lifetime must be at most 2^62 rows"),
        ({"user_zipf": -1.0}, "user_zipf must be"),
        ({"returning": 1.5}, "returning must be"),
        ({"dim": 0}, "dim must be"),
        ({"scale": 0.0}, "scale must be"),
        ({"center": 11.0}, "center must be"),
        ({"rate": 1.0}, "rate must be between 0 and 1"),
        ({"strings": "yes"}, "strings must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        ClickStream(**{"n_rows": 10, **arguments})


def test_bad_rows():
    stream = ClickStream(10)
    for call in (
        lambda: stream.block(-1, 3),
        lambda: stream.block(3, 2),
        lambda: stream.batches(0),
        lambda: stream.batches(1, start=11),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
