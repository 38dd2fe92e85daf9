"""Lookups beside changes of the same module in other threads."""

from __future__ import annotations

import copy
import os
import threading
import warnings

import pytest
from torch_tables import DIM, VOCAB

torch = pytest.importorskip("torch")

from torch_modules import numbers  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, FusedSGD, guard  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.arange(VOCAB)
LEARNS = [("cce", {"num_params": 300, "rank": 0}), ("cce", {"num_params": 300, "rank": 4}), ("cce_robe", {"num_params": 200}),
          ("cce", {"num_bytes": 900, "codec": "int8", "rank": 0})]  # fmt: skip


def made(case, kind=Embedding, seed=1, **more):
    method, options = case
    return kind(VOCAB, DIM, method=method, seed=seed, **{**options, **more})


def beside(change, look, readers=2):
    """What `look` gives in other threads while `change` runs in this one; errors of any thread come out here."""
    seen, errors, stop = [], [], threading.Event()

    def run():
        try:
            while not stop.is_set():
                seen.append(look())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(readers)]
    for thread in threads:
        thread.start()
    try:
        change()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors[0]
    return seen


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
@pytest.mark.parametrize(
    "case", [LEARNS[0], LEARNS[2], ("cce", {"num_params": 300, "rank": 4, "dtype": torch.float64})], ids=str
)
def test_lookups_beside_clusterings_and_loads_see_one_table(case, kind):
    method, options = case
    emb = kind(3000, DIM, method=method, seed=1, **options)
    ids = torch.arange(3000)
    ids = ids[:, None] if kind is EmbeddingBag else ids
    states, truths = [], []

    def note():
        states.append(copy.deepcopy(emb.state_dict()))
        with torch.no_grad():
            truths.append(emb(ids))

    note()

    def change():
        for _ in range(2):
            emb.cluster(n_iter=2)
            note()
        for _ in range(20):
            for state in states:
                emb.load_state_dict(state)

    with torch.no_grad():
        seen = beside(change, torch.no_grad()(lambda: emb(ids)))
    assert seen
    assert all(any(torch.equal(one, truth) for truth in truths) for one in seen)


@pytest.mark.parametrize("what", ["lookup", "weight", "backward", "sparse backward", "fused step"])
def test_what_reads_waits_for_a_change(what):
    emb = made(LEARNS[0], sparse=what == "sparse backward")
    optimizer = FusedSGD(emb.parameters(), lr=0.1)
    loss = emb(IDS).sum()
    if what == "fused step":
        loss.backward()
    reads = {
        "lookup": lambda: emb(IDS),
        "weight": lambda: emb.weight.clone(),
        "backward": loss.backward,
        "sparse backward": loss.backward,
        "fused step": optimizer.step,
    }
    reader = threading.Thread(target=reads[what])
    with guard.changing():
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
    reader.join(30)
    assert not reader.is_alive()


def test_a_change_waits_for_the_reads_under_way_and_for_no_others():
    """Readers who begin again at once let it in between; whoever changes may read."""
    order, inside, go = [], threading.Event(), threading.Event()

    @guard.reading
    def read(name):
        order.append(f"{name} begins")
        inside.set()
        go.wait(10)
        order.append(f"{name} ends")

    reader = threading.Thread(target=lambda: (read("first"), read("second")))
    reader.start()
    assert inside.wait(10)

    def change():
        with guard.changing(), guard.changing():
            order.append("change")
            guard.reading(lambda: order.append("own read"))()

    writer = threading.Thread(target=change)
    writer.start()
    while not guard.owner:
        pass
    go.set()
    for thread in (reader, writer):
        thread.join(10)
        assert not thread.is_alive()
    assert order == ["first begins", "first ends", "change", "own read", "second begins", "second ends"]


def test_reads_within_reads_do_not_wait_for_a_change():
    inside, go, done = threading.Event(), threading.Event(), []

    @guard.reading
    def outer():
        inside.set()
        go.wait(10)
        guard.reading(lambda: done.append("inner"))()
        done.append("outer")

    reader = threading.Thread(target=outer)
    reader.start()
    assert inside.wait(10)

    def change():
        with guard.changing():
            done.append("change")

    writer = threading.Thread(target=change)
    writer.start()
    while not guard.owner:
        pass
    go.set()
    for thread in (reader, writer):
        thread.join(10)
        assert not thread.is_alive()
    assert done == ["inner", "outer", "change"]


def test_two_threads_cluster_one_module_one_after_the_other():
    emb, alone = (made(LEARNS[0]) for _ in range(2))
    threads = [threading.Thread(target=emb.cluster) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in threads:
        alone.cluster()
    assert int(emb.generation) == 3
    assert all(torch.equal(value, numbers(alone)[name]) for name, value in numbers(emb).items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_looks_up_whatever_the_parents_threads_were_at():
    emb = made(LEARNS[0])
    inside, go = threading.Event(), threading.Event()

    @guard.reading
    def read():
        inside.set()
        go.wait(30)

    reader = threading.Thread(target=read)
    reader.start()
    assert inside.wait(10)
    writer = threading.Thread(target=lambda: emb.load_state_dict(copy.deepcopy(emb.state_dict())))
    writer.start()
    while not guard.owner:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            emb(IDS[:3])
            with guard.changing():
                code = 0
        finally:
            os._exit(code)
    go.set()
    reader.join()
    writer.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("case", [("full", {}), *LEARNS[:3], ("hash", {"num_params": 200})], ids=str)
def test_what_is_assigned_to_the_weight_comes_as_a_whole(case):
    emb, whole = made(case), set()
    given = torch.randn(2, VOCAB, DIM, generator=torch.Generator().manual_seed(0))
    whole.add(emb(IDS).detach().numpy().tobytes())

    def assign():
        for k in range(6):
            emb.weight = given[k % 2]
            whole.add(emb(IDS).detach().numpy().tobytes())

    assert set(beside(assign, lambda: emb(IDS).detach().numpy().tobytes())) <= whole
