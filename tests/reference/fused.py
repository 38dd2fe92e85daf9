"""Products of matrices with fused multiply-adds, in fractions: each step rounds its exact sum once, halves to even."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def rounded(exact: Fraction) -> float:
    """The float32 nearest to a fraction, which is in the range of normal ones."""
    if exact == 0:
        return 0.0
    exponent = abs(exact).numerator.bit_length() - abs(exact).denominator.bit_length()
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return float(round(exact / unit) * unit)  # Python rounds halves to even


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left (n, k) · right (k, w) in float32."""
    out = np.zeros((len(left), right.shape[1]), np.float32)
    for n, row in enumerate(left):
        for j in range(right.shape[1]):
            total = 0.0
            for x, w in zip(row, right[:, j]):
                total = rounded(Fraction(float(x)) * Fraction(float(w)) + Fraction(total))
            out[n, j] = total
    return out
