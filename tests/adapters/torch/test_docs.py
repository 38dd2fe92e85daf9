"""The examples in the torch adapter's docstrings run, also where only the tests that need torch are run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

torch = pytest.importorskip("torch")

import cce_core.adapters.torch as adapter  # noqa: E402

pytestmark = pytest.mark.torch

MODULES = [info.name for info in pkgutil.walk_packages(adapter.__path__, f"{adapter.__name__}.")]


@pytest.mark.parametrize("name", [adapter.__name__, *MODULES])
def test_examples_run(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def test_public_names_have_a_docstring_with_an_example():
    public = {name: thing for name, thing in vars(adapter).items() if not name.startswith("_") and callable(thing)}
    assert len(public) >= 7
    for name, thing in public.items():
        assert ">>> " in (thing.__doc__ or ""), name
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"
