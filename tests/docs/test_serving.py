"""The page of serving runs as it stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = PAGE.read_text("utf-8"), {}
    blocks = re.findall(r"^(<!-- needs (\w+) -->\n)?```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") > 4
    for _, needs, block in blocks:
        if not needs or importlib.util.find_spec(needs):
            exec(compile(block, PAGE.name, "exec"), names)
    assert names["dense"].shape == (10_000, 16)
    assert {path.name for path in tmp_path.iterdir()} >= {"item.safetensors", "item.npy"}
