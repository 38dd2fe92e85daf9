"""`make_embedding`, with the signature and the names that users of the paper's own code know."""

from __future__ import annotations

from typing import Any

from cce_core.adapters.torch.modules.embedding import Embedding
from cce_core.method import get_method, resolved


def make_embedding(
    vocab: int, num_params: int, dimension: int, method: str, n_chunks: int = 4, sparse: bool = False
) -> Embedding:
    """A compressed embedding by the names of the paper's own code.

    They are robe, ce, simple, cce, full, tt, cce_robe, dhe, bloom, hemb_original, hemb_flat, hemb_indep, hemb_optional, rhemb,
    hnet, ldim, sparse and sparse2; those of `cce_core.methods()` work too. `cce` is the paper's, without a projection.

    Args:
        vocab: ids go from 0 to vocab − 1.
        num_params: the most trained numbers; `full` takes what it needs.
        dimension: floats of a vector.
        method: a name.
        n_chunks: chunks of a vector, where the method has them.
        sparse: whether gradients are sparse.

    Raises:
        BudgetError, ValueError, TypeError: as for `cce_core.make_table`.

    References:
        Tsang and Ahle, arXiv:2210.05974.

    Example:
        >>> from cce_core.adapters.torch import make_embedding
        >>> make_embedding(1000, 2048, 16, "cce", n_chunks=4, sparse=False)
        Embedding(1000, 16, method='cce', n_chunks=4, num_params=2048)
    """
    name, _ = resolved(method)
    options: dict[str, Any] = {"num_params": num_params} if get_method(name).budgeted else {}
    if name == "cce":
        options["rank"] = 0
    return Embedding(vocab, dimension, sparse=sparse, method=method, n_chunks=n_chunks, **options)
