"""The header of a table's file, written and read as input from strangers: nothing in it is believed before it is checked.

A safetensors file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every tensor, and
metadata, text to text), and the tensors' bytes without a gap. Our metadata are the format, its version, the table's spec as
JSON, a checksum of spec and data, and one of the header itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

FORMAT = "cce-core"
VERSION = 1
_DTYPES = {
    "F32": np.float32, "U64": np.uint64, "I64": np.int64, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "U32": np.uint32,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_ALIGN = 8  # bytes: the data begin at a multiple of it
_MOST_BYTES = 1 << 18  # ten times the longest header that any table has
_MOST_BRACKETS = 1 << 10  # likewise; so neither is what is read deep, nor does it take much more memory than its text
_MOST_BYTES_OF_DATA = 1 << 60
_ZEROS = "0" * 16
_SUM, _OWN_SUM = "xxh3", "header_xxh3"


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
        cce_core.storage.header.FileFormatError: ... is torn, truncated or not a safetensors file: ...
    """


class Entry(NamedTuple):
    """One array of a file: its type and shape, and where its bytes lie, counted from where the data begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A header that was found right.

    Attributes:
        entries: the arrays by name.
        spec: the table's spec, and as
        text: it stands in the file.
        checksum: of spec and data.
        start: the byte at which the data begin.
    """

    entries: dict[str, Entry]
    spec: Any
    text: str
    checksum: str
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(entry.end - entry.begin for entry in self.entries.values())


def place(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Where arrays are put: those of the largest items first, so that each begins at a multiple of its item.

    Raises:
        TypeError: an array of a type that no table has.
    """
    entries, end = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = arrays[name]
        if array.dtype.newbyteorder("=") not in _NAMES:
            kinds = ", ".join(sorted(str(dtype) for dtype in _NAMES))
            raise TypeError(f"{name} must be of a type that files hold ({kinds}), got {array.dtype}")
        begin, end = end, end + array.nbytes
        entries[name] = Entry(array.dtype.newbyteorder("="), array.shape, begin, end)
    return entries


def written(entries: Mapping[str, Entry], text: str, checksum: str = _ZEROS) -> bytes:
    """Length and header as bytes; as many whatever the checksum is."""
    metadata = {"format": FORMAT, "version": str(VERSION), "spec": text, _SUM: checksum}
    header: dict[str, Any] = {"__metadata__": metadata}
    for name, (dtype, shape, begin, end) in entries.items():
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    metadata[_OWN_SUM] = _own_sum(header)
    body = json.dumps(header, separators=(",", ":")).encode()
    body += b" " * (-len(body) % _ALIGN)
    return len(body).to_bytes(8, "little") + body


def _own_sum(header: Mapping[str, Any]) -> str:
    """The checksum of all that a header says, but for itself and for blanks and order."""
    metadata = {name: value for name, value in header["__metadata__"].items() if name != _OWN_SUM}
    return xxhash.xxh3_64(json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()).hexdigest()


def read(file: Any, size: int, path: Any) -> Header:
    """The header of a file of `size` bytes that is open at its beginning.

    Raises:
        FileFormatError: the file is torn, truncated, foreign or of another version, its header makes no sense, or the
            header's own checksum (which files of earlier versions lack) does not hold.
    """
    torn = f"{path} ({size:,} bytes) is torn, truncated or not a safetensors file: "
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise FileFormatError(f"{torn}its header would end at byte {8 + length:,}")
    if length > _MOST_BYTES:
        raise FileFormatError(f"{path} is not a table of cce-core: its header has {length:,} bytes")
    try:
        header = _parsed(file.read(length).decode())
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
    except ValueError as error:
        raise FileFormatError(f"{torn}{_short(error)}") from error
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a table of cce-core; save one with table.save(path)")
    if metadata.get("version") != str(VERSION):
        raise FileFormatError(
            f"{path} has format version {_short(metadata.get('version'))}, this library reads version {VERSION}; "
            "update cce-core"
        )
    try:
        if metadata.get(_OWN_SUM, own := _own_sum(header)) != own:
            raise ValueError("its own checksum does not hold; restore the file from a copy")
        spec, checksum = metadata.get("spec"), metadata.get(_SUM)
        if not isinstance(spec, str) or not isinstance(checksum, str):
            raise ValueError("spec or checksum are missing")
        entries = {name: _entry(name, value) for name, value in header.items() if name != "__metadata__"}
        values = _parsed(spec)
    except ValueError as error:
        raise FileFormatError(f"{path} is damaged: its header does not make sense ({_short(error)})") from error
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry[2:]):
        if entry.begin != end:
            raise FileFormatError(f"{torn}its arrays overlap or leave gaps")
        end = entry.end
    if 8 + length + end != size:
        raise FileFormatError(f"{torn}its arrays end at byte {8 + length + end:,}")
    return Header(entries, values, spec, checksum, 8 + length)


def _parsed(text: str) -> Any:
    """JSON of which nothing is deep, doubled, infinite or not a number."""
    if text.count("{") + text.count("[") > _MOST_BRACKETS:
        raise ValueError(f"more than {_MOST_BRACKETS:,} brackets")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except RecursionError:
        raise ValueError("brackets within brackets without end") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice")
    return out


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _entry(name: str, value: Any) -> Entry:
    """One array's place, if all of it is of the right type and its bytes are as many as its shape says."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{name!r} has dtype {kind!r}; tables have {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > 8 or any(type(n) is not int for n in numbers):
            raise ValueError(f"{name!r} has a shape or offsets that are no whole numbers")
        if any(not 0 <= n <= _MOST_BYTES_OF_DATA for n in numbers):
            raise ValueError(f"{name!r} has a shape or offsets out of range")
    if math.prod(n or 1 for n in shape) > _MOST_BYTES_OF_DATA:  # also where a side is 0: NumPy refuses it
        raise ValueError(f"{name!r} has a shape out of range")
    dtype = np.dtype(_DTYPES[kind]).newbyteorder("<")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has other bytes than its shape says")
    return Entry(dtype, tuple(shape), *offsets)


def _short(error: Any) -> str:
    text = str(error)
    return ascii(text[:200])[1:-1] + ("…" if len(text) > 200 else "")
