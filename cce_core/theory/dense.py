"""Dense CCE for least squares: Algorithm 1 of the paper, the one that Theorem 3.1 is about."""

from __future__ import annotations

from typing import Any

import numpy as np

from cce_core import _check
from cce_core.theory.problem import NOISES, Fit, Matrix, Problem, noise_columns


def dense_cce(X: Any, Y: Any, k: int, steps: int, *, noise: str = "plain", seed: int = 0) -> Fit:
    """A table T = H·M that makes ‖X·T − Y‖² small, found step by step: what is known beside fresh noise (Algorithm 1).

        T_0 = 0,    H_i = [T_{i−1} | G_i],    M_i = argmin_M ‖X·H_i·M − Y‖²,    T_i = H_i·M_i

    G_i has k − d₂ columns. Plain noise is independent and standard normal. Shaped noise is V·Σ⁻¹ times that, where
    X = U·Σ·Vᵀ, so that X·G points everywhere alike; it is drawn as X⁺·Z, Z standard normal (n, k − d₂), which has the
    same law and does not depend on the signs in U and V. H_i·M can repeat T_{i−1}, so **the loss never rises**, and
    where rounding makes the solver's M worse than that, T_{i−1} is kept: `losses` falls or stays, to the last bit.

    How fast: on the average over seeds the loss is at most `loss_bound(X, Y, k, steps, noise=noise)`. A single seed may be
    above it. X of any rank and shape is fine; the rank then stands for d₁. As soon as k − d₂ ≥ rank, the first step
    reaches the optimum.

    Args:
        X: real numbers (n, d₁), with an entry other than 0, taken as float64.
        Y: real numbers (n, d₂), taken as float64.
        k: columns of H in all, at least d₂ + 1.
        steps: at least 0.
        noise: "plain" or "shaped".
        seed: 0 to 2^64 − 1. Fewer steps with the same seed are the first of more steps.

    Returns:
        A `Fit` with ρ and the bound; H and M are those of the last step.

    Raises:
        TypeError: X or Y is not of real numbers, k, steps or seed not a whole number.
        ValueError: X or Y has another number of dimensions, no entry, NaN, infinity, or a largest magnitude outside
            1e-60 to 1e60; X only zeros; other numbers of rows; k ≤ d₂; an unknown noise; steps or seed out of range.

    Cost:
        One thin singular value decomposition of X, about 8·n·d₁² multiply-adds for n ≥ d₁; then a step takes about
        d₁·r·k + 4·r·k² + n·d₁·d₂ for rank r.

    References:
        Tsang and Ahle, Clustering the Sketch: Dynamic Compression for Embedding Tables, arXiv 2210.05974, Algorithm 1 and
        Theorem 3.1.

    Example:
        >>> import numpy as np
        >>> from cce_core.theory import dense_cce
        >>> rng = np.random.default_rng(0)
        >>> X, Y = rng.standard_normal((50, 20)), rng.standard_normal((50, 2))
        >>> fit = dense_cce(X, Y, k=6, steps=30, noise="shaped", seed=1)
        >>> bool((np.diff(fit.losses) <= 0).all()), fit.rank, fit.rho
        (True, 20, 0.05)
        >>> bool(fit.losses[-1] < 1.01 * fit.optimum)
        True
    """
    noise = _check.choice("noise", noise, NOISES)
    steps, seed = _check.size("steps", steps), _check.seed(seed)
    problem = Problem(X, Y)
    columns = noise_columns(k, problem)
    d1, d2 = problem.X.shape[1], problem.Y.shape[1]
    rng = np.random.default_rng(seed)
    H, M, T = np.zeros((d1, k)), np.zeros((k, d2)), np.zeros((d1, d2))
    stay = np.eye(k, d2)  # the M with H·M = T
    losses = np.empty(steps + 1)
    losses[0] = problem.loss(T)
    for i in range(1, steps + 1):
        H = np.hstack([T, _noise(problem, columns, noise, rng)])
        M = problem.solve(H)
        losses[i] = problem.loss(H @ M)
        if losses[i] <= losses[i - 1]:
            T = H @ M
        else:
            M, losses[i] = stay, losses[i - 1]
    return Fit(losses, H, M, problem.optimum, problem.rank, problem.rho(noise), problem.bound(columns, steps, noise))


def _noise(problem: Problem, columns: int, noise: str, rng: np.random.Generator) -> Matrix:
    n, d1 = problem.X.shape
    if noise == "plain":
        return rng.standard_normal((d1, columns))
    Z = rng.standard_normal((n, columns))
    return problem.Vt.T @ ((problem.U.T @ Z) / problem.sigma[:, None])
