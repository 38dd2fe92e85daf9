"""Problems for k-means that several test files share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cce_core._jit import COMPILED

DIMS = st.sampled_from([1, 1, 2, 3, 4, 5, 8, 16, 17, 33] if COMPILED else [1, 1, 2, 3, 5])
LARGEST = np.finfo(np.float32).max


@st.composite
def problems(draw, n_points=24, n_centroids=11, side=3, dims=DIMS):
    """Points and centroids with whole coordinates, so few of them that ties and duplicates are common."""
    d = draw(dims)
    n, k = draw(st.integers(1, n_points)), draw(st.integers(1, n_centroids))
    whole = st.integers(-side, side)
    return (
        draw(hnp.arrays(np.int64, (n, d), elements=whole)).astype(np.float32),
        draw(hnp.arrays(np.int64, (k, d), elements=whole)).astype(np.float32),
    )


def blobs(n, k, d, seed=0, apart=20.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, apart, (k, d))
    return (centres[rng.integers(0, k, n)] + rng.normal(0, 1, (n, d))).astype(np.float32)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
