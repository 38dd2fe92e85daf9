"""DistributedDataParallel and sparse gradients.

It asks of the module of each parameter whether it is a `torch.nn.Embedding` with `sparse=True`, and reduces all other gradients
as dense ones, which fails for a sparse one. A module of ours cannot be one of those: whoever initialises, quantises or swaps
torch's embeddings writes into their `weight`. So the list that it makes is corrected, for our own parameters alone.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.nn.parallel import DistributedDataParallel

_LISTED = "_build_params_for_reducer"


def expect_sparse(owner: Any) -> None:
    """Let DistributedDataParallel know of modules of this class, whose `sparse_parameters()` are those with sparse gradients."""
    listed = getattr(DistributedDataParallel, _LISTED, None)
    if listed is None:  # another torch than those that are known
        return

    @functools.wraps(listed)
    def build(self: Any) -> Any:
        parameters, expected = listed(self)
        ours = {id(p) for m in self.module.modules() if isinstance(m, owner) for p in m.sparse_parameters()}
        return parameters, [flag or id(p) in ours for p, flag in zip(parameters, expected, strict=True)]

    setattr(DistributedDataParallel, _LISTED, build)
