"""What a server does with new files and deltas: it follows in order, swaps whole tables, and outlives what is damaged."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from asgi_client import Client, request

import cce_core as cce
from cce_core.serving import FileFormatError, Reader
from cce_core.serving.server.following import Following

IDS = np.concatenate([np.arange(60), 2**40 + np.arange(5)])


def make(k: int = 0) -> cce.Table:
    return cce.make_table("tiered", None, 8, num_bytes=4000, seed=k)


def train(table: cce.Table, k: int) -> None:
    rng = np.random.default_rng(k)
    cce.SGD(0.1).update(table, rng.zipf(1.2, 300) % 2**40, rng.standard_normal((300, 8)))


def moments(folder: Path, n: int, complete: bool = False) -> list[np.ndarray]:
    """Vectors at the start and after each of n deltas; the table's file, and the deltas in names that are in no order."""
    for name in ("in", "deltas"):
        (folder / name).mkdir(parents=True)
    table = make()
    table.save(folder / "in" / "user.safetensors")
    signature, found = table.signature(complete=complete), [table.lookup(IDS)]
    for k in range(n):
        train(table, k)
        delta = table.delta(signature)
        delta.save(folder / "deltas" / f"{n - k}.delta")
        signature = delta.signature
        found.append(table.lookup(IDS))
    table.save(folder / "last")
    return found


def put(source: Path, target: Path) -> None:
    """A copy that appears whole, and as another file than was there."""
    beside = target.with_name("beside")
    beside.write_bytes(source.read_bytes())
    os.replace(beside, target)


@pytest.fixture
def told():
    return []


@pytest.fixture
def following(tmp_path, told):
    """Makes one, of a folder; what it is told lands in `told`."""
    return lambda: Following([tmp_path / "in"], tmp_path / "deltas", told=lambda *news: told.append(news))


@pytest.mark.parametrize("complete", [False, True])
def test_deltas_are_applied_in_the_order_of_their_chain(tmp_path, following, told, complete):
    wanted = moments(tmp_path, 4, complete)
    (tmp_path / "aside").mkdir()
    for k in (1, 3):  # the last, and the second
        os.replace(tmp_path / "deltas" / f"{k}.delta", tmp_path / "aside" / f"{k}.delta")
    found = following()
    assert found.tables["user"].sequence == 1
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[1])
    put(tmp_path / "aside" / "1.delta", tmp_path / "deltas" / "1.delta")
    found.poll()
    assert found.tables["user"].sequence == 1
    put(tmp_path / "aside" / "3.delta", tmp_path / "deltas" / "3.delta")
    for _ in range(2):
        found.poll()
        assert found.tables["user"].sequence == 4
        np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[4])
    assert told == [("user", "delta", True)] * 4
    put(tmp_path / "last", tmp_path / "in" / "user.safetensors")  # of a later moment: no delta follows
    found.poll()
    assert told[4:] == [("user", "file", True)]
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[4])


def test_a_table_that_comes_back_to_where_it_was_goes_on_from_there(tmp_path, following):
    moments(tmp_path, 0)
    table = make()
    first = {name: array.copy() for name, array in table.arrays().items()}
    signature = table.signature(complete=True)
    for k in range(3):
        if k == 1:
            for name, array in table.arrays().items():
                array[...] = first[name]
            table.state.reloaded() if hasattr(table, "state") else None
        else:
            table.parameters()["projection"][0, 0] += k + 1
        delta = table.delta(signature)
        delta.save(tmp_path / "deltas" / f"{k}.delta")
        signature = delta.signature
    found = following()
    assert found.tables["user"].sequence == 3
    assert found.tables["user"].reader.digest(True) == signature.digest


def test_what_is_damaged_is_told_once_and_what_was_served_goes_on(tmp_path, following, told, caplog):
    wanted = moments(tmp_path, 2)
    deltas, table = tmp_path / "deltas", tmp_path / "in" / "user.safetensors"
    raw = {k: (deltas / f"{k}.delta").read_bytes() for k in (1, 2)}
    (deltas / "2.delta").write_bytes(
        raw[2][:-1] + bytes([raw[2][-1] ^ 1])
    )  # its data, which are read when it is applied
    (deltas / "1.delta").write_bytes(raw[1][:100])
    (deltas / "0.delta").write_bytes(table.read_bytes())  # a table
    (deltas / "beside.tmp").write_bytes(b"not looked at")
    found = following()
    for _ in range(2):
        found.poll()
    assert sorted(told) == [("", "delta", False), ("", "delta", False), ("user", "delta", False)]
    assert len(caplog.records) == 3
    assert all("\n" not in record.getMessage() for record in caplog.records)
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[0])
    for k in (1, 2):
        (deltas / f"{k}.delta").write_bytes(raw[k])
    found.poll()
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[2])
    del told[:]
    put(deltas / "beside.tmp", table)
    os.replace(deltas / "0.delta", tmp_path / "in" / "more.safetensors")
    for _ in range(2):
        found.poll()
    assert told == [("more", "delta", True)] * 2 + [("more", "file", True), ("user", "file", False)]
    (tmp_path / "in" / "more.safetensors").unlink()
    found.poll()
    assert sorted(found.tables) == ["more", "user"]
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[2])


def test_what_the_system_denies_is_tried_again(tmp_path, following, told, monkeypatch):
    wanted, apply = moments(tmp_path, 1), Reader.apply

    def denied(self, path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Reader, "apply", denied)
    found = following()
    found.poll()
    assert told == [("user", "delta", False)] * 2
    monkeypatch.setattr(Reader, "apply", apply)
    found.poll()
    np.testing.assert_array_equal(found.tables["user"].reader.lookup(IDS), wanted[1])


def test_what_cannot_be_served_is_refused_at_the_start(tmp_path):
    make().save(tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"there is no file \*.safetensors in"):
        Following([tmp_path / "b"])
    make().save(tmp_path / "b" / "a.safetensors")
    with pytest.raises(ValueError, match="two files give a table the name 'a'"):
        Following([tmp_path, tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match="none"):
        Following([tmp_path / "none"])
    with pytest.raises(NotADirectoryError, match="is no folder"):
        Following([tmp_path], tmp_path / "none")
    (tmp_path / "c.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FileFormatError, match="c.safetensors"):
        Following([tmp_path])


def test_tables_change_under_load_without_an_error(tmp_path):
    """Every answer is of one moment, none goes back, and the last one is the table's."""
    wanted = moments(tmp_path / "made", 6)
    for name in ("in", "deltas"):
        (tmp_path / name).mkdir()
    put(tmp_path / "made" / "in" / "user.safetensors", tmp_path / "in" / "user.safetensors")
    body = json.dumps({"ids": IDS.tolist()}).encode()
    known = {vectors.tobytes(): k for k, vectors in enumerate(wanted)}
    seen, over = [], threading.Event()

    def put_all():
        for k in range(6, 0, -1):
            put(tmp_path / "made" / "deltas" / f"{k}.delta", tmp_path / "deltas" / f"{k}.delta")
            if k == 3:  # replaced by an older one, from which the chain is followed anew before it is served
                put(tmp_path / "made" / "in" / "user.safetensors", tmp_path / "in" / "user.safetensors")
            over.wait(0.05)
        (tmp_path / "deltas" / "bad.delta").write_bytes(b"nonsense")
        over.wait(0.1)
        over.set()

    async def ask(server):
        while not over.is_set():
            reply = await request(
                server, "POST", "/tables/user/lookup", (body,), (("Accept", "application/octet-stream"),)
            )
            assert reply.status == 200
            seen.append(known[reply.body])
            await asyncio.sleep(0)

    async def load(server):
        async with server.routed.router.lifespan_context(server.routed):
            writer = threading.Thread(target=put_all)
            writer.start()
            await asyncio.gather(*(ask(server) for _ in range(4)))
            writer.join()

    with Client(tmp_path / "in", deltas=tmp_path / "deltas", every=0.005) as client:
        client.run(load(client.server))
        text = client.get("/metrics").body.decode()
    assert (seen == sorted(seen), seen[0], seen[-1]) == (True, 0, 6)
    assert len(set(seen)) > 3
    assert 'cce_delta_sequence{table="user"} 6.0\n' in text
    assert 'cce_news_total{result="refused",table="",what="delta"} 1.0\n' in text
    assert 'cce_news_total{result="taken",table="user",what="file"} 1.0\n' in text
