"""The files of the house, by the names of their modules."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files("cce_core")}


def all_texts() -> dict[str, str]:
    files = python_files("cce_core", "kernels", "examples", "bench")
    return {re.sub(r"^kernels\b", "cce_kernels", module_name(path)): path.read_text() for path in files}


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: `cce_core.hashing.mix` is in `hashing`."""
    names = module.split(".")
    if names[0] != "cce_core":
        return names[0].replace("cce_kernels", "kernels")
    if len(names) == 1:
        return "root"
    if names[1] == "__main__":
        return "commands"
    return "private" if names[1].startswith("_") else names[1]
