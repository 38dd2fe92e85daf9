"""A client of the server's application in the same process: thousands of requests a second, and what it raises is raised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cce_core.serving.server.app import Server
from cce_core.serving.server.settings import Limits, Settings

JSON, RAW, ARROW = "application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"


class Reply(NamedTuple):
    """A status, headers and a body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The line of an error, which is all there is."""
        found = self.json()
        assert (list(found), self.body.count(b"\n"), self.body[-1:]) == (["error"], 1, b"\n"), self.body
        assert "\n" not in found["error"]
        return str(found["error"])


async def request(
    server: Server,
    method: str,
    path: str,
    parts: Sequence[bytes] = (b"",),
    headers: Sequence[tuple[str, str]] = (),
    query: bytes = b"",
) -> Reply:
    """One request whose body comes in parts."""
    sent: list[Any] = []
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left[-1]["more_body"] = False

    async def receive() -> Any:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query, "root_path": "", "server": ("test", 80), "client": ("test", 1),
        "headers": [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in headers],
    }  # fmt: skip
    await server.app(scope, receive, send)
    start, *bodies = sent
    found = {name.decode().lower(): text.decode() for name, text in start["headers"]}
    return Reply(start["status"], found, b"".join(message.get("body", b"") for message in bodies))


class Client:
    """Requests to a server of files, one after the other."""

    def __init__(self, *places: Path, ids: int = 3000, body: int = 40_000, **more: Any) -> None:
        self.server = Server(Settings(places, limits=Limits(ids, body), **more))
        self._runner = asyncio.Runner()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def request(self, method: str, path: str, *args: Any, **more: Any) -> Reply:
        return self.run(request(self.server, method, path, *args, **more))

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: Any, kind: str = JSON, accept: str = "", query: bytes = b"") -> Reply:
        """A body of bytes, or what becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", f"/tables/{path}", (data,), (("Content-Type", kind), ("Accept", accept)), query)
