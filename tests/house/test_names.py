"""Rules of the house on names: who imports Numba."""

from __future__ import annotations

import ast

import pytest
from source_files import MODULES, python_files

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
