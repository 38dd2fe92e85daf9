"""The stamp of a table's state: which table it is of, and a checksum of its sketch, in words that no average leaves intact.

    word 0      checksum of the spec, of seed, keys and generation, and of word 1
    word 1      checksum of the pointers of all ids; 0 where there are none
    the rest    the spec as JSON, its seed as 0, and blanks to whole words

It is a buffer of int64 beside the others, so it goes wherever they go: into state dicts and files of tensors alone, to other
devices, and through whatever averages buffers, which it betrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Words = NDArray[np.int64]
_MOST = 1 << 13  # words: a longer stamp is no stamp
_NEAR = 2.0**-18  # floats of 24 bits are nearer


def checksum(pointers: NDArray[Any] | None) -> int:
    """That of the pointers of all ids, or of none."""
    return 0 if pointers is None else xxhash.xxh3_64_intdigest(np.ascontiguousarray(pointers).data)


def stamped(text: str, small: Iterable[NDArray[Any]], of_pointers: int) -> Words:
    """The stamp of a table.

    Args:
        text: its spec, as `facts.text_of` gives it.
        small: seed, keys and generation.
        of_pointers: their checksum.
    """
    line = _line(text)
    return np.concatenate(
        [np.array([_checksum(line, small, of_pointers), of_pointers], np.uint64).view(np.int64), line]
    )


def _line(text: str) -> Words:
    data = text.encode()
    return np.frombuffer(data + b" " * (-len(data) % 8), "<i8").astype(np.int64)


def _checksum(line: Words, small: Iterable[NDArray[Any]], of_pointers: int) -> int:
    parts = (line, *small, np.array(of_pointers, np.uint64))
    return xxhash.xxh3_64_intdigest(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))


def is_right(stamp: Words, text: str, small: Iterable[NDArray[Any]]) -> bool:
    """Whether a stamp is that of this spec, seed, keys and generation; of the pointers it knows only their checksum."""
    if not is_of(stamp, text):
        return False
    return int(stamp[0]) & (2**64 - 1) == _checksum(_line(text), small, int(stamp[1]) & (2**64 - 1))


def is_of(stamp: Words, text: str) -> bool:
    """Whether a stamp says that it is of a table of this spec."""
    line = _line(text)
    return stamp.shape == (len(line) + 2,) and np.array_equal(stamp[2:], line)


def text_in(stamp: Words) -> str:
    """The spec that a stamp says it is of; "" where it cannot be read."""
    if not 2 < stamp.size <= _MOST or stamp.ndim != 1:
        return ""
    return stamp[2:].astype("<i8").tobytes().decode(errors="replace").rstrip()


def averaged_from(stamp: Words, whole: Words) -> bool:
    """Whether a stamp is what the arithmetic of floats makes of a stamp and itself."""
    near = np.abs(stamp.astype(np.float64) - whole) <= _NEAR * np.abs(whole.astype(np.float64))
    return stamp.shape == whole.shape and bool(near.all())


def other_table(stamp: Words, text: str) -> str:
    """In what the table of a stamp is another than ours, by name; "" where it is ours, or the stamp cannot be read."""
    try:
        theirs = json.loads(text_in(stamp))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(theirs, dict) or "method" not in theirs:
        return ""
    mine, yours = _flat(json.loads(text)), _flat(theirs)
    names = [*mine, *(name for name in yours if name not in mine)]
    told = [
        f"{name}: {_shown(name, yours)} in the state, {_shown(name, mine)} here"
        for name in names
        if name not in mine or name not in yours or mine[name] != yours[name]
    ]
    return "; ".join(told)


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields, the method's own options among them."""
    options = spec.get("options")
    return {name: value for name, value in spec.items() if name != "options"} | (
        options if isinstance(options, dict) else {"options": options}
    )


def _shown(name: str, fields: dict[str, Any]) -> str:
    said = repr(fields[name]) if name in fields else "absent"
    return said if len(said) <= 80 else said[:77] + "..."
