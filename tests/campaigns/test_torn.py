"""Files that a crash, a full disk or a bad copy left behind: cut, filled with zeros, or with a bit the wrong way round."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from campaigns.tables import VOCAB, makers, use
from campaigns.trial import Tally, memory_folder, stride

import cce_core as cce


def _header(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def _load(path: Path, mmap: bool, tally: Tally) -> cce.Table | None:
    """The table of a damaged file, or None if it is refused."""
    tally.add("loads")
    try:
        return cce.load(path, mmap=mmap)
    except cce.FileFormatError:
        tally.add("refused")
        return None


def _files(step: int) -> Iterator[tuple[str, cce.Table, Path, bytes, list[int]]]:
    """Each table, its file, the file's bytes, and the places in it that are tried: its edges always."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        for k, (name, make) in enumerate(makers().items()):
            path, table = Path(folder, "table"), make()
            table.save(path)
            raw = path.read_bytes()
            edges = {0, 1, 7, 8, 9, _header(raw) - 1, _header(raw), len(raw) - 1}
            yield name, table, path, raw, sorted({*range(k % step, len(raw), step), *edges})
            path.unlink()


def cut(tally: Tally, step: int) -> None:
    """Every so many-th length of every file, in both ways of loading; and files with something behind their end."""
    for name, _, path, raw, lengths in _files(step):
        for length in (*reversed(lengths), *(len(raw) + more for more in (1, 8, 64))):
            os.truncate(path, length) if length else path.write_bytes(b"")
            for mmap in (False, True):
                if _load(path, mmap, tally) is not None:
                    tally.lose(name, "taken with", length, "of", len(raw), "bytes, mmap", mmap)


def changed(tally: Tally, step: int) -> None:
    """A bit turned, or only zeros from there on.

    What is checked (all of it, or the header if the file is mapped) is refused, or the table is the same one: a changed space
    of the header means nothing.
    """
    ids = np.arange(VOCAB)
    for name, table, path, raw, places in _files(step):
        truth, header = table.lookup(ids), _header(raw)
        for at in places:
            flipped = bytearray(raw)
            flipped[at] ^= 1 << at % 8
            for damaged in (bytes(flipped), raw[:at] + bytes(len(raw) - at)):
                path.write_bytes(damaged)
                for mmap in (False, True):
                    got = _load(path, mmap, tally)
                    if got is None:
                        continue
                    same = got.spec == table.spec and list(got.arrays()) == list(table.arrays())
                    if not mmap or damaged[header:] == raw[header:]:
                        same = same and np.array_equal(got.lookup(ids), truth)
                    if not same:
                        tally.lose(name, "is another table with byte", at, "of", len(raw), "changed, mmap", mmap)
                    try:
                        use(got)  # and changes it
                    except Exception as error:
                        tally.lose(name, "cannot be used with byte", at, "changed, mmap", mmap, repr(error))


def test_every_length_of_a_file_but_the_right_one_is_refused(campaign):
    campaign(cut, stride(97))


def test_a_changed_byte_is_refused_or_means_nothing(campaign):
    campaign(changed, stride(211))
