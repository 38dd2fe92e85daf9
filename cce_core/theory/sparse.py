"""Sparse CCE for least squares: Algorithm 2 of the paper, the step from the theorem to embedding tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cce_core import _check
from cce_core.clustering import KMeans
from cce_core.theory.problem import Fit, Matrix, Problem

SKETCHES = ("count", "hash")


def sparse_cce(X: Any, Y: Any, k: int, steps: int, *, sketch: str = "count", n_iter: int = 50, seed: int = 0) -> Fit:
    """A table T = H·M with two numbers a row in H: the cluster of the row, and a fresh hash (Algorithm 2).

        T_0 = 0,    H_i = [A_i | C_i],    M_i = argmin_M ‖X·H_i·M − Y‖²,    T_i = H_i·M_i

    A_i (d₁, ⌊k/2⌋) has a one in each row, where k-means puts that row of T_{i−1}; C_i (d₁, k − ⌊k/2⌋) has one ±1 in each row,
    drawn (a count-sketch), or a one with `sketch="hash"`. This is CCE's embedding table, a learned pointer and a hash for
    each id, with the training replaced by the exact solution. With all rows of T_0 equal, step 1 has one cluster: it
    is the hashing trick with a bias.

    **Nothing is proved of it.** k-means keeps T_{i−1} only roughly, so the loss may rise from a step to the next,
    nothing makes it go to the optimum, and `losses` is shown as it came. The last step's T need not be the best one.

    Args:
        X: real numbers (n, d₁), with an entry other than 0, taken as float64.
        Y: real numbers (n, d₂), taken as float64.
        k: columns of H in all, at least 2.
        steps: at least 0.
        sketch: "count" or "hash".
        n_iter: most iterations of k-means, at least 0.
        seed: 0 to 2^64 − 1. Fewer steps with the same seed are the first of more steps.

    Returns:
        A `Fit` without ρ and bound; H is a scipy.sparse CSR array of at most 2·d₁ entries.

    Raises:
        TypeError: X or Y is not of real numbers, k, steps, n_iter or seed not a whole number.
        ValueError: X or Y has another number of dimensions, no entry, NaN, infinity, or a largest magnitude outside
            1e-60 to 1e60; X only zeros; other numbers of rows; an unknown sketch; k, steps, n_iter or seed out of
            range.

    Cost:
        One thin singular value decomposition of X, about 8·n·d₁² multiply-adds for n ≥ d₁; then a step takes about
        2·d₁·r + 4·r·k² + n·d₁·d₂ for rank r, and a k-means of d₁ points in d₂ dimensions, in float32.

    References:
        Tsang and Ahle, Clustering the Sketch: Dynamic Compression for Embedding Tables, arXiv 2210.05974, Algorithm 2.
        Charikar, Chen and Farach-Colton, Finding frequent items in data streams, ICALP 2002 (the count-sketch).

    Example:
        >>> import numpy as np
        >>> from cce_core.theory import sparse_cce
        >>> T = np.repeat([[1.0], [5.0]], 30, axis=0)        # 60 ids that are of two kinds
        >>> X = np.random.default_rng(0).standard_normal((200, 60))
        >>> fit = sparse_cce(X, X @ T, k=8, steps=4, seed=0)
        >>> bool(fit.losses[4] < fit.losses[1] < fit.losses[0]), fit.H.nnz, fit.bound
        (True, 120, None)
    """
    sketch = _check.choice("sketch", sketch, SKETCHES)
    k, steps, seed = _check.size("k", k, 2), _check.size("steps", steps), _check.seed(seed)
    n_iter = _check.integer("n_iter", n_iter, 0)
    problem = Problem(X, Y)
    d1, d2 = problem.X.shape[1], problem.Y.shape[1]
    rng = np.random.default_rng(seed)
    H, M, T = scipy.sparse.csr_array((d1, k)), np.zeros((k, d2)), np.zeros((d1, d2))
    losses = np.empty(steps + 1)
    losses[0] = problem.loss(T)
    for i in range(1, steps + 1):
        clusters = _cluster(T, k // 2, n_iter, int(rng.integers(2**63)))
        hashes = rng.integers(k - k // 2, size=(d1,))
        signs = rng.choice([-1.0, 1.0], size=(d1,)) if sketch == "count" else np.ones(d1)
        H = _sketch(clusters, hashes, signs, k)
        M = problem.solve(H)
        T = H @ M
        losses[i] = problem.loss(T)
    return Fit(losses, H, M, problem.optimum, problem.rank)


def _cluster(T: Matrix, clusters: int, n_iter: int, seed: int) -> NDArray[np.int32]:
    """The cluster of each row; T is brought near 1 first, since k-means works in float32."""
    size = float(np.abs(T).max())
    return KMeans(clusters, n_iter=n_iter, seed=seed).fit(T / size if size else T).labels_


def _sketch(clusters: NDArray[np.int32], hashes: NDArray[np.int64], signs: Matrix, k: int) -> scipy.sparse.csr_array:
    """H = [A | C]: row j has a one at its cluster and its sign at k // 2 plus its hash."""
    columns = np.stack([clusters, k // 2 + hashes], axis=1)
    values = np.stack([np.ones_like(signs), signs], axis=1)
    ends = 2 * np.arange(len(clusters) + 1)
    return scipy.sparse.csr_array((values.ravel(), columns.ravel(), ends), shape=(len(clusters), k))
