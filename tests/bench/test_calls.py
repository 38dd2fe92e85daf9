"""The count of calls: right for a program whose calls are known, and no more than was promised."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import cce_core as cce
from bench.speed import calls
from cce_core._jit import COMPILED

HERE = Path(__file__).resolve().parent


def inner(n):
    return json.dumps([n])  # another's


def outer(n):
    return [inner(k) for k in map(int, range(n))] and sum(map(len, map(inner, range(2))))


def test_calls_are_those_of_a_folder():
    before = sys.getprofile()
    found = calls.calls_of(lambda: outer(3), HERE)
    assert sys.getprofile() is before
    assert found["test_calls.py:inner"] == 5
    assert found["test_calls.py:outer"] == found["test_calls.py:<lambda>"] == 1
    assert set(found) <= {f"test_calls.py:{name}" for name in ("<lambda>", "outer", "inner", "<listcomp>")}
    assert not calls.calls_of(lambda: outer(3))


def test_the_hook_is_gone_when_a_program_fails():
    before, turns = sys.getprofile(), iter([1, 1])
    with pytest.raises(StopIteration):
        calls.calls_of(lambda: next(turns))
    assert sys.getprofile() is before


@pytest.mark.torch
@pytest.mark.skipif(not COMPILED, reason="loops that are not compiled are made of many calls")
@pytest.mark.parametrize("n", calls.BATCHES)
def test_a_lookup_by_the_torch_adapter_takes_few(n):
    pytest.importorskip("torch")
    found = calls.calls_of(dict(calls.adapter(n))["Embedding.forward, no gradient"])
    assert 5 < found.total() <= 20, found


@pytest.mark.skipif(not COMPILED, reason="loops that are not compiled are made of many calls")
@pytest.mark.parametrize("rank", [0, 4])
def test_what_every_call_costs_is_little(rank):
    """However many tables there are."""
    tables = [cce.make_table("cce", 500, 8, num_params=4000, rank=rank, seed=k) for k in range(26)]
    both, rng = cce.Collection(tables), np.random.default_rng(0)
    for n in (1, 4096):
        ids = rng.integers(0, 500, n)
        assert 3 <= calls.calls_of(lambda ids=ids: tables[0].lookup(ids)).total() <= 6
    ids = rng.integers(0, 500, (4, 26))
    for optimizer, most in ((cce.Adam(1e-3), 18), (cce.SGD(1e-3), 24), (cce.Adagrad(1e-3, rowwise=True), 24)):

        def step(optimizer=optimizer):
            seen = both.forward(ids)
            optimizer.update(both, seen, seen.vectors)

        found = calls.calls_of(step)
        assert 12 <= found.total() <= most, found
