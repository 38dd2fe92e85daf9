"""The server of files: `Reader`'s bits in every kind of body, and a line of JSON for whatever makes no sense."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from asgi_client import ARROW, JSON, RAW, Client, request

import cce_core as cce
from cce_core.serving import Reader
from cce_core.serving.server import bodies

IDS = [[1, 2, 49], [0, 7, 7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bounded table, one without end, several with one memory, and a network."""
    path = tmp_path_factory.mktemp("tables")
    made = {
        "item": cce.make_table("cce", 50, 8, num_params=200, rank=4, seed=1),
        "user": cce.make_table("tiered", None, 8, num_bytes=4000),
        "both": cce.make_collection("tiered", ["ann", "bob"], 8, num_bytes=4000),
        "net": cce.make_table("dhe", 50, 8, num_params=2000, seed=1),
    }
    for name, table in made.items():
        table.save(path / f"{name}.safetensors")
    (path / "item.ids.txt").write_text("not a table\n")
    return path


@pytest.fixture(scope="module")
def client(folder):
    with Client(folder) as found:
        yield found


@pytest.fixture(scope="module")
def readers(folder):
    return {name: Reader(folder / f"{name}.safetensors") for name in ("item", "user", "both", "net")}


def floats(reply, dim=8):
    """The vectors of a reply of any kind."""
    assert reply.status == 200, reply.body
    assert int(reply.headers["content-length"]) == len(reply.body)
    if reply.headers["content-type"] == JSON:
        return np.array(reply.json()["vectors"], np.float32)
    if reply.headers["content-type"] == RAW:
        return np.frombuffer(reply.body, "<f4").reshape(-1, dim)
    assert reply.headers["content-type"] == ARROW
    (column,) = pytest.importorskip("pyarrow").ipc.open_stream(reply.body).read_all().columns
    return np.array(column.to_pylist(), np.float32).reshape(-1, dim)


def stream(**columns):
    """An Arrow stream of columns."""
    pa = pytest.importorskip("pyarrow")
    options, split = columns.pop("options", None), columns.pop("split", 1)
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as out:
        for n in range(split):
            own = range(len(table))[n::split]
            out.write_table(table.slice(own.start, len(own)) if split == 1 else table.take(list(own)))
    return sink.getvalue().to_pybytes()


# Answers


@pytest.mark.parametrize("accept", [JSON, RAW, ARROW, "", "*/*", f"text/html, {RAW};q=0.5"])
@pytest.mark.parametrize("name", ["item", "user", "net"])
def test_vectors_have_the_readers_bits(client, readers, name, accept):
    if accept == ARROW:
        pytest.importorskip("pyarrow")
    wanted = readers[name].lookup(IDS)
    got = floats(client.post(f"{name}/lookup", {"ids": IDS}, accept=accept))
    np.testing.assert_array_equal(got.reshape(wanted.shape).view(np.uint32), wanted.view(np.uint32))
    assert got.shape == wanted.shape or accept not in (JSON, "", "*/*")
    raw = np.array(IDS, "<i8").tobytes()
    got = floats(client.post(f"{name}/lookup", raw, RAW, accept))
    np.testing.assert_array_equal(got.view(np.uint32), wanted.reshape(-1, 8).view(np.uint32))


@pytest.mark.parametrize(
    "ids",
    [7, [7], [], [[], []], [[[1]], [[2]]], list(range(50)) * 50, "ann", ["ann", "bob", "é"], [2**64 - 1], [-1, 2**64 - 1]],
    ids=lambda ids: str(ids)[:20],
)  # fmt: skip
def test_ids_of_any_shape_and_kind(client, readers, ids):
    name = "item" if np.size(ids) == 2500 else "user"
    wanted = readers[name].lookup(ids)
    got = client.post(f"{name}/lookup", {"ids": ids}).json()["vectors"]
    np.testing.assert_array_equal(np.array(got, np.float32).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("table", [None, 0, 1, "0", "1", "ann", "bob"])
def test_tables_of_one_file_by_name_and_number(client, readers, table):
    wanted = readers["both"].lookup([1, 2], int(table) if str(table).isdigit() else table or 0)
    more = {} if table is None else {"table": table}
    np.testing.assert_array_equal(floats(client.post("both/lookup", {"ids": [1, 2], **more})), wanted)
    query = b"" if table is None else f"table={table}".encode()
    got = client.post("both/lookup", np.array([1, 2], "<i8").tobytes(), RAW, query=query)
    np.testing.assert_array_equal(floats(got), wanted)


@pytest.mark.parametrize(
    "more",
    [
        {"lengths": [2, 0, 1]},
        {"offsets": [0, 2, 2, 3], "mode": "mean"},
        {"lengths": [3], "mode": "max", "padding_id": 7},
        {"lengths": [1, 2], "weights": [0.5, 2, -1]},
        {"mode": None, "weights": None, "lengths": [3]},
    ],
)
def test_bags(client, readers, more):
    sent = {name: value for name, value in more.items() if value is not None}
    for name in ("item", "net"):
        wanted = readers[name].bags([1, 7, 3], **sent)
        np.testing.assert_array_equal(floats(client.post(f"{name}/bags", {"ids": [1, 7, 3], **more})), wanted)
    wanted = readers["user"].bags([[1, 2], [3, 4]])
    np.testing.assert_array_equal(floats(client.post("user/bags", {"ids": [[1, 2], [3, 4]]}, accept=RAW)), wanted)


def test_arrow_streams(client, readers):
    pa = pytest.importorskip("pyarrow")
    for dtype in (pa.int8(), pa.uint64(), pa.int64()):
        got = client.post("item/lookup", stream(ids=pa.array([1, 2, 40], dtype)), ARROW)
        np.testing.assert_array_equal(floats(got), readers["item"].lookup([1, 2, 40]))
    for dtype in (pa.string(), pa.large_string()):
        got = client.post("user/lookup", stream(ids=pa.array(["a", "bb"], dtype)), ARROW, RAW)
        np.testing.assert_array_equal(floats(got), readers["user"].lookup(["a", "bb"]))
    assert not floats(client.post("item/lookup", stream(ids=pa.array([], pa.int64())), ARROW)).size
    got = client.post("item/lookup", stream(ids=pa.array([4, 5, 6]), split=2), ARROW)
    np.testing.assert_array_equal(floats(got), readers["item"].lookup([4, 6, 5]))
    lists = pa.array([[1, 2], [], [3]], pa.large_list(pa.int32()))
    weights = pa.array([[1.0, 2.0], [], [3.0]], pa.list_(pa.float32()))
    got = client.post("item/bags", stream(ids=lists, weights=weights), ARROW)
    np.testing.assert_array_equal(floats(got), readers["item"].bags([1, 2, 3], lengths=[2, 0, 1], weights=[1, 2, 3]))
    got = client.post("item/bags", stream(ids=lists.slice(1)), ARROW, query=b"mode=mean&padding_id=3")
    np.testing.assert_array_equal(floats(got), np.zeros((2, 8)))


def test_requests_of_one_moment_are_looked_up_together_and_each_has_its_own_answer(client, readers, monkeypatch):
    calls, lookup = [], Reader.lookup
    monkeypatch.setattr(Reader, "lookup", lambda self, ids, table=0: calls.append(ids.size) or lookup(self, ids, table))
    asked = [("item", [[1, 2], [3, 4]]), ("item", []), ("user", [5]), ("item", [6]), ("item", 7), ("user", [8, 9])]

    async def all_at_once(asked):
        posts = [(f"/tables/{name}/lookup", (json.dumps({"ids": ids}).encode(),)) for name, ids in asked]
        return await asyncio.gather(*(request(client.server, "POST", *post) for post in posts))

    replies = client.run(all_at_once(asked))
    assert sorted(calls) == [0, 3, 6]  # of no ids no type is known, and they go alone
    for (name, ids), reply in zip(asked, replies, strict=True):
        wanted = lookup(readers[name], np.array(ids, np.int64))
        np.testing.assert_array_equal(np.array(reply.json()["vectors"], np.float32).reshape(wanted.shape), wanted)
    del calls[:]
    assert {reply.status for reply in client.run(all_at_once([("user", [1] * 1000)] * 9))} == {200}
    assert sorted(calls) == [1000, 4000, 4000]  # but not without end
    replies = client.run(all_at_once([("item", [1]), ("item", [2, 50]), ("item", [3])]))
    assert [reply.status for reply in replies] == [200, 422, 200]
    assert "id 50 at position 1 is outside" in replies[1].error
    np.testing.assert_array_equal(floats(replies[2]), lookup(readers["item"], [3]))


def test_what_there_is_and_how_it_goes(folder, readers):
    with Client(folder) as client:
        assert client.get("/health").json() == {"live": True, "ready": True, "tables": 4}
        found = client.get("/tables").json()["tables"]
        for name, reader in readers.items():
            assert found[name] == {
                "spec": json.loads(json.dumps(reader.spec)), "dim": 8, "vocab": reader.vocab, "names": reader.names,
                "bytes": reader.nbytes, "digest": reader.digest(), "sequence": 0,
            }  # fmt: skip
        client.post("item/lookup", {"ids": [1, 2, 3]})
        client.post("item/lookup", {"ids": [50]})
        client.post("nobody/bags", {"ids": [50]})
        text = client.get("/metrics").body.decode()
        for line in (
            'cce_requests_total{call="lookup",status="200",table="item"} 1.0',
            'cce_requests_total{call="lookup",status="422",table="item"} 1.0',
            'cce_requests_total{call="bags",status="404",table=""} 1.0',
            'cce_ids_total{call="lookup",table="item"} 3.0',
            'cce_request_seconds_count{call="lookup"} 2.0',
        ):
            assert f"{line}\n" in text
        assert re.search(r'cce_request_seconds_bucket\{call="lookup",le="0.01"\} ', text)


# What makes no sense

OBJECT = {"ids": [1]}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("none/lookup", OBJECT, 404, "no table 'none'; the tables are both, item, net, user"),
        ("item/none", OBJECT, 404, "Not Found"),
        ("both/lookup", {"ids": [1], "table": "eve"}, 404, "no table 'eve'; the tables are 'ann', 'bob'"),
        ("both/lookup", {"ids": [1], "table": 2}, 404, "no table 2"),
        ("both/lookup", {"ids": [1], "table": [0]}, 400, "one value each"),
        ("item/lookup", b"", 400, "no JSON"),
        ("item/lookup", b"{", 400, "no JSON"),
        ("item/lookup", b'{"ids": [NaN]}', 400, "no JSON"),
        ("item/lookup", b"[" * 100_0, 400, "no JSON"),
        ("item/lookup", [1], 400, "must be an object"),
        ("item/lookup", {}, 400, "'ids' is missing"),
        ("item/lookup", {"id": [1]}, 400, "no field 'id'; lookup has ids, table"),
        ("item/lookup", {"ids": [1], "lengths": [1]}, 400, "no field 'lengths'"),
        ("item/lookup", {"ids": [[1], [2, 3]]}, 422, "got list at position 0"),
        ("item/lookup", {"ids": None}, 422, "ids must be integers"),
        ("item/lookup", {"ids": {"a": 1}}, 422, "ids must be integers"),
        ("item/lookup", {"ids": [1.5]}, 422, "got float at position 0"),
        ("item/lookup", {"ids": [True]}, 422, "got bool"),
        ("item/lookup", {"ids": ["a"]}, 422, "got str"),
        ("item/lookup", {"ids": [1, None]}, 422, "missing"),
        ("item/lookup", {"ids": [50]}, 422, "id 50 at position 0 is outside this table's vocabulary"),
        ("item/lookup", {"ids": [-1]}, 422, "id -1"),
        ("user/lookup", {"ids": [2**64]}, 422, "got float"),
        ("user/lookup", {"ids": ["a", 1]}, 422, "strings or bytes"),
        ("item/lookup", {"ids": [1] * 3001}, 413, "3,000 ids"),
        ("item/lookup", b" " * 40_001, 413, "40,000 bytes"),
        ("item/bags", {"ids": [1, 2]}, 422, "must be a matrix"),
        ("item/bags", {"ids": [1, 2], "lengths": [1]}, 422, "add up to 1"),
        ("item/bags", {"ids": [1], "lengths": ["a"]}, 400, "lengths must be whole numbers, got str"),
        ("item/bags", {"ids": [1], "lengths": 1}, 400, "lengths must be a list"),
        ("item/bags", {"ids": [1], "offsets": [0, 2**63]}, 400, "64 bits"),
        ("item/bags", {"ids": [1], "lengths": [1], "weights": [None]}, 400, "weights must be numbers, got NoneType"),
        ("item/bags", {"ids": [], "lengths": [0] * 3001}, 413, "(or bags), got 3,001"),
        ("item/bags", {"ids": [[]] * 3002}, 413, "(or bags), got 3,002"),
        ("item/bags", {"ids": [[1]], "mode": "median"}, 422, "sum, mean, max"),
        ("item/bags", {"ids": [[1]], "mode": ["sum"]}, 422, "sum, mean, max"),
        ("item/bags", {"ids": [[1]], "padding_id": "a"}, 422, "padding_id"),
        ("item/bags", {"ids": [[1]], "padding_id": {}}, 400, "one value each"),
        ("item/lookup", {"ids": "x" * 3000}, 422, "got str"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_line(client, path, body, status, says):
    reply = client.post(path, body)
    assert (reply.status, says in reply.error) == (status, True), reply.body
    assert len(reply.body) < 500


@pytest.mark.parametrize(
    ("kind", "accept", "query", "path", "body", "status", "says"),
    [
        ("text/plain", "", b"", "item/lookup", OBJECT, 415, "got 'text/plain'"),
        (JSON, "text/html", b"", "item/lookup", OBJECT, 406, "accepts text/html"),
        (RAW, "", b"", "item/lookup", b"1234567", 400, "got 7 bytes"),
        (RAW, "", b"", "item/bags", b"", 415, "where each ends"),
        (RAW, "", b"x=1", "item/lookup", b"", 400, "no field 'x'"),
        (RAW, "", b"table=5", "item/lookup", bytes(8), 404, "no table 5"),
        (RAW, "", b"table=\xb2", "item/lookup", bytes(8), 404, "no table"),
        (RAW, "", b"table=" + b"9" * 5000, "item/lookup", bytes(8), 404, "no table"),
        (RAW, "", b"", "item/lookup", bytes(8 * 3001), 413, "3,000 ids"),
        (ARROW, "", b"", "item/lookup", b"nonsense", 400, "no Arrow stream"),
        (ARROW, "", b"padding_id=x", "item/bags", b"", 400, "padding_id must be a whole number"),
    ],
)  # fmt: skip
def test_headers_and_raw_bodies_that_make_no_sense(client, kind, accept, query, path, body, status, says):
    if kind == ARROW:
        pytest.importorskip("pyarrow")
    reply = client.post(path, body, kind, accept, query)
    assert (reply.status, says in reply.error) == (status, True), reply.body


def test_a_body_that_is_longer_than_it_said_or_never_ends(client):
    path, headers = "/tables/item/lookup", [("Content-Length", "9" * 30)]
    assert client.request("POST", path, headers=headers).status == 413
    assert client.request("POST", path, [b" " * 20_000] * 3).status == 413
    assert client.request("POST", path, [b'{"ids"', b"", b": [1]}"]).status == 200
    assert client.request("GET", path).status == 405


def test_columns_that_are_none_of_ours(client):
    pa = pytest.importorskip("pyarrow")
    ids, refused = pa.array([1, 2]), []
    compressed = pa.ipc.IpcWriteOptions(compression="zstd")
    for path, columns, says in [
        ("lookup", {"x": ids}, "columns must be ids, got x"),
        ("lookup", {"ids": ids, "weights": ids}, "columns must be ids"),
        ("lookup", {"ids": pa.array([1.5])}, "integers or strings, got double"),
        ("lookup", {"ids": pa.array([True])}, "got bool"),
        ("lookup", {"ids": pa.nulls(2)}, "got null"),
        ("lookup", {"ids": pa.array([1, None])}, "missing values"),
        ("lookup", {"ids": pa.array([[1]])}, "got list"),
        ("lookup", {"ids": ids.dictionary_encode()}, "got dictionary"),
        ("lookup", {"ids": pa.array([0] * 100_000), "options": compressed}, "compressed"),
        ("lookup", {"ids": pa.array([1] * 3001)}, "3,000 ids"),
        ("bags", {"ids": ids}, "lists of integers or strings, got int64"),
        ("bags", {"ids": pa.array([[1], None])}, "missing lists"),
        ("bags", {"ids": pa.array([[1], [None]])}, "missing values"),
        ("bags", {"ids": pa.array([[1], [2]]), "weights": pa.array([[1.0], []])}, "as many weights as ids"),
        ("bags", {"ids": pa.array([[1]]), "weights": pa.array([["a"]])}, "lists of floats"),
    ]:
        reply = client.post(f"item/{path}", stream(**columns), ARROW)
        assert reply.status in (400, 413), reply.body
        assert says in reply.error, (says, reply.error)
        refused.append(says)
    assert len(refused) == 15
    odd = stream(ids=ids).replace(b"ids", b"\xff\xfe\xfd")  # a name that is no UTF-8
    assert "no Arrow stream" in client.post("item/lookup", odd, ARROW).error


def test_without_pyarrow_it_says_what_to_install(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    reply = client.post("item/lookup", b"", ARROW)
    assert (reply.status, "pip install 'cce-core[arrow]'" in reply.error) == (415, True)
    assert client.post("item/lookup", OBJECT, JSON, ARROW).status == 415


def test_errors_are_short():
    assert len(bodies.refused(400, "x\n" * 10_000).detail) < 310


def test_the_server_needs_neither_numba_nor_torch():
    heavy = ("numba", "llvmlite", "torch", "scipy", "pyarrow")
    code = "import sys, cce_core.serving.server.app, cce_core.serving.server.processes, cce_core.commands.serving\n"
    code += f"print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"


def test_arrow_bodies_need_no_pandas():
    """Its import takes most of a second, in which nobody is answered."""
    code = """
import sys, numpy as np
from cce_core.serving.server import bodies
for line in sys.stdin:
    call, body = line.split()
    bodies.read(call, bodies.ARROW, bytes.fromhex(body), {}, bodies.Limits())
bodies.written(bodies.ARROW, np.zeros((3, 2), np.float32))
print("pandas" in sys.modules)
"""
    columns = [("lookup", [1, 2]), ("lookup", ["a"]), ("lookup", []), ("bags", [[1], []])]
    pa = pytest.importorskip("pyarrow")
    lines = [f"{call} {stream(ids=pa.array(ids or pa.array([], pa.int64()))).hex()}" for call, ids in columns]
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
