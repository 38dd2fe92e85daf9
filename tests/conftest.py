"""What holds for every test: the Hypothesis profiles, Ctrl-C as usual, one thread policy, and the figures of campaigns."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cce_core._jit import COMPILED

# No deadline: the first call of a compiled function takes a second. Plain Python is slow: fewer examples there.
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", deadline=None, max_examples=25 if COMPILED else 4, suppress_health_check=_slow)
for _name, _most in (("ci", 50), ("few", 20)):
    settings.register_profile(
        _name,
        deadline=None,
        max_examples=_most if COMPILED else 6,
        derandomize=True,
        print_blob=True,
        suppress_health_check=_slow,
    )
# A shell starts its background jobs with Ctrl-C ignored, and children inherit it: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What shows nothing more uncompiled, or with every index checked, than as it is: it runs no compiled loop, or only such as other
# tests hold to the same bits in every environment; or it starts programs of its own. `once` marks it, and doctests.
ONCE = (
    "adapters/torch/test_tiered.py",
    "adapters/torch/test_tiered_states.py",
    "adapters/jax",
    "adapters/keras",
    "adapters/test_onnx.py",
    "bench",
    "commands",
    "campaigns/test_copies.py",
    "campaigns/test_forks.py",
    "campaigns/test_kills.py",
    "campaigns/test_loads.py",
    "campaigns/test_delta_files.py",
    "campaigns/test_requests.py",
    "campaigns/test_soak.py",
    "campaigns/test_steps.py",
    "campaigns/test_threads.py",
    "campaigns/test_torn.py",
    "clustering/test_sklearn.py",
    "datasets/test_fetch.py",
    "docs/test_pages.py",
    "docs/test_picture.py",
    "docs/test_tutorials.py",
    "examples",
    "hashing/test_halves.py",
    "hashing/test_statistics.py",
    "house/test_cache.py",
    "house/test_campaigns.py",
    "house/test_fork.py",
    "house/test_fuzzed_calls.py",
    "house/test_guard.py",
    "house/test_house.py",
    "house/test_names.py",
    "house/test_threads.py",
    "learning/test_cluster_bounds.py",
    "serving",
    "method/test_budgets.py",
    "method/test_portable.py",
    "method/test_vq_shared.py",
    "storage/test_files.py",
    "tables/test_concurrency.py",
    "theory",
    "training/test_training_bytes.py",
    "tuning",
)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_collection_modifyitems(items):
    """Mark what is to run once."""
    places = [Path(__file__).parent / name for name in ONCE]
    if lacking := [str(place) for place in places if not place.exists()]:
        raise pytest.UsageError(f"ONCE of tests/conftest.py names what is not there: {', '.join(lacking)}")
    for item in items:
        if isinstance(item, pytest.DoctestItem) or any(item.path.is_relative_to(place) for place in places):
            item.add_marker("once")


def pytest_make_parametrize_id(val):
    """Bytes have their number as a name: what a packer wrote may hold the time, and xdist's processes must agree on names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _threads_as_found():
    """A test may set the number of threads; the next one starts from the environment's word again."""
    from cce_core import _threads

    yield
    _threads.set_num_threads(None)


def pytest_terminal_summary(terminalreporter):
    """The figures of `tests/campaigns`; as JSON too, if CCE_CAMPAIGN_REPORT names a file."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    rows = {
        r.nodeid.partition("campaigns/")[2]: {"outcome": r.outcome, "seconds": round(r.duration, 1), **dict(found)}
        for r in reports
        for name, found in r.user_properties
        if name == "campaign"
    }
    if not rows:
        return
    terminalreporter.section("campaigns")
    for name, row in sorted(rows.items()):
        told = (f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in row.items())
        terminalreporter.line(f"{name}: {', '.join(told)}")
    if path := os.environ.get("CCE_CAMPAIGN_REPORT"):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1, sort_keys=True)
