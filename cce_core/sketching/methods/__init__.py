"""Every method, by name."""

from __future__ import annotations

from cce_core.sketching.method import Method
from cce_core.sketching.methods.cce import Clustered
from cce_core.sketching.methods.ce import Compositional
from cce_core.sketching.methods.dhe import DeepHash
from cce_core.sketching.methods.full import Full
from cce_core.sketching.methods.hash import HashingTrick
from cce_core.sketching.methods.qr import QuotientRemainder
from cce_core.sketching.methods.robe import Robe

_METHODS: dict[str, Method] = {
    method.name: method
    for method in (Full(), HashingTrick(), Compositional(), QuotientRemainder(), Robe(), Clustered(), DeepHash())
}


def methods() -> list[Method]:
    """Every method of the library, each with `.name`, `.paper`, `.learns` and `.summary`.

    Returns:
        The methods, in the order of the design: the full table, hashed ones, learned ones.

    Example:
        >>> import cce_core as cce
        >>> [m.name for m in cce.methods()]
        ['full', 'hash', 'ce', 'qr', 'robe', 'cce', 'dhe']
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
