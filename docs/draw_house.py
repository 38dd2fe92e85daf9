"""Draw docs/house.svg: the rooms, who imports whom, and the ways of an id and of a gradient through them.

`python docs/draw_house.py` reads the imports of every file and needs nothing but Python.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("house.svg")

# The ways, import by import: who calls whom, in compiled code too.
WAYS = {
    "id": ("an id: lookup, forward", ["tables-sketching", "sketching-hashing", "sketching-storage"]),
    "gradient": (
        "a gradient: backward, update",
        ["training-tables", "tables-method", "training-sketching", "method-sketching", "sketching-storage"],
    ),
}
SHIFT = {"id": -5, "gradient": 5}  # so that both are seen where they share an import
BOX, CELL, EDGE = (116, 30), (72, 42), 12

STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1f2328 } .word { text-anchor: middle }
.paper { fill: #ffffff } .box { fill: #f0f2f5; stroke: #59636e } .guide { fill: none; stroke: #d9dee4 } .dot { fill: #59636e }
.way { fill: none; stroke-width: 2.5 } .id { stroke: #0969da } .gradient { stroke: #c2590b }
.head.id { fill: #0969da } .head.gradient { fill: #c2590b }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .paper { fill: #0d1117 } .box { fill: #21262d; stroke: #8d96a0 } .guide { stroke: #30363d }
.dot { fill: #8d96a0 } .id { stroke: #58a6ff } .gradient { stroke: #f0883e }
.head.id { fill: #58a6ff } .head.gradient { fill: #f0883e }
}"""


def room_of(module: str) -> str:
    """The room of a module or of a name in it: `cce_core.hashing.mix` is in `hashing`; "" for what all rooms share."""
    names = module.removesuffix(".__init__").split(".")
    if names[0] != "cce_core":
        return names[0].replace("cce_kernels", "kernels")
    if names[1:2] == ["adapters"]:
        return "/".join(names[1:3]) if len(names) > 2 else ""
    if len(names) > 1 and names[1].startswith("_"):
        return ""
    return names[1] if len(names) > 1 and (ROOT / "cce_core" / names[1]).is_dir() else "cce_core"


def targets(node: ast.AST) -> list[str]:
    """What an import names, as modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports, inside functions and for type checkers too; `_*.py` are everyone's and left out."""
    found: dict[str, set[str]] = {}
    for top in ("cce_core", "kernels", "examples", "bench"):
        for path in sorted((ROOT / top).rglob("*.py")):
            here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            named = [name for node in ast.walk(ast.parse(path.read_text("utf-8"))) for name in targets(node)]
            ours = {room_of(name) for name in named if name.split(".")[0] in ("cce_core", "cce_kernels", "bench")}
            found.setdefault(here, set()).update(ours - {here, ""})
    found.pop("", None)
    return found


def ordered(edges: dict[str, set[str]]) -> list[str]:
    """The rooms, each above all that it imports: by the longest way down, then by name."""
    depth: dict[str, int] = {}

    def down(room: str) -> int:
        if room not in depth:
            depth[room] = 1 + max(map(down, edges[room]), default=0)
        return depth[room]

    return sorted(edges, key=lambda room: (-down(room), room))


def svg() -> str:
    """The picture: rooms on a diagonal; a dot right of one and above another says that the first imports the second."""
    edges = imports()
    rooms = ordered(edges)
    centre = {
        room: (EDGE + BOX[0] // 2 + n * CELL[0], EDGE + BOX[1] // 2 + n * CELL[1]) for n, room in enumerate(rooms)
    }
    size = 2 * EDGE + BOX[0] + (len(rooms) - 1) * CELL[0], 2 * EDGE + BOX[1] + (len(rooms) - 1) * CELL[1]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}">',
        f"<style>{STYLE}\n</style>",
        f'<rect class="paper" width="{size[0]}" height="{size[1]}"/>',
    ]
    for room in rooms:
        x, y = centre[room]
        right = max((centre[other][0] for other in edges[room]), default=x)
        top = min((centre[other][1] for other in rooms if room in edges[other]), default=y)
        lines.append(f'<path class="guide" d="M{x} {top}V{y}H{right}"/>')
    for name, (_, hops) in WAYS.items():
        for hop in hops:
            above, below = hop.split("-")
            if below not in edges[above]:
                raise ValueError(f"the way of {name} goes from {above} to {below}, which {above} does not import")
            (x, y), (right, bottom), shift = centre[above], centre[below], SHIFT[name]
            end = bottom - BOX[1] // 2
            lines.append(
                f'<path class="way {name}" d="M{x + BOX[0] // 2} {y + shift}H{right + shift}V{end - 6}"/>'
                f'<path class="head {name}" d="M{right + shift} {end}l-4 -8h8z"/>'
            )
    for room in rooms:
        for other in sorted(edges[room], key=rooms.index):
            x, y = centre[other][0], centre[room][1]
            lines.append(f'<circle class="dot" cx="{x}" cy="{y}" r="4"><title>{room} imports {other}</title></circle>')
    for room in rooms:
        x, y = centre[room]
        left, top = x - BOX[0] // 2, y - BOX[1] // 2
        lines.append(
            f'<rect class="box" x="{left}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="5"/>'
            f'<text class="word" x="{x}" y="{y + 5}">{room}</text>'
        )
    low = size[1] - EDGE - 24 * (len(WAYS) + 2)
    notes = [
        "a dot: the room at its left imports the room below it",
        "all dots lie above the rooms: imports run one way",
    ]
    for n, text in enumerate(notes):
        lines.append(f'<text x="{EDGE + 38}" y="{low + 24 * n + 5}">{text}</text>')
    lines.append(f'<circle class="dot" cx="{EDGE + 15}" cy="{low}" r="4"/>')
    for n, (name, (text, _)) in enumerate(WAYS.items(), start=len(notes)):
        y = low + 24 * n
        lines.append(
            f'<path class="way {name}" d="M{EDGE} {y}h24"/><path class="head {name}" d="M{EDGE + 30} {y}l-8 -4v8z"/>'
        )
        lines.append(f'<text x="{EDGE + 38}" y="{y + 5}">{text}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
