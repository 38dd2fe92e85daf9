"""Tables under Python threads, worker processes, and several processes on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED

VOCAB, DIM = 5000, 8


def make():
    return cce.make_table("cce", VOCAB, DIM, num_params=2000, n_chunks=2, rank=0, seed=1)


JOB = """
import sys, numpy as np, cce_core as cce
table = cce.make_table("cce", 5000, 8, num_params=2000, n_chunks=2, rank=0, seed=1)
both, optimizer, rng = cce.Collection([table]), cce.Adam(), np.random.default_rng(0)
for _ in range(int(sys.argv[1])):
    seen = both.forward(rng.integers(0, 5000, (20_000, 1)))
    optimizer.update(both, seen, seen.vectors)
print(table.lookup(np.arange(5000)).tobytes().hex()[:4000])
"""


def test_two_processes_at_once_do_as_one_alone():
    """Each with all threads of the machine: they share it, and neither hangs nor differs."""
    steps = "30" if COMPILED else "1"
    root = str(Path(cce.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment["CCE_NUM_THREADS"] = "2"
    start = [sys.executable, "-c", JOB, steps]
    running = [subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in running]
    alone = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=300).stdout
    assert alone
    assert outs == [alone, alone]


@pytest.mark.torch
def test_workers_of_a_data_loader():
    """Forked after the pool was used: each has threads of its own."""
    data = pytest.importorskip("torch.utils.data")
    table = make()
    cce.set_num_threads(2)
    truth = table.lookup(np.arange(VOCAB).repeat(20))[::20]  # the parent's pool is awake

    class Rows(data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return table.lookup((np.arange(20_000) + i) % VOCAB)[:3]

    loader = data.DataLoader(Rows(), batch_size=10, num_workers=2, multiprocessing_context="fork")
    got = np.concatenate([np.asarray(part) for part in loader])
    np.testing.assert_array_equal(got, np.stack([truth[[i, i + 1, i + 2]] for i in range(40)]))
    cce.set_num_threads(None)
