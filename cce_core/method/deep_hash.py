"""Deep Hash Embedding: many hashes of an id are its features, and a small network turns them into its vector."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.distinct import number_distinct
from cce_core.hashing.mix import derive_keys, keyed, multiply_high_32, premix
from cce_core.method.base import INITIAL_NORM, Method, Request
from cce_core.method.spec import KEYS, ArraySpec, BudgetError, TableSpec
from cce_core.method.state import TableState
from cce_core.sketching.gradient import Gradient

BUCKETS = 1_000_000  # the paper's m
TRANSFORMS = ("uniform", "gaussian")
_MOST_HASHES = 1024  # the paper's k: past it a larger budget goes into the width alone
# Hashes for each unit of width, below that. On MovieLens 100K (dim 32, two seeds) ratios 4, 16, 64 reach AUC 0.714, 0.743,
# 0.740 with 512 parameters a table, 0.830, 0.836, 0.833 with 8,192; at the latter one hidden layer reaches 0.812, 0.826, 0.825.
_RATIO = 16
_BLOCK = 4096  # ids whose encodings are held at a time
_SAMPLE = 2048  # ids that the first values are scaled by
_GRAIN = 1 << 17  # hashes, or values of Mish, that make another thread worth waking

_m = np.uint64(BUCKETS)
_step = np.float32(2.0 / (BUCKETS - 1))
_part, _turn = np.float32(1.0 / BUCKETS), np.float32(2.0 * math.pi / BUCKETS)
_1, _2, _4 = np.float32(1.0), np.float32(2.0), np.float32(4.0)

# e^x = 2^n · e^r with n = round(x / ln 2); e^r by its series to r^7, good to a few units in the last place where |r| < 0.35.
_log2e, _round = np.float32(1.4426950408889634), np.float32(1.5 * 2**23)  # adding and taking the latter off rounds
_ln2_high, _ln2_low = np.float32(0.693359375), np.float32(math.log(2.0) - 0.693359375)
_c2, _c3, _c4, _c5, _c6, _c7 = (np.float32(1.0 / math.factorial(n)) for n in range(2, 8))
_bias, _mantissa = np.int32(127), np.int32(23)
_least, _most = np.float32(-80.0), np.float32(20.0)  # beyond these Mish is 0, or x itself, in float32


@jit
def _uniform(start: int, stop: int, ids: Any, keys: Any, out: Any) -> None:
    for n in range(start, stop):
        word, row = premix(ids[n]), out[n]
        for j in range(np.uint64(keys.shape[0])):
            row[j] = np.float32(multiply_high_32(keyed(word, keys[j]), _m)) * _step - _1


@jit
def _gaussian(start: int, stop: int, ids: Any, keys: Any, out: Any) -> None:
    for n in range(start, stop):
        word, row = premix(ids[n]), out[n]
        for j in range(np.uint64(0), np.uint64(keys.shape[0]), np.uint64(2)):
            first = np.float32(multiply_high_32(keyed(word, keys[j]), _m)) + _1  # 1 to m: its logarithm is finite
            second = np.float32(multiply_high_32(keyed(word, keys[j + np.uint64(1)]), _m))
            radius = np.sqrt(-_2 * np.log(first * _part))
            row[j] = radius * np.cos(second * _turn)
            row[j + np.uint64(1)] = radius * np.sin(second * _turn)


@jit
def _exp(x: np.float32) -> np.float32:
    """e^x for x in [-80, 20]; unlike the C library's it becomes vector instructions."""
    n = (x * _log2e + _round) - _round
    r = x - n * _ln2_high - n * _ln2_low
    series = ((((_c7 * r + _c6) * r + _c5) * r + _c4) * r + _c3) * r + _c2
    power = np.int32((np.int32(n) + _bias) << _mantissa).view(np.float32)
    return (series * r * r + r + _1) * power


@jit
def _mish(start: int, stop: int, z: Any, slope: Any) -> None:
    # With e = e^x, tanh(log(1 + e)) = ((1 + e)² − 1) / ((1 + e)² + 1) = q / (q + 2) where q = e·(e + 2).
    for i in range(np.uint64(start), np.uint64(stop)):
        x = _least if z[i] < _least else z[i]
        near = _most if x > _most else x
        e = _exp(near)
        q = e * (e + _2)
        share = _1 / (q + _2)
        z[i] = x * (q * share)
        slope[i] = q * share + near * (_4 * e * (_1 + e)) * share * share


@jit
def _collect(grads: Any, where: Any, out: Any) -> None:
    """Sums the gradients of every id, in the order they come."""
    for n in range(grads.shape[0]):
        row, grad = out[where[n]], grads[n]
        for j in range(np.uint64(grads.shape[1])):
            row[j] += grad[j]


class _Pass(NamedTuple):
    """What a block's forward pass leaves for its backward pass.

    Attributes:
        where: which of the block's distinct ids each id is.
        inputs: of every layer, a row for each distinct id.
        slopes: of Mish, likewise.
    """

    where: NDArray[np.int64]
    inputs: list[NDArray[np.float32]]
    slopes: list[NDArray[np.float32]]


class DeepHash(Method):
    """T[i] = MLP(x(i)): k hashes of i into [0, m), each made a real number, then hidden layers with Mish and a linear one.

        uniform:  x_j = 2·h_j(i) / (m − 1) − 1
        gaussian: x_j, x_{j+1} = √(−2 ln u) · (cos, sin)(2π·v)    with u = (h_j(i) + 1) / m, v = h_{j+1}(i) / m
        a ← Mish(a · w + b) in each hidden layer, Mish(z) = z · tanh(log(1 + e^z));    T[i] = a · w + b in the last

    The hash keys follow from the seed, so the weights are all that is stored. Costs k hashes and all of the network for
    every distinct id of a batch, whatever the vocabulary; a backward pass gives whole gradients.
    """

    name = "dhe"
    paper = "arXiv:2010.10784"
    summary = "many hashes of the id through a small network"
    stores = "4·(k·w + (depth−1)·w² + w·dim), nearly"
    takes = "k hashes and as many multiplications as the network has weights"
    linear = False
    projects = False
    codecs = False
    options = {"transform": "uniform", "depth": 2, "n_hashes": None}

    def check(self, request: Request) -> None:
        """A known transform, at least one hidden layer, and hashes that pair up where they are used in pairs."""
        _check.choice("transform", request.options["transform"], TRANSFORMS)
        _check.integer("depth", request.options["depth"], 1, 64)
        hashes, pair = request.options["n_hashes"], _pair(request.options)
        if hashes is not None and _check.integer("n_hashes", hashes, 1, 2**20) % pair:
            raise ValueError(f"transform 'gaussian' takes hashes in pairs: n_hashes must be even, got {hashes}")

    def sizes(self, request: Request) -> tuple[int, ...]:
        """(hashes, width, depth): the largest width whose network fits, then, where they are free, the hashes that do."""
        depth, chosen, pair = request.options["depth"], request.options["n_hashes"], _pair(request.options)
        assert isinstance(depth, int)
        assert chosen is None or isinstance(chosen, int)
        room = request.num_params if request.num_params is not None else (request.num_bytes or 0) // 4
        hashes, width = chosen or pair, 1
        least = _params(hashes, width, depth, request.dim)
        if room < least:
            raise BudgetError(request.too_small(self.name, least, 4 * least))
        if chosen is None:
            width = max(1, _width(room, _RATIO, 0, depth, request.dim))
            hashes = (room - _params(0, width, depth, request.dim)) // width // pair * pair
        if chosen is not None or hashes > _MOST_HASHES:
            hashes = chosen or _MOST_HASHES
            width = _width(room, 0, hashes, depth, request.dim)
        return hashes, width, depth

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """The depth and the hashes that the options say; at least one float of width."""
        if len(sizes) != 3:
            raise ValueError(f"a 'dhe' table has three sizes, hashes, width and depth, got {len(sizes)}")
        chosen, pair, depth = request.options["n_hashes"], _pair(request.options), request.options["depth"]
        least, most = (pair, _MOST_HASHES) if chosen is None else (chosen, chosen)
        if _check.integer("sizes[0], the hashes,", sizes[0], int(least), int(most)) % pair:
            raise ValueError(f"transform 'gaussian' takes hashes in pairs: sizes[0] must be even, got {sizes[0]}")
        _check.integer("sizes[1], the width,", sizes[1], 1)
        if sizes[2] != depth:
            raise ValueError(f"sizes[2] must be the depth, {depth}, got {sizes[2]}")

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """Weights `w0`, …, (into the layer, out of it) and biases `b0`, … of every layer; the last is the linear one."""
        hashes, width, depth = spec.sizes
        sides = (hashes, *[width] * depth, spec.dim)
        out = {}
        for layer in range(depth + 1):
            into, of = sides[layer : layer + 2]
            out[f"w{layer}"] = ArraySpec(np.float32, (into, of), of)
            out[f"b{layer}"] = ArraySpec(np.float32, (of,), of)
        return out

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """He's variances, biases of 0; the last layer is scaled so that vectors of (a sample of) ids have `INITIAL_NORM`."""
        depth = spec.sizes[2]
        out: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape, _) in self.arrays(spec).items():
            out[name] = np.zeros(shape, dtype)
            if name.startswith("w"):
                out[name] = rng.standard_normal(shape, np.float32) * np.float32((2.0 / shape[0]) ** 0.5)
        out["w0"] *= np.float32(1.0 if _pair(dict(spec.options)) == 2 else 3.0**0.5)  # uniform: variance 1/3
        if spec.vocab is not None and spec.vocab <= _SAMPLE:
            ids = np.arange(spec.vocab, dtype=np.uint64)
        else:
            ids = rng.integers(0, spec.vocab or 2**64, _SAMPLE, np.uint64)
        norm = np.square(_run(spec, out, ids)[0]).sum(1).mean() ** 0.5
        out[f"w{depth}"] *= np.float32(INITIAL_NORM / max(float(norm), 1e-30))
        return out

    def forward(self, table: TableState, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Any]:
        """The network over blocks of ids; what it saw is kept where one block was enough."""
        arrays = table.arrays()
        if len(ids) <= _BLOCK:
            return _run(table.spec, arrays, ids, keep)
        out = np.empty((len(ids), table.spec.dim), np.float32)
        for part in _blocks(len(ids)):
            out[part] = _run(table.spec, arrays, ids[part])[0]
        return out, None

    def backward(
        self, table: TableState, ids: NDArray[np.uint64], saved: Any, grads: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """The chain rule, a block of ids after the other; every gradient is whole."""
        arrays = table.arrays()
        if saved is not None:
            return dict(_back(arrays, saved, grads))
        out: dict[str, NDArray[np.float32]] = {name: np.zeros_like(array) for name, array in arrays.items()}
        for part in _blocks(len(ids)):
            passed = _run(table.spec, arrays, ids[part], True)[1]
            assert passed is not None
            for name, gradient in _back(arrays, passed, grads[part]).items():
                out[name] += gradient
        return dict(out)


def encode(spec: TableSpec, ids: NDArray[np.uint64], keys: NDArray[np.uint64] | None = None) -> NDArray[np.float32]:
    """The features x of flat ids, float32 (n, hashes), under these keys, or those that follow from the table's seed."""
    keys = _known_keys(spec) if keys is None else keys
    out = np.empty((len(ids), len(keys)), np.float32)
    kernel = _gaussian if _pair(dict(spec.options)) == 2 else _uniform
    parallel_for(kernel, len(ids), max(1, _GRAIN // len(keys)), ids, keys, out)
    return out


def hash_keys(spec: TableSpec) -> NDArray[np.uint64]:
    """The keys of all hashes, from the table's seed: uint64 (hashes,)."""
    return derive_keys(spec.seed, spec.sizes[0], KEYS, 0)


_known_keys = functools.lru_cache(maxsize=256)(hash_keys)


def _pair(options: Mapping[str, Any]) -> int:
    """How many hashes go together."""
    return 2 if options["transform"] == "gaussian" else 1


def _params(hashes: int, width: int, depth: int, dim: int) -> int:
    """Weights and biases of all layers."""
    return (hashes + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * dim


def _width(room: int, ratio: int, hashes: int, depth: int, dim: int) -> int:
    """The largest width w with `ratio · w + hashes` hashes that fits: a root of a · w² + b · w + dim = room."""
    a, b = depth - 1 + ratio, hashes + depth + dim
    if a == 0:
        return (room - dim) // b
    return (math.isqrt(max(0, b * b + 4 * a * (room - dim))) - b) // (2 * a)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))


def _run(
    spec: TableSpec, arrays: Mapping[str, NDArray[Any]], ids: NDArray[np.uint64], keep: bool = False
) -> tuple[NDArray[np.float32], _Pass | None]:
    """The vectors of one block of ids; an id that comes twice passes through the network once."""
    depth, n = spec.sizes[2], len(ids)
    where, firsts = np.empty(n, np.int64), np.empty(n, np.int64)
    count = number_distinct(ids, where, firsts)
    x = encode(spec, ids[firsts[:count]])
    inputs, slopes = [x], []
    for layer in range(depth):
        x = x @ arrays[f"w{layer}"]
        x += arrays[f"b{layer}"]
        slope = np.empty_like(x)
        parallel_for(_mish, x.size, _GRAIN, x.reshape(-1), slope.reshape(-1))
        inputs.append(x)
        slopes.append(slope)
    x = x @ arrays[f"w{depth}"]
    x += arrays[f"b{depth}"]
    return x.take(where, 0), _Pass(where, inputs, slopes) if keep else None


def _back(
    arrays: Mapping[str, NDArray[Any]], passed: _Pass, grads: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The gradients of all layers from one block's."""
    out = {}
    summed = np.zeros((len(passed.inputs[0]), grads.shape[1]), np.float32)
    _collect(grads, passed.where, summed)
    grads, ones = summed, np.ones(len(summed), np.float32)
    for layer in range(len(passed.slopes), -1, -1):
        out[f"w{layer}"] = passed.inputs[layer].T @ grads
        out[f"b{layer}"] = ones @ grads  # BLAS sums columns quicker than NumPy
        if layer:
            grads = grads @ arrays[f"w{layer}"].T
            grads *= passed.slopes[layer - 1]
    return out
