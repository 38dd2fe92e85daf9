"""Compiled code on disk: never stale, never trusted when damaged, and done without where it can't be kept, with a word."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis.strategies as st
import numba
import numpy as np
import pytest
from hypothesis import given, settings

import cce_core
from cce_core import _jit, _places
from cce_core._jit import COMPILED, jit

compiled = pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
POSIX = os.name == "posix"


def start_python(code: str, first: Path, **environment: str | None) -> subprocess.Popen[str]:
    """A fresh interpreter that looks for modules in `first` and works there; None takes a variable away."""
    path = os.pathsep.join([str(first), str(Path(cce_core.__file__).parents[1])])
    merged = {**os.environ, **environment, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: text for name, text in merged.items() if text is not None},
        cwd=first,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed, and what it complained of."""
    out, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return out, complaints


# Compiled code is never stale

CALLER = """
from cce_core._jit import jit
from cce_core.hashing.mix import premix

@jit
def caller(x):
    return premix(x)
"""
CALL = "import numpy as np; from cce_core import _jit, caller; print(int(caller.caller(np.uint64(12345))), _jit._CACHE)"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with a compiled function that inlines another file's helper; and how to call it."""
    source = Path(cce_core.__file__).parent
    shutil.copytree(source, tmp_path / "cce_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cce_core" / "__init__.py").write_text("")
    (tmp_path / "cce_core" / "caller.py").write_text(CALLER)

    def start(cache: Path):
        return start_python(CALL, tmp_path, NUMBA_CACHE_DIR=str(cache), NUMBA_DISABLE_JIT=None, NUMBA_BOUNDSCHECK=None)

    def call(cache: Path) -> tuple[int, str]:
        value, folder = ended(start(cache))[0].split()
        return int(value), folder

    call.start = start

    return call


def premix(x: int, factor: int) -> int:
    x = (x ^ x >> 32) * factor % 2**64
    return x ^ x >> 29


OLD, NEW = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def edit_helper(tmp_path: Path) -> None:
    mix = tmp_path / "cce_core" / "hashing" / "mix.py"
    text = mix.read_text()
    assert text.count("0xBF58476D1CE4E5B9") == 1
    mix.write_text(text.replace("0xBF58476D1CE4E5B9", hex(NEW)))


def test_an_edit_of_a_helper_in_another_file_is_seen(copy, tmp_path):
    cache = tmp_path / "cache"
    first, folder = copy(cache)
    assert first == premix(12345, OLD)
    assert copy(cache) == (first, folder)
    assert list(Path(folder).rglob("*.nbc")), "nothing was cached, so nothing is shown"
    edit_helper(tmp_path)
    second, other_folder = copy(cache)
    assert second == premix(12345, NEW)
    assert other_folder != folder


def test_environments_with_the_same_sources_share_their_code(copy, tmp_path):
    first, folder = copy(tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")}
    assert files
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "cce_core", tmp_path / "elsewhere" / "cce_core")
    again = start_python(
        CALL,
        tmp_path / "elsewhere",
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),
        NUMBA_DISABLE_JIT=None,
        NUMBA_BOUNDSCHECK=None,
    )
    assert ended(again)[0].split() == [str(first), folder]
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")} == files


def test_without_the_digest_the_edit_would_be_missed(copy, tmp_path):
    """The trap is real: with one folder for all sources, the caller keeps its old helper."""
    jit = tmp_path / "cce_core" / "_jit.py"
    jit.write_text(jit.read_text().replace("base / source_digest()", 'base / "all"'))
    first, folder = copy(tmp_path / "cache")
    assert folder.endswith("all")
    edit_helper(tmp_path)
    assert copy(tmp_path / "cache") == (first, folder)


def test_where_no_cache_can_be_written_code_is_compiled_in_memory(copy, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")  # a folder below a file can't be made, whoever asks
    out, complaints = ended(copy.start(blocked / "cache"))
    assert out.split() == [str(premix(12345, OLD)), "None"]
    assert complaints.count("RuntimeWarning") == 1
    assert str(blocked / "cache") in complaints


def test_two_processes_may_fill_an_empty_cache_at_once(copy, tmp_path):
    both = [copy.start(tmp_path / "cache") for _ in range(2)]
    for process in both:
        out, complaints = ended(process)
        assert int(out.split()[0]) == premix(12345, OLD)
        assert complaints == ""


def test_old_cache_folders_are_dropped(tmp_path):
    present, young, old = (tmp_path / name for name in ("present", "young", "old"))
    for folder, days in ((present, 40), (young, 5), (old, 40)):
        folder.mkdir()
        when = folder.stat().st_mtime - days * 86_400
        os.utime(folder, (when, when))
    _jit._drop_old(present)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["present", "young"]


@contextlib.contextmanager
def one_warning(*parts: str):
    """What happens within is told once, with all of these parts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    (warning,) = caught
    assert issubclass(warning.category, RuntimeWarning)
    assert all(part in str(warning.message) for part in parts), warning.message


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# One function, in this process


def add(x, y):
    return x + y


def first(x):
    return x[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(_jit, "_CACHE", tmp_path / "code")
    monkeypatch.setattr(_jit, "_warned", False)
    return tmp_path / "code"


def called(*arguments, function=add) -> tuple[object, int]:
    """As in a new process: what the function gives, and how often it was found on disk."""
    made = jit(function)
    return made(*arguments), sum(made.stats.cache_hits.values())


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


@compiled
def test_each_signature_has_a_file_of_its_own(folder):
    calls = [(1, 2), (1.5, 2), (np.arange(3), 1), (np.arange(3, dtype=np.float32), 1)]
    for n, arguments in enumerate(calls):
        with no_warning():
            expected, found = called(*arguments)
            again, found_again = called(*arguments)
        assert (found, found_again) == (0, 1)
        np.testing.assert_array_equal(again, expected)
        assert len(files(folder)) == n + 1


@compiled
def test_code_without_checks_of_bounds_is_not_taken_where_they_are_wanted(folder, monkeypatch):
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 0)
    called(np.arange(3), function=first)
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    assert called(np.arange(3), function=first)[1] == 0
    with pytest.raises(IndexError):
        called(np.arange(0), function=first)


def whole_pickle(text: bytes, other: object) -> bytes:
    body = pickle.dumps(other)
    return text[:11] + _jit.hashlib.sha256(body).digest() + body


DAMAGES = {
    "cut": lambda text, at, noise: text[:at],
    "zeroed": lambda text, at, noise: text[:at] + bytes(len(text) - at),
    "one byte": lambda text, at, noise: text[:at] + bytes([text[at] ^ 1 + noise[0] % 255]) + text[at + 1 :],
    "other bytes": lambda text, at, noise: noise,
    "longer": lambda text, at, noise: text + noise,
    "a pickle": lambda text, at, noise: pickle.dumps({"at": at}),
    "a whole file of something else": lambda text, at, noise: whole_pickle(text, at),
}


@compiled
@settings(max_examples=20)
@given(st.sampled_from(sorted(DAMAGES)), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=300))
def test_damaged_code_is_compiled_anew_and_written_again(tmp_path_factory, damage, where, noise):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_jit, "_CACHE", folder := tmp_path_factory.mktemp("code"))
        patch.setattr(_jit, "_warned", False)
        called(1, 2)
        (file,) = files(folder)
        text = file.read_bytes()
        file.write_bytes(DAMAGES[damage](text, int(where * len(text)), noise))
        with one_warning(str(file), "compiled anew", f"remove {folder}", "NUMBA_CACHE_DIR"):
            assert called(1, 2) == (3, 0)
            assert called(1, 2) == (3, 1)
        assert files(folder) == [file]


@compiled
def test_code_of_another_signature_is_not_taken(folder):
    called(1, 2)
    (whole,) = files(folder)
    called(1.5, 2)
    (other,) = set(files(folder)) - {whole}
    shutil.copy(whole, other)
    assert called(1.5, 2) == (3.5, 0)
    assert called(1.5, 2) == (3.5, 1)


@compiled
@pytest.mark.parametrize("instead", ["a folder", "no right to read", "a loop of links"])
def test_what_is_no_file_is_done_without(folder, instead, monkeypatch):
    called(1, 2)
    (file,) = files(folder)
    if instead == "no right to read":
        read = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: raising(errno.EACCES) if path == file else read(path))
    else:
        file.unlink()
        file.mkdir() if instead == "a folder" else file.symlink_to(file)
    with one_warning(str(file)):
        made = jit(add)
        assert [made(1, 2), made(1.5, 2)] == [3, 3.5]


def raising(number: int) -> None:
    raise OSError(number, os.strerror(number))


@compiled
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("at", ["mkdir", "write_bytes", "replace"])
def test_a_disk_that_takes_nothing_is_no_error(folder, at, number, monkeypatch):
    if at == "replace":
        monkeypatch.setattr(_jit.os, "replace", lambda *names: raising(number))
    else:
        monkeypatch.setattr(Path, at, lambda *arguments, **named: raising(number))
    with one_warning("cannot be kept in", str(folder), os.strerror(number), "NUMBA_CACHE_DIR"):
        assert called(1, 2) == (3, 0)
        assert called(1.5, 2) == (3.5, 0)
    assert not [path for path in files(folder) if path.is_file()]


@compiled
def test_a_folder_that_goes_away_is_made_again(folder):
    called(1, 2)
    shutil.rmtree(folder)
    with no_warning():
        assert called(1, 2) == (3, 0)
        assert called(1, 2) == (3, 1)


@compiled
def test_the_settings_of_others_are_left_alone(folder, monkeypatch):
    """Were the folder put into Numba's settings while a function is decorated, other threads would see it come and go."""
    seen, decorator = [], numba.njit
    monkeypatch.setattr(numba, "njit", lambda *a, **k: seen.append(numba.config.CACHE_DIR) or decorator(*a, **k))
    before = numba.config.CACHE_DIR
    assert called(1, 2) == (3, 0)
    assert seen == [before]
    assert before == numba.config.CACHE_DIR
    assert len(files(folder)) == 1


@compiled
def test_a_function_without_a_source_file_is_compiled_in_memory(folder):
    space = {}
    exec("def twice(x): return 2 * x", space)
    with no_warning():
        assert jit(space["twice"])(3) == 6
    assert files(folder) == []


# Which folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty working directory, and no variable that names a folder."""
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_jit, "_warned", False)
    return place


def unknown(uid: int) -> None:
    raise KeyError(uid)


@pytest.mark.skipif(not POSIX, reason="home is something else here")
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HOME": ""},
        {"HOME": "home"},
        {"HOME": "~"},
        {"XDG_CACHE_HOME": "cache"},
        {"XDG_CACHE_HOME": "~/.cache"},
        {"NUMBA_CACHE_DIR": "code"},
        {"NUMBA_CACHE_DIR": "./~"},
        {"HOME": "/dev/null"},
        {"XDG_CACHE_HOME": "/dev/null/cache"},
        {"NUMBA_CACHE_DIR": "/dev/null"},
    ],
    ids=str,
)
def test_no_folder_or_one_that_depends_on_where_one_is_means_no_cache(nowhere, monkeypatch, environment):
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with one_warning("compiled code cannot be kept in", "NUMBA_CACHE_DIR", *environment.values()):
        assert _jit._cache_folder() is None
        assert _jit._cache_folder() is None
    assert os.listdir(nowhere) == []


@pytest.mark.skipif(not POSIX, reason="home is something else here")
@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_in_the_environment_it_is_the_systems_word(nowhere, monkeypatch, tmp_path, home):
    import pwd

    if home is not None:
        monkeypatch.setenv("HOME", home)
    entry = pwd.struct_passwd(("me", "", os.getuid(), 0, "", str(tmp_path / "me"), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    assert _places.user_cache() == tmp_path / "me" / ".cache" / "cce_core"
    with no_warning():
        assert _jit._cache_folder() == tmp_path / "me" / ".cache" / "cce_core" / "numba" / _jit.source_digest()
    assert os.listdir(nowhere) == []
