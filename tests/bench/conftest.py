"""The package `bench` is the checkout's: without it this folder would be taken for one of that name."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)  # last: cce_core is the one under test

import bench  # noqa: E402, F401
