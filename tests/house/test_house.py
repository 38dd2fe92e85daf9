"""The house's own rules: light imports, one-way imports, the wheel, the public names."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest
from source_files import MODULES, ROOT, module_name, part_of, python_files

import cce_core

FORBIDDEN = (
    "torch", "jax", "triton", "sklearn", "pandas", "matplotlib", "polars", "typer", "starlette", "uvicorn", "orjson", "pyarrow",
)  # fmt: skip
MOST_LINES = 450
LONG = {"cce_core/serving/reader.py": "one file, so that other projects may copy it"}
MOST_NAMES = 26


def run_python(code: str, first: Path, **environment: str | None) -> str:
    """What `code` prints in a fresh interpreter that looks for modules in `first`; None takes a variable away."""
    path = os.pathsep.join([str(first), str(Path(cce_core.__file__).parents[1])])
    merged = {**os.environ, **environment, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={name: text for name, text in merged.items() if text is not None},
        cwd=first,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Imports stay light


def heavy_imports(modules: list[str], folder: Path) -> set[str]:
    """Which forbidden packages `modules` pull in.

    `folder` is on the path and gets an empty stand-in for each, so that an import hidden in `try` is seen also where
    the real package is not installed.
    """
    for name in FORBIDDEN:
        (folder / f"{name}.py").write_text("")
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint(*sys.modules)"
    loaded = run_python(code, folder).split()
    assert set(modules) <= set(loaded)
    return set(FORBIDDEN) & set(loaded)


def test_import_pulls_in_no_framework(tmp_path):
    assert heavy_imports(["cce_core"], tmp_path) == set()


def test_no_module_pulls_in_a_framework(tmp_path):
    apart = ("cce_core.adapters", "cce_core.commands", "cce_core.serving.server")  # which need an extra
    modules = [name for name in MODULES if not name.startswith(apart)]
    assert heavy_imports(modules, tmp_path) == set()


@pytest.mark.parametrize("statement", ["import torch", "try:\n    import jax\nexcept ImportError:\n    pass"])
def test_the_check_of_imports_can_fail(tmp_path, statement):
    (tmp_path / "heavy.py").write_text(statement)
    assert len(heavy_imports(["heavy"], tmp_path)) == 1


# Imports run one way

RANKS = {
    "private": 0,
    "hashing": 1,
    "storage": 1,
    "sketching": 2,
    "clustering": 2,
    "tiers": 2,
    "method": 3,
    "learning": 4,
    "tables": 5,
    "training": 6,
    "theory": 6,
    "datasets": 6,
    "tuning": 7,
    "root": 7,
    "kernels": 7,
    "adapters": 8,
    "serving": 8,
    "commands": 8,
    "examples": 9,
    "bench": 9,
}


# Of the torch adapter, whose parts these are.
TORCH_RANKS = {"guard": 0, "operators": 1, "distributed": 2, "optim": 2, "modules": 3}


def statements(tree: ast.AST, late: bool):
    """The nodes of a file; without `late`, those that run when it is imported: no function bodies, no TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        waits = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        waits |= isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        if late or not waits:
            yield node
            yield from statements(node, late)


def imports_of(module: str, text: str, modules: set[str], package: bool, late: bool = True) -> set[str]:
    """Every module of the house that `text` imports; with `late`, inside functions and for type checkers too."""
    found = set()
    for node in statements(ast.parse(text), late):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                names = module.split(".")
                names = names[: len(names) - node.level + package]
                base = ".".join(names + ([base] if base else []))
            # `from package import name` is an import of the submodule where there is one, else of the package.
            targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names]
        else:
            continue
        found |= {name for name in targets if name.split(".")[0] in ("cce_core", "cce_kernels", "examples", "bench")}
    return found - {module}


def wrong_ways(edges: dict[str, set[str]]) -> list[str]:
    """Imports from a lower part to a higher one."""
    return [
        f"{module} imports {target}"
        for module, targets in sorted(edges.items())
        for target in sorted(targets)
        if RANKS[part_of(target)] > RANKS[part_of(module)]
    ]


def a_circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if circle := walk(other, [*path, node]):
                return circle
        done.add(node)
        return []

    return next((circle for node in sorted(edges) if (circle := walk(node, []))), [])


def all_imports(late: bool = True) -> dict[str, set[str]]:
    edges = {}
    for path in python_files("cce_core", "kernels", "examples", "bench"):
        name = module_name(path)
        name = "cce_kernels" + name.removeprefix("kernels") if name.startswith("kernels") else name
        edges[name] = imports_of(name, path.read_text(), set(MODULES), path.name == "__init__.py", late)
    return edges


def test_imports_run_one_way():
    assert wrong_ways(all_imports()) == []


def test_imports_of_the_torch_adapter_run_one_way():
    """No part of it imports its face, which imports them all."""
    ranks = {f"cce_core.adapters.torch.{name}": rank for name, rank in TORCH_RANKS.items()}
    ranks["cce_core.adapters.torch"] = max(ranks.values()) + 1

    def rank(module):
        return next((r for name, r in ranks.items() if f"{module}.".startswith(f"{name}.")), None)

    edges = {
        name: {t for t in targets if rank(t) is not None}
        for name, targets in all_imports().items()
        if rank(name) is not None
    }
    assert {module for module in edges if rank(module) == 1}
    assert [f"{a} imports {b}" for a in sorted(edges) for b in sorted(edges[a]) if rank(b) > rank(a)] == []


def test_no_circle_of_modules():
    """Imports inside functions and for type checkers count too."""
    assert a_circle(all_imports()) == []


def test_no_circle_of_parts():
    parts: dict[str, set[str]] = {}
    for module, targets in all_imports().items():
        parts.setdefault(part_of(module), set()).update(map(part_of, targets))
    assert a_circle({part: targets - {part} for part, targets in parts.items()}) == []


def test_the_checks_of_ways_can_fail():
    modules = {"cce_core.hashing", "cce_core.hashing.mix", "cce_core.sketching", "cce_core.training"}
    for text in (
        "import cce_core.training",
        "from cce_core import training",
        "from ..training import Adam",
        "def late():\n    from cce_core.training import Adam",
    ):
        edges = {"cce_core.hashing.mix": imports_of("cce_core.hashing.mix", text, modules, False)}
        assert wrong_ways(edges) == ["cce_core.hashing.mix imports cce_core.training"]
        late = "def " in text
        assert imports_of("cce_core.hashing.mix", text, modules, False, late=False) == (
            set() if late else {"cce_core.training"}
        )
    hint = "if TYPE_CHECKING:\n    import cce_core.training"
    assert imports_of("cce_core.hashing", hint, modules, True, late=False) == set()
    assert imports_of("cce_core.hashing", hint, modules, True) == {"cce_core.training"}
    inside = imports_of("cce_core.hashing", "from .mix import mix_hash", modules, True)
    assert inside == {"cce_core.hashing.mix"}
    assert a_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert a_circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_files_are_short():
    lines = {
        str(p.relative_to(ROOT)): p.read_text().count("\n")
        for p in python_files("cce_core", "kernels", "tests", "examples", "bench")
    }
    assert {name for name, n in lines.items() if n > MOST_LINES} == set(LONG)


def test_the_library_does_not_print():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called != "print", f"{path.relative_to(ROOT)}:{node.lineno}"


# The wheel


def listed_packages() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])


def test_listed_packages_are_those_on_disk():
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert listed_packages() == folders | {"cce_kernels"}
    assert {module_name(path.parent / "__init__.py") for path in MODULES.values()} == folders, (
        "a folder has no __init__.py"
    )
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()


def test_the_wheel_holds_both_packages_whole(tmp_path):
    missing = [name for name in ("build", "setuptools") if importlib.util.find_spec(name) is None]
    if not missing and int(__import__("setuptools").__version__.split(".")[0]) < 77:
        missing = ["setuptools>=77.0.3"]
    if missing:
        assert "TOX_ENV_NAME" not in os.environ, f"tox must install {missing}"
        pytest.skip(f"to build the wheel, install {' and '.join(missing)}: pip install -e '.[test]'")
    # From a copy: an old build/ folder would put deleted modules into the wheel.
    source = tmp_path / "source"
    junk = shutil.ignore_patterns("__pycache__")
    for folder in ("cce_core", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    wanted = {"cce_" + name if name.startswith("kernels/") else name for name in wanted}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"cce_core", "cce_kernels"}
    assert set(names) == wanted | {"cce_core/py.typed", "cce_core/tuning/page.html"}


def test_what_is_tested_is_what_is_in_the_checkout():
    """The checkout itself, or a wheel of just its files: an old build/ folder brings deleted modules back."""
    installed = Path(cce_core.__file__).parent
    here = {p.relative_to(ROOT / "cce_core"): p.read_bytes() for p in MODULES.values()}
    there = {p.relative_to(installed): p.read_bytes() for p in installed.rglob("*.py")}
    different = sorted(str(name) for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    assert different == [], "remove build/ and install again"


# The public names


def public_names() -> dict[str, object]:
    names = getattr(cce_core, "__all__", None) or [name for name in dir(cce_core) if not name.startswith("_")]
    return {name: thing for name in names if not isinstance(thing := getattr(cce_core, name), types.ModuleType)}


def test_public_names_are_few():
    assert len(public_names()) <= MOST_NAMES


def test_what_type_checkers_see_is_what_there_is():
    """Names that are loaded when first used are listed twice: for Python, and for type checkers as `x as x`."""
    tree = ast.parse(Path(cce_core.__file__).read_text())
    listed = [a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names if a.asname]
    assert set(listed) == set(getattr(cce_core, "__all__", listed))
    assert set(listed) <= set(dir(cce_core))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = cce_core.no_such_name


def test_public_names_have_a_docstring_with_an_example():
    without = [
        name for name, thing in public_names().items() if callable(thing) and ">>> " not in (thing.__doc__ or "")
    ]
    assert without == []


def test_public_methods_have_a_docstring():
    for name, thing in public_names().items():
        if inspect.isclass(thing) and thing.__module__.startswith("cce_core"):
            for method, function in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    assert inspect.getdoc(getattr(thing, method)), f"{name}.{method} has no docstring"
