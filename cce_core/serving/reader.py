# SPDX-License-Identifier: Apache-2.0
"""Vectors from the files of cce-core, with NumPy and Python's own library alone: this file may be copied as it is.

    reader = Reader("item.safetensors")          # mapped: threads, forks and processes share its pages
    vectors = reader.lookup(ids)                 # float32 (*ids.shape, dim), the bits that the library's own lookup gives
    pooled = reader.bags(ids, lengths=lengths)   # bags of ids, summed

A file says how its vectors are made: a spec in JSON, and arrays. Of the linear methods the vector of an id is a sum of blocks of
one memory M, each found by what its term says (the id itself, a hash, a packed pointer, a digit, a map of owners), times W if
there is a projection:

    T[i] = [ Σ_t f_t(i) · M[ base_tc + stride_t · index_tc(i) : +width, mod region_t ]  for each chunk c ] · W + b

`_sketch` reads the terms from the spec, `Reader._indices` finds the indices, `Reader._rows` decodes the blocks. Sums are taken in
the library's order; a product with W rounds each multiplication and addition once, as compiled code does (`_fused`). Tensor
trains and deep hashes stand beside.

Files may be anyone's: a header that makes no sense is refused, and nothing outside a file's arrays is ever read.
"""

from __future__ import annotations

import importlib
import json
import math
import mmap
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__version__ = "1"
__all__ = ["FileFormatError", "Link", "Reader", "hash_strings", "read_link"]

_M64 = 2**64 - 1
_PART = 4096  # ids that are looked up at a time; of deep hashes the library takes as many, which decides on bits
_DECODED = 1 << 18  # floats of a coded memory up to which it is decoded as a whole, once
_FUSED = 1 << 15  # floats of a product at a time: few enough that BLAS starts no threads for them
_LEAD = 7  # columns that BLAS may take in their order: OpenBLAS adds from 8 on in another
_HALFWAY = np.iinfo(np.int64).min
_TILE = 256  # ids of a bag that are summed term by term before the next ones are
_MODES = ("sum", "mean", "max")
_MOST = {"n_hashes": 2**20, "n_atoms": 64, "stages": 16, "bits": 32, "weight_bits": 12, "tables": 1024}  # of options


class FileFormatError(ValueError):
    """A file that is torn, truncated, damaged, foreign, or of a version that this reader does not know."""


# Hashes of ids: bijections of 64-bit words, and multiply-high to a range.

_G1 = 0xBF58476D1CE4E5B9
_F1, _F2, _F3 = 0xD6E8FEB86659FD93, 0x9FB21C651E98DF25, 0x243F6A8885A308D3
_GOLDEN = 0x9E3779B97F4A7C15
_KEYS, _IDMAP = 1, 0x69646D6170  # streams of a table's seed
_LOW = np.uint64(0xFFFFFFFF)


def _premix(words: Any) -> Any:
    x = words ^ (words >> np.uint64(32))
    x *= np.uint64(_G1)
    x ^= x >> np.uint64(29)
    return x


def _keyed(premixed: Any, keys: Any) -> Any:
    z = premixed ^ keys
    for factor, shift in ((_F1, 32), (_F2, 29), (_F3, 32)):
        z *= np.uint64(factor)
        z ^= z >> np.uint64(shift)
    return z


def _multiply_high(a: Any, b: Any) -> Any:
    """floor(a · b / 2^64)."""
    high, low, b_high, b_low = a >> np.uint64(32), a & _LOW, b >> np.uint64(32), b & _LOW
    middle = high * b_low + ((low * b_low) >> np.uint64(32))
    other = low * b_high + (middle & _LOW)
    return high * b_high + (middle >> np.uint64(32)) + (other >> np.uint64(32))


def _reduced(hashes: Any, n: int) -> Any:
    """Hashes to [0, n)."""
    if n > 0xFFFFFFFF:
        return _multiply_high(hashes, np.uint64(n))
    high, count = hashes >> np.uint64(32), np.uint64(n)
    hashes = hashes & _LOW
    hashes *= count
    hashes >>= np.uint64(32)
    high *= count
    high += hashes
    high >>= np.uint64(32)
    return high


def _derived(seed: int, *stream: int) -> int:
    """The key of one hash of many."""

    def mixed(x: int, key: int) -> int:
        x ^= x >> 32
        x = x * _G1 & _M64
        z = x ^ x >> 29 ^ key
        for factor, shift in ((_F1, 32), (_F2, 29), (_F3, 32)):
            z = z * factor & _M64
            z ^= z >> shift
        return z

    state = mixed(seed + _GOLDEN & _M64, len(stream))
    for number in stream:
        state = mixed(state + _GOLDEN & _M64, number)
    return state


def _popcount(words: Any) -> Any:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


# Of a line of 8 words, whose first 32 bits count: the bits below each of its 512, as masks of its words.
_BELOW = np.array([[((1 << max(0, min(64, bit - 64 * k))) - 1) for k in range(8)] for bit in range(512)], np.uint64)
_BELOW[:, 0] &= ~_LOW
_EVEN = np.uint64(0x00FF00FF00FF00FF)


# Strings: XXH3 of 64 bits, as its specification says, for many strings of one length at a time.

_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_MX1, _MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
_SUMS = np.array([_P32[2], _P64[0], _P64[1], _P64[2], _P64[3], _P32[1], _P64[4], _P32[0]], np.uint64)


def _u64(data: Any, at: int, size: int = 8) -> Any:
    """Little-endian words at a byte of each row, uint64."""
    part = np.ascontiguousarray(data[..., at : at + size])
    return part.view(f"<u{size}")[..., 0].astype(np.uint64)


def _secret(at: int, size: int = 8) -> int:
    return int(_u64(_SECRET, at, size))


def _avalanche(x: Any, first: int, factor: int, second: int = 32) -> Any:
    x = (x ^ (x >> np.uint64(first))) * np.uint64(factor)
    return x ^ (x >> np.uint64(second))


def _avalanche64(x: Any) -> Any:
    return _avalanche((x ^ (x >> np.uint64(33))) * np.uint64(_P64[1]), 29, _P64[2])


def _xxh3(data: Any, seed: int = 0) -> Any:
    """XXH3-64 of byte strings of one length: of uint8 (strings, length) uint64 (strings,)."""
    count, n = data.shape
    plus, minus = seed, -seed

    def u(number: int) -> Any:
        return np.uint64(number & _M64)

    def folded(a: Any, b: Any) -> Any:
        return (a * b) ^ _multiply_high(a, b)

    if n == 0:
        return _avalanche64(np.full(count, u(seed ^ _secret(56) ^ _secret(64))))
    if n <= 3:
        first, middle, last = (data[:, k].astype(np.uint64) for k in (0, n >> 1, n - 1))
        value = last | u(n << 8) | (first << u(16)) | (middle << u(24))
        return _avalanche64(value ^ u((_secret(0, 4) ^ _secret(4, 4)) + plus))
    if n <= 8:
        turned = seed ^ int.from_bytes((seed & 0xFFFFFFFF).to_bytes(4, "little"), "big") << 32
        value = _u64(data, n - 4, 4) | (_u64(data, 0, 4) << u(32))
        value ^= u((_secret(8) ^ _secret(16)) - turned)
        value ^= ((value << u(49)) | (value >> u(15))) ^ ((value << u(24)) | (value >> u(40)))
        value *= u(_MX2)
        value = (value ^ ((value >> u(35)) + u(n))) * u(_MX2)
        return value ^ (value >> u(28))
    if n <= 16:
        low = _u64(data, 0) ^ u((_secret(24) ^ _secret(32)) + plus)
        high = _u64(data, n - 8) ^ u((_secret(40) ^ _secret(48)) + minus)
        return _avalanche(u(n) + low.byteswap() + high + folded(low, high), 37, _MX1)

    def step(at: int, secret: int) -> Any:
        return folded(_u64(data, at) ^ u(_secret(secret) + plus), _u64(data, at + 8) ^ u(_secret(secret + 8) + minus))

    total = np.full(count, u(n * _P64[0]))
    if n <= 128:
        for i in range(((n - 1) >> 5) + 1):
            total += step(16 * i, 32 * i) + step(n - 16 * i - 16, 32 * i + 16)
    elif n <= 240:
        for i in range(8):
            total += step(16 * i, 16 * i)
        total = _avalanche(total, 37, _MX1)
        for i in range(8, n >> 4):
            total += step(16 * i, 16 * (i - 8) + 3)
        total += step(n - 16, 119)
    else:
        return np.array([_xxh3_long((row,), seed) for row in data], np.uint64)
    return _avalanche(total, 37, _MX1)


def _xxh3_long(parts: Any, seed: int = 0) -> int:
    """XXH3-64 of one byte string that comes in parts."""
    keys = _SECRET.view("<u8").astype(np.uint64) + np.array([seed, -seed & _M64] * 12, np.uint64)
    secret, sums, n = keys.astype("<u8").view(np.uint8), _SUMS.copy(), 0
    held = last = np.empty(0, np.uint8)
    of_stripes = keys[np.add.outer(np.arange(16), np.arange(8))]

    def added(lanes: Any, keys: Any) -> Any:
        """What stripes (…, 8) add to the sums."""
        values = lanes ^ keys
        return (values & _LOW) * (values >> np.uint64(32)) + lanes[..., [1, 0, 3, 2, 5, 4, 7, 6]]

    with np.errstate(over="ignore"):
        for part in parts:
            for low in range(0, part.size, 1 << 20):
                piece = part[low : low + (1 << 20)]
                held, n = np.concatenate([held, piece]), n + piece.size
                whole = max(0, held.size - 1) // 1024  # blocks that are not the last
                lanes = held[: 1024 * whole].view("<u8").astype(np.uint64).reshape(whole, 16, 8)
                for block in added(lanes, of_stripes).sum(1, dtype=np.uint64):
                    sums += block
                    sums = (sums ^ (sums >> np.uint64(47)) ^ keys[16:]) * np.uint64(_P32[0])
                if whole:
                    last, held = held[1024 * whole - 64 : 1024 * whole], held[1024 * whole :].copy()
        if n <= 240:
            return int(_xxh3(held[None], seed)[0])
        stripes = (held.size - 1) // 64
        rest = held[: 64 * stripes].view("<u8").astype(np.uint64).reshape(stripes, 8)
        sums += added(rest, of_stripes[:stripes]).sum(0, dtype=np.uint64)
        end = np.concatenate([last, held])[-64:].view("<u8").astype(np.uint64)
        sums += added(end, np.array([_u64(secret, 121 + 8 * lane) for lane in range(8)]))
    total = n * _P64[0]
    for i in range(4):
        a, b = (int(sums[2 * i + k]) ^ int(_u64(secret, 11 + 16 * i + 8 * k)) for k in (0, 1))
        total += a * b & _M64 ^ a * b >> 64
    return int(_avalanche(np.array([total & _M64], np.uint64), 37, _MX1)[0])


def hash_strings(values: Any, seed: int = 0) -> Any:
    """Strings or bytes as 64-bit ids, `XXH3_64(utf8(value); seed)`: those of the library's `hash_strings`.

    Args:
        values: a str or bytes, or a list, tuple (nested or not) or array of them.
        seed: 0 to 2^64 − 1.

    Returns:
        uint64 in the shape of the values.

    Raises:
        TypeError: something is neither str nor bytes; names its position.
        ValueError: the seed is out of range, or a str has no UTF-8.

    Example:
        >>> hash_strings(["user_1", b"user_1"]).tolist()
        [2375940910326535585, 2375940910326535585]
    """
    seed = _whole("seed", seed, 0, _M64)
    if isinstance(values, (str, bytes)):
        array = np.empty((), object)  # NumPy's own types drop trailing NULs
        array[()] = values
    else:
        try:
            array = np.array(values, object) if isinstance(values, (list, tuple)) else np.asarray(values)
        except ValueError:
            raise TypeError("values must be nested evenly, the lists of one level of the same length") from None
    if array.size and array.dtype.kind not in "USTO":
        raise TypeError(f"values must be strings or bytes, got an array of {array.dtype}: integers are ids already")
    encoded = []
    for n, value in enumerate(array.reshape(-1).tolist()):
        if not isinstance(value, (str, bytes)):
            raise TypeError(f"values must be strings or bytes, got {value!r} at position {_place(n, array.shape)}")
        try:
            encoded.append(value.encode() if isinstance(value, str) else value)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the string {value!r} at {_place(n, array.shape)} has no UTF-8 ({error.reason})"
            ) from None
    out, lengths = np.empty(array.size, np.uint64), np.fromiter(map(len, encoded), np.int64, len(encoded))
    data, starts = np.frombuffer(b"".join(encoded), np.uint8), np.cumsum(lengths) - lengths
    with np.errstate(over="ignore"):
        for length in np.unique(lengths):
            own = np.flatnonzero(lengths == length)
            out[own] = _xxh3(data[starts[own, None] + np.arange(length)], seed)
    return out.reshape(array.shape)


# What callers hand in.


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least:,} and {most:,}, got {value:,}")
    return int(value)


def _place(n: int, shape: tuple[int, ...]) -> Any:
    return tuple(int(i) for i in np.unravel_index(n, shape)) if len(shape) > 1 else n


def _are_strings(ids: Any) -> bool:
    """Whether the first of what was handed in is a string."""
    while isinstance(ids, (list, tuple)) and len(ids):
        ids = ids[0]
    if isinstance(ids, np.ndarray) and ids.dtype == object and ids.size:
        ids = ids.flat[0]
    return isinstance(ids, (str, bytes)) or getattr(getattr(ids, "dtype", None), "kind", "") in ("S", "U", "T")


def _as_words(ids: Any) -> Any:
    """Integers of any type and shape as contiguous uint64; a negative one is the word with its bits."""
    if type(ids) is np.ndarray and ids.dtype.kind == "i" and ids.dtype.itemsize == 8 and ids.dtype.isnative:
        return np.ascontiguousarray(ids).view(np.uint64).reshape(ids.shape)
    if hasattr(ids, "filled") and np.any(getattr(ids, "mask", False)):  # a masked array; numpy.ma takes long to import
        raise ValueError("ids must be integers, but some of them are missing: fill these first")
    if hasattr(getattr(ids, "dtype", None), "categories"):
        raise TypeError("ids are categories, which are no integers: hand in what they stand for, as an integer type")
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"ids must be integers, got {type(ids).__name__}: {error}") from None
    if array.dtype == object and array.ndim == 0 and not isinstance(ids, (int, np.ndarray)):
        raise TypeError(f"ids must be integers, in an array or a list; got {type(ids).__name__}")
    if array.size == 0 and (array.dtype == object or not hasattr(ids, "dtype")):
        array = array.astype(np.int64)  # an empty list holds no wrong id
    if array.dtype == np.float64 and isinstance(ids, (list, tuple)):  # of -1 and 2^64 - 1 NumPy makes floats
        exact = np.array(ids, object)
        array = exact if all(isinstance(value, (int, np.integer)) for value in exact.flat) else array
    if array.dtype == object:
        out = np.empty(array.size, np.uint64)
        for n, value in enumerate(array.reshape(-1)):
            if value is None or type(value).__name__ == "NAType" or value != value:
                raise ValueError(f"ids must be integers, but {value} at position {n} is missing: fill it first")
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"ids must be integers, got {type(value).__name__} at position {n}")
            if not -(2**63) <= value < 2**64:
                raise TypeError(f"ids must be integers of 64 bits, got {value} at position {n}")
            out[n] = int(value) & _M64
        return out.reshape(array.shape)
    if array.dtype.kind not in "iu":
        hint = "hash_strings makes ids of strings" if array.dtype.kind in "SUT" else "ids = ids.astype(np.int64)"
        raise TypeError(f"ids must be integers, got {array.dtype}; {hint}")
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array.astype(np.int64).view(np.uint64) if array.dtype.kind == "i" else array.astype(np.uint64, copy=False)


# The file: a safetensors header, checked as input from strangers.

_FIELDS = ("method", "vocab", "dim", "rank", "n_chunks", "sizes", "seed", "options", "codec", "rounding")
_COUNTS = ("counts", "own_counts", "own_seen", "own_young", "sketch", "clock")  # what training reads alone
_DTYPES = {"F32": "<f4", "U64": "<u8", "I64": "<i8", "U8": "|u1", "I8": "|i1", "U16": "<u2", "U32": "<u4"}


def _json(text: str) -> Any:
    """JSON of which nothing is deep, doubled or not a number."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    def refused(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    if text.count("{") + text.count("[") > 1024:
        raise ValueError("too many brackets")
    return json.loads(text, object_pairs_hook=once, parse_constant=refused)


def _opened(path: Any, verify: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec and the arrays of a file, mapped."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO is not waited for
    descriptor = os.open(path, flags)
    try:
        size = os.fstat(descriptor).st_size
        try:
            data = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
        except ValueError:
            raise FileFormatError(f"{path} ({size:,} bytes) is torn, or no file of cce-core") from None
    finally:
        os.close(descriptor)
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if not 8 < begin <= min(size, 8 + (1 << 18)):
        raise FileFormatError(f"{path} ({size:,} bytes) is torn, truncated or not a safetensors file")
    try:
        header = _json(data[8:begin].tobytes().decode())
        metadata = header.pop("__metadata__")
        if metadata["format"] != "cce-core":
            raise ValueError("it is no file of cce-core")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is torn, or not a table of cce-core: {error!r:.200}") from None
    if metadata.get("version") != "1":
        raise FileFormatError(f"{path} has format version {metadata.get('version')!r:.20}, this reader knows version 1")
    try:
        own = metadata.pop("header_xxh3", None)
        text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()
        if own is not None and own != f"{_xxh3_long([np.frombuffer(text, np.uint8)]):016x}":
            raise ValueError("its header's checksum does not hold; restore it from a copy")
        arrays, end = {}, begin
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (low, high) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
            count = math.prod(_whole("a shape", n, 0, 2**60) for n in shape)
            if begin + low != end or high - low != count * dtype.itemsize or begin + high > size:
                raise ValueError(f"the bytes of {name!r} are not as many as its shape says")
            raw, end = data[begin + low : begin + high], begin + high
            raw = raw.copy() if raw.ctypes.data % dtype.itemsize else raw
            arrays[name] = raw.view(dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)
        if end != size:
            raise ValueError("its arrays end before the file does")
        if verify == "all" and metadata["xxh3"] != _checksum(metadata["spec"], arrays):
            raise ValueError("its checksum does not hold; restore it from a copy")
        return _json(metadata["spec"]), arrays
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {error!s:.200}") from None


def _checksum(text: str, arrays: dict[str, Any]) -> str:
    """Of arrays with their names, types and shapes, and of a text that says what they are."""
    parts = [np.frombuffer(text.encode(), np.uint8)]
    for name in sorted(arrays):
        label = f"{name} {arrays[name].dtype.newbyteorder('<').str} {arrays[name].shape}"
        parts += [np.frombuffer(label.encode(), np.uint8), arrays[name].reshape(-1).view(np.uint8)]
    return f"{_xxh3_long(parts):016x}"


def _digest(spec: dict[str, Any], arrays: dict[str, Any]) -> str:
    """What deltas know a table by: the checksum with the spec as the library prints it."""
    fields = {**spec, "sizes": tuple(spec["sizes"]), "options": tuple(sorted(spec["options"].items()))}
    return _checksum(f"TableSpec({', '.join(f'{name}={fields[name]!r}' for name in _FIELDS)})", arrays)


class Link(NamedTuple):
    """What a delta says of itself: its number, the digest of what it changes, and that of what comes of it.

    Attributes:
        spec: of the table, as its file says it.
        sequence: the delta's number, 1 for the first.
        parent, child: digests.
    """

    spec: dict[str, Any]
    sequence: int
    parent: str
    child: str


def read_link(path: str | os.PathLike[str]) -> Link:
    """What the header of a delta's file says; its data are not read.

    Raises:
        OSError, FileFormatError: as for `Reader.apply`.
    """
    return _delta(path, "header")[0]


def _delta(path: str | os.PathLike[str], verify: str) -> tuple[Link, dict[str, Any]]:
    """What a delta says of itself, and its arrays."""
    values, parts = _opened(os.fspath(path), verify)
    try:
        chain = values["delta"]
        number = _whole("sequence", chain["sequence"], 1, 2**63)
        return Link(dict(values["table"]), number, str(chain["parent"]), str(chain["child"])), parts
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is no delta: {error!r:.100}") from None


# The sketch: which blocks an id has.


class _Term(NamedTuple):
    """One block of every chunk: at base + stride · index, an index in [0, rows).

    Attributes:
        kind: "id", "hash", "pointer", "digit" or "map".
        base: of each chunk.
        of: what tells the chunks apart: the number of the key, the first bit of the pointer, or the divisor.
        bits: of a pointer.
        region: floats after which a block goes on at its base; 0 where none does.
    """

    kind: str
    rows: int
    stride: int
    base: Any = (0,)
    of: Any = (0,)
    bits: int = 0
    region: int = 0


class _Layout(NamedTuple):
    """All blocks: terms that are summed, of so many floats each, in a memory of `size`."""

    terms: list[_Term]
    width: int
    size: int


class _Sketch(NamedTuple):
    """What a spec says of a linear method.

    Attributes:
        layout, weights: the blocks, and the factors of the terms, if there are any.
        signed: whether hashes draw signs.
        per_id: bits of all pointers of an id.
        marks: words before the pointers that mark the ids which have any; 0 where all have.
    """

    layout: _Layout
    weights: _Layout | None = None
    signed: bool = False
    per_id: int = 0
    marks: int = 0


def _bits(rows: int) -> int:
    return (rows - 1).bit_length()


def _bases(vocab: int, n: int) -> list[int]:
    """The n bases that reach a vocabulary with the fewest rows, one apart at most, the larger first."""
    below, base = 0, vocab  # below^n < vocab <= base^n
    while base - below > 1:
        middle = (below + base) // 2
        below, base = (middle, base) if middle**n < vocab else (below, middle)
    larger = next(j for j in range(1, n + 1) if base**j * below ** (n - j) >= vocab)
    return [base] * larger + [below] * (n - larger)


def _sketch(spec: dict[str, Any]) -> _Sketch:
    """The sketch of a spec."""
    method, vocab, chunks, option = spec["method"], spec["vocab"], spec["n_chunks"], spec["options"]
    inner, c = spec["rank"] or spec["dim"], np.arange(chunks)
    rows, last = (spec["sizes"][0], spec["sizes"][-1]) if spec["sizes"] else (vocab, vocab)
    width, t = inner // chunks, option.get("n_hashes") or option.get("n_atoms") or 0
    bits, signed = _bits(rows), bool(option.get("signed"))
    if method in ("full", "ldim", "int8", "int4"):
        return _Sketch(_Layout([_Term("id", vocab, inner)], inner, vocab * inner))
    if method == "hash":
        return _Sketch(_Layout([_Term("hash", rows, inner)], inner, rows * inner), signed=signed)
    if method == "bloom":
        return _Sketch(
            _Layout([_Term("hash", rows, inner, of=[k]) for k in range(t)], inner, rows * inner), signed=signed
        )
    if method == "hemb":
        kind, width = option["weights"], inner - t * (option["weights"] == "concat")
        many = rows * max(1, 3 * inner // (2 * t))
        if kind in ("shared", "concat"):
            weights = _Layout([_Term("hash", many, t, of=[t])], t, many * t)
        else:
            base, places = (many, many) if kind == "independent" else (0, many * t)
            weights = _Layout([_Term("hash", places, 1, base * np.arange(t), t + np.arange(t))], 1, many * t)
        return _Sketch(_Layout([_Term("hash", rows, width, of=[k]) for k in range(t)], width, rows * width), weights)
    if method == "rhemb":
        weights = _Layout([_Term("hash", rows, 1, np.zeros(t, int), t + np.arange(t), region=rows)], 1, rows)
        return _Sketch(_Layout([_Term("hash", rows, 1, of=[k], region=rows) for k in range(t)], inner, rows), weights)
    if method in ("ce", "qr"):
        width, kind, of = width if option["combine"] == "concat" else inner, "hash", c
        if method == "qr":
            steps = _bases(-(-vocab // rows), chunks - 1) if chunks > 1 else []
            kind, of = "digit", np.array([math.prod(steps[:k]) for k in range(chunks)])
        terms = [_Term(kind, rows, width, c * rows * width, of)]
        if option["combine"] == "add":
            terms = [_Term(kind, rows, width, [k * rows * width], [of[k]]) for k in range(chunks)]
        return _Sketch(_Layout(terms, width, chunks * rows * width))
    if method in ("robe", "hnet"):
        width = 1 if method == "hnet" else option["chunk_size"] or width
        n = inner // width
        return _Sketch(
            _Layout([_Term("hash", rows, 1, np.zeros(n, int), np.arange(n), region=rows)], width, rows), signed=signed
        )
    if method == "cce":
        both = (rows + last) * width
        learned = _Term("pointer", rows, width, c * both, c * bits, bits)
        hashed = _Term("hash", last, width, c * both + rows * width, c)
        return _Sketch(_Layout([learned, hashed], width, chunks * both), per_id=chunks * bits)
    if method == "cce_robe":
        learned = _Term("pointer", rows, 1, 0 * c, c * bits, bits, rows)
        return _Sketch(
            _Layout([learned, _Term("hash", rows, 1, 0 * c + rows, c, region=rows)], width, 2 * rows),
            per_id=chunks * bits,
        )
    if method == "pq":
        terms = [_Term("pointer", rows, width, c * rows * width, c * bits, bits)]
        return _Sketch(_Layout(terms, width, rows * inner), per_id=chunks * bits)
    if method == "vq":
        if option["phase"] == "rows":
            return _Sketch(_Layout([_Term("id", vocab, inner)], inner, vocab * inner))
        stages, marks = option["stages"], 0
        if option["bits"]:
            bits, marks = option["bits"], 8 * -(-vocab // 480)
            rows = 2**bits
        terms = [_Term("pointer", rows, inner, [k * rows * inner], [k * bits], bits) for k in range(stages)]
        return _Sketch(_Layout(terms, inner, stages * rows * inner), per_id=stages * bits, marks=marks)
    if method in ("sparse", "sparse2"):
        terms, of = [_Term("pointer", rows, inner, of=[k * bits], bits=bits) for k in range(t)], np.arange(t)
        if method == "sparse2":
            weights = _Layout([_Term("hash", rows * inner, 1, 0 * of, of)], 1, rows * inner)
            return _Sketch(_Layout(terms, inner, rows * inner), weights, per_id=t * bits)
        fine = option["weight_bits"]
        weights = _Layout([_Term("pointer", 2**fine, 1, 0 * of, t * bits + of * fine, fine)], 1, 2**fine)
        return _Sketch(_Layout(terms, inner, rows * inner), weights, per_id=t * (bits + fine))
    if method == "tiered":
        tiers, tables = _Tiers.of(spec), option["tables"] or 1
        total = tiers.own + tables * (tiers.pointed + tiers.shared)
        return _Sketch(_Layout([_Term("map", total, inner)], inner, total * inner), per_id=option["bits"])
    raise ValueError(f"it has the method {method!r}, which this reader does not know")


class _Tiers(NamedTuple):
    """The sizes of a table of method `tiered`.

    Attributes:
        own: own rows, each of which an entry of the map tells whose it is; 4 entries are a slot of a bucket or of several.
        buckets: of the map, that ids may lie in.
        slots: of a bucket, for ids that have settled, each with a pointer; 0 before the first clustering.
        bits: of a pointer.
        shared: rows of each table that are found by hash.
        width: bits of an entry: the fingerprint, and which of the buckets that share 4 entries it is of.
    """

    own: int
    buckets: int
    slots: int
    bits: int
    shared: int
    width: int

    @classmethod
    def of(cls, spec: dict[str, Any]) -> _Tiers:
        sizes, option = spec["sizes"], spec["options"]
        own, buckets, slots, bits, shared = sizes if len(sizes) == 5 else (sizes[0], sizes[0] // 4, 0, 0, 0)
        if own % 4 or not own <= 4 * buckets or slots > 16 or bits > 16:
            raise ValueError(f"a table of method 'tiered' has no sizes {sizes}")
        shared = shared or option["shared"] or min(8, max(1, 4 * buckets // (16 * (option["tables"] or 1))))
        return cls(own, buckets, slots, bits, shared, option["bits"] + _bits(-(-buckets // (own // 4))))

    @property
    def fold(self) -> int:
        """Buckets that share 4 entries."""
        return -(-self.buckets // (self.own // 4))

    @property
    def pointed(self) -> int:
        """Rows of each table that settled ids point to."""
        return (1 << self.bits) * bool(self.slots)

    @property
    def begin(self) -> int:
        """The bit of the words where settled ids begin."""
        return -(-self.own * self.width // 64) * 64

    def words(self, bits: int) -> int:
        """64-bit words of entries, and of settled ids with fingerprints of so many bits."""
        return self.begin // 64 + -(-self.slots * self.buckets * (bits + self.bits) // 64)


def _train(spec: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Base, left rank, factor of dim and right rank of each core of a tensor train."""
    n = len(spec["sizes"]) + 1
    primes: list[int] = []
    rest, d = spec["dim"], 2
    while d * d <= rest:
        while rest % d == 0:
            primes, rest = [*primes, d], rest // d
        d += 1
    primes += [rest] * (rest > 1)
    factors = [1] * (n - len(primes)) + primes if n >= len(primes) else _least_sum(spec["dim"], n)
    first, *others = sorted(factors, reverse=True)
    ranks = spec["sizes"]
    return list(zip(_bases(spec["vocab"], n), (1, *ranks), (first, *others[1:], others[0]), (*ranks, 1)))


def _least_sum(dim: int, n: int) -> list[int]:
    """The n factors of dim with the least sum, ascending; of equal sums the first in order."""
    small = [d for d in range(1, math.isqrt(dim) + 1) if dim % d == 0]
    parts = sorted({*small, *(dim // d for d in small)})
    best: tuple[int, list[int]] = (dim + n, [1] * n)

    def search(rest: int, n: int, chosen: list[int]) -> None:
        nonlocal best
        if n == 1:
            best = min(best, (sum(chosen) + rest, [*chosen, rest]))
        elif sum(chosen) + n * rest ** (1 / n) <= best[0] + 1e-6:  # equal factors have the least sum
            for d in reversed(parts):
                if (chosen[-1] if chosen else 2) <= d and rest % d == 0 and d**n <= rest:
                    search(rest // d, n - 1, [*chosen, d])

    search(dim, n, [])
    return best[1]


# Sums and products, in the library's order.


def _fused(left: Any, right: Any, out: Any = None) -> Any:
    """out + left · right of float32 matrices (m, d, k) and (m or 1, k, w): fused multiply-adds in order, each rounded once.

    A product of two floats is exact in float64, where the sum is rounded first. That a float32 is then rounded another way takes
    a sum halfway between two of them: such are moved to where the exact sum lies.
    """
    out = np.zeros((*left.shape[:2], right.shape[2]), np.float32) if out is None else out
    ones = (left == 1).all((0, 1))
    exact, low = np.empty(out.shape), np.empty(out.shape, np.int64)
    words = exact.view(np.int64)
    for q in range(right.shape[1] if out.size else 0):
        if ones[q]:
            out += right[:, None, q]
            continue
        x, w = left[:, :, q, None].astype(np.float64), right[:, None, q].astype(np.float64)
        np.multiply(x, w, out=exact)
        exact += out
        np.left_shift(words, 35, out=low)  # what float32 leaves of a float64
        if low.min() == _HALFWAY:
            at = low == _HALFWAY
            p, s, t = (x * w)[at], exact[at], out[at].astype(np.float64)
            b = s - p
            words[at] += (np.sign(s) * np.sign((p - (s - b)) + (t - b))).astype(np.int64)
        np.copyto(out, exact, casting="same_kind")
    return out


def _by_blas(x: Any, w: Any, n: int) -> Any:
    """The product of the first n columns of x."""
    if len(x) == 1:  # a single row has an order of its own
        return np.dot(np.concatenate([x, x])[:, :n], w[:n])[:1]
    return np.dot(x[:, :n], w[:n])


def _product(x: Any, w: Any, lead: int) -> Any:
    """x · w, fused; of the first columns BLAS's, if that takes so many in their order."""
    if not lead:
        return _fused(x[None], w[None])[0]
    out = _by_blas(x, w, lead)
    if lead < len(w):
        out = _fused(x[None, :, lead:], w[None, lead:], out[None])[0]
    if not out.all():  # BLAS loses the sign of a zero
        rows = ~out.all(1)
        out[rows] = _fused(x[None, rows], w[None])[0]
    return out


def _ordered(rows: Any, ends: Any, step: Callable[[Any, Any], Any], many: Callable[[Any], Any], out: Any) -> Any:
    """What `step` makes of out[n] and, one after the other, the rows [ends[n], ends[n + 1]); `many` does all of one n at once."""
    counts = np.diff(ends)
    order = np.argsort(-counts, kind="stable")
    starts, left, k, held = ends[:-1][order], np.sort(counts), 0, out[order]
    while (active := len(left) - int(np.searchsorted(left, k, "right"))) > 4:
        held[:active] = step(held[:active], rows[starts[:active] + k])
        k += 1
    for n in range(active):
        held[n] = many(np.concatenate([held[n : n + 1], rows[starts[n] + k : starts[n] + counts[order[n]]]]))
    out[order] = held
    return out


def _higher(held: Any, rows: Any) -> Any:
    """Float by float the larger one, the one held of equals; NaN is above all."""
    return np.where(~(rows <= held) & (held == held), rows, held)


class Reader:
    """A table in a file, to look ids up in.

    A reader changes nothing and may be used by any number of threads; the file is mapped, so that processes share its pages. A
    file that is replaced meanwhile (as `save` does) is read on as it was; a pickled reader opens the file that is there.

    Vectors have the bits of the library's own lookups on processors with fused multiply-add, but for NaN's and for `dhe`, whose
    matrix products are NumPy's: the same bits in both where both run on one machine, and with `transform="gaussian"` within 1e-5.

    Args:
        path: a file that `Table.save` or `TieredCollection.save` wrote.
        verify: "header" checks the header against its checksum; "all" reads the data and checks them, too.

    Attributes:
        spec: what the table is, as the file says it.
        arrays: the arrays by name, read-only.
        dim: floats of a vector.
        vocab: ids go from 0 to vocab - 1; None for a table that takes every 64-bit id (and strings, which `hash_strings` hashes).
        names: of the tables that one file of method `tiered` may hold, or their numbers.

    Raises:
        OSError: the file cannot be opened.
        FileFormatError: it is torn, damaged, foreign or of an unknown version.

    Example:
        >>> import os, tempfile, cce_core as cce
        >>> table, folder = cce.make_table("cce", vocab=100, dim=8, num_params=256, seed=0), tempfile.TemporaryDirectory()
        >>> table.save(os.path.join(folder.name, "item.safetensors"))
        >>> reader = Reader(os.path.join(folder.name, "item.safetensors"))
        >>> reader.lookup([[1, 2], [3, 4]]).shape, bool((reader.lookup([7]) == table.lookup([7])).all())
        ((2, 2, 8), True)
        >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], verify: str = "header") -> None:
        if verify not in ("header", "all"):
            raise ValueError(f"verify must be header or all, got {verify!r}")
        self._path = os.path.abspath(os.fspath(path))
        self.spec, self.arrays = _opened(path, verify)
        try:
            self._prepare()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} does not fit together: {error!s:.200}") from None

    def __reduce__(self) -> Any:
        return (Reader, (self._path,)) if self._path else (Reader._of, (self.spec, self.arrays))

    @classmethod
    def _of(cls, spec: dict[str, Any], arrays: dict[str, Any]) -> Reader:
        """A reader of arrays that lie in no file."""
        made = cls.__new__(cls)
        made.spec, made.arrays, made._path = spec, arrays, ""
        made._prepare()
        return made

    def __repr__(self) -> str:
        vocab = "unbounded" if self.vocab is None else f"{self.vocab:,}"
        return f"<{self.spec['method']} reader: vocab {vocab}, dim {self.dim}, {self.nbytes:,} bytes mapped>"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    # --- copies that follow -------------------------------------------------------------------------------------------

    def digest(self, complete: bool = False) -> str:
        """What deltas know the table by, as `signature(complete).digest` has it: found by a pass over the arrays, the first time.

        Args:
            complete: of all arrays (which `cce inspect` prints); else of those that lookups read.
        """
        if complete not in self._digests:
            self._digests[complete] = _digest(self.spec, {name: self.arrays[name] for name in self._followed(complete)})
        return self._digests[complete]

    def _followed(self, complete: bool) -> list[str]:
        return [name for name in self.arrays if complete or name not in _COUNTS]

    def apply(self, path: str | os.PathLike[str]) -> Reader:
        """The table as it is after a delta that `Delta.save` wrote: a new reader, or this one if it is as new already.

        This reader stays as it is, so that who looks up meanwhile sees the one or the other: `reader = reader.apply(path)`. The
        new one holds the arrays that differ, and not the file's pages; it has the bits of the table that the delta was made of.

        Args:
            path: the file of a delta.

        Raises:
            OSError: the file cannot be read.
            FileFormatError: it is torn or damaged, or no delta.
            ValueError: it is of another table, or the deltas before it have not been applied.

        Cost:
            A pass over the arrays (the first time two), a quarter of a gigabyte a second, and a copy of those that change.
        """
        link, parts = _delta(path, "all")
        if link.spec != self.spec:
            raise ValueError(f"{path} is of another table, of {link.spec!r:.200}")
        complete = self.digest() not in (link.parent, link.child)
        if link.child == self.digest(complete):
            return self
        if link.parent != self.digest(complete):
            raise ValueError(
                f"{path} changes a table of digest {link.parent}, and this one has {self.digest()}: apply those between first, "
                "or open a new file"
            )
        arrays = dict(self.arrays)
        try:
            for name in [name.removesuffix(" pages") for name in parts if name.endswith(" pages")]:
                pages, flat = parts[f"{name} pages"], arrays[name].copy().reshape(-1).view(np.uint8)
                if pages.size and (pages[0] < 0 or pages[-1] > (flat.size - 1) // 128 or (np.diff(pages) <= 0).any()):
                    raise ValueError(f"its pages of {name!r} are not in their order")
                places = pages[:, None] * 128 + np.arange(128)
                flat[places[places < flat.size]] = parts[f"{name} data"].view(np.uint8)
                arrays[name] = flat.view(arrays[name].dtype).reshape(arrays[name].shape)
            if _digest(self.spec, {name: arrays[name] for name in self._followed(complete)}) != link.child:
                raise ValueError("what it makes has not the digest that it says")
            made = self._of(self.spec, arrays)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {error!s:.200}") from None
        made._digests[complete] = link.child
        return made

    # --- the whole table elsewhere ------------------------------------------------------------------------------------

    def to_dense(
        self,
        path: str | os.PathLike[str],
        dtype: Any = np.float32,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write the vectors of all ids to an .npy file, (vocab, dim): whole, or not at all.

        They are written some at a time, so that little memory is held; `np.load(path, mmap_mode="r")` maps what was written.

        Args:
            path: the file; an old one is replaced at the end.
            dtype: float16, float32 or float64.
            progress: is called with the ids that are done, and all.

        Raises:
            ValueError: the table has no last id, or a float is too large for the type.
            TypeError: the type is no float.
            OSError: the file cannot be written.
        """
        kind = np.dtype(dtype)
        if kind.kind != "f":
            raise TypeError(f"dtype must be float16, float32 or float64, got {kind}")
        if self.vocab is None:
            raise ValueError("this table takes every 64-bit id: look those up that are wanted")
        beside = f"{os.fspath(path)}.{os.getpid()}.part"
        try:
            with open(beside, "wb") as file:
                shape = (self.vocab, self.dim)
                head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, head)
                for low in range(0, self.vocab, 4 * _PART):
                    high = min(self.vocab, low + 4 * _PART)
                    vectors = self.lookup(np.arange(low, high))
                    with np.errstate(over="raise"):
                        file.write(vectors.astype(kind).data)
                    if progress is not None:
                        progress(high, self.vocab)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except FloatingPointError:
            raise ValueError(f"a vector holds numbers that {kind} does not: take float32") from None
        finally:
            if os.path.exists(beside):
                os.unlink(beside)

    def to_faiss(self, metric: str = "l2") -> Any:
        """An index of faiss over all ids that holds codes and codebooks as the file does; no vector is decoded.

        Of `pq` without a rank, and of `vq` with one stage, an `IndexPQ`; of `vq` with several an `IndexResidualQuantizer`. The
        codebooks of `vq` are projected.

        Args:
            metric: "l2" or "inner_product".

        Raises:
            ImportError: faiss is not installed.
            ValueError: the table is no such one, or holds rows and no codes.
        """
        try:
            faiss: Any = importlib.import_module("faiss")
        except ImportError:
            raise ImportError("to_faiss needs faiss: pip install faiss-cpu") from None
        metrics = {"l2": faiss.METRIC_L2, "inner_product": faiss.METRIC_INNER_PRODUCT}
        if metric not in metrics:
            raise ValueError(f"metric must be l2 or inner_product, got {metric!r}")
        method, options = self.spec["method"], self.spec["options"]
        if not (method == "pq" and not self._rank) and not (method == "vq" and options["phase"] == "codes"):
            now = ", in its phase of rows" * (method == "vq") + " with a rank" * (method == "pq")
            raise ValueError(
                f"codes of faiss are those of 'pq' without a rank, and of 'vq' once it is clustered; this is {method!r}{now}: "
                "to_dense gives vectors for any index"
            )
        assert self.vocab is not None
        layout, terms = self._sketch.layout, self._sketch.layout.terms
        bits, rows = terms[0].bits, terms[0].rows
        books = self._rows(np.arange(layout.size // layout.width), layout.width, None).reshape(-1, rows, layout.width)
        if self._rank:
            books = np.stack([self._projected(book, np.full(rows, k == 0), 0) for k, book in enumerate(books)])
        fields, n = max(1, bits), len(books)  # of one row faiss has a bit, too
        books = np.concatenate([books, np.repeat(books[:, -1:], 2**fields - rows, axis=1)], axis=1)
        if len(terms) == 1:
            index = faiss.IndexPQ(self.dim, n, fields, metrics[metric])
            faiss.copy_array_to_vector(books.reshape(-1), index.pq.centroids)
        else:
            index = faiss.IndexResidualQuantizer(self.dim, n, fields, metrics[metric])
            faiss.copy_array_to_vector(books.reshape(-1), index.rq.codebooks)
            index.rq.is_trained = True
        if bits * n % 8 == 0 and bits and not self._sketch.marks:  # the file's own
            codes = self._pointers.view(np.uint8)[: self.vocab * bits * n // 8]
        else:
            codes = np.empty((self.vocab, -(-fields * n // 8)), np.uint8)
            for low in range(0, self.vocab, 4 * _PART):
                words = np.arange(low, min(self.vocab, low + 4 * _PART), dtype=np.uint64)
                found = np.concatenate([self._indices(words, 0, term) for term in terms], axis=1)
                each = ((found[:, :, None] >> np.arange(fields)) & 1).astype(np.uint8)
                codes[low : low + len(words)] = np.packbits(_flat(each), axis=1, bitorder="little")
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), index.codes)
        index.is_trained, index.ntotal = True, self.vocab
        return index

    # --- opening ------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything that follows from the spec; ValueError where the arrays are not those of such a table."""
        spec, has = self.spec, self.arrays
        self.dim, options = _whole("dim", spec["dim"], 1, 2**24), spec["options"]
        self.vocab = None if spec["vocab"] is None else _whole("vocab", spec["vocab"], 1, 2**48)
        self._rank, method = _whole("rank", spec["rank"], 0, self.dim), spec["method"]
        _whole("n_chunks", spec["n_chunks"], 1, 2**16)
        for name, most in _MOST.items():
            if options.get(name) is not None:
                _whole(name, options[name], 0, most)
        for size in spec["sizes"]:
            _whole("a size", size, 1, 2**48)
        tables = options.get("tables") or 1
        names = options.get("names")
        self.names: list[Any] = list(range(tables)) if names is None else _json(names)
        self._decoded: Any = None
        self._digests: dict[bool, str] = {}
        self._n_tables = tables
        if method == "tt":
            self._cores = _train(spec)
            shapes: dict[str, tuple[int, ...]] = {
                f"core{k}": (base, left * d * right) for k, (base, left, d, right) in enumerate(self._cores)
            }
        elif method == "dhe":
            hashes, width, depth = spec["sizes"]
            _whole("depth", depth, 1, 64)
            _whole("hashes", hashes, 1, 2**20)
            sides = (hashes, *[width] * depth, self.dim)
            shapes = {f"w{k}": sides[k : k + 2] for k in range(depth + 1)} | {
                f"b{k}": sides[k + 1 : k + 2] for k in range(depth + 1)
            }
            self._keys = np.array([_derived(spec["seed"], _KEYS, 0, j) for j in range(hashes)], np.uint64)
        else:
            self._sketch = sketch = _sketch(spec)
            self._keys = has.get("keys", np.empty(0, np.uint64))
            self._pointers = has.get("pointers", np.empty(0, np.uint64))
            shapes = self._shapes(sketch)
        if self._rank:
            shapes["projection"] = (tables * (self._rank + 1), self.dim)
        for name, shape in shapes.items():
            if has[name].shape != tuple(shape):
                raise ValueError(f"{name} must have the shape {tuple(shape)}, got {has[name].shape}")
            if has[name].dtype != (np.float32 if name not in ("memory", "keys", "pointers") else has[name].dtype):
                raise ValueError(f"{name} must be float32, got {has[name].dtype}")
        self._lead = self._probe() if self._rank else 0
        if len(self.names) != tables or self._some(np.empty(0, np.uint64), 0).shape != (0, self.dim):
            raise ValueError("its chunks do not make up a vector")

    def _shapes(self, sketch: _Sketch) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a linear method; ValueError where types are others."""
        spec, has, layout = self.spec, self.arrays, sketch.layout
        codec = spec["codec"]
        dtype, size = {
            "float32": (np.float32, layout.size),
            "bfloat16": (np.uint16, layout.size),
            "int8": (np.int8, layout.size),
            "int4": (np.uint8, -(-layout.size // 2)),
        }[codec]
        shapes: dict[str, tuple[int, ...]] = {"memory": (size,)}
        if codec in ("int8", "int4"):
            shapes["scales"] = (-(-layout.size // 64),)
        if sketch.weights is not None and spec["method"] != "rhemb":
            shapes["weights"] = (sketch.weights.size,)
        both = [layout, *([sketch.weights] if sketch.weights else [])]
        kinds = {term.kind for part in both for term in part.terms}
        for part in both:
            for term in part.terms:
                if term.kind == "hash" and int(np.max(term.of)) >= len(self._keys):
                    raise ValueError("it has fewer keys than hashes")
                if term.region and part.width > term.region:
                    raise ValueError("a block is larger than the memory")
        if "pointer" in kinds and not sketch.marks:
            shapes["pointers"] = (-(-(self.vocab or 0) * sketch.per_id // 64),)
        if "map" in kinds:
            self._tiers = _Tiers.of(spec)
            shapes["pointers"] = (self._tiers.words(sketch.per_id),)
            shapes["keys"] = (self._n_tables,)
        self._pairs = self._in_pairs(layout)
        for name, want in (("memory", dtype), ("keys", np.uint64), ("pointers", np.uint64)):
            if name in has and has[name].dtype != want:
                raise ValueError(f"{name} must be {np.dtype(want)}, got {has[name].dtype}")
        if len(self._pointers) < max(sketch.marks, "pointer" in kinds and sketch.per_id > 0):
            raise ValueError("it has too few pointers")
        return shapes

    def _in_pairs(self, layout: _Layout) -> bool:
        """Whether the library adds the two terms of a chunk before it sums a bag: floats, of regions that share nothing."""
        if len(layout.terms) != 2 or self.spec["codec"] != "float32":
            return False
        (one, other), size = layout.terms, [term.region or term.rows * term.stride for term in layout.terms]
        apart = all(max(a, b) >= min(a + size[0], b + size[1]) for a, b in zip(one.base, other.base))
        return apart and all((t.rows - 1) * t.stride + layout.width <= s for t, s in zip(layout.terms, size))

    def _probe(self) -> int:
        """How many columns BLAS takes in the order of `_fused`: few at most, and none unless it does for every number of rows."""
        k, lead, most = self._rank + 1, min(_LEAD, self._rank + 1), _rows_of(self.dim)
        words = np.arange(k * (most + self.dim), dtype=np.uint64)
        drawn = _keyed(_premix(words), np.uint64(1))  # numpy.random takes long to import
        values = drawn.view(np.int64).astype(np.float32) / np.float32(2**63)
        x, w = values[: most * k].reshape(most, k), values[most * k :].reshape(k, self.dim)
        some = np.concatenate([np.arange(24), np.arange(most // 2, most // 2 + 8), np.arange(most - 32, most)])
        exact = _fused(x[None, some, :lead], w[None, :lead])[0]
        right = np.array_equal(_by_blas(x, w, lead)[some], exact)
        return lead if right and all(np.array_equal(_by_blas(x[:n], w, lead), exact[:n]) for n in range(1, 25)) else 0

    # --- ids ----------------------------------------------------------------------------------------------------------

    def _words(self, ids: Any) -> Any:
        return hash_strings(ids) if self.vocab is None and _are_strings(ids) else _as_words(ids)

    def _within(self, words: Any, kept: Any = None) -> None:
        """IndexError that names the first id outside the vocabulary."""
        if self.vocab is None or not words.size:
            return
        if kept is not None:
            words = np.where(kept, words, np.uint64(0))
        if words.max() >= self.vocab:
            n = int((words.reshape(-1) >= np.uint64(self.vocab)).argmax())
            word = int(words.flat[n])
            shown = f"{word - 2**64}" if word >= 2**63 else f"{word}"
            also = f" (without a sign it is {word})" if word >= 2**63 else ""
            raise IndexError(
                f"id {shown} at position {_place(n, words.shape)} is outside this table's vocabulary: "
                f"ids go from 0 to {self.vocab - 1}{also}"
            )

    def _number(self, table: str | int) -> int:
        if table in self.names and not isinstance(table, bool):
            return self.names.index(table)
        if isinstance(table, (int, np.integer)) and not isinstance(table, bool) and 0 <= table < len(self.names):
            return int(table)
        raise KeyError(f"there is no table {table!r}; the tables are {', '.join(map(repr, self.names[:8]))}")

    # --- lookups ------------------------------------------------------------------------------------------------------

    def lookup(self, ids: Any, table: str | int = 0) -> Any:
        """The vectors of ids: float32 (*ids.shape, dim), a new array.

        Args:
            ids: integers of any type and shape; of a table without a vocabulary strings, too.
            table: which one, by name or number, of a file that holds several.

        Raises:
            IndexError: an id is outside the vocabulary; names the first and its position.
            TypeError: ids are no integers.
            KeyError: there is no such table.
        """
        number, words = self._number(table), self._words(ids)
        self._within(words)
        with np.errstate(all="ignore"):
            return self._vectors(words.reshape(-1), number).reshape(*words.shape, self.dim)

    def bags(
        self,
        ids: Any,
        offsets: Any = None,
        weights: Any = None,
        mode: str = "sum",
        *,
        lengths: Any = None,
        padding_id: Any = None,
        table: str | int = 0,
    ) -> Any:
        """The vectors of bags of ids, pooled: float32 (bags, dim), a new array; those of an empty bag are zeros.

        Args:
            ids: integers, flat; or a matrix (bags, size) without offsets and lengths.
            offsets: where each bag begins, and the end: (bags + 1,) integers from 0 to the number of ids.
            weights: a factor for every id, real numbers in the shape of ids; with mode "sum".
            mode: "sum", "mean" (over ids that are no padding) or "max" (float by float).
            lengths: ids of each bag, instead of offsets.
            padding_id: an id that counts for nothing.
            table: as for `lookup`.

        Raises:
            IndexError, TypeError, KeyError: as for `lookup`.
            ValueError: ids, offsets or weights do not fit together.
        """
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}; got {mode!r}")
        number, words = self._number(table), self._words(ids)
        ends, words, factors = _bags_of(words, offsets, lengths, weights, mode)
        if padding_id is not None:
            kept = words != np.uint64(_whole("padding_id", padding_id, 0, _M64))
            self._within(words, kept)
            ends = np.concatenate([[0], np.cumsum(kept)])[ends]
            words, factors = words[kept], None if factors is None else factors[kept]
        self._within(words)
        if mode == "mean":
            factors = (np.float32(1) / np.repeat(np.maximum(np.diff(ends), 1), np.diff(ends))).astype(np.float32)
        out, first = np.empty((len(ends) - 1, self.dim), np.float32), 0
        while first < len(out):  # some whole bags at a time
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + 4 * _PART, "right")) - 1)
            last = min(last, first + 4 * _PART)
            own = slice(int(ends[first]), int(ends[last]))
            some = None if factors is None else factors[own]
            with np.errstate(all="ignore"):
                out[first:last] = self._pooled(words[own], ends[first : last + 1] - ends[first], some, mode, number)
            first = last
        return out

    def _pooled(self, words: Any, ends: Any, factors: Any, mode: str, table: int) -> Any:
        """Bags of words that are known to be in the vocabulary."""
        plain = self._is_plain and mode != "max"
        if plain:
            terms = self._terms(words, table)
            if self._pairs and factors is None:
                terms = [terms[0] + terms[1]]
            terms = [_flat(term) for term in terms]
        else:
            terms = [self._vectors(words, table)]
        bags = len(ends) - 1
        held = np.zeros((bags, terms[0].shape[1]), np.float32)
        if mode == "max":
            held[:] = -np.inf
            held[:] = _ordered(terms[0], ends, _higher, _highest, held) if len(words) else held
            held[np.diff(ends) == 0] = 0
            return held
        if factors is not None:
            terms = [term * factors[:, None] for term in terms]
        if len(terms) == 1:
            rows, bounds = terms[0], ends
        else:
            rows, bounds = _interleaved(terms, ends)
        pooled = _ordered(rows, bounds, np.add, lambda all_: np.add.accumulate(all_)[-1], held)
        if not plain or not self._rank:
            return pooled
        if factors is None:
            return self._projected(pooled, np.diff(ends), table)
        mass = np.bincount(np.repeat(np.arange(bags), np.diff(ends)), factors, minlength=bags)
        return self._projected(pooled, mass, table)

    @property
    def _is_plain(self) -> bool:
        """Whether a vector is a sum of blocks and no more, before W."""
        if self.spec["method"] in ("tt", "dhe"):
            return False
        product = self.spec["options"].get("combine") == "mul"
        return self._sketch.weights is None and not self._sketch.signed and not product

    def _vectors(self, words: Any, table: int) -> Any:
        """The vectors of flat words that are known to be in the vocabulary, a part at a time."""
        if len(words) <= _PART:
            return self._some(words, table)
        out = np.empty((len(words), self.dim), np.float32)
        for low in range(0, len(words), _PART):
            out[low : low + _PART] = self._some(words[low : low + _PART], table)
        return out

    def _some(self, words: Any, table: int) -> Any:
        if self.spec["method"] == "tt":
            return self._of_train(words)
        if self.spec["method"] == "dhe":
            return self._of_network(words)
        sketch = self._sketch
        terms, plain = self._terms(words, table), self._is_plain
        found = factors = None
        if sketch.weights is not None:
            found = factors = _flat(self._blocks(words, table, sketch.weights, sketch.weights.terms[0]))
        if sketch.signed:
            factors = np.concatenate([self._signs(words, term) for term in sketch.layout.terms], 1)
        if factors is not None:
            chunks = terms[0].shape[1]
            terms = [term * factors[:, k * chunks : (k + 1) * chunks, None] for k, term in enumerate(terms)]
            terms[0] += np.float32(0)  # a sum begins at 0, which -0 is not
        total = terms[0]
        for term in terms[1:]:
            total += term
        if not plain and self.spec["options"].get("combine") == "mul":
            total = total.prod(1)
        total = _flat(total)
        if self.spec["options"].get("weights") == "concat":
            total = np.concatenate([total, found], 1)
        return self._projected(total, None, table) if self._rank else total

    def _projected(self, inner: Any, mass: Any, table: int) -> Any:
        """inner · W + mass · b."""
        w = self.arrays["projection"][table * (self._rank + 1) : (table + 1) * (self._rank + 1)]
        x = np.empty((len(inner), len(w)), np.float32)
        x[:, :-1], x[:, -1] = inner, 1 if mass is None else mass
        step = _rows_of(self.dim)
        if len(x) <= step:
            return _product(x, w, self._lead)
        out = np.empty((len(x), self.dim), np.float32)
        for low in range(0, len(x), step):
            out[low : low + step] = _product(x[low : low + step], w, self._lead)
        return out

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _terms(self, words: Any, table: int) -> list[Any]:
        """The blocks of every term: float32 (words, chunks, width)."""
        layout, fields = self._sketch.layout, None
        if layout.terms[0].kind == "pointer" and layout.terms[0].bits and self._in_one_word:
            fields = self._fields(words)
        return [self._blocks(words, table, layout, term, fields) for term in layout.terms]

    def _blocks(self, words: Any, table: int, layout: _Layout, term: _Term, fields: Any = None) -> Any:
        index, width = self._indices(words, table, term, fields), layout.width
        own = self.arrays.get("weights") if layout is self._sketch.weights else None
        if term.stride == width:  # rows of as many floats
            base = np.asarray(term.base) // width
            if len(base) > 1 or base[0]:
                index = index + base
            return self._rows(index, width, own)
        memory = self._whole_memory() if own is None else own
        if memory is None:
            index = index[:, :, None] + np.arange(width)
            index -= (index >= term.region) * term.region
            return self._decode(index + term.base[0])
        ring = memory[term.base[0] : term.base[0] + term.region]
        last = term.region - width  # where the last block begins that does not go on at the start
        step = ring.strides[0]
        blocks = np.lib.stride_tricks.as_strided(ring, (last + 1, width), (step, step), writeable=False)
        out = blocks[np.minimum(index, last)]
        if (over := index > last).any():
            out[over] = ring.take(index[over][:, None] + np.arange(width), mode="wrap")
        return out

    def _indices(self, words: Any, table: int, term: _Term, fields: Any = None) -> Any:
        """The index of every chunk: int64 (words, chunks)."""
        if term.kind == "id":
            return words.view(np.int64)[:, None]
        if term.kind == "hash":
            keys = self._keys[np.asarray(term.of)]
            return _reduced(_keyed(_premix(words)[:, None], keys), term.rows).view(np.int64)
        if term.kind == "digit":
            return ((words[:, None] // np.asarray(term.of).astype(np.uint64)) % np.uint64(term.rows)).view(np.int64)
        if term.kind == "map":
            return self._owned(words, table, term)[:, None]
        if term.bits == 0:
            return np.zeros((len(words), len(term.of)), np.int64)
        of, mask = np.asarray(term.of).astype(np.uint64), np.uint64((1 << term.bits) - 1)
        if self._in_one_word:
            found = (self._fields(words) if fields is None else fields)[:, None] >> of
        else:
            found = self._read(words[:, None] * np.uint64(self._sketch.per_id) + of)
        found &= mask
        return np.minimum(found, np.uint64(term.rows - 1), out=found).view(np.int64)  # of a damaged file

    @property
    def _in_one_word(self) -> bool:
        """Whether all pointers of an id are read at once."""
        return self._sketch.per_id <= 57

    def _fields(self, words: Any) -> Any:
        """All pointers of an id, in one word; 0 of an id that has none."""
        per_id, marks = np.uint64(self._sketch.per_id), self._sketch.marks
        if not marks:
            return self._read(words * per_id)
        entry = self._entries(words)
        place = np.uint64(64 * marks) + np.maximum(entry, 0).astype(np.uint64) * per_id
        return np.where(entry < 0, np.uint64(0), self._read(place))

    def _read(self, place: Any) -> Any:
        """The 64 bits from a bit of the packed pointers on, or all that there are."""
        at, shift = (place >> np.uint64(6)).view(np.int64), place & np.uint64(63)
        low = self._pointers.take(at, mode="clip")
        low >>= shift
        high = self._pointers.take(at + 1, mode="clip")
        high <<= np.uint64(1)
        high <<= np.uint64(63) - shift
        return low | high

    def _entries(self, words: Any) -> Any:
        """The number of a marked id's entry, -1 of others: int64. Lines of 8 words count the marks before, and mark 480 ids."""
        block = words // np.uint64(480)
        bit = words - block * np.uint64(480) + np.uint64(32)
        lines = self._pointers[: self._sketch.marks].reshape(-1, 8)
        line = lines.take(block.view(np.int64), axis=0)
        own = (bit >> np.uint64(6)).view(np.int64)
        marked = (line[np.arange(len(line)), own] >> (bit & np.uint64(63))) & np.uint64(1)
        counted = line[:, 0] & _LOW
        line &= _BELOW.take(bit.view(np.int64), axis=0)
        ones = (
            _popcount(line).astype(np.uint8, copy=False).view(np.uint64)[:, 0]
        )  # eight bytes, whose sum may need nine bits
        ones = (ones & _EVEN) + ((ones >> np.uint64(8)) & _EVEN)
        counted += (ones * np.uint64(0x0001000100010001)) >> np.uint64(48)
        return np.where(marked == 0, -1, counted.view(np.int64))

    def _owned(self, words: Any, table: int, term: _Term) -> Any:
        """The own row of an id, or that which it points to once it has settled, or the shared one of all that look alike."""
        tiers, tables, bits, key = self._tiers, self._n_tables, self._sketch.per_id, self._keys[0]
        h = _keyed(_premix(words ^ self._keys[table] if table else words), key)
        digit = ((h & _LOW) * np.uint64(((1 << bits) - 1) // tables)) >> np.uint64(32)
        fingerprint = np.uint64(1 + table) + np.uint64(tables) * digit
        first = _reduced(h, tiers.buckets)
        other = _reduced(_keyed(fingerprint, key), tiers.buckets)
        second = other + np.uint64(tiers.buckets) * (other < first) - first
        row = np.full(len(words), -1, np.int64)
        for bucket in (second, first):  # the first wins
            same = self._entries_of(tiers, bucket, bits) == self._entry(tiers, fingerprint, bucket, bits)[:, None]
            at = 4 * (bucket // np.uint64(tiers.fold)).view(np.int64) + same.argmax(1)
            row = np.where(same.any(1), at, row)
        lost, before = row < 0, tiers.own + tables * tiers.pointed
        if tiers.slots and lost.any():
            row[lost] = self._settled(tiers, fingerprint[lost], first[lost], second[lost], bits, table)
            lost = row < 0
        identity = (np.minimum(first, second)[lost] << np.uint64(32)) | fingerprint[lost]
        hashed = _reduced(_keyed(_premix(identity), key), tiers.shared).view(np.int64)
        row[lost] = before + tiers.shared * table + hashed
        return row

    def _entries_of(self, tiers: _Tiers, bucket: Any, bits: int) -> Any:
        """What the 4 slots of each bucket hold."""
        if tiers.fold == 1:
            held = self._pointers.view(f"u{bits // 8}")[: tiers.own].reshape(-1, 4)
            return held.take(bucket.view(np.int64), axis=0)
        slots = np.uint64(4) * (bucket // np.uint64(tiers.fold))[:, None] + np.arange(4, dtype=np.uint64)
        return self._read(slots * np.uint64(tiers.width)) & np.uint64((1 << tiers.width) - 1)

    @staticmethod
    def _entry(tiers: _Tiers, fingerprint: Any, bucket: Any, bits: int) -> Any:
        """What a slot of a bucket holds of an id."""
        return fingerprint | (bucket % np.uint64(tiers.fold)) << np.uint64(bits)

    def _settled(self, tiers: _Tiers, fingerprint: Any, first: Any, second: Any, bits: int, table: int) -> Any:
        """The rows that ids point to; -1 of those that have not settled."""
        out, size = np.full(len(fingerprint), -1, np.int64), np.uint64(bits + tiers.bits)
        for bucket in (second, first):
            places = bucket[:, None] * np.uint64(tiers.slots) + np.arange(tiers.slots, dtype=np.uint64)
            at = np.uint64(tiers.begin) + places * size
            same = (self._read(at) & np.uint64((1 << bits) - 1)) == fingerprint[:, None]
            found = self._read(at[np.arange(len(at)), same.argmax(1)] + np.uint64(bits))
            pointer = (found & np.uint64((1 << tiers.bits) - 1)).view(np.int64)
            out = np.where(same.any(1), tiers.own + tiers.pointed * table + pointer, out)
        return out

    def _signs(self, words: Any, term: _Term) -> Any:
        odd = _keyed(_premix(words)[:, None], self._keys[np.asarray(term.of)]) & np.uint64(1)
        return np.float32(1) - np.float32(2) * odd.astype(np.float32)

    # --- the memory ---------------------------------------------------------------------------------------------------

    def _whole_memory(self) -> Any:
        """The memory as float32, of a coded one if it is small: decoded once."""
        if self.spec["codec"] == "float32":
            return self.arrays["memory"]
        if self._decoded is None and self._sketch.layout.size <= _DECODED:
            self._decoded = self._decode(None)
        return self._decoded

    def _rows(self, index: Any, width: int, own: Any) -> Any:
        """Rows of `width` floats of the memory, or of an array of its own."""
        memory = self._whole_memory() if own is None else own
        if memory is not None:
            return memory.reshape(-1, width).take(index, axis=0)
        codes, codec = self.arrays["memory"], self.spec["codec"]
        if codec == "bfloat16":
            high = codes.reshape(-1, width).take(index, axis=0).astype(np.uint32)
            high <<= np.uint32(16)
            return high.view(np.float32)
        if 64 % width or (codec == "int4" and width == 1):
            return self._decode(index[..., None] * width + np.arange(width))
        scales = self.arrays["scales"].take(index * width >> 6)[..., None]
        if codec == "int8":
            return codes.reshape(-1, width).take(index, axis=0) * scales
        pairs = codes[: self._sketch.layout.size // 2].reshape(-1, width // 2).take(index, axis=0)
        out = np.empty((*index.shape, width), np.float32)
        out[..., ::2], out[..., 1::2] = pairs & 15, pairs >> 4
        out -= np.float32(8)
        out *= scales
        return out

    def _decode(self, index: Any) -> Any:
        """The floats at some places, or, of None, all."""
        codes, codec = self.arrays["memory"], self.spec["codec"]
        if codec == "bfloat16":
            high = codes if index is None else codes.take(index)
            return (high.astype(np.uint32) << np.uint32(16)).view(np.float32)
        scales, size = self.arrays["scales"], self._sketch.layout.size
        scales = np.repeat(scales, 64)[:size] if index is None else scales.take(index >> 6)
        if codec == "int8":
            return (codes if index is None else codes.take(index)) * scales
        if index is None:
            nibbles = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=1).reshape(-1)[:size]
        else:
            nibbles = (codes.take(index >> 1) >> ((index & 1) << 2).astype(np.uint8)) & np.uint8(15)
        return (nibbles.astype(np.float32) - np.float32(8)) * scales

    # --- what is more than blocks -------------------------------------------------------------------------------------

    def _of_train(self, words: Any) -> Any:
        """Products of the digits' matrices, the first core first."""
        out, step = np.empty((len(words), self.dim), np.float32), max(1, _FUSED // self.dim)
        for low in range(0, len(words), step):
            rest = words[low : low + step]
            value = np.ones((len(rest), 1, 1), np.float32)
            for k, (base, left, d, right) in enumerate(self._cores):
                digits, rest = rest % np.uint64(base), rest // np.uint64(base)
                core = self.arrays[f"core{k}"].take(digits.view(np.int64), axis=0).reshape(len(rest), left, d * right)
                value = _fused(value, core).reshape(len(rest), value.shape[1] * d, right)
            out[low : low + step] = _flat(value)
        return out

    def _of_network(self, words: Any) -> Any:
        """Hashes through the layers: each distinct id once, in the order in which they come."""
        _, firsts, where = np.unique(words, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        words = words[firsts[order]]
        hashed = _reduced(_keyed(_premix(words)[:, None], self._keys), 1_000_000).astype(np.float32)
        if self.spec["options"]["transform"] == "uniform":
            x = hashed * np.float32(2 / 999_999) - np.float32(1)
        else:
            x = np.empty_like(hashed)
            radius = np.sqrt(np.float32(-2) * np.log((hashed[:, ::2] + np.float32(1)) * np.float32(1e-6)))
            angle = hashed[:, 1::2] * np.float32(2 * math.pi / 1_000_000)
            x[:, ::2], x[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
        depth = self.spec["sizes"][2]
        for k in range(depth + 1):
            x = np.dot(x, self.arrays[f"w{k}"])
            x += self.arrays[f"b{k}"]
            if k < depth:
                x = _mish(x)
        return x.take(rank[where.reshape(-1)], 0)


def _rows_of(dim: int) -> int:
    """Rows of a product at a time."""
    return max(64, _FUSED // dim)


def _flat(values: Any) -> Any:
    """One row for each of the first axis."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _mish(z: Any) -> Any:
    """z · tanh(log(1 + e^z)), the exponential by its series: q / (q + 2) with q = e^z · (e^z + 2)."""
    one, two, high, low = (np.float32(c) for c in (1, 2, 0.693359375, math.log(2) - 0.693359375))
    turn = np.float32(1.5 * 2**23)  # adding and taking it off rounds
    x = np.maximum(z, np.float32(-80))
    near = np.minimum(x, np.float32(20))
    n = (near * np.float32(1.4426950408889634) + turn) - turn
    r = near - n * high - n * low
    series = np.float32(1 / math.factorial(7))
    for k in range(6, 1, -1):
        series = series * r + np.float32(1 / math.factorial(k))
    e = (series * r * r + r + one) * ((n.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    q = e * (e + two)
    return x * (q * (one / (q + two)))


def _highest(rows: Any) -> Any:
    """Float by float the largest, NaN above all, the first of equals."""
    return np.take_along_axis(rows, rows.argmax(0)[None], 0)[0]


def _interleaved(terms: list[Any], ends: Any) -> tuple[Any, Any]:
    """The rows of several terms in the order of a bag's sum: of each 256 ids those of the first term, of the second, …"""
    counts, many = np.diff(ends), len(terms)
    starts = np.repeat(ends[:-1], counts)
    k = np.arange(len(starts)) - starts
    piece = k // _TILE * _TILE
    size = np.minimum(_TILE, np.repeat(counts, counts) - piece)
    out = np.empty((many * len(k), terms[0].shape[1]), np.float32)
    for t, term in enumerate(terms):
        out[many * (starts + piece) + t * size + k - piece] = term
    return out, many * ends


def _bags_of(words: Any, offsets: Any, lengths: Any, weights: Any, mode: str) -> tuple[Any, Any, Any]:
    """Where bags end, flat words, and the factors of these or None."""
    if offsets is not None and lengths is not None:
        raise ValueError("give offsets or lengths, not both")
    shape, count = words.shape, words.size
    if offsets is None and lengths is None:
        if words.ndim != 2:
            raise ValueError(f"without offsets or lengths, ids must be a matrix (bags, size), got shape {shape}")
        ends = np.arange(len(words) + 1, dtype=np.int64) * shape[1]
    else:
        name, given = ("offsets", offsets) if lengths is None else ("lengths", lengths)
        if words.ndim != 1:
            raise ValueError(f"with {name}, ids must be flat, got shape {shape}")
        ends = np.asarray(given)
        if ends.ndim != 1 or (ends.dtype.kind not in "iu" and ends.size):
            raise TypeError(f"{name} must be one row of integers, got {ends.dtype} {ends.shape}")
        if name == "lengths":
            if ends.size and ends.min() < 0:
                raise ValueError(f"lengths must not be negative, got {ends.min()}")
            if sum(ends.tolist()) != count:
                raise ValueError(f"lengths add up to {sum(ends.tolist())}, but there are {count} ids")
            ends = np.concatenate([[0], np.cumsum(ends.astype(np.int64))])
        if not len(ends) or ends[0] != 0 or (ends[1:] < ends[:-1]).any():
            raise ValueError(f"offsets must begin with 0 and never fall, got {ends[:8].tolist()}")
        if ends[-1] != count:
            raise ValueError(f"offsets must end with the number of ids, {count}, got {ends[-1]}")
    if weights is None:
        return ends.astype(np.int64), words.reshape(-1), None
    if mode != "sum":
        raise ValueError(f"weights go with mode 'sum', got mode {mode!r}")
    factors = np.asarray(weights)
    if factors.dtype.kind not in "fiu":
        raise TypeError(f"weights must be real numbers, got {factors.dtype}")
    if factors.shape != shape:
        raise ValueError(f"weights must have shape {shape}, got {factors.shape}")
    with np.errstate(over="ignore"):
        factors = factors.astype(np.float32).reshape(-1)
    if not np.isfinite(factors).all():
        raise ValueError("weights must be finite")
    return ends.astype(np.int64), words.reshape(-1), factors
