"""The ASGI application: tables by name, lookups and bags by POST, what there is and how it goes by GET.

    GET  /tables  /health  /metrics
    POST /tables/{name}/lookup  /tables/{name}/bags

One event loop answers. Lookups that come in one turn of it are looked up at once (`_Together`): a call of NumPy costs as much
for sixteen requests as for one. What takes long is done in a thread, and new files and deltas are read in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cce_core.serving.reader import Reader
from cce_core.serving.server import bodies, log
from cce_core.serving.server.bodies import JSON, refused
from cce_core.serving.server.following import Following
from cce_core.serving.server.metrics import Metrics
from cce_core.serving.server.settings import Settings

_SMALL = 1024  # ids of a request that others may be looked up with
_AT_ONCE = 4096  # ids that the loop looks up itself; more take a thread
# Products for every id: each request alone in a thread. The bits of dhe depend on who is looked up together.
_NETWORKS = ("dhe", "tt")


class _Together:
    """Lookups of one turn of the loop, together."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Reader, Any], list[tuple[Any, asyncio.Future[Any]]]] = {}

    async def lookup(self, reader: Reader, ids: Any, table: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._look_up)
        future = loop.create_future()
        self._waiting.setdefault((reader, table), []).append((ids, future))
        return await future

    def _look_up(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for (reader, table), asked in waiting.items():
            ends = np.cumsum([ids.size for ids, _ in asked])
            for _, group in itertools.groupby(zip(asked, ends // _AT_ONCE, strict=True), lambda one: one[1]):
                _look_up_at_once(reader, table, [one for one, _ in group])


def _look_up_at_once(reader: Reader, table: Any, asked: list[tuple[Any, asyncio.Future[Any]]]) -> None:
    if len(asked) > 1:
        with contextlib.suppress(Exception):  # of one of them: each is told of its own
            vectors = reader.lookup(np.concatenate([ids.reshape(-1) for ids, _ in asked]), table)
            ends = np.cumsum([ids.size for ids, _ in asked])
            for (ids, future), own in zip(asked, np.split(vectors, ends[:-1]), strict=True):
                _settle(future, own.reshape(*ids.shape, reader.dim))
            return
    for ids, future in asked:
        try:
            _settle(future, reader.lookup(ids, table))
        except Exception as error:
            _settle(future, error)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # who asked has gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class _Call:
    """An endpoint: a table's lookups, or its bags."""

    def __init__(self, server: Server, call: str) -> None:
        self._server, self._call = server, call

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start, server, table, status, n_ids = time.perf_counter(), self._server, "", 500, 0
        try:
            name = scope["path_params"]["name"]
            served = server.following.tables.get(name)
            if served is None:
                raise refused(404, f"there is no table {name!r}; the tables are {', '.join(server.following.tables)}")
            table = name
            headers = dict(scope["headers"])
            asked, wanted = bodies.kinds(headers.get(b"content-type", b""), headers.get(b"accept", b""))
            body = await _body(receive, headers, server.settings.limits.body)
            options = dict(Request(scope).query_params) if scope["query_string"] else {}
            found = bodies.read(self._call, asked, body, options, server.settings.limits)
            n_ids = found["ids"].size
            vectors = await self._vectors(served.reader, found)
            reply = bodies.written(wanted, vectors)
            status = 200
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # it is gone; nobody reads this
            return
        finally:
            server.metrics.count(self._call, table, status, n_ids * (status == 200), time.perf_counter() - start)
        length = str(len(reply)).encode()
        told = [(b"content-type", wanted.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": told})
        await send({"type": "http.response.body", "body": reply})

    async def _vectors(self, reader: Reader, found: dict[str, Any]) -> Any:
        ids, table = found.pop("ids"), _number(reader, found.pop("table", None))
        heavy = ids.size > _AT_ONCE or (reader.spec["method"] in _NETWORKS and ids.size > 1)
        try:
            if self._call == "bags":
                found["mode"] = "sum" if found.get("mode") is None else found["mode"]
                call: Callable[[], Any] = lambda: reader.bags(ids, table=table, **found)  # noqa: E731
            elif heavy or ids.size > _SMALL or ids.dtype != np.int64:
                call = lambda: reader.lookup(ids, table)  # noqa: E731
            else:
                return await self._server.together.lookup(reader, ids, table)
            return await asyncio.to_thread(call) if heavy else call()
        except KeyError as error:
            raise refused(404, error.args[0]) from None
        except (LookupError, TypeError, ValueError) as error:
            raise refused(422, error) from None


def _number(reader: Reader, table: Any) -> Any:
    """A table of a file that holds several: its name, or its number, also as text."""
    if table is None:
        return 0
    if isinstance(table, str) and table not in reader.names and table.isascii() and table.isdigit() and len(table) < 9:
        return int(table)
    return table


async def _body(receive: Any, headers: dict[bytes, bytes], most: int) -> bytes:
    """All of a request's body; HTTPException 413 as soon as it is too long."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and (len(length) > 18 or int(length) > most):
        raise refused(413, f"a body may have {most:,} bytes, got {length.decode()[:30]}")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise refused(413, f"a body may have {most:,} bytes, got more")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts) if len(parts) > 1 else parts[0]


class Server:
    """The tables and what is known of them; `app` is the application.

    Raises:
        OSError, ValueError: as for `Following`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics, self.together = settings, Metrics(), _Together()
        self.following = Following(settings.places, settings.deltas, settings.verify, self.metrics.news)
        self._calls = {call: _Call(self, call) for call in ("lookup", "bags")}
        routes = [
            *(Route(f"/tables/{{name}}/{name}", call, methods=["POST"]) for name, call in self._calls.items()),
            Route("/tables", self._tables, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        self.routed = Starlette(
            routes=routes, lifespan=self._life, exception_handlers={HTTPException: _error, ClientDisconnect: _gone}
        )
        self.routed.router.redirect_slashes = False  # what is not there is nowhere else

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The application. The two calls come by themselves: to look through routes and middleware takes as long as a lookup."""
        call = None
        if scope["type"] == "http" and scope["method"] == "POST":
            before, *parts = scope["path"].split("/")
            if len(parts) == 3 and not before and parts[0] == "tables":
                call = self._calls.get(parts[2])
        if call is None:
            return await self.routed(scope, receive, send)
        scope["path_params"] = {"name": parts[1]}
        try:
            await call(scope, receive, send)
        except HTTPException as error:
            await _error(Request(scope), error)(scope, receive, send)

    async def _tables(self, request: Request) -> Response:
        """What is served; a table's digest takes a pass over its arrays, the first time."""
        found = {}
        for name, served in dict(self.following.tables).items():
            reader = served.reader
            found[name] = {
                "spec": reader.spec, "dim": reader.dim, "vocab": reader.vocab, "names": reader.names,
                "bytes": reader.nbytes, "digest": await asyncio.to_thread(reader.digest), "sequence": served.sequence,
            }  # fmt: skip
        return _json({"tables": found})

    async def _health(self, request: Request) -> Response:
        """Live, since it answers, and ready: tables are open and deltas applied before there is a port."""
        return _json({"live": True, "ready": True, "tables": len(self.following.tables)})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    @contextlib.asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        """Looks for what is new while it lives, and before: a process that replaces another begins where its parent did."""
        await asyncio.to_thread(self._look)
        task = asyncio.create_task(self._look_on()) if self.settings.every else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self.settings.every)
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        try:
            self.following.poll()
            self.metrics.tables(self.following.tables)
        except Exception:  # what is served goes on being served
            log.exception("to look for new files failed")


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value) + b"\n", status, headers, JSON)


def _error(request: Request, error: Any) -> Response:
    return _json({"error": str(error.detail)}, error.status_code, error.headers)


async def _gone(request: Request, error: Any) -> Response:
    return _json({"error": "the client has gone"}, 400)
