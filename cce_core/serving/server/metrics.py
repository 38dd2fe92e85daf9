"""What a server tells Prometheus: requests, ids, seconds, and what has come of new files and deltas."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from cce_core.serving.server.following import Served

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
# A folder where each of several processes counts, in files; the import above has looked for it.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The counts of one server; of all its processes, if they share a folder."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "cce_requests", "Requests, by their reply's status.", ("call", "table", "status"), registry=registry
        )
        self._ids = Counter("cce_ids", "Ids that were looked up.", ("call", "table"), registry=registry)
        self._seconds = Histogram(
            "cce_request_seconds", "Seconds from a request's headers to its reply.", ("call",), buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._news = Counter(
            "cce_news", "New files and deltas, taken or refused.", ("table", "what", "result"), registry=registry
        )
        self._own: dict[tuple[str, str, int], tuple[Counter, Counter, Histogram]] = {}

        def gauge(name: str, text: str) -> Gauge:
            """Of several processes the least: what all have reached."""
            return Gauge(name, text, ("table",), registry=registry, multiprocess_mode="livemin")

        self._sequence = gauge("cce_delta_sequence", "Number of the delta that was applied last.")
        self._bytes = gauge("cce_table_bytes", "Bytes of a table's arrays.")

    def count(self, call: str, table: str, status: int, n_ids: int, seconds: float) -> None:
        """A request that was answered."""
        own = self._own.get((call, table, status))
        if own is None:  # to find them takes longer than to count
            own = (
                self._requests.labels(call, table, str(status)),
                self._ids.labels(call, table),
                self._seconds.labels(call),
            )
            self._own[call, table, status] = own
        requests, ids, latency = own
        requests.inc()
        ids.inc(n_ids)
        latency.observe(seconds)

    def news(self, table: str, what: str, taken: bool) -> None:
        """A new file or delta."""
        self._news.labels(table, what, "taken" if taken else "refused").inc()

    def tables(self, tables: dict[str, Served]) -> None:
        """How things stand."""
        for name, served in tables.items():
            self._sequence.labels(name).set(served.sequence)
            self._bytes.labels(name).set(served.reader.nbytes)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        registry = self._registry
        if _SHARED in os.environ:
            MultiProcessCollector(registry := CollectorRegistry())
        return bytes(generate_latest(registry))
