"""`cce serve` as a shell runs it: it answers over HTTP, ends when it is told to, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

import cce_core as cce
from cce_core.__main__ import main
from cce_core.serving import Reader

pytest.importorskip("typer", reason="Typer is not installed (the extra `cli`)")


@pytest.fixture
def table(tmp_path):
    """The file of a table."""
    path = tmp_path / "item.safetensors"
    cce.make_table("cce", 50, 8, num_params=200, seed=1).save(path)
    return path


@contextmanager
def serving(*words):
    """A server on a free port: its process and its address."""
    command = [sys.executable, "-m", "cce_core", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"serving \S+ on (http://127.0.0.1:\d+)", line):
                    break
            else:
                raise AssertionError("it has not started")
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()


def post(address, body, path="/tables/item/lookup"):
    asked = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return json.load(reply)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_answers_and_ends_when_it_is_told_to(table, number, code):
    with serving(table) as (process, address):
        got = post(address, {"ids": [[1, 2]]})["vectors"]
        np.testing.assert_array_equal(np.array(got, np.float32), Reader(table).lookup([[1, 2]]))
        with pytest.raises(urllib.error.HTTPError, match="422"):
            post(address, {"ids": [50]})
        process.send_signal(number)
        assert process.wait(20) == code
        assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="several workers need os.fork")
def test_several_workers_count_together_and_one_that_dies_is_replaced(table):
    with serving(table, "--workers", 2) as (process, address):

        def counted():
            with urllib.request.urlopen(f"{address}/metrics", timeout=30) as reply:
                return int(float(re.search(r'status="200",table="item"} (\S+)', reply.read().decode())[1]))

        def children():
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                return set(map(int, file.read().split()))

        for _ in range(20):
            post(address, {"ids": [1]})
        assert counted() == 20
        if os.path.exists("/proc/self/task"):
            first = children()
            assert len(first) == 2
            os.kill(min(first), signal.SIGKILL)
            end = time.monotonic() + 20
            while len(children()) < 2 or children() == first:
                assert time.monotonic() < end
                time.sleep(0.05)
        for _ in range(20):
            post(address, {"ids": [1]})
        assert counted() == 40
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_what_cannot_be_served_is_a_line_and_two(table, tmp_path, capsys):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    (tmp_path / "empty").mkdir()
    for words, says in [
        ([], "Missing argument"),
        ([tmp_path / "none"], "none"),
        ([tmp_path / "empty"], "there is no file *.safetensors"),
        ([tmp_path], "bad.safetensors"),
        ([table, "--deltas", tmp_path / "none"], "is no folder"),
        ([table, "--port", 99999], "port"),
        ([table, "--host", "203.0.113.1"], "cannot listen on 203.0.113.1, port 8080"),
        ([table, "--max-ids", 0], "max-ids"),
        ([table, "--verify", "some"], "header or all"),
    ]:
        code = main(["serve", *map(str, words)])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n"), err[:12]) == (2, "", 1, "cce: error: "), (words, out, err)
        assert says in err
    code = (
        "import sys; sys.modules['uvicorn'] = None; from cce_core.__main__ import main; sys.exit(main(['serve', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "cce: error: serve needs uvicorn: pip install 'cce-core[serve]'\n")
