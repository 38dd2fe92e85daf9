"""Tests of the server are collected where the extra `serve` is installed."""

from __future__ import annotations

import importlib.util

NEEDS = ("starlette", "uvicorn", "orjson", "prometheus_client")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDS)) else ["test_*.py"]
