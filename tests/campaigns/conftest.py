"""What every campaign has: a child process to run in, and a place for its figures, which are shown at the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from campaigns.trial import in_child, nothing_lost

from cce_core._jit import COMPILED

# Without compiled code the interpreter's lock hides what is looked for, and seconds become many minutes: not collected.
collect_ignore_glob = [] if COMPILED else ["test_*.py"]
if not all(map(importlib.util.find_spec, ("starlette", "uvicorn", "orjson", "prometheus_client"))):  # the extra `serve`
    collect_ignore_glob.append("test_requests.py")


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a function in a child (`in_child`), keeps its figures, and fails if anything was lost."""
    figures: dict[str, int] = {}
    request.node.user_properties.append(("campaign", figures))

    def run(function: Callable[..., None], *args: Any, **more: Any) -> None:
        counts, notes = in_child(function, *args, **more)
        for name, count in counts.items():
            figures[name] = figures.get(name, 0) + count
        nothing_lost(counts, notes)

    return run
