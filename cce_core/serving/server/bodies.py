"""What requests and replies hold, as JSON, raw numbers and Arrow streams; what makes no sense is refused with a line."""

from __future__ import annotations

import importlib
import struct
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from starlette.exceptions import HTTPException

from cce_core.serving.server.settings import Limits

JSON, RAW, ARROW = "application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"
KINDS = (JSON, RAW, ARROW)
FIELDS = {
    "lookup": ("ids", "table"),
    "bags": ("ids", "offsets", "lengths", "weights", "mode", "padding_id", "table"),
}
_SHOWN = 300  # characters of an error


def refused(status: int, text: object) -> HTTPException:
    """An error of the client's, in a line."""
    line = " ".join(str(text).split())
    return HTTPException(status, line if len(line) <= _SHOWN else f"{line[:_SHOWN]} …")


@lru_cache(256)
def kinds(content_type: bytes, accept: bytes) -> tuple[str, str]:
    """The kinds of a request and of its reply, by its headers: JSON unless it says another, and a reply of the request's kind.

    Raises:
        HTTPException: 415 or 406, one of them is not known here.
    """
    said = content_type.decode("latin-1").partition(";")[0].strip().lower() or JSON
    if said not in KINDS:
        raise refused(415, f"the content type must be one of {', '.join(KINDS)}; got {said!r}")
    wanted = [part.partition(";")[0].strip().lower() for part in accept.decode("latin-1").split(",")]
    for one in wanted:
        if one in KINDS or one in ("", "*/*", "application/*"):
            return said, one if one in KINDS else said
    raise refused(406, f"replies are {', '.join(KINDS)}; the request accepts {', '.join(wanted)}")


def read(call: str, kind: str, body: bytes, options: dict[str, str], limits: Limits) -> dict[str, Any]:
    """The arguments of a call: fields of a JSON object, or ids in the body and the rest in the query string.

    Raises:
        HTTPException: 400, the body is none of its kind; 413, it asks for too much; 415, the call takes no such body.
    """
    if kind == JSON:
        found = _json(body)
    elif kind == ARROW:
        found = {**_options(options), **_arrow(call, body)}
    elif call == "bags":
        raise refused(415, f"bags come as {JSON} or {ARROW}, which tell where each ends")
    else:
        if len(body) % 8:
            raise refused(400, f"a raw body holds ids of 8 bytes, little-endian integers; got {len(body):,} bytes")
        found = {**_options(options), "ids": np.frombuffer(body, "<i8")}
    if unknown := [name for name in found if name not in FIELDS[call]]:
        raise refused(400, f"there is no field {unknown[0]!r}; {call} has {', '.join(FIELDS[call])}")
    if "ids" not in found:
        raise refused(400, "the field 'ids' is missing")
    if isinstance(found.get("padding_id"), (list, dict)) or isinstance(found.get("table"), (list, dict)):
        raise refused(400, "padding_id and table are one value each")
    if type(found["ids"]) is not np.ndarray:
        found["ids"] = _ids(found["ids"])
    for name in ("offsets", "lengths", "weights"):
        if found.get(name) is not None and type(found[name]) is not np.ndarray:
            found[name] = _numbers(name, found[name])
    bags = [
        found[name].shape for name in ("ids", "offsets", "lengths") if call == "bags" and found.get(name) is not None
    ]
    most = max(found["ids"].size, *(shape[0] for shape in bags if shape), 0)
    if most > limits.ids:
        raise refused(413, f"a request may ask for {limits.ids:,} ids (or bags), got {most:,}")
    return found


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise refused(400, 'the body must be an object, such as {"ids": [1, 2]}')
    return found


def _options(options: dict[str, str]) -> dict[str, Any]:
    """What stands in a query string; a padding_id is a number there."""
    found: dict[str, Any] = dict(options)
    if (padding := found.get("padding_id")) is not None:
        try:
            found["padding_id"] = int(padding)
        except ValueError:
            raise refused(400, f"padding_id must be a whole number, got {padding!r}") from None
    return found


def _nested(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Nested lists as an array of objects: NumPy's own types would cut, round or pad what is mixed."""
    try:
        return np.array(value, object)
    except ValueError:
        raise refused(
            400, f"{name} must be nested evenly, the lists of one level of the same length, 64 deep at most"
        ) from None


def _ids(value: Any) -> np.ndarray[Any, Any]:
    """Integers as int64, if they are no more; others are left for `Reader` to judge."""
    array = _nested("ids", value)
    if set(map(type, array.ravel().tolist())) == {int}:
        try:
            return array.astype(np.int64)
        except OverflowError:  # up to 2^64 - 1
            pass
    return array


def _numbers(name: str, value: Any) -> np.ndarray[Any, Any]:
    array = _nested(name, value)
    whole = name != "weights"
    types, dtype = ({int}, np.int64) if whole else ({int, float}, np.float64)
    if strange := set(map(type, array.ravel().tolist())) - types:
        wanted = "whole numbers" if whole else "numbers"
        raise refused(400, f"{name} must be {wanted}, got {sorted(kind.__name__ for kind in strange)[0]}")
    if not array.ndim:
        raise refused(400, f"{name} must be a list, got one number")
    try:
        return array.astype(dtype)
    except OverflowError:
        raise refused(400, f"{name} must be numbers of 64 bits") from None


# Arrow


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise refused(415, "Arrow bodies need pyarrow on the server: pip install 'cce-core[arrow]'") from None


def _arrow(call: str, body: bytes) -> dict[str, Any]:
    """The columns of a stream: `ids`, for bags a list each, with `weights` if there are any."""
    pa = _pyarrow()
    names = ("ids",) if call == "lookup" else ("ids", "weights")
    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if message.type not in ("schema", "record batch"):
                raise refused(400, f"the stream must hold record batches alone, got {message.type}")
            if message.type == "record batch" and _compressed(bytes(message.metadata)):
                raise refused(400, "the stream must not be compressed")
        stream = pa.ipc.open_stream(body)
        schema = stream.schema
        if set(schema.names) - set(names) or "ids" not in schema.names or len(set(schema.names)) < len(schema.names):
            raise refused(400, f"the stream's columns must be {' and '.join(names)}, got {', '.join(schema.names)}")
        for field in schema:
            _check_type(pa, call, field)
        table = stream.read_all()
        table.validate(full=True)
        table = table.combine_chunks()
        columns = {name: _flat(pa, name, table[name]) for name in schema.names}
    except (pa.ArrowException, LookupError, OSError, StopIteration, ValueError, struct.error) as error:
        raise refused(400, f"the body is no Arrow stream: {error}") from None
    if call == "lookup":
        return columns
    ids, lengths = columns["ids"]
    if "weights" not in columns:
        return {"ids": ids, "lengths": lengths}
    if not np.array_equal(lengths, columns["weights"][1]):
        raise refused(400, "every bag must have as many weights as ids")
    return {"ids": ids, "lengths": lengths, "weights": columns["weights"][0]}


def _check_type(pa: Any, call: str, field: Any) -> None:
    kind, lists = field.type, (pa.types.is_list, pa.types.is_large_list)
    if call == "bags":
        kind = kind.value_type if any(one(kind) for one in lists) else pa.null()
    numbers = pa.types.is_floating(kind) and kind.bit_width > 16
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (numbers if field.name == "weights" else pa.types.is_integer(kind) or strings):
        wanted = "floats" if field.name == "weights" else "integers or strings"
        raise refused(400, f"{field.name} must be {'lists of ' * (call == 'bags')}{wanted}, got {field.type}")


def _flat(pa: Any, name: str, column: Any) -> Any:
    """A column as an array; of lists all they hold, and their lengths."""
    array = column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
    lengths = None
    if hasattr(array, "value_lengths"):
        if array.null_count:
            raise refused(400, f"{name} has missing lists")
        lengths, array = np.diff(_values(pa, array.offsets)).astype(np.int64), array.flatten()
    if array.null_count:
        raise refused(400, f"{name} has missing values")
    flat = _values(pa, array)
    return flat if lengths is None else (flat, lengths)


def _values(pa: Any, array: Any) -> Any:
    """Numbers where they lie, strings as objects; pyarrow's own way imports pandas, for which all requests would wait."""
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return np.array(array.to_pylist(), object)
    if not len(array):
        return np.empty(0, np.int64)
    return np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())[array.offset : array.offset + len(array)]


def _compressed(metadata: bytes) -> bool:
    """Whether a record batch is compressed: a few bytes could become gigabytes. Its flatbuffer has a field that says so."""

    def field(table: int, number: int) -> int:
        """Where a field of a table lies; 0 if it has none."""
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", metadata, fields)[0]:
            return 0
        at = struct.unpack_from("<H", metadata, fields + 4 + 2 * number)[0]
        return table + at if at else 0

    header = field(struct.unpack_from("<I", metadata, 0)[0], 2)
    return bool(header and field(header + struct.unpack_from("<I", metadata, header)[0], 3))


# Replies


def written(kind: str, vectors: Any) -> bytes:
    """Vectors as the body of a reply: `{"vectors": …}`, float32 one behind the other, or a column of lists of `dim` floats."""
    if kind == JSON:
        return orjson.dumps({"vectors": vectors}, option=orjson.OPT_SERIALIZE_NUMPY)
    if kind == RAW:
        return bytes(vectors.astype("<f4", copy=False).tobytes())
    pa = _pyarrow()
    floats = pa.Array.from_buffers(pa.float32(), vectors.size, [None, pa.py_buffer(np.ascontiguousarray(vectors))])
    rows = pa.FixedSizeListArray.from_arrays(floats, vectors.shape[-1])
    batch, sink = pa.record_batch([rows], names=["vectors"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())
