"""The picture of the house: what is committed is what the imports are now, and the ways in it are walked."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cce_core as cce
from cce_core._jit import COMPILED

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOUSE = runpy.run_path(str(DOCS / "draw_house.py"))


def test_the_picture_is_of_the_house_as_it_is():
    """Every room, import and way."""
    same = (DOCS / "house.svg").read_text("utf-8") == HOUSE["svg"]()
    assert same, "the imports have changed: python docs/draw_house.py"


def test_all_dots_lie_above_the_rooms():
    edges = HOUSE["imports"]()
    rooms = HOUSE["ordered"](edges)
    folders = {path.parent.name for path in (DOCS.parent / "cce_core").glob("*/__init__.py")} - {"adapters"}
    assert folders | {"cce_core", "adapters/torch", "kernels", "examples", "bench"} <= set(rooms) == set(edges)
    assert "sketching" in edges["training"]
    for room, others in edges.items():
        assert all(rooms.index(room) < rooms.index(other) for other in others), room


def test_a_way_that_nobody_imports_is_not_drawn(monkeypatch):
    monkeypatch.setitem(HOUSE["WAYS"], "id", ("an id", ["hashing-tables"]))
    with pytest.raises(ValueError, match="from hashing to tables, which hashing does not import"):
        HOUSE["svg"]()


def hops(act: Callable[[], Any]) -> set[str]:
    """The calls from room to room while `act` runs, those within a room and those through `_*.py` left out."""
    package, found = str(Path(cce.__file__).parent), set()

    def room(code: Any) -> str:
        file = Path(code.co_filename)
        return (
            file.relative_to(package).parts[0] if file.is_relative_to(package) and file.parent != Path(package) else ""
        )

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and (here := room(frame.f_code)):
            caller = frame.f_back
            while caller is not None and not room(caller.f_code):
                caller = caller.f_back
            if caller is not None and room(caller.f_code) != here:
                found.add(f"{room(caller.f_code)}-{here}")

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.skipif(COMPILED, reason="calls in compiled code are not seen; `tox -e nojit` sees them")
def test_ids_and_gradients_go_the_ways_that_are_drawn():
    ids, grads, optimizer = np.arange(5), np.ones((5, 8), np.float32), cce.Adam()
    table = cce.make_table("cce", 60, 8, num_params=200, seed=0, codec="int8")
    both = cce.Collection([cce.make_table("hash", 60, 4, num_params=80, seed=seed) for seed in (1, 2)])

    def train():
        table.backward(ids, grads)
        optimizer.update(table, table.forward(ids), grads)
        optimizer.update(both, both.forward([ids, ids]), grads)

    train()  # what is made once is made
    assert set(HOUSE["WAYS"]["id"][1]) <= hops(lambda: table.lookup(ids))
    assert set(HOUSE["WAYS"]["gradient"][1]) <= hops(train)
