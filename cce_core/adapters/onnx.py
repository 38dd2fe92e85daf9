"""A table as a model of ONNX: gathers, operations on bits and a product, which any runtime has, without code of this library.

from cce_core.adapters.onnx import to_onnx

to_onnx(table, "item.onnx")                 # or the path of a file that table.save has written
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cce_core import _check
from cce_core.hashing.halves import MASK32
from cce_core.method.portable import PortableLookup, sketch_arrays
from cce_core.tables.loading import load
from cce_core.tables.table import Table

OPSET = 18  # the first with bitwise operators
_IR_VERSION = 8
_MOST_BYTES = 2**31 - 2**20  # of one file of protobuf
_COMPARISONS = ("Equal", "Less", "Greater", "GreaterOrEqual")


class _Graph:
    """A graph that grows, and the few functions of arrays that `PortableLookup` takes, as operators of it."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._known: dict[Any, _Value] = {}

    def node(self, kind: str, inputs: Sequence[_Value], dtype: Any, **attributes: Any) -> _Value:
        """What an operator gives."""
        out = _Value(self, f"v{len(self.nodes)}", dtype)
        self.nodes.append(helper.make_node(kind, [value.name for value in inputs], [out.name], **attributes))
        return out

    def array(self, values: Any, name: str = "") -> _Value:
        """An array that the model holds; small ones once."""
        values = np.asarray(values)
        key = name or (values.dtype.str, values.shape, values.tobytes())
        if key not in self._known:
            self._known[key] = _Value(self, name or f"c{len(self._known)}", values.dtype)
            self.initializers.append(numpy_helper.from_array(values, self._known[key].name))
        return self._known[key]

    def _many(self, values: Sequence[Any]) -> list[_Value]:
        (like, *_) = [value for value in values if isinstance(value, _Value)]
        return [value if isinstance(value, _Value) else self.array(np.asarray(value, like.dtype)) for value in values]

    def concatenate(self, values: Sequence[Any], axis: int) -> _Value:
        wide = max((value.dtype for value in values), key=lambda dtype: dtype.itemsize)
        return self.node("Concat", [value.astype(wide) for value in values], wide, axis=axis)

    def stack(self, values: Sequence[_Value], axis: int) -> _Value:
        assert axis == -1
        return self.concatenate([value[..., None] for value in values], axis)

    def take(self, value: _Value, index: Any, axis: int) -> _Value:
        return self.node("Gather", [value, self.array(np.asarray(index, np.int64))], value.dtype, axis=axis)

    def where(self, condition: Any, one: Any, other: Any) -> _Value:
        one, other = self._many([one, other])
        condition = condition if isinstance(condition, _Value) else self.array(condition)
        dtype = one.dtype
        if dtype == np.uint64:  # which runtimes choose from as little as they sum it
            one, other = one.astype(np.int64), other.astype(np.int64)
        return self.node("Where", [condition, one, other], one.dtype).astype(dtype)

    def minimum(self, one: _Value, other: Any) -> _Value:
        return self.node("Min", self._many([one, other]), one.dtype)

    def logaddexp(self, value: _Value, zero: Any) -> _Value:
        assert zero == 0
        return self.node("Softplus", [value], value.dtype)

    def __getattr__(self, name: str) -> Any:
        if name not in ("log", "sqrt", "cos", "sin", "tanh"):
            raise AttributeError(name)
        return lambda value: self.node(name.capitalize(), [value], value.dtype)


def _binary(kind: str, turned: bool = False, **attributes: Any) -> Any:
    def operator(self: _Value, other: Any) -> _Value:
        other = other if isinstance(other, _Value) else self.graph.array(np.asarray(other).astype(self.dtype))
        wide = self.dtype if self.dtype.itemsize >= other.dtype.itemsize else other.dtype
        both = [self.astype(wide), other.astype(wide)]
        dtype = np.dtype(bool) if kind in _COMPARISONS else wide
        return self.graph.node(kind, both[::-1] if turned else both, dtype, **attributes)

    return operator


class _Value:
    """An array in a graph; of uint64 also the 64-bit words that hashes are made of (`hashing.halves.Halves`)."""

    __array_ufunc__ = None  # so that NumPy's numbers leave operators to it
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, graph: _Graph, name: str, dtype: Any) -> None:
        self.graph, self.name, self.dtype = graph, name, np.dtype(dtype)

    __add__ = __radd__ = _binary("Add")
    __mul__ = __rmul__ = _binary("Mul")
    __sub__, __rsub__ = _binary("Sub"), _binary("Sub", turned=True)
    __floordiv__, __mod__, __matmul__ = _binary("Div"), _binary("Mod"), _binary("MatMul")
    __and__, __or__, __xor__ = _binary("BitwiseAnd"), _binary("BitwiseOr"), _binary("BitwiseXor")
    __lshift__, __rshift__ = _binary("BitShift", direction="LEFT"), _binary("BitShift", direction="RIGHT")
    __rlshift__ = _binary("BitShift", turned=True, direction="LEFT")
    __eq__, __lt__, __gt__, __ge__ = (_binary(kind) for kind in _COMPARISONS)

    def __getitem__(self, key: Any) -> _Value:
        if isinstance(key, tuple):  # [:, None], [..., None] and the like
            axis = -1 if key[0] is Ellipsis else len(key) - 1
            return self.graph.node("Unsqueeze", [self, self.graph.array(np.array([axis]))], self.dtype)
        if isinstance(key, slice):  # [:-1]
            bounds = [self.graph.array(np.array([n])) for n in (0, key.stop, 0)]
            return self.graph.node("Slice", [self, *bounds], self.dtype)
        index = key if isinstance(key, _Value) else self.graph.array(np.asarray(key, np.int64))
        return self.graph.node("Gather", [self, index.astype(np.int64)], self.dtype)

    def astype(self, dtype: Any) -> _Value:
        """The same numbers in another type."""
        if self.dtype == dtype:
            return self
        return self.graph.node("Cast", [self], dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, shape: Sequence[int]) -> _Value:
        """In another shape, of which one size may be −1."""
        return self.graph.node("Reshape", [self, self.graph.array(np.array(shape, np.int64))], self.dtype)

    def _reduced(self, kind: str, axis: int) -> _Value:
        value = self.astype(np.int64) if self.dtype.kind == "u" else self
        axes = self.graph.array(np.array([axis], np.int64))
        return self.graph.node(kind, [value, axes], value.dtype, keepdims=0).astype(self.dtype)

    def sum(self, axis: int) -> _Value:
        """Along an axis."""
        return self._reduced("ReduceSum", axis)

    def prod(self, axis: int) -> _Value:
        """Along an axis."""
        return self._reduced("ReduceProd", axis)

    # --- as words -----------------------------------------------------------------------------------------------------

    def of(self, low: _Value) -> _Value:
        """Words of smaller numbers."""
        return low.astype(np.uint64)

    def constants(self, numbers: Any) -> _Value:
        """Words of known numbers."""
        return self.graph.array(np.asarray(numbers, np.uint64))

    def low_half(self) -> _Value:
        """The words as indices."""
        return self

    def high_product(self, n: int) -> _Value:
        """⌊word · n / 2^64⌋ for 0 < n < 2^32."""
        return ((self >> 32) * n + (((self & MASK32) * n) >> 32)) >> 32

    def within(self, n: int) -> tuple[_Value, _Value]:
        """The words, with 0 in place of those that are not below n, and which are below it."""
        inside = self < n
        return self * inside.astype(np.uint64), inside


def to_onnx(
    table: Table | str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, ndim: int | None = None
) -> Any:
    """A table as a model of ONNX: `ids`, int64 of any shape, to `vectors`, float32 (*ids.shape, dim).

    The operators are those of opset 18, all of the default domain: Gather, Mul, BitShift and other operations on bits for hashes
    and pointers, MatMul for a projection. Hashes are of unsigned 64-bit words, as in onnxruntime. A memory stays in its codec
    (int8 and int4 in bytes, bfloat16), and only what is gathered of it is decoded: a model is as large as the table, and some kB.
    An id outside the vocabulary gives NaN.

    Args:
        table: of any method but `tiered`; or the path of a file that it was saved in.
        out: a path to write the model to; what exceeds 2 GB lies beside it, in a file of that name and `.data`.
        ndim: axes of the ids, for tools that must know: `onnx.checker` is one. None leaves them open, which onnxruntime takes.

    Returns:
        The model, an `onnx.ModelProto`; its metadata hold the table's spec.

    Raises:
        FileFormatError, OSError: the file cannot be read, or the model not written.
        ValueError: the method is `tiered`, or the table too large for indices of 32 bits.
        TypeError: it is neither a table nor a path.

    Cost:
        A copy of the table.

    Example:
        >>> import numpy as np, onnxruntime, cce_core as cce
        >>> from cce_core.adapters.onnx import to_onnx
        >>> table = cce.make_table("cce", vocab=1000, dim=16, num_params=2048, seed=0)
        >>> session = onnxruntime.InferenceSession(to_onnx(table).SerializeToString())
        >>> (vectors,) = session.run(None, {"ids": np.array([[1, 2], [3, 4]])})
        >>> vectors.shape, bool(np.allclose(vectors, table.lookup([[1, 2], [3, 4]]), atol=1e-6))
        ((2, 2, 16), True)
    """
    given = load(table, mmap=True) if isinstance(table, (str, os.PathLike)) else table
    found: Table = _check.instance("table", given, Table, "a table, or the path of one that was saved")
    lookup, graph = PortableLookup(found.spec, coded=True), _Graph()
    arrays = {name: graph.array(values, name) for name, values in _stored(found, lookup).items()}
    ids = _Value(graph, "ids", np.int64)
    vectors = lookup(graph, arrays, ids.reshape([-1]).astype(np.uint64))
    shape = graph.concatenate([graph.node("Shape", [ids], np.int64), graph.array(np.array([found.spec.dim]))], 0)
    graph.nodes.append(helper.make_node("Reshape", [vectors.name, shape.name], ["vectors"], allowzero=1))
    sizes = None if ndim is None else [f"size{n}" for n in range(_check.integer("ndim", ndim, 0, 64))]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "cce_core",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, sizes)],
            [
                helper.make_tensor_value_info(
                    "vectors", TensorProto.FLOAT, None if sizes is None else [*sizes, found.spec.dim]
                )
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cce-core",
    )
    helper.set_model_props(model, {"cce_core.spec": json.dumps(found.spec.as_json())})
    if out is not None:
        large = model.ByteSize() > _MOST_BYTES
        beside = (
            {"save_as_external_data": True, "location": f"{os.path.basename(os.fspath(out))}.data"} if large else {}
        )
        onnx.save(model, os.fspath(out), **beside)
    return model


def _stored(table: Table, lookup: PortableLookup) -> dict[str, Any]:
    """The arrays that a lookup reads, as they are kept."""
    arrays = table.arrays()
    out = {name: arrays[name] for name in (*table.shapes(), "scales") if name in arrays}
    for name, shape in lookup.shapes.items():
        out[name] = out[name].reshape(shape) if lookup.codec != "int4" or name != "memory" else _pairs(out[name], shape)
    if lookup.codec == "bfloat16":
        out["memory"] = out["memory"].view(ml_dtypes.bfloat16)
    return {**out, **sketch_arrays(table)}


def _pairs(codes: Any, shape: tuple[int, int]) -> Any:
    """The bytes of each unit; of units of one float, flat."""
    return codes.reshape(shape[0], shape[1] // 2) if shape[1] > 1 else codes
