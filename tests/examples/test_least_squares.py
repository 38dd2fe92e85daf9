"""examples/least_squares.py as its users run it, and the page that shows its picture."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "least_squares.py"
SMALL = {"n": 40, "d1": 15, "d2": 2, "k": 5, "steps": 4, "seeds": 3}
METHODS = ["dense, plain noise", "dense, shaped noise", "sparse (count-sketch)"]
LABELS = {*METHODS, "bound, plain noise", "bound, shaped noise", "step", "(loss − optimum) / (‖Y‖² − optimum)"}
draws = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")


def small(**change):
    """The flags of a small run."""
    return [f"--{name}={value}" for name, value in {**SMALL, **change}.items()]


def environment(first=None):
    found = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}  # the table is for every terminal
    found.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "cce_core" / "numba"))
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [first and str(first), os.environ.get("PYTHONPATH")]))
    return found


@pytest.fixture(scope="module")
def example():
    """The script as a module, for what needs no process of its own."""
    spec = importlib.util.spec_from_file_location("least_squares_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments, first=None):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment(first), capture_output=True, encoding="utf-8", timeout=300)


def texts(svg):
    return {"".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_the_table_and_the_file_of_losses(tmp_path):
    done = run(*small(condition=4), "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(r"^ +(\d+) .*\+-", done.stdout, re.MULTILINE)
    assert rows == ["0", "1", "2", "4"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["arguments"] == {**SMALL, "condition": 4.0, "seed": 0}
    assert report["rank"] == 15
    assert list(report["methods"]) == METHODS
    rho = {METHODS[0]: 1 / np.sum(np.geomspace(4, 1, 15) ** 2), METHODS[1]: 1 / 15}
    for name, method in report["methods"].items():
        losses, left = np.array(method["losses"]), {part: np.array(row) for part, row in method["left"].items()}
        assert losses.shape == (3, 5)
        assert (losses[:, 0] == report["start"]).all()
        assert len({tuple(row) for row in losses}) == 3
        expected = (losses - report["optimum"]) / (report["start"] - report["optimum"])
        np.testing.assert_allclose(left["mean"], expected.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(left["deviation"], expected.std(axis=0), atol=1e-12)
        np.testing.assert_array_equal([left["least"], left["most"]], [expected.min(axis=0), expected.max(axis=0)])
        assert f"{left['mean'][4]:.3g}" in done.stdout.splitlines()[-1]
        if name == METHODS[2]:
            assert method["rho"] is None
            assert method["bound"] is None
            continue
        assert (np.diff(losses) <= 0).all()
        np.testing.assert_allclose(method["rho"], rho[name])
        np.testing.assert_allclose(method["bound"], (1 - rho[name]) ** (3 * np.arange(5)))
        assert f"{method['bound'][4]:.3g}" in done.stdout.splitlines()[-1]


def test_the_seed_says_all(example, tmp_path):
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert example.main([*small(seed=seed), "--json", str(tmp_path / name)]) == 0
        losses.append(json.loads((tmp_path / name).read_text())["methods"])
    assert losses[0] == losses[1] != losses[2]


@draws
@pytest.mark.parametrize(
    "change", [{}, {"seeds": 1, "steps": 1}, {"k": 17}, {"n": 6}, {"n": 1, "d1": 1, "d2": 1, "k": 2}]
)
def test_the_picture_shows_every_line(example, capsys, tmp_path, change):
    """Also where the optimum is reached at the first step, so that there is nothing left to show on a log axis."""
    out = tmp_path / "picture.svg"
    assert example.main([*small(**change), "--out", str(out)]) == 0
    assert capsys.readouterr().err == ""
    assert texts(out) >= LABELS
    assert "nan" not in out.read_text("utf-8").lower()


@draws
def test_png_and_svg_are_drawn_alike_each_time(example, tmp_path):
    for name in ("a.png", "a.svg", "b.svg"):
        (tmp_path / name).write_text("what was there before")
        assert example.main([*small(), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_matplotlib_there_is_a_table_and_one_line_says_what_is_missing(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    assert "measured" in run(*small(), first=tmp_path).stdout
    done = run(*small(), "--out", tmp_path / "picture.svg", first=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "--out needs matplotlib: pip install 'cce-core[plot]'" in done.stderr
    assert not (tmp_path / "picture.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "2"], "k must be above d₂ = 2"),
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--d1", "-3"], "--d1 must be at least 1, got -3"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--seed", "-1"], "--seed must be between 0 and 2^62 - 1, got -1"),
        (["--condition", "0.5"], "--condition must be between 1 and 1e12, got 0.5"),
        (["--condition", "nan"], "--condition must be between 1 and 1e12, got nan"),
        (["--out", "picture.gif"], "--out must end in .png or .svg, got picture.gif"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["--out", "same.svg", "--json", "same.svg"], "--out and --json must be two files, got same.svg"),
        (["--n", str(10**9), "--d1", str(10**9)], "Unable to allocate"),
    ],
)
def test_bad_input_is_one_clear_line(example, capsys, arguments, message):
    try:
        code = example.main([*small(), *arguments])
    except SystemExit as stop:  # of the parser of the command line
        code = stop.code
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith("least_squares.py: error: ")
    assert message in errors[0]


def test_ctrl_c_ends_with_130(tmp_path):
    command = [sys.executable, str(SCRIPT), *small(steps=10**7), "--json", str(tmp_path / "r.json")]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert process.stdout.readline().startswith("X (40, 15)")
        time.sleep(0.5)  # into the work: setting up tqdm's bar is not ours to interrupt
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []


# The page


def page():
    """docs/theory.md: its text, its picture, and the arguments of the command that draws it."""
    text = (ROOT / "docs" / "theory.md").read_text("utf-8")
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    (command,) = re.findall(r"^python examples/least_squares\.py (.*)$", text, re.MULTILINE)
    return text, ROOT / "docs" / picture, command.split()


@draws
def test_the_page_names_the_command_that_draws_its_picture(example, tmp_path):
    _, picture, arguments = page()
    out = ROOT / example.parse(arguments).out
    assert out == picture
    assert picture.stat().st_size < 100_000
    assert example.main([*arguments, *small(), "--out", str(tmp_path / "picture.svg")]) == 0
    assert texts(picture) >= LABELS
    headings = {text for text in texts(picture) if text.startswith(("CCE for", "solid:", "n = "))}
    assert len(headings) == 3
    assert f"n = 400, d₁ = 100, d₂ = 4, k = 20, condition {example.parse(arguments).condition:g}" in headings


def test_the_page_has_the_figures_of_its_command(example, tmp_path):
    text, _, arguments = page()
    assert {**vars(example.parse(arguments)), "out": None} == vars(example.parse([]))  # nothing but --out
    assert run("--json", tmp_path / "r.json").returncode == 0
    methods = json.loads((tmp_path / "r.json").read_text())["methods"]
    plain, shaped, sparse = (methods[name] for name in METHODS)
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for step, numbers in rows:
        i = int(step)
        columns = plain["bound"], plain["left"]["mean"], shaped["bound"], shaped["left"]["mean"], sparse["left"]["mean"]
        np.testing.assert_allclose(
            [float(number) for number in numbers.split(" | ")], [c[i] for c in columns], rtol=0.01
        )
