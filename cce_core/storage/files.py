"""Tables on disk: safetensors files, written whole or not at all, checked when they are read.

The header's metadata holds the format, its version, the table's spec as JSON, a checksum of spec and data, and one of the
header. The tensors are the table's arrays, bit for bit, so that the file less its header is what the ledger says is stored.
"""

from __future__ import annotations

import json
import mmap as maps
import os
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from cce_core import _check
from cce_core.storage import header as headers
from cce_core.storage.header import Entry, FileFormatError
from cce_core.storage.replacing import opened, replacing

_PIECE = 1 << 20  # bytes that are copied, summed up and written at a time


def _digest(text: str) -> Any:
    return xxhash.xxh3_64(text.encode())


def _label(name: str, array: NDArray[Any]) -> bytes:
    return f"{name} {array.dtype.str} {array.shape}".encode()


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def digest(arrays: Mapping[str, NDArray[Any]], text: str = "") -> str:
    """16 hexadecimal digits of contiguous arrays with their names, types and shapes, and of a text that says what they are."""
    total = _digest(text)
    for name in sorted(arrays):
        total.update(_label(name, arrays[name]))
        total.update(_bytes_of(arrays[name]).data)
    return str(total.hexdigest())


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], spec: Mapping[str, Any]) -> None:
    """Write arrays and a spec to one file; where anything fails, a file that was there before stays as it was.

    The data go to a temporary file in the same folder, are flushed to the disk, and then take the file's name. A new file has
    the mode that the umask leaves; one that was there gives its mode and (where that is allowed) its owner to the new one. Of
    a symbolic link what it points to is written; other hard links keep the old table. What a killed process left of an earlier
    save to the same name is removed. Several threads or processes may save to one name: the last one wins, whole.

    Beside the arrays, a megabyte is held.

    Raises:
        OSError: with the name of the file: the folder does not exist or cannot be written, the disk is full, or the path is a
            directory, FIFO, socket or device.
        TypeError: an array of a type that no table has.
    """
    path = _check.path("path", path)
    _check.instance("arrays", arrays, Mapping, "a dict of arrays")
    _check.instance("spec", spec, Mapping, "a dict")
    kept = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    kept = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in kept.items()}
    text = json.dumps(dict(spec), sort_keys=True)
    entries, total, piece = headers.place(kept), _digest(text), np.empty(_PIECE, np.uint8)
    start = len(headers.written(entries, text))
    with replacing(path) as file:
        for name in sorted(kept):
            total.update(_label(name, kept[name]))
            file.seek(start + entries[name].begin)
            data = _bytes_of(kept[name])
            for low in range(0, data.size, _PIECE):
                # A copy is what is summed up and written: a file holds its checksum also where another thread trains.
                part = piece[: min(_PIECE, data.size - low)]
                np.copyto(part, data[low : low + _PIECE])
                total.update(part.data)
                _write(file, part.data)
        file.seek(0)
        _write(file, memoryview(headers.written(entries, text, total.hexdigest())))


def _write(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def load_arrays(
    path: str | os.PathLike[str],
    *,
    mmap: bool = False,
    verify: str | None = None,
    accept: Callable[[Any, int], Any] | None = None,
) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read what `save_arrays` wrote: the arrays and the spec.

    The file is opened once: one that is replaced meanwhile is read as it was.

    Args:
        path: the file.
        mmap: map the file instead of reading it: the arrays are then read-only, come into memory page by page as they
            are used, and are shared among processes.
        verify: "header" checks header and spec against their checksum and reads no data for it; "all" the data as well.
            None is "all", and "header" with `mmap`. Files of earlier versions have a checksum of spec and data alone.
        accept: called with the spec and the bytes of all arrays before any data are read. It raises where they make no sense;
            what it returns is returned in place of the spec.

    Raises:
        OSError: the file does not exist or cannot be opened, or is a directory, FIFO, socket or device.
        FileFormatError: the file is torn, truncated or foreign, a checksum does not hold, or its version is unknown.
    """
    path, mmap = _check.path("path", path), _check.flag("mmap", mmap)
    verify = _check.choice("verify", ("header" if mmap else "all") if verify is None else verify, ("header", "all"))
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = headers.read(file, size, path)
        spec = header.spec if accept is None else accept(header.spec, header.nbytes)
        data = _mapped(file, size)[header.start :] if mmap else _read(file, header.nbytes)
    if data.size < header.nbytes:
        raise FileFormatError(f"{path} is torn: it was shortened while it was read")
    arrays = {name: _tensor(data, entry) for name, entry in header.entries.items()}
    if verify == "all" and digest(arrays, header.text) != header.checksum:
        raise FileFormatError(f"{path} is damaged: its checksum does not hold; restore it from a copy")
    return arrays, spec


def _mapped(file: FileIO, size: int) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(maps.mmap(file.fileno(), size, access=maps.ACCESS_READ), np.uint8)
    except ValueError:  # it is shorter by now
        return np.empty(0, np.uint8)


def _read(file: FileIO, nbytes: int) -> NDArray[np.uint8]:
    out, end = np.empty(nbytes, np.uint8), 0
    while end < nbytes and (count := file.readinto(out[end:].data)):
        end += count
    return out[:end]


def _tensor(data: NDArray[np.uint8], entry: Entry) -> NDArray[Any]:
    raw = data[entry.begin : entry.end]
    # A tensor may start at any byte: the file's header decides. Only what is misaligned is copied.
    if raw.ctypes.data % entry.dtype.itemsize:
        raw = raw.copy()
    return raw.view(entry.dtype).reshape(entry.shape)
