"""Files that are saved, replaced and opened as a good citizen does it, whatever else goes on in the folder."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xxhash
from edited_headers import TABLES, joined, split

import cce_core as cce
from cce_core.storage import FileFormatError, load_arrays, replacing, save_arrays

BOTH = pytest.mark.parametrize("mmap", [False, True])


def arrays(n, size=1000):
    """Arrays that say which save they are from."""
    return {"a": np.full(size, n, np.float32), "b": np.full(2 * size, n, np.int8)}


def whole(path, **how):
    """Which save a file is from, after every number and the spec were seen to be of that one."""
    found, spec = load_arrays(path, **how)
    assert {int(n) for array in found.values() for n in np.unique(array)} == {spec["n"]}
    return spec["n"]


# --- what is opened ----------------------------------------------------------------------------------------------------


_at_call: list = []  # what is done at the next calls of the system; a hook of the interpreter stays for good


def _hook(event, _):
    if _at_call and event in ("open", "mmap.__new__"):
        _at_call.pop(0)()


sys.addaudithook(_hook)


@BOTH
def test_a_file_that_is_replaced_while_it_is_opened_is_read_as_it_was(mmap, tmp_path):
    """A file of other sizes takes the name just before each opening and mapping in turn."""
    path, other = tmp_path / "t", tmp_path / "other"
    for turn in range(4):
        save_arrays(path, arrays(1), {"n": 1})
        save_arrays(other, arrays(2, 1500), {"n": 2})
        _at_call[:] = [lambda: None] * turn + [lambda: os.replace(other, path)]
        try:
            assert whole(path, mmap=mmap) in (1, 2)
        finally:
            _at_call.clear()


@BOTH
def test_loads_beside_saves_are_of_one_save(mmap, tmp_path):
    path, ended = tmp_path / "t", threading.Event()
    save_arrays(path, arrays(0), {"n": 0})

    def save(first):
        for n in range(first, 10**9, 2):
            if ended.is_set():
                return
            save_arrays(path, arrays(n % 100, 1000 + n % 7), {"n": n % 100})

    writers = [threading.Thread(target=save, args=(first,)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            whole(path, mmap=mmap, verify="all")
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    whole(path)
    assert os.listdir(tmp_path) == ["t"]


@BOTH
def test_what_is_no_regular_file_is_refused_at_once(mmap, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("fifo")
        for name in ("fifo", "socket", "folder", "link", "/dev/null"):
            before = sorted(os.listdir(tmp_path))
            for act in (lambda p: load_arrays(p, mmap=mmap), lambda p: save_arrays(p, arrays(1), {})):
                with pytest.raises(OSError, match=name.rpartition("/")[2]) as caught:
                    act(tmp_path / name)
                assert not isinstance(caught.value, FileFormatError)
            assert sorted(os.listdir(tmp_path)) == before


@BOTH
def test_what_cannot_be_opened_is_not_called_torn(mmap, tmp_path):
    save_arrays(tmp_path / "t", arrays(1), {})
    (tmp_path / "loop").symlink_to("loop")
    for name, number in (("t/t", errno.ENOTDIR), ("loop", errno.ELOOP), ("n" * 300, errno.ENAMETOOLONG)):
        for act in (lambda p: load_arrays(p, mmap=mmap), lambda p: save_arrays(p, arrays(1), {})):
            with pytest.raises(OSError, match=name.partition("/")[0]) as caught:
                act(tmp_path / name)
            assert caught.value.errno == number
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="open files") as caught:
            load_arrays(tmp_path / "t", mmap=mmap)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE


# --- what is checked ---------------------------------------------------------------------------------------------------


def changed(path, where):
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)


def test_data_are_checked_on_request(tmp_path):
    save_arrays(tmp_path / "t", arrays(1), {"n": 1})
    changed(tmp_path / "t", -1)
    for how in ({}, {"verify": "all"}, {"mmap": True, "verify": "all"}):
        with pytest.raises(FileFormatError, match="its checksum does not hold"):
            load_arrays(tmp_path / "t", **how)
    for how in ({"verify": "header"}, {"mmap": True}, {"mmap": True, "verify": "header"}):
        assert load_arrays(tmp_path / "t", **how)[1] == {"n": 1}
    with pytest.raises(ValueError, match="verify must be one of header, all; got 'data'"):
        load_arrays(tmp_path / "t", verify="data")


def test_a_header_is_checked_without_its_data(tmp_path):
    """Every digit of the spec in turn is another one: a valid spec, with other hashes."""
    table = cce.make_table("hash", 100, 8, num_params=800, seed=1_234_567)
    table.save(tmp_path / "t")
    raw = (tmp_path / "t").read_bytes()
    at = raw.index(b"1234567")
    for place in range(at, at + 7):
        changed(tmp_path / "t", place)
        for how in ({"mmap": True}, {"verify": "header"}):
            with pytest.raises(FileFormatError, match="its own checksum does not hold"):
                cce.load(tmp_path / "t", **how)
        (tmp_path / "t").write_bytes(raw)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.spec.method}-{t.spec.codec}-{t.spec.rank}")
def test_files_go_to_and_from_safetensors_and_earlier_versions(table, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    table.save(tmp_path / "t")
    with safe_open(tmp_path / "t", framework="np") as file:
        metadata, found = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == table.arrays().keys()
    digest = xxhash.xxh3_64(metadata["spec"].encode())  # what version 1 has said from its first day
    for name in sorted(found):
        np.testing.assert_array_equal(found[name], table.arrays()[name])
        digest.update(f"{name} {found[name].dtype.str} {found[name].shape}".encode() + found[name].tobytes())
    assert (metadata["format"], metadata["version"], metadata["xxh3"]) == ("cce-core", "1", digest.hexdigest())
    assert json.loads(metadata["spec"]) == table.spec.as_json()
    del metadata["header_xxh3"]
    save_file(found, tmp_path / "old", metadata=metadata)
    for how in ({}, {"mmap": True}, {"mmap": True, "verify": "all"}):
        old = cce.load(tmp_path / "old", **how)
        assert old.spec == table.spec
        for name, array in table.arrays().items():
            np.testing.assert_array_equal(old.arrays()[name], array)


def test_a_file_in_another_order_of_names_and_blanks_is_the_same(tmp_path):
    save_arrays(tmp_path / "t", arrays(1), {"n": 1})
    header, data = split((tmp_path / "t").read_bytes())
    (tmp_path / "t").write_bytes(joined(dict(reversed(header.items())), data, "stands"))
    assert whole(tmp_path / "t", mmap=True) == 1


# --- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_new_files_have_the_mode_of_the_umask_and_old_ones_keep_theirs(umask, tmp_path):
    before = os.umask(umask)
    try:
        save_arrays(tmp_path / "t", arrays(1), {})
        assert stat.S_IMODE(os.stat(tmp_path / "t").st_mode) == 0o666 & ~umask
        for mode in (0o664, 0o600, 0o444, 0o777, 0o640):
            os.chmod(tmp_path / "t", mode)
            save_arrays(tmp_path / "t", arrays(1), {})
            assert stat.S_IMODE(os.stat(tmp_path / "t").st_mode) == mode
    finally:
        os.umask(before)


def test_nobody_else_can_read_a_private_file_while_it_is_written(tmp_path):
    save_arrays(tmp_path / "t", arrays(1), {})
    os.chmod(tmp_path / "t", 0o600)
    with replacing.replacing(tmp_path / "t") as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600


def test_the_owner_is_kept_where_that_is_allowed(tmp_path, monkeypatch):
    save_arrays(tmp_path / "t", arrays(1), {})
    if os.getuid() == 0:
        os.chown(tmp_path / "t", 1234, 4321)
        save_arrays(tmp_path / "t", arrays(2), {})
        found = os.stat(tmp_path / "t")
        assert (found.st_uid, found.st_gid) == (1234, 4321)
    asked, real = [], os.stat_result(os.stat(tmp_path / "t"))

    def refused(_, uid, gid):
        asked.append((uid, gid))
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    other = os.stat_result((*real[:4], real.st_uid + 1, real.st_gid, *real[6:]))
    with open(tmp_path / "t", "rb", buffering=0) as file:
        replacing._make_like(file, other)
    assert asked == [(real.st_uid + 1, real.st_gid), (-1, real.st_gid)]


def test_symbolic_links_stay_and_hard_links_part(tmp_path):
    (tmp_path / "far").mkdir()
    links = {"near": "t", "relative": "far/t", "dangling": "far/new", "chain": "relative"}
    for name, to in links.items():
        (tmp_path / name).symlink_to(to)
    (tmp_path / "absolute").symlink_to(tmp_path / "far" / "t")
    (tmp_path / "by").symlink_to("far", target_is_directory=True)
    for n, name in enumerate(("near", "relative", "dangling", "chain", "absolute", "by/t", "by/other")):
        save_arrays(tmp_path / name, arrays(n), {"n": n})
        assert whole(tmp_path / name) == n
        assert os.readlink(tmp_path / name) == links[name] if name in links else True
    assert sorted(os.listdir(tmp_path / "far")) == ["new", "other", "t"]
    os.link(tmp_path / "t", tmp_path / "twin")
    save_arrays(tmp_path / "t", arrays(9), {"n": 9})
    assert (whole(tmp_path / "t"), whole(tmp_path / "twin")) == (9, 0)
    (tmp_path / "lost").symlink_to("nowhere/t")
    with pytest.raises(FileNotFoundError, match="lost"):
        save_arrays(tmp_path / "lost", arrays(1), {})


def test_a_full_disk_is_an_error_of_the_system_with_the_files_name(tmp_path):
    save_arrays(tmp_path / "t", arrays(1), {"n": 1})
    code = f"""
import resource, numpy as np
from cce_core.storage import save_arrays
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for size in (10**5, 3 * 10**6):
    try: save_arrays({str(tmp_path / "t")!r}, {{"a": np.zeros(size, np.float32)}}, {{}})
    except OSError as error: print(type(error).__name__, error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"OSError {errno.EFBIG} {tmp_path / 't'}\n" * 2
    assert os.listdir(tmp_path) == ["t"]
    assert whole(tmp_path / "t") == 1


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    for name in ("n" * 255, "é" * 127):
        for n in (1, 2):
            save_arrays(tmp_path / name, arrays(n), {"n": n})
            assert whole(tmp_path / name) == n
    assert len(os.listdir(tmp_path)) == 2


def test_what_dead_writers_leave_is_removed_and_nothing_else(tmp_path):
    """A process is killed in the middle of a save; another one, and a thread of this process, are in the middle of theirs."""
    code = f"""
import sys
from cce_core.storage.replacing import replacing
with replacing({str(tmp_path / "t")!r}) as file:
    file.write(b"half")
    print(flush=True)
    sys.stdin.read()
"""
    dead, live = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    )
    for process in (dead, live):
        assert process.stdout.readline() == b"\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    kept = (
        ".t.0123456789abcdef.part.x",
        ".t.x.0123456789abcdef.part",
        ".u.0123456789abcdef.part",
        ".t.0123.part",
        "t.part",
    )
    for name in kept:
        (tmp_path / name).touch()
    with replacing.replacing(tmp_path / "t") as file:
        file.write(b"mine")
        assert len(os.listdir(tmp_path)) == len(kept) + 2  # this one and the live one; the dead one's is gone
        save_arrays(tmp_path / "t", arrays(1), {"n": 1})  # the last to begin, the first to end
        assert whole(tmp_path / "t") == 1
        assert len(os.listdir(tmp_path)) == len(kept) + 3
    assert (tmp_path / "t").read_bytes() == b"mine"
    live.communicate(b"")
    assert live.returncode == 0
    assert (tmp_path / "t").read_bytes() == b"half"
    assert sorted(os.listdir(tmp_path)) == sorted((*kept, "t"))


def test_where_nothing_can_be_locked_age_decides(tmp_path, monkeypatch):
    parts = [tmp_path / f".t.{n}123456789abcdef.part" for n in range(2)]
    for path in parts:
        path.touch()
    os.utime(parts[0], (time.time() - 2 * 86_400,) * 2)

    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(replacing.fcntl, "flock", without)
    save_arrays(tmp_path / "t", arrays(1), {"n": 1})
    assert sorted(os.listdir(tmp_path)) == [parts[1].name, "t"]
    monkeypatch.setattr(replacing, "fcntl", None)
    save_arrays(tmp_path / "t", arrays(2), {"n": 2})
    assert (whole(tmp_path / "t"), len(os.listdir(tmp_path))) == (2, 2)


def test_a_writer_whose_file_was_swept_before_it_was_locked_begins_again(tmp_path, monkeypatch):
    """Another writer looks for the dead just between the making of a temporary file and its lock."""
    real, turns = replacing._lock, []

    def swept(descriptor):
        turns.append(1)
        if len(turns) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(replacing, "_lock", real)
                replacing._remove_dead(str(tmp_path), ".t.")
        return real(descriptor)

    monkeypatch.setattr(replacing, "_lock", swept)
    save_arrays(tmp_path / "t", arrays(1), {"n": 1})
    assert (len(turns), os.listdir(tmp_path), whole(tmp_path / "t")) == (2, ["t"], 1)


def test_a_save_holds_no_second_copy_and_a_load_one(tmp_path):
    import tracemalloc

    big = {"a": np.zeros(8 << 20, np.float32), "b": np.zeros((4 << 20) + 1, np.int8)}
    tracemalloc.start()
    try:
        save_arrays(tmp_path / "t", big, {})
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
        tracemalloc.reset_peak()
        load_arrays(tmp_path / "t")
        assert tracemalloc.get_traced_memory()[1] < 39 << 20
        tracemalloc.reset_peak()
        load_arrays(tmp_path / "t", mmap=True, verify="all")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_holds_its_checksum_also_where_another_thread_writes_into_the_arrays(tmp_path):
    moving, ended = {"a": np.zeros(1 << 20, np.float32)}, threading.Event()

    def train():
        while not ended.is_set():
            moving["a"] += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(20):
            save_arrays(tmp_path / "t", moving, {})
            load_arrays(tmp_path / "t")
    finally:
        ended.set()
        thread.join()


def test_a_type_that_no_table_has_is_named(tmp_path):
    for dtype in ("float64", "bool", "O", "datetime64[s]", "S3"):
        with pytest.raises(TypeError, match="memory must be of a type that files hold"):
            save_arrays(tmp_path / "t", {"memory": np.zeros(3, dtype)}, {})
    swapped = np.arange(5, dtype=">u8")
    save_arrays(tmp_path / "t", {"keys": swapped}, {})
    np.testing.assert_array_equal(load_arrays(tmp_path / "t")[0]["keys"], swapped)
    assert (tmp_path / "t").read_bytes()[-40:] == np.arange(5, dtype="<u8").tobytes()
    assert os.listdir(tmp_path) == ["t"]
