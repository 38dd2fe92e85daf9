"""Where files go that can be made again: the user's cache folder, which not every user has."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`cce_core` in the folder that `XDG_CACHE_HOME` names, else in `.cache` at home; nothing is made.

    Home is what `HOME` says, else what the system's list of users says. A relative path would be another folder in every
    working directory, and an unknown home would make one that is called `~`: neither is taken.

    Raises:
        OSError: there is none; the message says which variable to set.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return absolute("XDG_CACHE_HOME", named) / "cce_core"
    home = _home()
    if not home:
        raise OSError("HOME is not set, and the system knows no home for this user: set HOME to an absolute path")
    return absolute("HOME", home) / ".cache" / "cce_core"


def absolute(variable: str, path: str) -> Path:
    """The path that a variable of the environment names, where it does not depend on the working directory."""
    if not os.path.isabs(path):
        raise OSError(f"{variable} must be an absolute path, got {path!r}")
    return Path(path)


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the user's home for its `~`, which stays where there is none."""
    text = os.fspath(path)
    if text[:1] == "~" and text[1:2] in ("", "/", os.sep):
        home = _home()
        return Path(home + text[1:]) if os.path.isabs(home) else Path(text)
    return Path(os.path.expanduser(text))


def _home() -> str:
    if os.environ.get("HOME") or os.name != "posix":
        return os.path.expanduser("~")
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):  # a user id without an entry, as containers have
        return ""
