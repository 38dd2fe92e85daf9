"""The server's processes: one, or several that share a socket, the files' pages, and what was opened before the fork."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from cce_core.serving.server import log

if TYPE_CHECKING:
    from cce_core.serving.server.app import Server
    from cce_core.serving.server.settings import Settings

_KEPT = 75  # seconds that a connection without requests is kept
_GRACE = 10  # seconds that requests have to end after SIGTERM
_PAUSE = 1.0  # seconds before a process that has died is replaced
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8080, workers: int = 1) -> int:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are answered.

    Args:
        settings: what is served.
        host, port: where; port 0 takes a free one.
        workers: processes.

    Returns:
        0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        OSError, ValueError: the tables cannot be opened, or nobody can listen there.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="cce-serve-") as folder:
        if workers > 1:
            if not hasattr(os, "fork"):
                raise ValueError(
                    "several workers need os.fork, which this system has not: start one, or several servers"
                )
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # which prometheus_client reads as it is imported
        from cce_core.serving.server.app import Server

        server = Server(settings)
        with contextlib.suppress(ImportError):  # at the first Arrow body it would keep all others waiting, for 0.3 s
            importlib.import_module("pyarrow")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
        with listening:
            shown = f"[{host}]" if ":" in host else host
            log.info(
                "serving %s on http://%s:%d", ", ".join(server.following.tables), shown, listening.getsockname()[1]
            )
            if workers == 1:
                return _answer(server, listening)
            return _supervise(lambda: _answer(server, listening), workers)


def _answer(server: Server, listening: socket.socket) -> int:
    """Answer requests until a signal comes."""
    signals: list[int] = []
    config = uvicorn.Config(
        server.app, interface="asgi3", proxy_headers=False, log_config=None, access_log=False, lifespan="on", ws="none",
        server_header=False, timeout_keep_alive=_KEPT, timeout_graceful_shutdown=_GRACE,
    )  # fmt: skip
    running = uvicorn.Server(config)

    def stop(number: int, _: object) -> None:
        signals.append(number)
        running.should_exit = True

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        running.run([listening])  # takes signals while it runs, and raises them again when it has ended
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return 130 if signal.SIGINT in signals else 0


def _supervise(answer: Callable[[], int], workers: int) -> int:
    """Keep so many children answering until a signal comes, which they are handed; one that dies is replaced."""
    from prometheus_client.multiprocess import mark_process_dead

    children: set[int] = set()
    signals: list[int] = []
    watched = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: object) -> None:
        signals.append(number)
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # none comes between a fork and its being known
        if not signals and (pid := os.fork()) == 0:
            code = 1
            try:
                for one in watched:
                    signal.signal(one, signal.SIG_DFL)
                if sys.platform == "linux":  # nobody goes on where the parent was killed
                    ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGTERM)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
                answer()
                code = 0
            except BaseException:
                log.exception("a worker has failed")
            finally:
                os._exit(code)
        if not signals:
            children.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

    before = {one: signal.signal(one, stop) for one in watched}
    try:
        for _ in range(workers):
            start()
        while children:
            pid, status = os.wait()
            children.discard(pid)
            mark_process_dead(pid)
            if not signals:
                log.error("worker %d has ended (%d), and is replaced", pid, os.waitstatus_to_exitcode(status))
                time.sleep(_PAUSE)
                start()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    return 130 if signal.SIGINT in signals else 0
