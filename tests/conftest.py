"""What holds for every test: the Hypothesis profiles, Ctrl-C as usual, and one thread policy."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from cce_core._jit import COMPILED

# No deadline: the first call of a compiled function takes a second. Plain Python is slow: fewer examples there.
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("dev", deadline=None, max_examples=25 if COMPILED else 4, suppress_health_check=_slow)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=50 if COMPILED else 6,
    derandomize=True,
    print_blob=True,
    suppress_health_check=_slow,
)
# A shell starts its background jobs with Ctrl-C ignored, and children inherit it: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _threads_as_found():
    """A test may set the number of threads; the next one starts from the environment's word again."""
    from cce_core import _threads

    yield
    _threads.set_num_threads(None)
