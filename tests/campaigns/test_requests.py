"""Requests are input from strangers: each is answered, or refused in a line; and millions leave no memory behind."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from asgi_client import ARROW, JSON, RAW, Client, request
from campaigns.trial import Tally, many, memory_folder
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import cce_core as cce
from cce_core.serving import Reader

VOCAB, DIM = 50, 4
MOST_GROWTH = 16 << 20
FIELDS = ("ids", "table", "offsets", "lengths", "weights", "mode", "padding_id", "id", "")


def _save(folder: Path) -> None:
    make = cce.make_table
    make("cce", VOCAB, DIM, num_params=200, rank=4, seed=1).save(folder / "item.safetensors")
    make("tiered", None, DIM, num_bytes=4000).save(folder / "user.safetensors")
    make("dhe", VOCAB, DIM, num_params=900, seed=1).save(folder / "net.safetensors")
    cce.make_collection("tiered", ["ann", "bob"], DIM, num_bytes=4000).save(folder / "both.safetensors")


# Odd requests

_ids = st.integers(0, VOCAB - 1)
_numbers = (
    st.integers()
    | st.integers(-3, 60)
    | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**400])
)
_leaves = (
    st.none()
    | st.booleans()
    | _numbers
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["sum", "mean", "max", "ann"])
)
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
_flat = st.lists(_ids, max_size=20)


@st.composite
def _objects(draw: Any) -> Any:
    """An object of a request: right, but for some of its fields."""
    found: dict[str, Any] = {
        "ids": draw(_flat | st.lists(st.lists(_ids, min_size=2, max_size=2), max_size=5) | _values)
    }
    if draw(st.booleans()) and isinstance(found["ids"], list):
        cut = draw(st.integers(0, len(found["ids"])))
        found["lengths"] = [cut, len(found["ids"]) - cut]
    for name in draw(st.just([]) | st.lists(st.sampled_from(FIELDS), max_size=3)):
        found[name] = draw(_values | _flat)
    return found


def _text(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


@st.composite
def _mutated(draw: Any, whole: Any) -> bytes:
    """Bytes with some changed, left out, doubled or put in."""
    data = draw(whole)
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 9))
        middle = draw(
            st.sampled_from([b"", data[at : at + size] * 2, b"\xff" * size, bytes(size)]) | st.binary(max_size=9)
        )
        data = data[:at] + middle + data[at + size :]
    return data


def _streams() -> list[bytes]:
    """Arrow streams of ids, bags, and columns that are none."""
    if importlib.util.find_spec("pyarrow") is None:
        return [b""]
    import pyarrow as pa

    found, lists = [], pa.array([[1, 2], [], [3]], pa.list_(pa.int64()))
    ids, words = pa.array([1, 2, 3]), pa.array(["a", "bb", ""])
    for columns in (
        {"ids": ids}, {"ids": ids.cast(pa.uint8())}, {"ids": words}, {"ids": lists}, {"ids": pa.array([1, None])},
        {"ids": lists, "weights": lists.cast(pa.list_(pa.float32()))}, {"ids": words.dictionary_encode()}, {"x": ids},
        {"ids": pa.array([{"a": 1}])}, {"ids": pa.nulls(9)}, {"ids": pa.array([words.to_pylist()])},
        {"ids": ids.cast(pa.float64())},
    ):  # fmt: skip
        table = pa.table(columns)
        for options in (None, pa.ipc.IpcWriteOptions(compression="zstd")):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema, options=options) as out:
                for size in (1, 2):
                    out.write_table(table, max_chunksize=size)
            found.append(sink.getvalue().to_pybytes())
    return found


_BODIES = {
    JSON: _objects().map(_text) | _mutated(_objects().map(_text)) | _values.map(_text) | st.binary(max_size=40),
    RAW: _flat.map(lambda ids: np.array(ids, "<i8").tobytes()) | st.binary(max_size=40),
    ARROW: _mutated(st.sampled_from(_streams())) | st.binary(max_size=40),
}
_QUERIES = (
    st.just(b"")
    | st.binary(max_size=9)
    | st.sampled_from([b"table=1", b"table=bob", b"mode=mean", b"padding_id=3", b"x", b"&&=%ff", b"table=%00"])
)


@st.composite
def requests(draw: Any) -> tuple[str, str, list[bytes], list[tuple[str, str]], bytes]:
    """A method, path, body in parts, headers and query: mostly near to what makes sense."""
    kind = draw(st.sampled_from([JSON, JSON, RAW, ARROW]))
    body = draw(_BODIES[kind if draw(st.integers(0, 9)) else JSON])
    odd = st.text(st.characters(codec="ascii"), max_size=4)
    table = draw(st.sampled_from(["item", "user", "both", "net"]) if draw(st.integers(0, 19)) else odd)
    call = draw(st.sampled_from(["lookup", "bags"] * 9 + ["delta", ""]))
    accept = draw(st.sampled_from(["", "*/*", JSON, RAW, ARROW] * 4 + ["text/html", ",;,", f"text/html,{RAW};q=0"]))
    said = draw(st.sampled_from([kind] * 40 + [f"{kind}; charset=latin-1", "text/plain", ""]))
    length = draw(st.sampled_from([None] * 40 + ["x", "-1", "9" * 40, "0"]))
    headers = [("Content-Type", said), ("Accept", accept), *([] if length is None else [("Content-Length", length)])]
    cut = draw(st.integers(0, len(body)))
    method = draw(st.sampled_from(["POST"] * 60 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"]))
    return method, f"/tables/{table}/{call}", [body[:cut], body[cut:]], headers, draw(_QUERIES)


def odd(tally: Tally, n: int) -> None:
    """n requests: each is answered, or refused with a status of 4xx and a line; a right one is answered after them all."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        _save(Path(folder))
        with Client(Path(folder), ids=200, body=4000) as client:

            @settings(
                max_examples=n, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(requests())
            def one(asked: tuple[Any, ...]) -> None:
                tally.add("requests")
                try:
                    reply = client.request(*asked)
                except Exception as error:
                    tally.lose(repr(error), "raised by", asked, kind=repr(type(error)))
                    return
                tally.add(f"gave {reply.status}")
                if reply.status != 200 and not 400 <= reply.status < 500:
                    tally.lose(reply.status, "for", asked)
                elif reply.status != 200 and not reply.error:
                    tally.lose(asked, "says nothing")

            one()
            got = client.post("item/lookup", {"ids": [1]}).json()["vectors"]
            if np.array(got, np.float32).tobytes() != Reader(Path(folder, "item.safetensors")).lookup([1]).tobytes():
                tally.lose("a right request is answered by something else")


# Millions


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(tally: Tally, n: int) -> None:
    """n requests of every kind, eight at a time, one in ten wrong: the same replies, and no memory that is not given back."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, VOCAB, 64) for _ in range(8)]
    asked: list[tuple[str, str, bytes, str]] = []
    for k, some in enumerate(ids):
        asked += [("item/lookup", JSON, _text({"ids": some.tolist()}), RAW), ("user/lookup", RAW, some.tobytes(), RAW)]
        asked += [("item/lookup", RAW, some.tobytes(), JSON), ("user/lookup", JSON, _text({"ids": ["a", f"{k}"]}), RAW)]
        asked += [("item/bags", JSON, _text({"ids": some.tolist(), "lengths": [60, 4]}), RAW)]
    asked += [("item/lookup", RAW, b"123", RAW), ("item/lookup", JSON, _text({"ids": [VOCAB]}), RAW)]
    asked += [("none/lookup", RAW, b"", RAW), ("item/lookup", JSON, b"{", RAW)]

    async def ask(server: Any, which: int) -> tuple[int, bytes]:
        path, kind, body, accept = asked[which]
        reply = await request(server, "POST", f"/tables/{path}", (body,), (("Content-Type", kind), ("Accept", accept)))
        return reply.status, reply.body

    async def all_of_them(server: Any, wanted: list[Any], times: int) -> None:
        for which in rng.integers(0, len(asked), (times, 8)).tolist():
            for k, reply in zip(which, await asyncio.gather(*(ask(server, k) for k in which)), strict=True):
                if reply != wanted[k]:
                    tally.lose(asked[k], "gives", reply, kind=asked[k][0])
        tally.add("requests", 8 * times)

    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        _save(Path(folder))
        with Client(Path(folder)) as client:
            wanted = [client.run(ask(client.server, k)) for k in range(len(asked))]
            client.run(all_of_them(client.server, wanted, 500))
            before, grown = _resident(), 0
            for _ in range(10):
                client.run(all_of_them(client.server, wanted, max(1, n // 80)))
                grown = max(grown, _resident() - before)
            tally["grown by kB"] = grown // 1000
            if grown > MOST_GROWTH:
                tally.lose("memory has grown by", grown // 1000, "kB")


def test_odd_requests_are_answered_or_refused_in_a_line(campaign):
    campaign(odd, many(200, 10_000))


def test_requests_without_end(campaign):
    campaign(soak, many(2_000, 5_000_000), patience=600)
