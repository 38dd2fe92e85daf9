"""Downloading, against a server on this machine: nothing here leaves it."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import socket
import threading
import zipfile
from dataclasses import replace

import pytest

from cce_core.datasets import catalog, download, fetch, find, load, names

RATINGS = b"5\t1\t4\t30\n5\t2\t1\t10\n5\t3\t5\t20\n"


def zipped(members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVE = zipped({"ml-100k/README": b"licence", "ml-100k/u.data": RATINGS, "ml-100k/u.item": b"x" * 10_000})


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with `content`, in the manner that `manner` says; counts the requests."""

    daemon_threads = True
    content, manner, asked = ARCHIVE, "well", 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked += 1
        if server.manner == "moved" and server.asked == 1:
            self.send_response(302)
            self.send_header("Location", "/elsewhere.zip")
            self.end_headers()
            return
        if server.manner in ("404", "503"):
            self.send_error(int(server.manner))
            return
        if server.manner == "silent":
            server.released.wait(20)
            return
        if server.manner == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(200)
        if server.manner == "chunked torn":
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1000\r\n" + server.content[:16])
            return
        if server.manner != "no length":
            self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        self.wfile.write(server.content[: len(server.content) // 2] if server.manner == "torn" else server.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
        serve(server, ARCHIVE, monkeypatch)
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def serve(server, content, monkeypatch, **more):
    """Serve `content` as the published archive of every data set."""
    server.content = content
    digest = hashlib.md5(content).hexdigest()
    tiny = {
        name: replace(source, md5=source.md5 and digest, n_lines=source.n_lines and 3)
        for name, source in fetch.SOURCES.items()
    }
    monkeypatch.setattr(fetch, "SOURCES", tiny)
    monkeypatch.setattr(catalog, "SOURCES", tiny)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("manner", ["well", "no length", "moved"])
def test_a_download_leaves_the_rating_file_alone(server, tmp_path, manner):
    server.manner = manner
    path = download("ml-100k", tmp_path, url=server.url)
    assert path == tmp_path / "ml-100k" / "u.data"
    assert path.read_bytes() == RATINGS
    assert files(tmp_path) == ["ml-100k/u.data"]
    mask = os.umask(0)
    os.umask(mask)
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_bar_is_shown_where_it_is_asked_for(server, tmp_path, capsys):
    download("ml-100k", tmp_path, url=server.url)
    assert capsys.readouterr() == ("", "")
    download("ml-100k", tmp_path, url=server.url, show=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "downloading ml-100k.zip" in err


@pytest.mark.parametrize("name", list(fetch.SOURCES))
def test_every_set_has_its_member(server, tmp_path, monkeypatch, name):
    file = fetch.SOURCES[name].file
    inside = "ml-10M100K" if name == "ml-10m" else name
    serve(server, zipped({f"{inside}/{file}": b"content", "other/u.data": b"other"}), monkeypatch)
    assert download(name, tmp_path, url=server.url).read_bytes() == b"content"
    assert files(tmp_path) == [f"{name}/{file}"]


def test_sources_are_those_of_the_publisher():
    assert set(fetch.SOURCES) == {
        "ml-100k",
        "ml-1m",
        "ml-10m",
        "ml-20m",
        "ml-25m",
        "ml-32m",
        "ml-latest",
        "ml-latest-small",
    }
    for name, source in fetch.SOURCES.items():
        assert source.name == name
        assert source.url == f"https://files.grouplens.org/datasets/movielens/{name}.zip"
        known = not name.startswith("ml-latest")  # those are replaced now and then
        assert (source.n_lines is not None, source.md5 is not None) == (known, known)
        assert not known or len(bytes.fromhex(source.md5)) == 16
    assert len({source.md5 for source in fetch.SOURCES.values()}) == 7


def test_a_download_replaces_what_is_there(server, tmp_path):
    for _ in range(2):
        path = download("ml-100k", tmp_path, url=server.url)
        assert path.read_bytes() == RATINGS
        path.write_bytes(b"old")
    assert server.asked == 2


def test_loading_downloads_only_when_told_to_and_only_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.Source, "url", property(lambda source: server.url))
    monkeypatch.setenv("CCE_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in names():
        if not name.startswith("synthetic"):
            with pytest.raises(FileNotFoundError):
                load(name)
    assert server.asked == 0
    for _ in range(2):
        assert len(load("ml-100k", download=True).valid) == 2
    assert server.asked == 1
    assert files(tmp_path) == ["named/ml-100k/u.data"]
    monkeypatch.delenv("CCE_DATA")
    load("ml-100k", download=True)
    load("ml-100k", tmp_path / "given", download=True)  # found in the cache
    assert server.asked == 2
    assert files(tmp_path) == ["cache/cce_core/data/ml-100k/u.data", "named/ml-100k/u.data"]


FAULTS = {
    "404": r"could not be downloaded \(404 Not Found\)",
    "503": r"could not be downloaded \(503 Service Unavailable\)",
    "torn": r"could not be downloaded \((it broke off after [\d,]+ of [\d,]+ bytes|IncompleteRead.*)\)",
    "chunked torn": r"could not be downloaded \(",
    "hang up": r"could not be downloaded \(",
    "silent": r"could not be downloaded \(.*timed out",
}


@pytest.mark.parametrize(("manner", "message"), FAULTS.items(), ids=FAULTS.keys())
def test_a_transfer_that_fails_leaves_the_old_file_and_nothing_else(server, tmp_path, manner, message):
    server.manner = manner
    old = tmp_path / "ml-100k" / "u.data"
    old.parent.mkdir()
    old.write_bytes(b"old")
    with pytest.raises(ConnectionError, match=message) as caught:
        download("ml-100k", tmp_path, url=server.url, timeout=0.3 if manner == "silent" else 30.0)
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    assert "try again" in str(caught.value)
    assert old.read_bytes() == b"old"
    assert files(tmp_path) == ["ml-100k/u.data"]


def test_a_refused_connection(tmp_path):
    with socket.socket() as taken:  # bound, not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.zip"
        with pytest.raises(ConnectionError, match=r"could not be downloaded \(.*refused"):
            download("ml-100k", tmp_path, url=url)
    assert files(tmp_path) == []


def test_another_checksum_is_refused(server, tmp_path):
    server.content = ARCHIVE[:-1] + bytes([ARCHIVE[-1] ^ 1])
    published = fetch.SOURCES["ml-100k"].md5
    with pytest.raises(ValueError, match=f"MD5 {hashlib.md5(server.content).hexdigest()}, expected {published}"):
        download("ml-100k", tmp_path, url=server.url)
    assert files(tmp_path) == []


def test_an_archive_that_climbs_out_of_its_folder_writes_nothing_there(server, tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    content = {"../escaped": b"x", "/escaped": b"x", "ml-100k/../../escaped": b"x", "ml-100k/u.data": RATINGS}
    serve(server, zipped(content), monkeypatch)
    download("ml-100k", inner, url=server.url)
    assert files(tmp_path) == ["inner/ml-100k/u.data"]


@pytest.mark.parametrize("member", ["u.data", "ml-100k/", "../ml-100k/u.data", "ml-100k\\u.data", "ML-100K/u.data"])
def test_an_archive_without_the_file_is_refused(server, tmp_path, monkeypatch, member):
    if member == "ml-100k\\u.data" and os.sep == "\\":
        pytest.skip("zipfile reads a backslash as a separator here")
    serve(server, zipped({member: b""}), monkeypatch)
    with pytest.raises(ValueError, match=r"holds no ml-100k/u\.data"):
        download("ml-100k", tmp_path, url=server.url)
    assert files(tmp_path) == []


def test_a_damaged_archive_is_refused(server, tmp_path, monkeypatch):
    stored = zipped({"ml-100k/u.data": RATINGS * 100}, zipfile.ZIP_STORED)
    at = stored.index(RATINGS) + 50
    packed = zipped({"ml-100k/u.data": bytes(range(256)) * 50})
    middle = packed.index(b"u.data") + 20
    for content in (
        b"",
        b"<html>no such file</html>",
        ARCHIVE[: len(ARCHIVE) // 2],
        stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :],  # its CRC is wrong
        packed[:middle] + b"\xff" * 20 + packed[middle + 20 :],  # its compression is wrong
    ):
        serve(server, content, monkeypatch)
        with pytest.raises(ValueError, match=r"the archive from http.* is damaged"):
            download("ml-100k", tmp_path, url=server.url)
        assert files(tmp_path) == []


def test_an_interrupt_leaves_nothing_behind(server, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download("ml-100k", tmp_path, url=server.url)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"can't write into .*ml-100k .*; give another folder as data_dir"):
        download("ml-100k", tmp_path / "file", url=server.url)
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # nothing is closed to root
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="can't write into"):
            download("ml-100k", closed, url=server.url)
    assert server.asked == 0


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="name must be one of ml-100k"):
        download("ml-2k", tmp_path)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "x"):
        with pytest.raises(ValueError, match="url must begin with https:// or http://"):
            download("ml-100k", tmp_path, url=url)
    assert files(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="home is something else here")
@pytest.mark.parametrize("home", [None, "", "home", "~"])
@pytest.mark.parametrize("named", [None, "~/data"])
def test_who_has_no_home_may_say_where_data_are(server, tmp_path, monkeypatch, home, named):
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    for name, text in (("HOME", home), ("CCE_DATA", named), ("XDG_CACHE_HOME", None)):
        monkeypatch.delenv(name, raising=False)
        if text is not None:
            monkeypatch.setenv(name, text)
    path = tmp_path / "ml-100k" / "u.data"
    for call in (find, lambda name: download(name, url=server.url)):
        with pytest.raises(FileNotFoundError, match="data_dir or in CCE_DATA"):
            call("ml-100k")
    assert os.listdir(tmp_path) == []
    assert download("ml-100k", tmp_path, url=server.url) == path
    assert find("ml-100k", tmp_path) == path
