"""Finds data sets on disk, and downloads MovieLens' rating files where the caller asks for it. Nothing comes unasked.

MovieLens is made and published by GroupLens, University of Minnesota, for research. Its licence forbids redistribution
and commercial use without permission, so no part of it is in this package. Cite: F. Maxwell Harper and Joseph A.
Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on Interactive Intelligent Systems 5(4), 2015,
https://doi.org/10.1145/2827872.

Gowalla (who was where) and Book-Crossing (who read what) are for research use too, and are not downloaded at all: they are no
part of this package either, and come as files of pairs that you make or have. Cite: Eunjoon Cho, Seth A. Myers and Jure
Leskovec, "Friendship and Mobility: User Movement in Location-Based Social Networks", KDD 2011,
https://snap.stanford.edu/data/loc-gowalla.html (the usual file of 810,128 pairs is the training part of users and places met ten
times or more, as the papers on LightGCN use it); Cai-Nicolas Ziegler, Sean M. McNee, Joseph A. Konstan and Georg Lausen,
"Improving Recommendation Lists Through Topic Diversification", WWW 2005.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cce_core import _check
from cce_core._places import expanded, user_cache
from cce_core._progress import progress

_PIECE = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a data set is published, and what its rating file looks like."""

    name: str
    file: str  # the rating file, in the folder `folder` of the archive
    separator: str
    n_lines: int | None  # ratings in it, as published; None for the sets that GroupLens replaces now and then
    md5: str | None  # of the archive, as published beside it; likewise
    folder: str = ""  # in the archive, where it is not the name

    @property
    def url(self) -> str:
        """The archive's address."""
        return f"https://files.grouplens.org/datasets/movielens/{self.name}.zip"

    @property
    def member(self) -> str:
        """The rating file's path in the archive."""
        return f"{self.folder or self.name}/{self.file}"


SOURCES = {
    source.name: source
    for source in (
        Source("ml-100k", "u.data", "\t", 100_000, "0e33842e24a9c977be4e0107933c0723"),
        Source("ml-1m", "ratings.dat", "::", 1_000_209, "c4d9eecfca2ab87c1945afe126590906"),
        Source("ml-10m", "ratings.dat", "::", 10_000_054, "ce571fd55effeba0271552578f2648bd", "ml-10M100K"),
        Source("ml-20m", "ratings.csv", ",", 20_000_263, "cd245b17a1ae2cc31bb14903e1204af3"),
        Source("ml-25m", "ratings.csv", ",", 25_000_095, "6b51fb2759a8657d3bfcbfc42b592ada"),
        Source("ml-32m", "ratings.csv", ",", 32_000_204, "d472be332d4daa821edc399621853b57"),
        Source("ml-latest", "ratings.csv", ",", None, None),
        Source("ml-latest-small", "ratings.csv", ",", None, None),
    )
}

INTERACTIONS = ("gowalla", "book-crossing")  # sets of pairs, never downloaded
_PAIRS = ("interactions.tsv.gz", "interactions.tsv")


def _folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Where to look, first place first; not in the user's cache, where there is none."""
    data_dir = None if data_dir is None else _check.path("data_dir", data_dir)
    places = [expanded(place) for place in (data_dir, os.environ.get("CCE_DATA")) if place]
    with suppress(OSError):
        places.append(user_cache() / "data")
    return places


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file of a data set on this machine: MovieLens' ratings, or the interactions of another one.

    It is looked for in `data_dir`, then in the folder that the environment variable `CCE_DATA` names, then in the
    user's cache (`cce_core/data` in `XDG_CACHE_HOME`, or in `~/.cache`); in each first in a folder of the data set's
    name (`ml-100k/u.data`), then at the top (`u.data`, where the published number of ratings tells the sets apart), then as the
    archive itself (`ml-100k.zip`), which is read as it is. Gowalla and Book-Crossing are `gowalla/interactions.tsv.gz` (or
    `.tsv`) and `book-crossing/interactions.tsv.gz` in one of these folders.

    Args:
        name: "ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m", "ml-latest", "ml-latest-small", "gowalla" or
            "book-crossing".
        data_dir: a folder.

    Returns:
        The file's path.

    Raises:
        ValueError: there is no such data set.
        FileNotFoundError: it is nowhere; the error says where it was looked for and how to get it.

    Example:
        >>> from cce_core.datasets import find
        >>> find("ml-2k")
        Traceback (most recent call last):
        ...
        ValueError: name must be one of ml-100k, ml-1m, ml-10m, ..., ml-latest-small, gowalla, book-crossing; got 'ml-2k'
    """
    name = _check.choice("name", name, (*SOURCES, *INTERACTIONS))
    source = SOURCES.get(name)
    if source is None:
        inside = dict.fromkeys(f"{name}/{file}" for file in _PAIRS)
        remedy = "It is never downloaded: write its pairs, user and item, to one of these files"
    else:
        inside = dict.fromkeys((f"{name}/{source.file}", source.member))
        if source.n_lines is not None:
            inside[source.file] = None
        inside[f"{name}.zip"] = None
        remedy = f"Get it with download=True, or unpack {source.url}"
    places = [folder / place for folder in _folders(data_dir) for place in inside]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{name} is not on this machine; looked for {', '.join(map(str, places)) or 'no file'}. {remedy} "
        "and give the folder as data_dir or in CCE_DATA"
    )


@contextmanager
def _placed(target: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes `target` when the block ends well, and vanishes when it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}.part")  # mkstemp's would stay private
        file = temporary.open("xb")
    except OSError as error:
        raise type(error)(
            error.errno, f"can't write into {target.parent} ({error.strerror}); give another folder as data_dir"
        ) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Every way in which a transfer fails as one error, of one line."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError

    try:
        yield
    except (OSError, HTTPException) as error:
        reason: object = error
        if isinstance(error, HTTPError):
            reason = f"{error.code} {error.reason}"
        elif isinstance(error, URLError):
            reason = error.reason
        raise ConnectionError(
            f"{url} could not be downloaded ({str(reason) or type(error).__name__}); try again, or fetch it "
            "by other means, unpack it, and give the folder as data_dir"
        ) from error


def _transfer(url: str, file: IO[bytes], timeout: float, show: bool | None) -> str:
    """Write what is at `url` to `file`; its MD5."""
    from urllib.request import urlopen

    digest, got = hashlib.md5(usedforsecurity=False), 0
    with _network(url):
        response = urlopen(url, timeout=timeout)
    with response:
        text = response.headers.get("Content-Length") or ""
        size = int(text) if text.isdigit() else None
        with progress(size, f"downloading {url.rsplit('/', 1)[-1]}", unit="B", show=show, delay=0.0) as bar:
            while True:
                with _network(url):
                    piece = response.read(_PIECE)
                    if not piece and size is not None and got != size:
                        raise ConnectionError(f"it broke off after {got:,} of {size:,} bytes")
                if not piece:
                    return digest.hexdigest()
                file.write(piece)
                digest.update(piece)
                got += len(piece)
                bar.update(len(piece))


def _unpack(archive: IO[bytes], member: str, file: IO[bytes], url: str) -> None:
    """Copy one member of the archive; its name is only compared, never used as a path."""
    import shutil
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(archive) as whole, whole.open(member) as source:
            shutil.copyfileobj(source, file, _PIECE)
    except KeyError as error:
        raise ValueError(f"the archive from {url} holds no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"the archive from {url} is damaged ({error})") from error


def download(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    timeout: float = 30.0,
    show: bool | None = None,
) -> Path:
    """Download a MovieLens data set from GroupLens and unpack its rating file, replacing one that is there.

    The archive goes to a nameless temporary file, its MD5 is compared with the published one (the two sets of the latest ratings
    change, and have none here), and only the rating file
    is taken out of it, into `<folder>/<name>/`. That file appears whole or not at all. The data is for research: its
    licence forbids redistribution and commercial use without permission, and asks to cite Harper and Konstan (2015).

    Args:
        name: one of MovieLens', as `find` knows them.
        data_dir: the folder; None takes the one that `CCE_DATA` names, and without it the user's cache.
        url: another address (http or https) of the same archive; None takes GroupLens's.
        timeout: seconds without a byte after which to give up.
        show: whether a progress bar is shown; None shows it on a terminal.

    Returns:
        The rating file's path.

    Raises:
        ValueError: there is no such data set, the address is of another kind, or the archive is not the published one.
        ConnectionError: no connection, an error of the server's, or a transfer that broke off.
        OSError: the folder can't be written, or there is none.

    Cost:
        1 MB of transfer for the latest small one, 5 MB for 100K, 6 MB for 1M, 66 MB for 10M, 199 MB for 20M, 262 MB for 25M,
        239 MB for 32M, 335 MB for the latest; disk for archive and file together.
    """
    source = SOURCES[_check.choice("name", name, tuple(SOURCES))]
    url = source.url if url is None else url
    timeout = _check.number("timeout", timeout, 0.0, 1e9, open_at_least=True)
    show = None if show is None else _check.flag("show", show)
    if not _check.instance("url", url, str, "an address").startswith(("https://", "http://")):
        raise ValueError(f"url must begin with https:// or http://, got {url!r}")
    folder = next(iter(_folders(data_dir)), Path("~"))
    if str(folder).startswith("~"):  # it would become a folder of this name
        raise FileNotFoundError(
            f"there is no folder to download {name} to, as this user has no home: give one as data_dir or in CCE_DATA"
        )
    target = folder / name / source.file
    with _placed(target) as file, tempfile.TemporaryFile(dir=target.parent) as archive:
        digest = _transfer(url, archive, timeout, show)
        if source.md5 is not None and digest != source.md5:
            raise ValueError(
                f"{url} gave an archive with MD5 {digest}, expected {source.md5}: it is damaged or was changed, "
                "and was thrown away; try again"
            )
        archive.seek(0)
        _unpack(archive, source.member, file, url)
    return target


def rating_file(name: str, data_dir: Any = None, allow_download: bool = False) -> Path:
    """The rating file where it is on this machine; else downloaded, where that is allowed."""
    try:
        return find(name, data_dir)
    except FileNotFoundError:
        if not allow_download:
            raise
    return download(name, data_dir)
