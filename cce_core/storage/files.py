"""Tables on disk: safetensors files, written whole or not at all, checked when they are read.

The header's metadata holds the format, its version, the table's spec as JSON and a checksum of spec and data. The tensors
are the table's arrays, bit for bit, so that the file less its header is what the ledger says is stored.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

FORMAT = "cce-core"
VERSION = 1
_DTYPES = {
    "F32": np.float32, "U64": np.uint64, "I64": np.int64, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "U32": np.uint32,
}  # fmt: skip


class FileFormatError(ValueError):
    """A file that is torn, truncated, foreign, or of a version that this library does not read.

    Example:
        >>> import os, tempfile, cce_core as cce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "not-a-table")
        ...     with open(path, "w") as file:
        ...         _ = file.write("hello")
        ...     cce.load(path)
        Traceback (most recent call last):
        ...
        cce_core.storage.files.FileFormatError: ... is torn, truncated or not a safetensors file: ...
    """


def _checksum(arrays: Mapping[str, NDArray[Any]], spec: str) -> str:
    digest = xxhash.xxh3_64(spec.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], spec: Mapping[str, Any]) -> None:
    """Write arrays and a spec to one file; where anything fails, a file that was there before stays as it was.

    The data goes to a temporary file in the same folder, is flushed to the disk, and then takes the file's name.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(spec, sort_keys=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "spec": text, "xxh3": _checksum(arrays, text)}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        temporary.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, temporary)
        save_file(arrays, temporary, metadata=metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_arrays(path: str | os.PathLike[str], *, mmap: bool = False) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_arrays` wrote: the arrays and the spec.

    Args:
        path: the file.
        mmap: map the file instead of reading it: the arrays are then read-only, come into memory page by page as they
            are used, are shared among processes, and are not checked against the checksum.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is torn, truncated or foreign, its checksum does not hold, or its version is unknown.
    """
    path = Path(path)
    size = path.stat().st_size
    header, start = _read_header(path, size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a table of cce-core; save one with table.save(path)")
    if metadata.get("version") != str(VERSION):
        raise FileFormatError(
            f"{path} has format version {metadata.get('version')}, this library reads version {VERSION}; update cce-core"
        )
    data = np.memmap(path, np.uint8, "r") if mmap else np.fromfile(path, np.uint8)
    try:
        arrays = {name: _tensor(data[start:], entry) for name, entry in header.items()}
        spec = json.loads(metadata["spec"])
        expected = metadata["xxh3"]
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: its header does not make sense ({error})") from error
    if not mmap and _checksum(arrays, metadata["spec"]) != expected:
        raise FileFormatError(f"{path} is damaged: its checksum does not hold; restore it from a copy")
    return arrays, spec


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The safetensors header, after the library itself has found the file whole (lengths, offsets, shapes)."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)), 8 + length
    except (SafetensorError, ValueError, OSError) as error:
        raise FileFormatError(
            f"{path} ({size:,} bytes) is torn, truncated or not a safetensors file: {error}"
        ) from error


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    raw = data[begin:end]
    dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
    # A tensor may start at any byte: the file's header decides. Only what is misaligned is copied.
    if raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return raw.view(dtype).reshape(entry["shape"])
