"""python -m bench plot: points and their spread, looks that can be told apart, who wins where, and the files."""

from __future__ import annotations

import colorsys
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from sweep_runs import ROOT, TINY, environment, fill, invented, some

from bench.methods import plot, sweep, sweep_run
from cce_core.tuning import points

needs_matplotlib = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("matplotlib"),
    reason="matplotlib is not installed (the extra `plot`)",
)


def test_points_are_means_over_seeds_with_the_least_and_the_most():
    found = points.points(some())
    assert list(found) == ["full", "cce", "ldim", "hash"]  # the order of the legend
    line = found["cce"]
    assert [p.budget for p in line] == ["ppd 16", "ppd 64", "ppd 256"]
    assert line[0].x("bytes") == 256 * 16 + 1000
    assert line[0].x("num_params") == 64 * 16
    assert line[0].mean("auc") == pytest.approx(0.80 + 0.0016 + 0.0015)
    assert line[0].spread("auc") == pytest.approx((0.8026, 0.8036))


def test_runs_that_differ_in_more_than_their_seed_are_other_points():
    rows = some(["cce"])
    other = invented("cce", 1, 16, command=rows[0]["command"].replace("--epochs 20", "--epochs 5"), run="another")
    assert len(points.points([*rows, other])["cce"]) == 4
    assert points.points([*rows, invented("hash", 1, 16, status="failed")]).keys() == {"cce"}


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="nothing to draw"):
        points.points([invented("cce", 1, 16, status="failed")])
    with pytest.raises(ValueError, match="several data sets \\(ml-100k, ml-1m\\)"):
        points.points([*some(), invented("cce", 1, 16, dataset="ml-1m")])


def test_the_standings_are_each_methods_best_within_the_bytes():
    found = points.points(some())
    # within what cce takes at 64: itself at 64, the others at 64 too (they take less)
    order = points.standings(found, 256 * 64 + 1000)
    assert [(p.label, p.budget) for p in order] == [("cce", "ppd 64"), ("ldim", "ppd 64"), ("hash", "ppd 64")]
    order = points.standings(found, 256 * 64)  # 1,000 bytes less, and cce is back at 16
    assert [(p.label, p.budget) for p in order] == [("cce", "ppd 16"), ("ldim", "ppd 64"), ("hash", "ppd 64")]
    assert points.standings(found, 10) == []
    text = points.table(found)
    assert text.count("\n") == 1 + 3
    first = text.splitlines()[2]
    assert first.startswith("| 5,096 | **cce 0.803 (0.803–0.804), 5,096 B**")
    assert first.endswith("| 1. **cce 0.803 (0.803–0.804), 5,096 B** |")
    # without the reference: by the sizes asked for, or else by those that there are
    asked = points.table(points.points([invented("hash", 1, 16, budget="3000 bytes a table", bytes=5000)]))
    assert asked.splitlines()[2].startswith("| 6,000 | hash ")
    both = points.table(points.points([invented("hash", 1, 16, budget="7000 bytes of both tables", bytes=5000)]))
    assert both.splitlines()[2].startswith("| 7,000 | hash ")
    assert "| – |" in points.table(points.points(some(["hash"])))


# Looks

# Vienot, Brettel and Mollon (1999), on linear RGB.
BLIND = {
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
}


def seen(colour: str, blindness: str | None) -> np.ndarray:
    """CIE Lab of a colour as a colour-blind eye has it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if blindness:
        linear = np.clip(np.array(BLIND[blindness]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", [None, *BLIND])
@pytest.mark.parametrize("palette", [points.COLOURS, points.ON_BLACK], ids=["on white", "on black"])
def test_colour_blind_readers_tell_the_colours_apart(blindness, palette):
    for one, other in itertools.combinations(palette, 2):
        assert np.linalg.norm(seen(one, blindness) - seen(other, blindness)) > 10, (one, other)
    # the check can fail: a red and a green of one lightness
    red, green = (
        "#" + "".join(f"{int(255 * c):02x}" for c in colorsys.hsv_to_rgb(h, 1, v)) for h, v in ((0, 0.9), (0.3, 0.5))
    )
    apart = {b: np.linalg.norm(seen(red, b) - seen(green, b)) for b in (None, *BLIND)}
    assert apart["deuteranopia"] < apart[None] / 2


def test_no_two_methods_look_alike_and_a_method_always_looks_the_same():
    labels = [*sweep.methods("all"), "cce:rank=2", "cce:rank=3"]
    look = points.styles(labels)
    assert set(look) == set(labels)
    for one, other in itertools.combinations(set(labels) - {"full"}, 2):
        a, b = look[one], look[other]
        assert a.colour != b.colour or (a.dash != b.dash and a.marker != b.marker), (one, other)
    assert points.styles(["hash", "ldim"]) == {"full": look["full"], "hash": look["hash"], "ldim": look["ldim"]}
    assert set(sweep.methods("all")) - {"full"} <= set(points.ORDER)  # a new method gets its place


# Files


@needs_matplotlib
def test_all_pictures_are_drawn_and_again_the_same(tmp_path):
    fill(tmp_path, [*some(), invented("tt", 1, 16, status="does not fit", auc=None)])
    (tmp_path / "README.md").write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    files = plot.plot(tmp_path)
    names = {
        f"{m}-{a}.{kind}"
        for m in ("auc", "logloss")
        for a in ("bytes", "training", "params")
        for kind in ("png", "svg")
    }
    assert {path.name for path in files} == names | {"index.html", "README.md"}
    readme = (tmp_path / "README.md").read_text()
    assert readme == f"before\n<!-- table -->\n{points.table(points.points(some()))}\n<!-- end of table -->\nafter\n"
    before = {path: path.read_bytes() for path in files}
    assert {path: path.read_bytes() for path in plot.plot(tmp_path)} == before
    assert all(path.stat().st_size > 1000 for path in files if path.suffix == ".png")


@needs_matplotlib
def test_the_axes_hold_what_they_say(tmp_path):
    from matplotlib import pyplot

    found = points.points(some())
    figure, ax = pyplot.subplots()
    plot.lines(ax, found, "logloss", "params")
    drawn = {container.get_label(): container for container in ax.containers}
    assert set(drawn) == {"cce", "ldim", "hash"}
    line, _, (bars,) = drawn["cce"]
    assert list(line.get_xdata()) == [64 * 16, 64 * 64, 64 * 256]
    assert line.get_ydata() == pytest.approx([p.mean("logloss") for p in found["cce"]])
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(found["cce"][0].spread("logloss"))
    flat = [line for line in ax.lines if str(line.get_label()).startswith("full table")]
    assert len(flat) == 1
    assert list(flat[0].get_ydata()) == pytest.approx([found["full"][0].mean("logloss")] * 2)
    pyplot.close(figure)


@needs_matplotlib
def test_methods_can_be_picked_and_bad_input_is_one_clear_line(tmp_path, capsys):
    fill(tmp_path / "a", some())
    assert plot.main([str(tmp_path / "a"), "--methods", "cce"]) == 0
    assert '"label":"hash"' not in (tmp_path / "a" / "index.html").read_text()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.csv").write_text("x,y\n1,2\n")
    fill(tmp_path / "c", [])
    capsys.readouterr()
    for words, message in [
        ([tmp_path / "a", "--methods", "nope"], "no finished run of 'nope'"),
        ([tmp_path / "b"], "is not a sweep's"),
        ([tmp_path / "c"], "nothing to draw"),
        ([tmp_path / "none"], "let a sweep write there"),
    ]:
        assert plot.main(list(map(str, words))) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    fill(tmp_path, some())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main([str(tmp_path)]) == 2
    assert "pip install -e '.[plot]'" in capsys.readouterr().err


def test_the_command_that_is_shown_makes_the_run(tmp_path):
    """From a row to its command line to the same figures, in a process of its own."""
    args, rest = sweep.arguments(
        [*TINY, "--methods", "cce:rank=4", "--budgets", "32", "--seeds", "1", "--out", str(tmp_path)]
    )
    row = sweep_run.execute(sweep.planned(args, rest)[0])
    words = sweep_run.spelled(row["command"].split()).split()
    assert words[:2] == ["python", "examples/movielens.py"]
    done = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], "--json", str(tmp_path / "r.json")],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["auc"], report["logloss"], report["bytes"]["stored"]) == (row["auc"], row["logloss"], row["bytes"])
