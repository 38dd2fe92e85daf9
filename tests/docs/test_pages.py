"""The pages: a card for every method, pictures that exist, and code that compiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cce_core as cce

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "docs" / "methods.md"
RELIABILITY, CAMPAIGNS = ROOT / "docs" / "reliability.md", ROOT / "tests" / "campaigns"
WORDS = ROOT / "docs" / "word_vectors.md"
MOST_BYTES = 15_000


def pictures() -> list[Path]:
    return [CARDS.parent / name for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", CARDS.read_text("utf-8"))]


def test_every_method_has_a_card():
    assert re.findall(r"^## `(.*)`$", CARDS.read_text("utf-8"), re.MULTILINE) == [m.name for m in cce.methods()]


def test_the_table_says_what_the_methods_say():
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) (.*)$", CARDS.read_text("utf-8"), re.MULTILINE))
    assert list(rows) == [m.name for m in cce.methods()]
    for method in cce.methods():
        summary, paper, learns = rows[method.name].strip("| ").split(" | ")[:3]
        assert summary == method.summary
        assert re.sub(r"\[(.*?)\]\(.*?\)", r"arXiv:\1", paper) == method.paper
        assert learns == ("yes" if method.learns else "no")


def test_pictures_exist_are_small_and_are_all_shown():
    shown = set(pictures())
    assert shown == set((CARDS.parent / "methods").iterdir())
    assert {p.name: p.stat().st_size for p in shown if p.stat().st_size > MOST_BYTES} == {}


def test_every_linear_method_has_a_picture():
    cards = re.split(r"^## ", CARDS.read_text("utf-8"), flags=re.MULTILINE)
    with_picture = {card.split("`")[1] for card in cards if "![" in card}
    assert with_picture == {m.name for m in cce.methods() if m.linear}


@pytest.mark.parametrize("page", [ROOT / "README.md", CARDS, WORDS], ids=lambda page: page.name)
def test_code_compiles(page):
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") > 0
    for block in blocks:
        compile(block, page.name, "exec")


def test_the_code_on_word_vectors_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", WORDS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, WORDS.name, "exec"), found)
    assert len(found["near"].ids) == len(found["also"].ids) == 10


def test_every_campaign_stands_on_the_page_of_reliability():
    """A row of promises for each, and no row without one."""
    promised = re.findall(
        r"^\|.*\| `(test_\w+)` \|.*\|$", RELIABILITY.read_text("utf-8").partition("## Figures")[0], re.MULTILINE
    )
    tried = [re.findall(r"^def (test_\w+)", f.read_text("utf-8"), re.MULTILINE) for f in CAMPAIGNS.glob("test_*.py")]
    assert sorted(promised) == sorted(name for names in tried for name in names)
