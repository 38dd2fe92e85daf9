"""Every page's code runs, block after block, as a reader would type it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^(?:<!-- needs (\w+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {page: found for page in sorted(DOCS.rglob("*.md")) if (found := BLOCK.findall(page.read_text("utf-8")))}
NEEDS_TORCH = {page for page, blocks in PAGES.items() if any("import torch" in block for _, block in blocks)}
NEEDS_JAX = {page for page, blocks in PAGES.items() if any("import jax" in block for _, block in blocks)}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.torch if p in NEEDS_TORCH else ()) for p in PAGES],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_code_runs(page, tmp_path, monkeypatch):
    if page in NEEDS_TORCH:
        pytest.importorskip("torch")
    if page in NEEDS_JAX:
        pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "tutorial"}
    for number, (needs, block) in enumerate(PAGES[page], 1):
        if not needs or importlib.util.find_spec(needs):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_no_code_stands_in_another_fence():
    """What is written as Python is found by `BLOCK`: no block is left out for a blank or an indent before its fence."""
    for page in DOCS.rglob("*.md"):
        text = page.read_text("utf-8")
        assert len(BLOCK.findall(text)) == text.count("```python"), page.name
