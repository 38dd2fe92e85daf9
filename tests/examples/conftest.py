"""Examples within this process: a second interpreter that starts Numba and torch takes longer than what most tests train."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Runs an example's `main` as from a shell: what it returns and prints, warnings included; `data` is all it finds."""

    def run(script: str, *arguments: Any, data: str | Path = "nowhere") -> SimpleNamespace:
        monkeypatch.setenv("CCE_DATA", str(data))
        monkeypatch.setenv("XDG_CACHE_HOME", str(data))
        monkeypatch.syspath_prepend(EXAMPLES)
        module = importlib.import_module(script.removesuffix(".py"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                code = module.main([str(word) for word in arguments])
            except SystemExit as stop:
                code = stop.code
        out, err = capsys.readouterr()
        told = [w for w in caught if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))]
        err += "".join(warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in told)
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield run
    if threads:
        sys.modules["torch"].set_num_threads(threads)
