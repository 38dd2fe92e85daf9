"""The page of a sweep: it holds all that it needs, and does what it says in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sweep_runs import invented, some

from bench.methods import page, plot_data, sweep_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(not CHROMIUM, reason="no headless browser on this machine (apt-get install chromium)")
CATCH = "<script>window.problems = []; addEventListener('error', e => problems.push(String(e.message)));</script>"
EVIL = "</script><script>problems.push('ran')</script>&<b>"


def made(labels=("full", "cce", "hash", "ldim"), more=()):
    return page.html(plot_data.points([*some(labels), *more]), "ml-100k <test>")


def test_the_page_is_whole_and_asks_for_nothing():
    text = made()
    addresses = set(re.findall(r"\w+://[^\s\"'<]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"\b(src|href|action|import)\s*[=(]|url\(|@import|fetch\(|XMLHttp|WebSocket", text)
    assert "default-src 'none'" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert {s["label"] for s in data["series"]} == {"full", "cce", "hash", "ldim"}
    rows = {row["run"]: row for row in some()}
    runs = [run for s in data["series"] for p in s["points"] for run in p["runs"]]
    assert len(runs) == len(rows)
    for run in runs:
        assert run["auc"] == rows[run["run"]]["auc"]
        assert run["command"] == sweep_run.spelled(rows[run["run"]]["command"].split())


def test_what_is_in_a_row_cannot_end_the_script():
    text = made(more=[invented("cce:" + EVIL, 1, 16)])
    assert EVIL not in text
    assert text.count("<script") == 2


def opened(tmp_path: Path, text: str, script: str = "", fragment: str = "", *flags: str) -> str:
    """The document as Chromium has it after the page's script and ours."""
    tail = f"""<pre id="log"></pre><script>(async () => {{ const log = {{}};
        const $$ = selector => [...document.querySelectorAll(selector)];
        try {{ {script} }} catch (error) {{ problems.push(String(error)); }}
        log.problems = problems; log.resources = performance.getEntriesByType("resource").length;
        document.getElementById("log").textContent = JSON.stringify(log); }})();</script>"""
    path = tmp_path / "page.html"
    path.write_text(text.replace("<body>", "<body>" + CATCH).replace("</body>", tail + "</body>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1250,900",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", *(flags or ("--dump-dom",))]
    done = subprocess.run([*command, f"{path.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(*arguments) -> dict:
    dom = opened(*arguments)
    return json.loads(html.unescape(re.search(r'<pre id="log">(.*?)</pre>', dom, re.DOTALL)[1]))


@browser
def test_a_reader_picks_axis_metric_and_methods(tmp_path):
    log = told(
        tmp_path,
        made(more=[invented("cce:" + EVIL, 1, 16)]),
        """
        const now = () => ({x: $$("#xlabel").map(t => t.textContent), y: $$("#ylabel").map(t => t.textContent),
            series: $$(".series").map(g => g.dataset.label), runs: $$(".run").length, hash: location.hash});
        const of = label => $$("#methods input").find(box => box.value === label);
        log.title = [document.title, $$("h1")[0].textContent, $$("h1 *").length];
        log.first = now();
        const place = () => $$("[data-label=cce] .run").map(d => d.getAttribute("transform")).join();
        const there = place();
        $$("input[value=num_params]")[0].click(); log.params = now(); log.moved = place() !== there;
        $$("input[value=logloss]")[0].click(); log.logloss = now();
        of("hash").click(); log.fewer = now();
        of("hash").click(); log.back = now();
        document.getElementById("none").click(); log.none = {...now(), text: $$("#chart")[0].textContent};
        document.getElementById("all").click(); log.all = now();
        """,
    )
    assert log["problems"] == []
    assert log["resources"] == 0
    assert log["title"] == ["ml-100k <test>", "ml-100k <test>", 0]
    everything = ["full", "cce", "ldim", "hash", "cce:" + EVIL]
    first = log["first"]
    assert (first["x"], first["y"]) == (["real bytes of both tables"], ["validation AUC"])
    assert (first["series"], first["runs"]) == (everything, 2 + 3 * 6 + 1)
    assert log["params"]["x"] == ["parameters of both tables"]
    assert log["moved"]
    assert log["logloss"]["y"] == ["validation log loss (nats)"]
    assert log["logloss"]["hash"] == "#axis=num_params&metric=logloss"
    assert log["fewer"]["series"] == [label for label in everything if label != "hash"]
    assert log["fewer"]["runs"] == first["runs"] - 6
    assert "hash" not in log["fewer"]["hash"].split("methods=")[1].split(",")
    assert sorted(log["back"]["series"]) == sorted(everything)
    assert log["none"]["text"] == "no method is picked"
    assert log["all"]["runs"] == first["runs"]


@browser
def test_hovering_shows_the_run_and_a_click_copies_its_command(tmp_path):
    row = invented("cce", 2, 64)
    log = told(
        tmp_path,
        made(),
        f"""
        const tip = document.getElementById("tip"), dot = $$("[data-run='{row["run"]}']")[0];
        const shown = () => getComputedStyle(tip).display !== "none";
        log.before = shown();
        dot.dispatchEvent(new MouseEvent("mouseenter", {{clientX: 1200, clientY: 880}}));
        log.tip = tip.textContent; log.over = shown();
        const box = tip.getBoundingClientRect();
        log.inside = box.right <= innerWidth && box.bottom <= innerHeight && box.left >= 0 && box.top >= 0;
        dot.dispatchEvent(new MouseEvent("mouseleave")); log.after = shown();
        dot.dispatchEvent(new KeyboardEvent("keydown", {{key: "Enter"}}));
        await new Promise(done => setTimeout(done, 200));
        log.command = document.getElementById("command").textContent;
        document.getElementById("command").remove();
        dot.dispatchEvent(new MouseEvent("click"));
        await new Promise(done => setTimeout(done, 200));
        log.again = document.getElementById("command").textContent;
        """,
    )
    assert log["problems"] == []
    assert (log["before"], log["over"], log["after"], log["inside"]) == (False, True, False, True)
    assert "cce, ppd 64, seed 2" in log["tip"]
    assert f"AUC {row['auc']:.4f}, log loss {row['logloss']:.4f} (epoch 7 of 20)" in log["tip"]
    assert "4,096 parameters, rank 4 and 2" in log["tip"]
    assert "17,384 bytes of the full tables' 330,880" in log["tip"]
    assert "memory: 16384" in log["tip"]
    assert log["command"] == log["again"] == f"python examples/movielens.py {row['command']}"


@browser
def test_a_link_brings_back_what_was_picked(tmp_path):
    script = "log.state = [$$('#xlabel')[0].textContent, $$('.series').map(g => g.dataset.label)];"
    log = told(tmp_path, made(), script, "#axis=num_params&metric=nonsense&methods=cce,unknown")
    assert log["problems"] == []
    assert log["state"] == ["parameters of both tables", ["cce"]]


@browser
def test_what_is_drawn_has_every_methods_colour(tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed (the extra `plot`)")
    opened(tmp_path, made(), "", "", f"--screenshot={tmp_path / 'shot.png'}")
    pixels = (image.imread(tmp_path / "shot.png")[..., :3] * 255).round().astype(int)
    assert pixels.shape == (900, 1250, 3)
    for label, style in plot_data.styles(("cce", "hash", "ldim")).items():
        wanted = [int(style.colour[i : i + 2], 16) for i in (1, 3, 5)]
        if label != "full":
            chart = pixels[:, 250:]
            assert (abs(chart - wanted).max(axis=2) < 8).sum() > 100, label
