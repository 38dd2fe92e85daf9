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

from bench.methods import sweep_run
from cce_core.tuning import page, points

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(not CHROMIUM, reason="no headless browser on this machine (apt-get install chromium)")
CATCH = "<script>window.problems = []; addEventListener('error', e => problems.push(String(e.message)));</script>"
EVIL = "</script><script>problems.push('ran')</script>&<b>"


def made(labels=("full", "cce", "hash", "ldim"), more=()):
    found = points.points([*some(labels), *more])
    return page.html(found, "ml-100k <test>", sweep_run.command_line, [("users", "943"), ("met once", "2 <%>")])


def test_the_page_is_whole_and_asks_for_nothing():
    text = made()
    addresses = set(re.findall(r"\w+://[^\s\"'<]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"\b(src|href|action|import)\s*[=(]|url\((?!#)|@import|fetch\(|XMLHttp|WebSocket", text)
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
        "--window-size=1250,1300",
    ]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000",
        "--allow-file-access-from-files",
    ]
    command += flags if any("screenshot" in flag for flag in flags) else ["--dump-dom", *flags]
    done = subprocess.run([*command, f"{path.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(*arguments) -> dict:
    dom = opened(*arguments)
    return json.loads(html.unescape(re.search(r'<pre id="log">(.*?)</pre>', dom, re.DOTALL)[1]))


@browser
def test_a_reader_picks_axis_metric_and_methods(tmp_path):
    evil = invented("cce:" + EVIL, 1, 16, auc=0.96, logloss=0.05)
    log = told(
        tmp_path,
        made(more=[evil]),
        """
        const now = () => ({x: $$("#xlabel").map(t => t.textContent), y: $$("#ylabel").map(t => t.textContent),
            series: [...new Set($$(".series").map(g => g.dataset.label))], runs: $$(".run").length, hash: location.hash,
            sentence: $$("#sentence")[0].textContent, command: $$("#best")[0].textContent});
        const of = label => $$("#methods input").find(box => box.value === label);
        log.title = [document.title, $$("h1")[0].textContent, $$("h1 *").length];
        log.portrait = $$("#portrait dd").map(d => d.textContent);
        log.first = now(); log.rings = $$(".ring").length; log.edges = $$(".edge").length; log.full = $$("line.full").length;
        log.band = $$(".spread").length;
        const place = () => $$("[data-label=cce] .run").map(d => d.getAttribute("transform")).join();
        const there = place();
        $$("input[value=num_params]")[0].click(); log.params = now(); log.moved = place() !== there;
        $$("input[value=train_bytes]")[0].click(); log.training = now();
        $$("input[value=logloss]")[0].click(); log.logloss = now();
        of("hash").click(); log.fewer = now();
        of("hash").click(); log.back = now();
        document.getElementById("none").click(); log.none = {...now(), text: $$("#chart")[0].textContent};
        document.getElementById("all").click(); log.all = now();
        document.getElementById("reset").click(); log.reset = now();
        $$("#list summary")[0].click(); log.rows = $$("#list tbody tr").map(r => r.cells[0].textContent);
        const pick = document.getElementById("loss"); pick.value = "0.05";
        pick.dispatchEvent(new Event("change")); log.loose = now();
        """,
    )
    assert log["problems"] == []
    assert log["resources"] == 0
    assert log["title"] == ["ml-100k <test>", "ml-100k <test>", 0]
    assert log["portrait"] == ["943", "2 <%>"]
    everything = {"cce", "ldim", "hash", "cce:" + EVIL}
    first = log["first"]
    assert (first["x"], first["y"]) == (["stored bytes, all tables"], ["validation AUC"])
    assert set(first["series"]) == everything
    assert first["runs"] == 3 * 6 + 1  # the full table is a line, and each run stands once, above or below
    assert (log["rings"], log["edges"], log["full"], log["band"]) == (0, 2, 2, 1)
    assert log["params"]["x"] == ["parameters, all tables"]
    assert log["training"]["x"] == ["training bytes, all tables"]
    assert log["moved"]
    assert log["logloss"]["y"] == ["validation log loss (nats), lower is better"]
    assert log["logloss"]["hash"] == "#axis=train_bytes&metric=logloss&loss=0.005"
    assert set(log["fewer"]["series"]) == everything - {"hash"}
    assert log["fewer"]["runs"] == first["runs"] - 6
    assert "hash" not in log["fewer"]["hash"].split("methods=")[1].split(",")
    assert set(log["back"]["series"]) == everything
    assert log["none"]["text"] == "no method is picked"
    assert log["all"]["runs"] == log["reset"]["runs"] == first["runs"]
    assert "methods=" not in log["reset"]["hash"]
    assert len(log["rows"]) == 3 * 3 + 1 + 1  # a row per point, the full table's with them
    # the sentence is the one that Python says, and its command makes the run
    found = points.points([*some(("full", "cce", "hash", "ldim")), evil])
    for told_here, loss, metric, axis in (
        (first, 0.005, "auc", "bytes"),
        (log["loose"], 0.05, "logloss", "train_bytes"),
    ):
        best = points.recommend(found, loss, metric, axis)
        assert told_here["sentence"] == best.sentence
        assert told_here["command"] == (sweep_run.command_line(best.point.runs[0]) if best.point else "")
    assert "Nothing smaller" in first["sentence"]
    assert log["loose"]["command"]


@browser
def test_hovering_shows_the_run_and_a_click_or_enter_copies_its_command(tmp_path):
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
        dot.dispatchEvent(new KeyboardEvent("keydown", {{key: "Enter", bubbles: true}}));
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
    assert "17,384 bytes stored of the full tables' 330,880: memory 16,384" in log["tip"]
    assert "64,000 bytes while training" in log["tip"]
    assert log["command"] == log["again"] == f"python examples/movielens.py {row['command']}"


@browser
def test_a_keyboard_reaches_every_run(tmp_path):
    """One stop of Tab for each chart, arrows to its other runs, and a name for each that is read aloud."""
    log = told(
        tmp_path,
        made(),
        """
        log.stops = $$("#chart [tabindex='0']").length;
        log.named = $$(".run").every(d => /, AUC|, auc 0/.test(d.getAttribute("aria-label")));
        const seen = new Set(), queue = [$$("#chart .run[tabindex='0']")[0]];
        while (queue.length) {
            const here = queue.pop();
            if (seen.has(here)) continue;
            seen.add(here);
            for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) {
                here.focus();
                here.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
                queue.push(document.activeElement);
            }
        }
        log.reached = [seen.size, $$("#chart .run").length];
        """,
    )
    assert log["problems"] == []
    assert log["stops"] == 1
    assert log["named"]
    assert log["reached"][0] == log["reached"][1] > 3


@browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_legible_and_nothing_runs_off_a_phone(tmp_path, dark):
    """The page in a frame of 390 pixels; contrast as the WCAG count it."""
    frame = tmp_path / "frame.html"
    frame.write_text(made(("full", "cce", "narrow-a-very-long-name-of-a-method:rank=4:codec=int8:n_chunks=2")))
    text = "<!DOCTYPE html><html><body><iframe src=frame.html style='width:390px;height:800px'></iframe></body></html>"
    script = """
        const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
        log.wide = [root.scrollWidth, root.clientWidth, page.querySelectorAll(".run").length];
        const linear = v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
        const light = colour => { const [r, g, b] = colour.match(/[0-9.]+/g).map(linear);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const paper = light(getComputedStyle(page.body).backgroundColor);
        log.paper = paper;
        log.contrast = Math.min(...[...page.querySelectorAll("h1, p, label, button, summary, legend, svg text, b")].map(e => {
            const style = getComputedStyle(e), ink = light(e.namespaceURI.endsWith("svg") ? style.fill : style.color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); }));
    """
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    log = told(tmp_path, text, f"await new Promise(done => setTimeout(done, 500)); {script}", "", *flags)
    assert log["wide"][0] <= log["wide"][1] <= 390
    assert log["wide"][2] > 6
    assert (log["paper"] < 0.1) == dark
    assert log["contrast"] >= 4.5


@browser
def test_a_link_brings_back_what_was_picked(tmp_path):
    script = "log.state = [$$('#xlabel')[0].textContent, [...new Set($$('.series').map(g => g.dataset.label))]];"
    log = told(tmp_path, made(), script, "#axis=num_params&metric=nonsense&methods=cce,unknown")
    assert log["problems"] == []
    assert log["state"] == ["parameters, all tables", ["cce"]]


@browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_what_is_drawn_has_every_methods_colour(tmp_path, dark):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed (the extra `plot`)")
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    opened(tmp_path, made(), "", "", f"--screenshot={tmp_path / 'shot.png'}", *flags)
    pixels = (image.imread(tmp_path / "shot.png")[..., :3] * 255).round().astype(int)
    assert pixels.shape == (1300, 1250, 3)
    for label, style in points.styles(("cce", "hash", "ldim")).items():
        colour = style.on_black if dark else style.colour
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        if label != "full":
            assert (abs(pixels[300:] - wanted).max(axis=2) < 8).sum() > 100, label
