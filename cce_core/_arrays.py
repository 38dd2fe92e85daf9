"""Names of the arrays that travel between the rooms, with their shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]  # (n,), or as they came: ids as 64-bit words
Addresses = NDArray[np.uint64]  # (columns · n,): where the blocks of n ids begin, column by column
Offsets = NDArray[np.int64]  # (tables, bags + 1): where the bags of a table begin within its ids, and the end
CallArgs = NDArray[np.int64]  # (tables of a group, N_CALL_ARGS): where the ids of a call lie
Rows = NDArray[np.int64]  # (tables, fields): what compiled loops read of each
Slots = NDArray[Any]  # int32 or int64 (places,): a hash table of units, −1 where a place is free
Floats = NDArray[np.float32]  # vectors and gradients (n, dim), weights (n, columns) or (n,), memories (size,)
