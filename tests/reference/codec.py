"""Memory codecs from their definitions, a float at a time."""

from __future__ import annotations

import numpy as np

BLOCK = 64
MOST = {"int8": 127, "int4": 7}


def rounded(name, values):
    """float64 values after a trip through the codec, rounded to nearest; and half the step at each place."""
    values = np.asarray(values, np.float32)
    if name == "float32":
        return values.astype(np.float64), np.zeros(values.size)
    out, half = np.empty(values.size), np.empty(values.size)
    if name == "bfloat16":
        for i, x in enumerate(values.tolist()):
            step = 2.0 ** (np.frexp(x)[1] - 8) if x else 2.0**-133
            step = max(step, 2.0**-133)
            out[i], half[i] = np.round(x / step) * step, step / 2  # np.round: to even
        return out, half
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK].astype(np.float64)
        scale = np.abs(part).max() / MOST[name]
        out[start : start + BLOCK] = np.round(part / scale) * scale if scale else 0.0
        half[start : start + BLOCK] = scale / 2
    return out, half
