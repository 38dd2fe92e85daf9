"""The ledger's peak while training, against the arrays that a run holds and allocates."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED

VOCAB, BATCH = (100_000, 128) if COMPILED else (20_000, 32)
OPTIMISERS = {
    "sgd": (lambda: cce.SGD(0.1), 0),
    "row-wise": (lambda: cce.Adagrad(0.1, rowwise=True), 4),
    "adagrad": (lambda: cce.Adagrad(0.1), 16),
    "lazy": (lambda: cce.AdamW(0.01, lazy=True), 32),
    "row-wise bfloat16": (lambda: cce.Adagrad(0.1, rowwise=True, state_dtype="bfloat16"), 2),
    "lazy row-wise adam": (lambda: cce.Adam(0.01, lazy=True, rowwise=True), 10),
}


def run(make, optimizer, steps=3):
    """Train on rare ids; the table, and the most bytes at any time, of the table and of what was allocated for it."""
    for vocab in (1000, VOCAB):  # the first one compiles
        if vocab == VOCAB:
            tracemalloc.start()
        table = make(vocab)
        both, rng = cce.Collection([table]), np.random.default_rng(0)
        if vocab == VOCAB:
            tracemalloc.reset_peak()  # drawing the first values takes more than training
        for _ in range(steps):
            ids = rng.integers(0, vocab, (BATCH, 1))
            optimizer.update(both, ids, rng.standard_normal((BATCH, table.spec.dim)).astype(np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return table, peak


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("rounding", ["stochastic", "straight-through"])
def test_the_rows_of_vq_take_what_the_ledger_says(kind, rounding):
    """4.25 bytes an id stored, a counter, the optimiser's state, and (straight-through) the floats behind the codes."""
    make, state = OPTIMISERS[kind]
    table, peak = run(lambda n: cce.make_table("vq", n, 32, rank=4, num_bytes=2 * n + 2000, rounding=rounding), make())
    ledger = table.ledger()
    kept = 4.25 + 1 + state + (0 if rounding == "stochastic" else 16)
    small = 60_000 + 900 * BATCH  # the projection and a batch, whatever the vocabulary is
    assert VOCAB * kept <= ledger.peak <= VOCAB * kept + small
    assert 0 <= peak - (ledger.peak - ledger.training["gradient"] - ledger.training["scratch"]) <= 2 * small
    assert ledger.training["optimiser"] <= VOCAB * state + small
    if kind == "row-wise" and rounding == "stochastic" and COMPILED:
        assert ledger.peak <= 10 * VOCAB


def test_a_fused_step_is_told_by_the_way_it_takes():
    """Few rows: their own gradients and a hash table; most rows, or all: the whole gradient."""
    table = cce.make_table("full", 1000, 8)
    both, g = cce.Collection([table]), np.ones((300, 8), np.float32)
    for n, optimizer, whole in ((300, cce.SGD(0.1), True), (9, cce.SGD(0.1), False), (9, cce.Adam(0.1), True)):
        optimizer.update(both, np.arange(n)[:, None], g[:n])
        training = table.ledger().training
        assert training["gradient"] == (4 * 8000 if whole else n * (8 + 4 * 8))
        assert training["scratch"] == (0 if whole else 8 * n + 4 * 64)
        assert table.ledger().peak == table.ledger().total + sum(training.values())


@pytest.mark.parametrize("threads", [1, 3])
def test_each_thread_of_a_large_step_has_scratch_of_its_own(threads):
    table, n = cce.make_table("full", 50_000, 2), 4_500
    cce.set_num_threads(threads)
    cce.SGD(0.1).update(cce.Collection([table]), np.arange(n)[:, None], np.ones((n, 2), np.float32))
    cce.set_num_threads(None)
    assert table.ledger().training["scratch"] == threads * (8 * n + 4 * 2**15)  # 2^15 places for 4 · 4,500


def test_of_a_step_and_a_clustering_the_larger_one_counts():
    table = cce.make_table("cce", 500, 8, num_params=512, rank=0)
    table.backward([1], np.ones((1, 8)))
    table.cluster(n_iter=2)
    training = table.ledger().training
    assert training["cluster"] > training["gradient"] + training["scratch"] > 0
    assert table.ledger().peak == table.ledger().total + training["cluster"]
    assert "training at its peak" in str(table.ledger())
