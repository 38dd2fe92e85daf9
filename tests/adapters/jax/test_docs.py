"""The examples in the JAX adapter's docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest

pytest.importorskip("flax")


@pytest.mark.parametrize("name", ["lookup", "module"])
def test_examples_run(name):
    module = importlib.import_module(f"cce_core.adapters.jax.{name}")
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted > 4
    assert found.failed == 0
