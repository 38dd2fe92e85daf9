"""Tensor-Train: the table as a chain of small cores, one for each digit of the id."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cce_core import _check
from cce_core.hashing.digits import balanced_bases
from cce_core.method.base import INITIAL_NORM, Method, Request, divisors
from cce_core.method.spec import ArraySpec, BudgetError, TableSpec
from cce_core.method.state import TableState
from cce_core.sketching import tensor_train
from cce_core.sketching.gradient import Gradient
from cce_core.sketching.tensor_train import Core

IDS_PER_TREE = 1 << 14  # ids of one tree: larger batches are taken in parts, so that the products in hand stay few


class TensorTrain(Method):
    """T[i] = G₁[i₁] · G₂[i₂] ⋯ G_K[i_K], with (i₁, …, i_K) the digits of i and G_k[i_k] of shape (r_(k−1), d_k, r_k).

    The product of the d_k is dim, r₀ = r_K = 1, and the ranks between are as large as the budget allows: equal, or one
    apart, and none above that of the full table's unfolding, where more would be of no use.
    """

    name = "tt"
    paper = "arXiv:2101.11714"
    summary = "a tensor train: a chain of small cores, one a digit of the id"
    stores = "4·Σ v_k·r_(k−1)·d_k·r_k over the cores"
    takes = "a product of small matrices a core, shared by ids with the same leading digits"
    linear = False
    projects = False
    codecs = False
    options = {"cores": 3}

    def check(self, request: Request) -> None:
        """Digits need a last id, and a train at least two cores."""
        if request.vocab is None:
            raise ValueError("method 'tt' needs a vocab: its digits must reach every id; 'ce' takes unbounded ids")
        _check.integer("cores", request.options["cores"], 2, 64)

    def sizes(self, request: Request) -> tuple[int, ...]:
        """The inner ranks r₁ … r_(K−1)."""
        assert request.vocab is not None
        grid = _grid(request.vocab, request.dim, int(request.options["cores"] or 0))
        most = _full_ranks(grid)
        room = request.num_params if request.num_params is not None else (request.num_bytes or 0) // 4
        least = _params(grid, (1,) * len(most))
        if least > room:
            raise BudgetError(request.too_small(self.name, least, 4 * least))
        low, high = 1, max(most) + 1  # bisection in whole numbers: low fits
        while high - low > 1:
            middle = (low + high) // 2
            if _params(grid, tuple(min(middle, m) for m in most)) <= room:
                low = middle
            else:
                high = middle
        ranks = [min(low, m) for m in most]
        for k in range(len(ranks) - 1, -1, -1):  # what is left makes some ranks one larger, the last ones first
            more = [*ranks[:k], min(low + 1, most[k]), *ranks[k + 1 :]]
            if _params(grid, tuple(more)) <= room:
                ranks = more
        return tuple(ranks)

    def check_sizes(self, request: Request, sizes: tuple[int, ...]) -> None:
        """A rank between each two cores, none above the full table's."""
        assert request.vocab is not None
        cores = int(request.options["cores"] or 0)
        if len(sizes) != cores - 1:
            raise ValueError(f"a 'tt' table of {cores} cores has {cores - 1} sizes, its inner ranks, got {len(sizes)}")
        for k, most in enumerate(_full_ranks(_grid(request.vocab, request.dim, cores))):
            _check.integer(f"sizes[{k}], a rank,", sizes[k], 1, most)

    def arrays(self, spec: TableSpec) -> dict[str, ArraySpec]:
        """A float32 array a core, a flat row a digit."""
        out = {}
        for k, (base, left, d, right) in enumerate(core_shapes(spec)):
            out[f"core{k}"] = ArraySpec(np.float32, (base, left * d * right), left * d * right)
        return out

    def fresh(self, spec: TableSpec, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Normal cores, all scaled alike so that the vectors' root mean square norm is `INITIAL_NORM`.

        The mean of ‖T[i]‖² over all digits follows from the cores' second moments, carried along the train.
        """
        out, moment = {}, np.ones((1, 1))
        for k, (base, left, d, right) in enumerate(core_shapes(spec)):
            values = rng.standard_normal((base, left, d, right), np.float32)
            values *= np.float32((left * d) ** -0.5)
            half = np.tensordot(moment, values, (1, 1)).transpose(1, 0, 2, 3)
            moment = np.tensordot(values, half, ((0, 1, 2), (0, 1, 2))) / base
            out[f"core{k}"] = values.reshape(base, -1)
        scale = (INITIAL_NORM / math.sqrt(moment.item())) ** (1 / len(out))
        for values in out.values():
            values *= np.float32(scale)
        return out

    def cores(self, table: TableState) -> list[Core]:
        """The cores with their shapes."""
        parameters = table.arrays()
        return [Core(parameters[f"core{k}"].reshape(-1), *shape) for k, shape in enumerate(core_shapes(table.spec))]

    def forward(self, table: TableState, ids: NDArray[np.uint64], keep: bool) -> tuple[NDArray[np.float32], Any]:
        """Products along the train, each prefix of digits once; the tree of them is kept for the way back."""
        cores, tree = self.cores(table), None
        out = np.empty((ids.shape[0], table.spec.dim), np.float32)
        for start in range(0, ids.shape[0], IDS_PER_TREE):
            tree = tensor_train.grow(ids[start : start + IDS_PER_TREE], cores)
            tensor_train.vectors(tree, out[start : start + IDS_PER_TREE])
        return out, tree if keep and ids.shape[0] <= IDS_PER_TREE else None

    def backward(
        self, table: TableState, ids: NDArray[np.uint64], saved: Any, grads: NDArray[np.float32], dense: bool
    ) -> dict[str, Gradient]:
        """From the leaves of the tree to its root, a gradient for each core on the way."""
        total: list[Any] = []
        for start in range(0, max(1, ids.shape[0]), IDS_PER_TREE):
            part = slice(start, start + IDS_PER_TREE)
            tree = tensor_train.grow(ids[part], self.cores(table)) if saved is None else saved
            found = tensor_train.gradients(tree, grads[part], dense)
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        shapes = [array.shape for array in self.arrays(table.spec).values()]
        return {f"core{k}": g.reshape(shapes[k]) if dense else g for k, g in enumerate(total)}


@functools.lru_cache(maxsize=1024)
def _grid(vocab: int, dim: int, cores: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bases of the digits, and factors of dim, a core each."""
    return balanced_bases(vocab, cores), _factors(dim, cores)


def _factors(dim: int, n: int) -> tuple[int, ...]:
    """The n factors of dim with the least sum; the largest at the ends, where a core grows with the rank, not its square."""
    first, *rest = sorted(_balanced(dim, n), reverse=True)
    return (first, *rest[1:], rest[0])


def _balanced(dim: int, n: int) -> tuple[int, ...]:
    """The n factors of dim with the least sum, ascending; of equal sums the first in order."""
    primes = _primes(dim)
    if n >= len(primes):  # the sum of two factors is below one more than their product
        return (*(1,) * (n - len(primes)), *primes)
    best, parts = (dim + n, (1,) * n), divisors(dim)

    def search(rest: int, n: int, chosen: tuple[int, ...]) -> None:
        nonlocal best
        total = sum(chosen)
        if n == 1:
            best = min(best, (total + rest, (*chosen, rest)))
        elif total + n * rest ** (1 / n) <= best[0] + 1e-6:  # equal factors have the least sum
            for d in reversed(parts):
                if (chosen[-1] if chosen else 2) <= d and rest % d == 0 and d**n <= rest:
                    search(rest // d, n - 1, (*chosen, d))

    search(dim, n, ())
    return best[1]


def _primes(n: int) -> list[int]:
    """The prime factors of n, ascending."""
    out, d = [], 2
    while d * d <= n:
        if n % d == 0:
            out.append(d)
            n //= d
        else:
            d += 1
    return out + [n] * (n > 1)


def _full_ranks(grid: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """The ranks past which a train holds no more than the full table."""
    sides = [base * d for base, d in zip(*grid, strict=True)]
    return tuple(min(math.prod(sides[:k]), math.prod(sides[k:])) for k in range(1, len(sides)))


def _params(grid: tuple[tuple[int, ...], tuple[int, ...]], ranks: tuple[int, ...]) -> int:
    bases, factors = grid
    return sum(b * left * d * right for b, left, d, right in zip(bases, (1, *ranks), factors, (*ranks, 1), strict=True))


def core_shapes(spec: TableSpec) -> list[tuple[int, int, int, int]]:
    """Base, left rank, factor of dim and right rank of each core."""
    assert spec.vocab is not None
    bases, factors = _grid(spec.vocab, spec.dim, len(spec.sizes) + 1)
    return list(zip(bases, (1, *spec.sizes), factors, (*spec.sizes, 1), strict=True))
