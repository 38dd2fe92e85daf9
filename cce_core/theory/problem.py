"""Least squares seen through the singular values of X: what can be reached, how fast, and the result of a run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from cce_core import _check

Matrix = NDArray[np.float64]
NOISES = ("plain", "shaped")
COUNTINGS = ("all", "noise")
_LEAST, _MOST = 1e-60, 1e60  # of the largest entry: no square of what is computed then overflows or vanishes


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What a run of `dense_cce` or `sparse_cce` found: T = H·M, and the loss of every step.

    Attributes:
        losses: float64 (steps + 1,), `‖X·T_i − Y‖²` in the Frobenius norm; the first is that of T = 0, which is ‖Y‖².
        H: the last step's sketch (d₁, k): float64 from `dense_cce`, a scipy.sparse CSR array from `sparse_cce`.
        M: the last step's memory, float64 (k, d₂).
        optimum: `‖X·T* − Y‖²`, the least loss of any T, with no compression at all.
        rank: of X.
        rho: ρ of Theorem 3.1; None from `sparse_cce`, of which nothing is proved.
        bound: float64 (steps + 1,), `loss_bound` for this run; None from `sparse_cce`.

    Example:
        >>> import numpy as np
        >>> from cce_core.theory import dense_cce
        >>> fit = dense_cce(np.eye(3), np.ones((3, 1)), k=2, steps=4, seed=0)
        >>> fit.H.shape, fit.M.shape, fit.T.shape, fit.losses.shape
        ((3, 2), (2, 1), (3, 1), (5,))
        >>> bool((fit.T == fit.H @ fit.M).all())
        True
    """

    losses: Matrix
    H: Any
    M: Matrix
    optimum: float
    rank: int
    rho: float | None = None
    bound: Matrix | None = None

    @property
    def T(self) -> Matrix:
        """The table H·M that the memory and the sketch stand for, float64 (d₁, d₂)."""
        return self.H @ self.M


class Problem:
    """X = U·Σ·Vᵀ, thin and of full rank, and Y: with them, every step works on rank rows instead of n.

    A part of Y outside the columns of X belongs to every loss and to no step: left out of the solver, no rounding can
    make it look as if it were fitted.
    """

    def __init__(self, X: Any, Y: Any) -> None:
        self.X, self.Y = _matrix("X", X), _matrix("Y", Y)
        if len(self.X) != len(self.Y):
            raise ValueError(f"X and Y must have as many rows as each other, got {self.X.shape} and {self.Y.shape}")
        self.U, self.sigma, self.Vt = thin_svd(self.X)
        self.target = self.U.T @ self.Y

    @property
    def rank(self) -> int:
        return len(self.sigma)

    @functools.cached_property
    def optimum(self) -> float:
        """‖X·T* − Y‖²."""
        return _square(self.Y - self.U @ self.target)

    def loss(self, T: Matrix) -> float:
        """‖X·T − Y‖², straight from its definition."""
        return _square(self.X @ T - self.Y)

    def seen(self, H: Any) -> Matrix:
        """Uᵀ·X·H = Σ·Vᵀ·H: all of X·H that there is, for a dense or a sparse H."""
        return self.sigma[:, None] * (H.T @ self.Vt.T).T

    def solve(self, H: Any) -> Matrix:
        """The M with the least ‖X·H·M − Y‖².

        Columns are brought to one length before they are solved for, so that small ones are not taken for rounding. Those
        of which X sees nothing but rounding get a zero; where columns depend on each other, M is the shortest of the best.
        """
        A = self.seen(H)
        length = np.linalg.norm(A, axis=0)
        unseen = length <= _rounding(self.X) * self.sigma[0] * np.sqrt((H * H).sum(axis=0))
        A[:, unseen], length[unseen] = 0.0, 1.0
        A /= length
        M: Matrix = scipy.linalg.lstsq(A, self.target, cond=_rounding(A), check_finite=False)[0]
        return M / length[:, None]

    def rho(self, noise: str) -> float:
        if noise == "shaped":
            return 1.0 / self.rank
        share = (self.sigma / self.sigma[0]) ** 2
        return float(share[-1] / share.sum())

    def bound(self, noise_columns: int, steps: int, noise: str) -> Matrix:
        shrink = (1.0 - self.rho(noise)) ** (np.arange(steps + 1.0) * noise_columns)
        return shrink * _square(self.target) + self.optimum


def thin_svd(X: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """U (n, r), σ (r,), Vᵀ (r, d₁) of a matrix of numerical rank r: a σ up to 10·max(n, d₁)·2⁻⁵²·σ_max is taken as 0."""
    U, sigma, Vt = scipy.linalg.svd(X, full_matrices=False, check_finite=False)
    rank = int(np.count_nonzero(sigma > _rounding(X) * sigma[0]))
    if rank == 0:
        raise ValueError("X must have an entry other than 0, got only zeros: every T is as good as any other")
    return U[:, :rank], sigma[:rank], Vt[:rank]


def rho(X: Any, noise: str = "plain") -> float:
    """ρ of Theorem 3.1: the share of the distance to the optimum that a column of noise takes away, at the least.

        ρ = σ_min² / Σ_j σ_j²    for plain noise G,    ρ = 1 / d₁    for noise shaped by V·Σ⁻¹,

    σ being the singular values of X = U·Σ·Vᵀ. Where X has less than full column rank (always so with n < d₁), those
    that are 0 are left out and the rank stands for d₁: the proof needs no more, since no T is seen by X outside them. As
    printed the theorem would say ρ = 0, which promises nothing.

    Args:
        X: real numbers (n, d₁), with an entry other than 0.
        noise: "plain" or "shaped".

    Returns:
        A float in (0, 1 / rank]; the two kinds agree where all singular values are equal.

    Raises:
        TypeError: X is not of real numbers.
        ValueError: X has another number of dimensions, no entry, NaN, infinity, only zeros, or its largest magnitude is
            outside 1e-60 to 1e60; an unknown noise.

    Cost:
        The singular values of X: about 4·n·d₁² multiply-adds for n ≥ d₁.

    References:
        Tsang and Ahle, Clustering the Sketch: Dynamic Compression for Embedding Tables, arXiv 2210.05974, Theorem 3.1.

    Example:
        >>> import numpy as np
        >>> from cce_core.theory import rho
        >>> X = np.diag([2.0, 1.0, 1.0])
        >>> round(rho(X), 4), round(rho(X, "shaped"), 4)
        (0.1667, 0.3333)
    """
    noise = _check.choice("noise", noise, NOISES)
    X = _matrix("X", X)
    return Problem(X, np.zeros((len(X), 1))).rho(noise)


def loss_bound(X: Any, Y: Any, k: int, steps: int, *, noise: str = "plain", counting: str = "all") -> Matrix:
    """The bound of Theorem 3.1 on the expected loss of dense CCE after each step.

        E‖X·T_i − Y‖² ≤ (1 − ρ)^(i·m) · ‖X·T*‖² + ‖X·T* − Y‖²,    m columns of noise a step

    The statement can be read with k counting two things, and m tells them apart: with `counting="all"`, k is the width of
    H = [T | G], so m = k − d₂; with `counting="noise"`, k is the width of G alone, so m = k and H has d₂ + k columns. To
    mix the two, an exponent i·k with k columns in all, is wrong: measured losses lie above it.

    Args:
        X: real numbers (n, d₁), with an entry other than 0.
        Y: real numbers (n, d₂).
        k: columns, as `counting` says: at least d₂ + 1 for "all", at least 1 for "noise".
        steps: at least 0.
        noise: "plain" or "shaped", see `rho`.
        counting: "all" or "noise".

    Returns:
        float64 (steps + 1,), from ‖Y‖² at step 0 down towards ‖X·T* − Y‖².

    Raises:
        TypeError: X or Y is not of real numbers, k or steps not a whole number.
        ValueError: as `dense_cce`; an unknown counting.

    Cost:
        One thin singular value decomposition of X: about 8·n·d₁² multiply-adds for n ≥ d₁.

    References:
        Tsang and Ahle, Clustering the Sketch: Dynamic Compression for Embedding Tables, arXiv 2210.05974, Theorem 3.1.

    Example:
        >>> import numpy as np
        >>> from cce_core.theory import loss_bound
        >>> X, Y = np.eye(4), np.ones((4, 1))
        >>> loss_bound(X, Y, k=2, steps=2).tolist()
        [4.0, 3.0, 2.25]
        >>> loss_bound(X, Y, k=1, steps=2, counting="noise").tolist()
        [4.0, 3.0, 2.25]
    """
    noise, counting = _check.choice("noise", noise, NOISES), _check.choice("counting", counting, COUNTINGS)
    steps = _check.size("steps", steps)
    problem = Problem(X, Y)
    columns = noise_columns(k, problem) if counting == "all" else _check.size("k", k, 1)
    return problem.bound(columns, steps, noise)


def noise_columns(k: Any, problem: Problem) -> int:
    """The columns of H = [T | G] that are noise, at least one."""
    k, d2 = _check.size("k", k, 1), problem.Y.shape[1]
    if k <= d2:
        raise ValueError(
            f"k must be above d₂ = {d2}, the columns of Y, got {k}: H = [T | G] has k columns, of which T takes {d2}, "
            f"and without a column of noise T never changes; take k = {d2 + 1} or more"
        )
    return k - d2


def _rounding(A: Matrix) -> float:
    """The share of the largest singular value up to which another one is taken as 0."""
    return float(10 * max(A.shape) * np.finfo(np.float64).eps)


def _square(A: Matrix) -> float:
    """‖A‖² in the Frobenius norm."""
    return float(np.sum(A * A))


def _matrix(name: str, value: Any) -> Matrix:
    """`value` as a float64 matrix with at least one entry, finite, of a size whose squares can be summed."""
    array = _check.array(name, value, "real numbers")
    if array.dtype.kind not in "fiu":
        fix = "; a scipy.sparse matrix needs .toarray()" if scipy.sparse.issparse(value) else ""
        raise TypeError(f"{name} must be real numbers, got {array.dtype}{fix}")
    if array.ndim != 2 or array.size == 0:
        fix = f"; one column is {name}[:, None]" if array.ndim == 1 and array.size else ""
        raise ValueError(f"{name} must have two dimensions, none of them 0, got shape {array.shape}{fix}")
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinity, which is refused below
        array = np.ascontiguousarray(array, np.float64)
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite, got {array[place]} at {place}")
    size = float(np.abs(array).max())
    if size and not _LEAST <= size <= _MOST:
        raise ValueError(
            f"{name}'s largest magnitude must be between {_LEAST:g} and {_MOST:g}, got {size:g}: scale it, {name} / {size:g}"
        )
    return array
