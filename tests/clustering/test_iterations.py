"""Iterations without lists: a leader and its helpers share them, and no bit depends on who helps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmeans_problems import blobs, problems, same_bits

import cce_core._atomic as atomic
from cce_core import _threads
from cce_core._jit import COMPILED, jit
from cce_core.clustering import KMeans, assign, iterations, update
from cce_core.clustering.nearest.search import in_columns, middle_of
from cce_core.clustering.nearest.tiles import tile

helped = pytest.mark.skipif(not COMPILED, reason="without a compiler there are no helpers")


def fitted(km):
    return km.cluster_centers_.tobytes(), km.labels_.tobytes(), km.inertia_, km.n_iter_


def fit(x, k, threads, **options):
    return KMeans(k, init=x[:k], n_threads=threads, **options).fit(x)


# Numbers that change at once


@jit
def _take(numbers, most, taken):
    count = 0
    while True:
        ticket = atomic.fetch_add(numbers, 0)
        if ticket >= most:
            return count
        taken[ticket] += 1
        count += 1


@jit
def _tell(numbers, values, first):
    for i in range(first, first + values.shape[0]):
        while atomic.load(numbers, 1) != i:  # until the last one was read
            atomic.give_way()
        values[i % values.shape[0]] = i
        atomic.store(numbers, 0, i + 1)


@jit
def _hear(numbers, values, first):
    wrong = 0
    for i in range(first, first + values.shape[0]):
        while atomic.load(numbers, 0) != i + 1:
            atomic.give_way()
        wrong += values[i % values.shape[0]] != i
        atomic.store(numbers, 1, i + 1)
    return wrong


@jit
def _all_of_them(numbers, place, value):
    atomic.give_way()
    before, then = atomic.fetch_add(numbers, place), atomic.load(numbers, place)
    atomic.store(numbers, place, value)
    return before, then


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.data())
def test_one_thread_adds_loads_and_stores(start, data):
    numbers, place = np.array(start), data.draw(st.integers(0, len(start) - 1))
    value = data.draw(st.integers(-(2**63), 2**63 - 1))
    before, then = _all_of_them(numbers, place, value)
    assert (before, then) == (start[place], start[place] + 1)
    expected = list(start)
    expected[place] = value
    assert numbers.tolist() == expected


@helped
def test_each_ticket_is_taken_once():
    most, threads = 200_000, 4
    numbers, taken = np.zeros(1, np.int64), np.zeros(most, np.int64)
    with ThreadPoolExecutor(threads) as pool:
        counts = [one.result() for one in [pool.submit(_take, numbers, most, taken) for _ in range(threads)]]
    assert (taken == 1).all()
    assert sum(counts) == most
    assert numbers[0] == most + threads


@helped
def test_what_was_written_before_a_store_is_seen_after_a_load():
    numbers, values = np.zeros(2, np.int64), np.zeros(2000, np.int64)
    with ThreadPoolExecutor(2) as pool:
        told, heard = pool.submit(_tell, numbers, values, 0), pool.submit(_hear, numbers, values, 0)
        told.result()
        assert heard.result() == 0


# Helpers


class Alone:
    """A fit as `Turns` lay it out, whose parts nobody has done yet."""

    def __init__(self, n, k, d, pieces, boxed=False, seed=0):
        self.x, rng = blobs(n, k, d, seed), np.random.default_rng(seed)
        tiles, self.k = tile(self.x, boxed), k
        if boxed:
            self.x = tiles.rows(np.arange(n))
        self.weights = rng.random(n).astype(np.float32)
        self.labels, self.spare = tiles.empty(np.int32), tiles.empty(np.int32)
        self.costs, self.spare_costs = tiles.empty(np.float32), tiles.empty(np.float32)
        self.labels[:], self.spare[:] = rng.integers(0, k, (2, len(self.labels)))
        self.moved = self.x[:k].copy()
        self.sums = np.full((iterations.blocks_of(n, k), k, d + 1), np.nan)
        self.board = np.zeros(iterations._BOARD, np.int64)
        self.board[iterations._OPEN] = iterations._TICKET
        self.fit = (
            tiles.points, n, self.weights, pieces, self.sums, in_columns(self.moved), self.moved, middle_of(self.moved),
            (tiles.mids, tiles.halves, tiles.firsts), d > 4, self.labels, self.costs, self.spare, self.spare_costs,
        )  # fmt: skip

    def args(self):
        return self.board, self.moved.copy(), 1.0, 1, 0.0, *self.fit


@helped
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(
    ("n", "k", "d", "pieces", "boxed"),
    [
        (9001, 7, 3, 16, False),
        (9001, 7, 8, 16, False),
        (40, 7, 2, 16, False),
        (33, 7, 5, 1, False),
        (9001, 70, 2, 16, True),
    ],
)
def test_a_helper_can_do_every_ticket(n, k, d, pieces, boxed, part):
    """The leader only opens the part; what the helper finds are the sums and labels of the definition's functions."""
    alone = Alone(n, k, d, pieces, boxed)
    tickets = pieces if part % 2 else len(alone.sums)
    before = alone.labels.copy(), alone.spare.copy()
    alone.board[iterations._OPEN] = part << 32
    assert iterations._helper(*alone.args()) is None  # until its patience ends
    assert alone.board[iterations._GIVEN] == tickets
    if part % 2:
        found, costs = (alone.labels, alone.costs) if part == 3 else (alone.spare, alone.spare_costs)
        labels, distances = assign(alone.x, alone.moved)
        assert same_bits(found[:n], labels)
        assert same_bits(costs[:n], distances)
        kept = 1 if part == 3 else 0
        assert same_bits((alone.labels, alone.spare)[kept], before[kept])
    else:
        labels = (alone.labels, alone.spare)[part // 2]
        total = alone.sums[0]
        for block in alone.sums[1:]:
            total += block
        centroids, counts = update(alone.x, labels[:n], alone.k, alone.weights)
        assert same_bits(total[:, d].copy(), counts)
        assert same_bits((total[:, :d] / total[:, d:]).astype(np.float32), centroids)
        assert same_bits(alone.labels, before[0])
        assert same_bits(alone.spare, before[1])


@given(problems(n_points=200), st.integers(0, 9), st.sampled_from([0.0, 0.05]), st.booleans(), st.data())
def test_helpers_change_no_bit(problem, n_iter, tol, rounded, data):
    x, start = problem
    if rounded:
        x, start = x * np.float32(0.1), start * np.float32(0.3)
    weights = data.draw(st.none() | st.just(np.arange(len(x)) % 3 + 0.0 if len(x) > 1 else None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterations, "_THREAD", 1)
        found = [
            fitted(KMeans(len(start), init=start, n_iter=n_iter, tol=tol, n_threads=n).fit(x, sample_weight=weights))
            for n in (1, 2, 4)
        ]
    assert found[0] == found[1] == found[2]


@helped
@pytest.mark.parametrize(
    ("n", "k", "d"), [(20_000, 30, 4), (9000, 60, 8), (40_000, 5, 16), (30_000, 100, 2), (30_000, 100, 1)]
)
def test_helpers_change_no_bit_of_larger_fits(n, k, d):
    x = np.random.default_rng(d).normal(size=(n, d)).astype(np.float32)
    first = fitted(fit(x, k, 1))
    for threads in (2, 3, 16):
        for _ in range(5):
            assert fitted(fit(x, k, threads)) == first


def called(monkeypatch, x, k, threads, **options):
    """How many helpers each call of the fit has."""
    asked, lead = [], iterations._lead_or_help

    def leading(leads, *args):
        if leads:
            asked.append(max(1, args[8] // iterations._PIECES) - 1)
        return lead(leads, *args)

    with monkeypatch.context() as patch:
        patch.setattr(iterations, "_lead_or_help", leading)
        fit(x, k, threads, **options)
    return asked


def test_helpers_are_called_where_they_pay(monkeypatch):
    few, many = blobs(600, 8, 2), blobs(20_000, 40, 8)
    assert set(called(monkeypatch, few, 8, 4)) == {0}
    if COMPILED:
        assert set(called(monkeypatch, many, 40, 1)) == {0}
        assert called(monkeypatch, many, 40, 3)[0] == 2
        assert called(monkeypatch, many, 40, 3, n_iter=1) == [0]


def test_a_call_is_short_and_a_fit_may_be_long(monkeypatch):
    """A signal waits for the end of a call: there may be many. And n_iter may be any number."""
    x = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    once = fitted(fit(x, 3, 1, n_iter=10**30))
    assert called(monkeypatch, x, 3, 1, n_iter=10**30) == [0]
    monkeypatch.setattr(iterations, "_CALL", 1)
    assert fitted(fit(x, 3, 1, n_iter=10**30)) == once
    assert len(called(monkeypatch, x, 3, 1, n_iter=10**30)) == once[3]


@helped
def test_helpers_that_never_come_are_not_waited_for(monkeypatch):
    x = blobs(20_000, 20, 4)
    first = fitted(fit(x, 20, 1))
    monkeypatch.setattr(iterations, "beside", lambda *_: [])
    assert fitted(fit(x, 20, 4)) == first


@helped
def test_a_helper_that_comes_too_late_touches_nothing(monkeypatch):
    x, late = blobs(20_000, 20, 4), []
    monkeypatch.setattr(iterations, "beside", lambda n, call, *args: late.append((call, args)) or [])
    km = fit(x, 20, 4)
    first = fitted(km)
    assert late
    for call, args in late:
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        before = [a.copy() for a in arrays]
        assert call(*args) is None
        assert all(same_bits(a, b) for a, b in zip(before, arrays))
    assert fitted(km) == first


@helped
def test_a_helper_loses_patience():
    alone = Alone(40, 3, 2, 4)
    started = time.monotonic()
    assert iterations._helper(*alone.args()) is None  # no part is ever opened, and nobody ends
    assert time.monotonic() < started + 30


@helped
def test_the_error_of_a_helper_is_raised_and_the_model_is_as_it_was(monkeypatch):
    x = blobs(20_000, 20, 4)
    km = KMeans(20, init=x[:20], n_threads=4).fit(x)
    before = fitted(km)

    def one_took_a_ticket_and_failed(n, call, board, *args):
        board[iterations._GIVEN] -= 1
        board[iterations._FAILED] = 1
        failed = Future()
        failed.set_exception(MemoryError("no room for a helper"))
        return [failed]

    monkeypatch.setattr(iterations, "beside", one_took_a_ticket_and_failed)
    with pytest.raises(MemoryError, match="no room for a helper"):
        km.fit(x)
    assert fitted(km) == before


def test_a_helper_that_fails_says_so():
    board = np.zeros(iterations._BOARD, np.int64)
    with pytest.raises(TypeError):
        iterations._helper(board)
    assert board[iterations._FAILED] == 1


@helped
def test_helpers_leave_when_their_leader_is_interrupted(monkeypatch):
    x, futures, beside = blobs(20_000, 20, 4), [], iterations.beside

    def interrupted(*args):
        futures.extend(beside(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(iterations, "beside", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(x, 20, 4)
    assert futures
    assert not wait(futures, timeout=30).not_done


@helped
def test_many_leaders_at_once():
    x = blobs(20_000, 20, 4)
    first, wrong = fitted(fit(x, 20, 1)), []

    def lead():
        wrong.extend(i for i in range(10) if fitted(fit(x, 20, 4)) != first)

    threads = [threading.Thread(target=lead) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


FORK = """
import os, signal
import numpy as np
from cce_core.clustering import KMeans
x = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
def fit():
    return KMeans(20, init=x[:20], n_threads=3).fit(x).labels_
before = fit()
child = os.fork()
signal.alarm(120)  # a child that hangs fails the test
if child == 0:
    os._exit(0 if np.array_equal(fit(), before) else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), np.array_equal(fit(), before))
"""


@helped
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    ran = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout.strip()) == (0, "0 True"), ran.stderr


# What `beside` promises


def test_beside_calls_and_does_not_wait():
    go, seen = threading.Event(), []

    def call(value):
        go.wait(30)
        seen.append(value)

    futures = _threads.beside(3, call, 7)
    assert len(futures) == 3
    assert not seen
    go.set()
    assert not wait(futures, timeout=30).not_done
    assert seen == [7, 7, 7]
    assert _threads.beside(0, call, 7) == []


def test_at_the_end_of_python_nobody_comes(monkeypatch):
    monkeypatch.setattr(_threads.sys, "is_finalizing", lambda: True)
    assert _threads.beside(2, print) == []
    monkeypatch.undo()
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    monkeypatch.setattr(_threads, "_executor", lambda size: closed)
    assert _threads.beside(2, print) == []
