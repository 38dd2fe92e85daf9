"""Rules of the house on names: who imports Numba, whose private names are whose, which streams a seed has."""

from __future__ import annotations

import ast
import re

import pytest
from source_files import MODULES, all_texts, part_of, python_files

from cce_core.method import spec

# Doors to Numba

DOORS = {"cce_core._jit", "cce_core._simd"}


def brings_numba(text: str) -> bool:
    """Whether a file imports Numba or llvmlite: anywhere, in functions, for type checkers and by a name in quotes too."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [] if node.level else [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(name.split(".")[0] in ("numba", "llvmlite") for name in found)


def test_two_doors_to_numba():
    """_jit.py compiles functions, _simd.py builds them by hand; the digest of compiled sources knows files by these imports."""
    assert {name for name, path in MODULES.items() if brings_numba(path.read_text())} == DOORS
    assert [path for path in python_files("kernels", "examples", "bench") if brings_numba(path.read_text())] == []
    for name, path in MODULES.items():
        text = path.read_text()
        if name not in DOORS:
            assert "@jit" not in text or "cce_core._jit import" in text, name
            assert "Emitter" not in text or "cce_core._simd import" in text, name
        assert "prange" not in text, name


@pytest.mark.parametrize(
    "text",
    [
        "import numba",
        "import numba.extending as n",
        "from numba.core import types",
        "def late():\n    from llvmlite import ir",
        "if TYPE_CHECKING:\n    import numba",
        "import importlib\nir = importlib.import_module('llvmlite.ir')",
        "n = __import__('numba')",
    ],
)
def test_the_check_of_doors_can_fail(text):
    assert brings_numba(text)
    assert not brings_numba(text.replace("numba", "numbat").replace("llvmlite", "llvm"))


# Private names stay in their room


def room_of(module: str) -> str:
    """A room is a part of the house; each private module is one of its own."""
    part = part_of(module)
    return module if part == "private" else part


PUBLIC = {"_", "_asdict", "_fields", "_make", "_replace"}  # the latter are those of a named tuple


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(text: str) -> set[str]:
    """The private names that a file gives to something: functions, classes, variables and attributes."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return set(filter(is_private, found))


def private_uses(texts: dict[str, str]) -> list[str]:
    """Where a module takes a private name of another room's: by import, or as an attribute of whatever has it there only."""
    own: dict[str, set[str]] = {}
    for module, text in texts.items():
        own.setdefault(room_of(module), set()).update(private_names(text))
    uses = []
    for module, text in texts.items():
        room, foreign = room_of(module), {"self", "cls"}
        others = set().union(*(names for other, names in own.items() if other != room)) - own[room]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                foreign |= {(a.asname or a.name).split(".")[0] for a in node.names if not a.name.startswith("cce_")}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "cce_core",
                "cce_kernels",
                "bench",
            ):
                names = [a.name for a in node.names if f"{node.module}.{a.name}" not in texts]
                uses += [f"{module}: {name}" for name in names if is_private(name) and room_of(node.module) != room]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                foreign |= {a.asname or a.name for a in node.names}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in others:
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                if not (isinstance(root, ast.Name) and root.id in foreign):
                    uses.append(f"{module}: {ast.unparse(node)}")
    return uses


def test_private_names_stay_in_their_room():
    assert private_uses(all_texts()) == []


@pytest.mark.parametrize(
    "text",
    [
        "from cce_core.hashing.mix import _f",
        "from cce_core.hashing import mix\nmix._f()",
        "import cce_core\ncce_core.hashing.mix._f()",
        "def late(k):\n    return k._made",
        "from cce_core.hashing.mix import K\nK()._m()",
        "if TYPE_CHECKING:\n    from cce_core.hashing.mix import _K",
    ],
)
def test_the_check_of_private_names_can_fail(text):
    there = "def _f(): pass\nclass _K: pass\nclass K:\n    def _m(self): self._made = 1"
    texts = {"cce_core.hashing.mix": there, "cce_core.hashing.own": text, "cce_core.training.x": text}
    assert len(private_uses(texts)) == 1
    harmless = "import numpy\nfrom cce_core import _check\nnumpy._f\n_check.integer\nk._replace()\nself._made"
    assert private_uses({**texts, "cce_core._check": "", "cce_core.training.x": harmless}) == []


# Streams of a seed are named


def unnamed_streams(text: str) -> list[str]:
    """Calls of derive_key and derive_keys whose stream is a number, or a constant from elsewhere than the one list."""
    found, listed = [], set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "cce_core.method.spec":
            listed |= {a.name for a in node.names}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("derive_key", "derive_keys"):
            streams = node.args[1 if ast.unparse(node.func).endswith("key") else 2 :]
            found += [
                ast.unparse(s) for s in streams[:1] if ast.unparse(s) not in listed and not ast.unparse(s).islower()
            ]
    return found


def test_streams_of_a_tables_seed_are_in_one_list():
    """Its numbers are part of the file format."""
    named = spec.KEYS, spec.POINTERS, spec.VALUES, spec.SAMPLES, spec.ROUNDING, spec.COUNTS
    assert spec.STREAMS == named == (1, 2, 3, 4, 5, 6)
    for module, text in all_texts().items():
        if part_of(module) in ("method", "learning", "tables", "training", "kernels", "adapters"):
            assert unnamed_streams(text) == [], module


@pytest.mark.parametrize("call", ["derive_key(seed, 6)", "mix.derive_key(seed, _MINE)", "derive_keys(seed, n, 6, 0)"])
def test_the_check_of_streams_can_fail(call):
    assert len(unnamed_streams(call)) == 1
    named = re.sub("6|_MINE", "KEYS", call)
    assert unnamed_streams(f"from cce_core.method.spec import KEYS\n{named}\nderive_key(seed, k)") == []
