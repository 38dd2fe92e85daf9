"""Products along a tensor train, each prefix of digits worked out once a batch; and the same way back.

A node of level k stands for distinct first digits (i₁ … i_k) of a batch's ids: its parent is the node of (i₁ … i_(k−1)), its
value the product so far,

    L_k[node] = L_(k−1)[parent] · G_k[i_k],        (D_(k−1), r_(k−1)) · (r_(k−1), d_k · r_k),

whose floats in order are also (D_k, r_k), with D_k = d₁ ⋯ d_k. Level 0 has one node, of value 1; the nodes of the last level
are the distinct ids, and their values the vectors. A gradient goes from the leaves to the root; a thread owns a range of what
is summed into and meets the nodes in their order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cce_core._jit import jit
from cce_core._threads import parallel_for
from cce_core.hashing.distinct import number_distinct
from cce_core.sketching.gradient import Gradient, SparseGradient
from cce_core.sketching.small_matmul import add_product

_WORK = 1 << 19  # multiplications that make another thread worth waking
_ROOT = np.ones(1, np.float32)
_one = np.uint64(1)


class Core(NamedTuple):
    """One core of a train: G (base, left, d, right) as flat values."""

    values: NDArray[np.float32]
    base: int
    left: int
    d: int
    right: int

    @property
    def width(self) -> int:
        """Columns of a digit's matrix G[i] (left, d · right)."""
        return self.d * self.right


class Tree(NamedTuple):
    """The nodes of a batch's ids, level by level.

    Attributes:
        cores: whose products the values are.
        parents: for each level int64 (nodes,), the number of the node above.
        digits: for each level int64 (nodes,), the rows of its core.
        values: for each level float32 (nodes · D_k · r_k,), flat.
        leaves: int64 (n,), the last level's node of every id.
    """

    cores: list[Core]
    parents: list[NDArray[np.int64]]
    digits: list[NDArray[np.int64]]
    values: list[NDArray[np.float32]]
    leaves: NDArray[np.int64]


@jit
def _plan(ids: Any, bases: Any, parents: Any, digits: Any, counts: Any, node: Any) -> None:
    """The nodes of all levels; `node` ends as the leaf of each id."""
    rest, keys = ids.copy(), np.empty(ids.shape[0], np.uint64)
    firsts = np.empty(ids.shape[0], np.int64)
    for n in range(ids.shape[0]):
        node[n] = 0
    for k in range(bases.shape[0]):
        base = bases[k]
        for n in range(ids.shape[0]):
            quotient = rest[n] // base
            keys[n] = np.uint64(node[n]) * base + (rest[n] - quotient * base)
            rest[n] = quotient
        counts[k] = number_distinct(keys, node, firsts)
        for m in range(counts[k]):
            key = keys[firsts[m]]
            parents[k, m] = np.int64(key // base)
            digits[k, m] = np.int64(key % base)


@jit
def _values(
    start: int, stop: int, parents: Any, digits: Any, above: Any, core: Any, rows: int, inner: int, width: int, out: Any
) -> None:
    """Values of the nodes [start, stop)."""
    d, r, w = np.uint64(rows), np.uint64(inner), np.uint64(width)
    for m in range(start, stop):
        p, i = np.uint64(parents[m]), np.uint64(digits[m])
        add_product(out, np.uint64(m) * d * w, w, above, p * d * r, r, _one, core, i * r * w, w, d, r, w)


@jit
def _to_core(
    start: int, stop: int, parents: Any, places: Any, above: Any, slopes: Any, rows: int, inner: int, width: int, out: Any
) -> None:  # fmt: skip
    """The core's gradient in [start, stop): L[parent]ᵀ · slope, node by node."""
    d, r, w = np.uint64(rows), np.uint64(inner), np.uint64(width)
    for m in range(places.shape[0]):
        if places[m] >= start and places[m] < stop:
            p, i = np.uint64(parents[m]), np.uint64(places[m])
            add_product(out, i * r * w, w, above, p * d * r, _one, r, slopes, np.uint64(m) * d * w, w, r, d, w)


@jit
def _to_parents(
    start: int, stop: int, parents: Any, digits: Any, turned: Any, slopes: Any, rows: int, inner: int, width: int, out: Any
) -> None:  # fmt: skip
    """The gradient of the parents [start, stop): slope · G[digit]ᵀ, node by node."""
    d, r, w = np.uint64(rows), np.uint64(inner), np.uint64(width)
    for m in range(parents.shape[0]):
        if parents[m] >= start and parents[m] < stop:
            p, i = np.uint64(parents[m]), np.uint64(digits[m])
            add_product(out, p * d * r, r, slopes, np.uint64(m) * d * w, w, _one, turned, i * w * r, r, d, w, r)


@jit
def _from_leaves(start: int, stop: int, leaves: Any, values: Any, out: Any) -> None:
    dim = np.uint64(out.shape[1])
    for n in range(start, stop):
        at = np.uint64(leaves[n]) * dim
        for j in range(dim):
            out[n, j] = values[at + j]


@jit
def _to_leaves(start: int, stop: int, leaves: Any, grads: Any, out: Any) -> None:
    dim = np.uint64(grads.shape[1])
    for n in range(grads.shape[0]):
        if leaves[n] >= start and leaves[n] < stop:
            at = np.uint64(leaves[n]) * dim
            for j in range(dim):
                out[at + j] += grads[n, j]


def _grain(items: int, work: int) -> int:
    """Items that make a thread worth waking where all of them take `work` multiplications."""
    return 1 + _WORK * items // (1 + work)


def grow(ids: NDArray[np.uint64], cores: list[Core]) -> Tree:
    """The tree of flat ids, all its values worked out."""
    n, bases = ids.shape[0], np.array([core.base for core in cores], np.uint64)
    parents, digits = np.empty((len(cores), n), np.int64), np.empty((len(cores), n), np.int64)
    counts, leaves = np.empty(len(cores), np.int64), np.empty(n, np.int64)
    _plan(ids, bases, parents, digits, counts, leaves)
    tree = Tree(cores, [], [], [], leaves)
    above, rows = _ROOT, 1
    for k, (core, count) in enumerate(zip(cores, counts.tolist(), strict=True)):
        floats = rows * core.width
        values = np.zeros(count * floats, np.float32)
        tree.parents.append(parents[k, :count])
        tree.digits.append(digits[k, :count])
        tree.values.append(values)
        parallel_for(
            _values, count, _grain(count, count * core.left * floats), tree.parents[k], tree.digits[k], above, core.values,
            rows, core.left, core.width, values,
        )  # fmt: skip
        above, rows = values, rows * core.d
    return tree


def vectors(tree: Tree, out: NDArray[np.float32]) -> None:
    """The leaves' values, id by id, into `out` (n, dim)."""
    parallel_for(_from_leaves, out.shape[0], _grain(out.shape[0], out.size), tree.leaves, tree.values[-1], out)


def gradients(tree: Tree, grads: NDArray[np.float32], dense: bool) -> list[Gradient]:
    """The gradient of every core from those of the vectors (n, dim): whole and flat, or of the touched rows."""
    cores, slopes = tree.cores, np.zeros(tree.values[-1].size, np.float32)
    nodes, rows = len(tree.parents[-1]), grads.shape[1]
    parallel_for(_to_leaves, nodes, _grain(nodes, grads.size), tree.leaves, grads, slopes)
    out: list[Gradient] = []
    for k in range(len(cores) - 1, -1, -1):
        core, parents, digits = cores[k], tree.parents[k], tree.digits[k]
        above, size = tree.values[k - 1] if k else _ROOT, core.left * core.width
        rows //= core.d
        work = len(digits) * rows * size
        places, n_places = digits, core.base
        if not dense:
            places, firsts = np.empty_like(digits), np.empty_like(digits)
            n_places = number_distinct(digits.view(np.uint64), places, firsts)
        gradient = np.zeros(n_places * size, np.float32)
        parallel_for(
            _to_core, n_places, _grain(n_places, work), parents, places, above, slopes, rows, core.left, core.width,
            gradient,
        )  # fmt: skip
        if dense:
            out.append(gradient)
        else:
            out.append(SparseGradient(digits[firsts[:n_places]], gradient.reshape(n_places, size), core.values.size))
        if k:
            turned = core.values.reshape(core.base, core.left, core.width).transpose(0, 2, 1).reshape(-1)
            further = np.zeros(above.size, np.float32)
            nodes = len(tree.parents[k - 1])
            parallel_for(
                _to_parents, nodes, _grain(nodes, work), parents, digits, turned, slopes, rows, core.left, core.width,
                further,
            )  # fmt: skip
            slopes = further
    return out[::-1]
