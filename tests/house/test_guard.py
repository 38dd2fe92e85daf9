"""One rule for a table that several threads use: readers see it whole, writers change it one at a time."""

from __future__ import annotations

import copy
import os
import pickle
import threading

import numpy as np
import pytest

import cce_core as cce
from cce_core._guard import Changing, Guard, Still, Writer, in_order
from cce_core.sketching.group import TableGroup

VOCAB, DIM = 60, 4
IDS = np.arange(VOCAB)


def make(method="cce", seed=0, **more):
    return cce.make_table(method, VOCAB, DIM, num_params=120, seed=seed, **more)


def beside(function):
    """Run something in another thread, to its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(600)
    assert not thread.is_alive()


class Waits:
    """Something in another thread that is expected to wait until it may go on."""

    def __init__(self, function):
        self.ended, self.result = threading.Event(), None

        def run():
            self.result = function()
            self.ended.set()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def waits(self):
        return not self.ended.wait(0.1)

    def ends(self):
        return self.ended.wait(600)


READS = {
    "lookup": lambda table: table.lookup(IDS),
    "forward": lambda table: table.forward(IDS).vectors,
    "collection": lambda table: cce.Collection([table]).lookup(IDS[:, None]),
    "bags": lambda table: cce.Collection([table]).lookup([IDS], lengths=[np.ones(VOCAB, int)], mode="max"),
}
CHANGES = {
    "cluster": lambda table: table.cluster(n_iter=2),
    "step": lambda table: cce.SGD(1.0).update(table, IDS, np.ones((VOCAB, DIM))),
    "fused": lambda table: cce.Adam(1.0).update(cce.Collection([table]), IDS[:, None], np.ones((VOCAB, DIM))),
    "settle": lambda table: (table.parameters()["memory"].__imul__(2), table.requantize()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("more", [{"rank": 0}, {"rank": 2}, {"codec": "int8", "rank": 0}], ids=str)
def test_what_is_read_while_the_table_changes_is_read_again(read, change, more, monkeypatch):
    """The change comes between two halves of a lookup: what it read before must not be handed out."""
    table, plain, met = make(n_chunks=1, **more), TableGroup.forward, []

    def late(*arguments):
        found = plain(*arguments)
        if not met:
            met.append(True)
            beside(lambda: CHANGES[change](table))
        return found

    before = READS[read](table)
    monkeypatch.setattr(TableGroup, "forward", late)
    got = READS[read](table)
    assert met
    np.testing.assert_array_equal(got, READS[read](table))
    assert not np.array_equal(got, before)


@pytest.mark.parametrize("change", ["cluster", "step", "fused"])
def test_writers_wait_for_one_that_learns_and_readers_do_not(change, tmp_path):
    table = make()
    held = table.lookup(IDS)
    with table.guard.learning():
        writer = Waits(lambda: CHANGES[change](table))
        assert writer.waits()
        beside(lambda: np.testing.assert_array_equal(table.lookup(IDS), held))
        beside(lambda: table.save(tmp_path / "table"))
        beside(lambda: copy.deepcopy(table))
        np.testing.assert_array_equal(table.lookup(IDS), held)
    assert writer.ends()
    assert not np.array_equal(table.lookup(IDS), held)
    np.testing.assert_array_equal(cce.load(tmp_path / "table").lookup(IDS), held)


COPIES = {
    "save": lambda table, path: (table.save(path), cce.load(path))[1],
    "deepcopy": lambda table, path: copy.deepcopy(table),
    "pickle": lambda table, path: pickle.loads(pickle.dumps(table)),
    "backward": lambda table, path: table.backward(IDS, np.ones((VOCAB, DIM))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_what_needs_the_table_to_stand_still_waits_for_a_change(kind, tmp_path):
    table = make()
    table.lookup(IDS)
    with Changing((table.guard,)):
        table.parameters()["memory"][:60] = 0.0
        waiting = Waits(lambda: COPIES[kind](table, tmp_path / "table"))
        assert waiting.waits()
        table.parameters()["memory"][:] = 1.0
    assert waiting.ends()
    if kind != "backward":
        assert (waiting.result.parameters()["memory"] == 1.0).all()
        assert waiting.result.guard is not table.guard


def test_a_step_of_an_older_forward_pass_is_refused_whole():
    table = make(rank=0)
    seen = table.forward(IDS)
    table.cluster(n_iter=2)
    held = table.lookup(IDS)
    with pytest.raises(ValueError, match="clustered since"):
        cce.SGD(1.0).update(table, seen, seen.vectors)
    np.testing.assert_array_equal(table.lookup(IDS), held)
    assert table.guard.clock % 2 == 0


def test_the_clock_is_odd_within_a_change_and_moves_on_once():
    guard = Guard()
    with Writer((guard,)):
        assert guard.clock == 0
        with Changing((guard,)):
            assert guard.clock == 1
            with Changing((guard,)), Still((guard,)):
                assert guard.clock == 1
            assert guard.clock == 1
    assert guard.clock == 2
    with pytest.raises(KeyError), Changing((guard,)):
        raise KeyError
    assert guard.clock == 4
    assert guard.door.acquire(blocking=False)


def test_collections_of_the_same_tables_in_other_orders_train_at_once():
    """Each step needs all of them: whoever waits holds nothing that the other one waits for."""
    tables = [make(seed=s, rank=0) for s in range(4)]
    both = [cce.Collection(tables), cce.Collection(tables[::-1])]
    assert both[0].guards == both[1].guards == in_order(t.guard for t in tables)
    ids = np.tile(IDS[:, None], 4)

    def train(one):
        optimizer = cce.SGD(0.01)
        for _ in range(50):
            optimizer.update(one, ids, np.ones((VOCAB, 4 * DIM)))

    running = [Waits(lambda one=one: train(one)) for one in both]
    assert all(one.ends() for one in running)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not():
    table = make()
    table.lookup(IDS)
    changing, go = threading.Event(), threading.Event()

    def change():
        with table.guard.learning(), Changing((table.guard,)):
            changing.set()
            go.wait(120)

    thread = threading.Thread(target=change)
    thread.start()
    changing.wait(120)
    pid = os.fork()
    if pid == 0:
        table.lookup(IDS)
        table.requantize()
        os._exit(0 if table.guard.clock % 2 == 0 else 1)
    waiting = Waits(lambda: os.waitpid(pid, 0)[1])
    ended = waiting.ended.wait(60)
    if not ended:
        os.kill(pid, 9)
    go.set()
    thread.join()
    assert ended
    assert waiting.result == 0
