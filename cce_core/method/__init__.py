"""Every method, by name."""

from __future__ import annotations

from typing import Any

from cce_core.method.base import Method
from cce_core.method.block import BlockMethod
from cce_core.method.bloom import Bloom
from cce_core.method.cce import Clustered
from cce_core.method.cce_robe import ClusteredRobe
from cce_core.method.ce import Compositional
from cce_core.method.deep_hash import DeepHash
from cce_core.method.full import Full, Int4, Int8, Narrow
from cce_core.method.hash import HashingTrick
from cce_core.method.hemb import HashEmbedding
from cce_core.method.hnet import HashedNet
from cce_core.method.pq import ProductQuantization
from cce_core.method.qr import QuotientRemainder
from cce_core.method.rhemb import RobeHashEmbedding
from cce_core.method.robe import Robe
from cce_core.method.sparse import SparseCodes, SparseHashedCodes
from cce_core.method.tensor_train import TensorTrain
from cce_core.method.tiered import Tiered
from cce_core.method.vq import VectorQuantization

_KINDS: tuple[type[Method], ...] = (
    Full, Narrow, Int8, Int4, HashingTrick, Bloom, HashEmbedding, RobeHashEmbedding, Compositional, QuotientRemainder, Robe,
    HashedNet, TensorTrain, DeepHash, Clustered, ClusteredRobe, ProductQuantization, VectorQuantization, SparseCodes,
    SparseHashedCodes, Tiered,
)  # fmt: skip
_METHODS: dict[str, Method] = {kind.name: kind() for kind in _KINDS}

# Plain names beside the short ones of the paper's own code, and what else is called differently there.
_OTHER_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "low_dim": ("ldim", {}),
    "hash_embedding": ("hemb", {}),
    "robe_hash_embedding": ("rhemb", {}),
    "quotient_remainder": ("qr", {}),
    "hashed_net": ("hnet", {}),
    "tensor_train": ("tt", {}),
    "deep_hash": ("dhe", {}),
    "product_quantization": ("pq", {}),
    "vector_quantization": ("vq", {}),
    "residual_vector_quantization": ("vq", {"stages": 2}),
    "sparse_codes": ("sparse", {}),
    "sparse_hashed_codes": ("sparse2", {}),
    "simple": ("hash", {}),
    "hemb_flat": ("hemb", {"weights": "flat"}),
    "hemb_original": ("hemb", {"weights": "shared"}),
    "hemb_indep": ("hemb", {"weights": "independent"}),
    "hemb_optional": ("hemb", {"weights": "concat"}),
    "rvq": ("vq", {"stages": 2}),
}


def methods() -> list[Method]:
    """Every method of the library, each with `.name`, `.paper`, `.learns`, `.summary`, and what it `.stores` and `.takes`.

    Returns:
        The methods, in the order of the design: tables with a row an id, hashed ones, learned ones.

    Example:
        >>> import cce_core as cce
        >>> [m.name for m in cce.methods() if m.learns]
        ['cce', 'cce_robe', 'pq', 'vq', 'sparse', 'sparse2']
        >>> next(m for m in cce.methods() if m.name == "hash")
        <hash: one hashed row an id; signed=True draws a sign as well (arXiv:0902.2206); bytes: 4·rows·dim; a lookup: a hash \
and a copy of dim floats>
    """
    return list(_METHODS.values())


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; the methods are {', '.join(_METHODS)}")
    return _METHODS[name]


def block_method(name: str) -> BlockMethod:
    """The method of that name, which is made of blocks; AssertionError for others."""
    method = get_method(name)
    assert isinstance(method, BlockMethod)
    return method


def resolved(name: str) -> tuple[str, dict[str, Any]]:
    """A method's name and options, from its name here or in the paper's own code."""
    return _OTHER_NAMES.get(name, (name, {}))
