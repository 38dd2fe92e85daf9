"""Sums whose bits do not depend on who adds what in which order, so that any number of processes come to the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Exact:
    """Sums that do not depend on who adds what in which order: numbers are rounded to multiples of one step first.

    The step is a power of two, so that the sum of n multiples stays below 2^53 of them and float64 holds every partial sum
    exactly. A number is moved by at most most · n / 2^52.

    Args:
        n: how many numbers are added, over all ranks.
        most: the largest magnitude among them, on any rank.
    """

    def __init__(self, n: int, most: float) -> None:
        self.step = math.ldexp(1.0, math.frexp(most)[1] + max(1, n).bit_length() - 52) if most > 0 else 1.0

    def rounded(self, values: NDArray[Any]) -> Floats:
        """The numbers in steps."""
        return np.rint(np.asarray(values, np.float64) / self.step)

    def by_label(self, values: Floats, labels: NDArray[Any], k: int) -> Floats:
        """Rounded numbers (n, d) added up by label: (k, d)."""
        return np.stack([np.bincount(labels, values[:, j], k) for j in range(values.shape[1])], 1)
