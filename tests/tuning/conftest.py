"""Some tests look at sweeps that `bench` makes; the package `bench` is the checkout's."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)  # last: cce_core is the one under test
