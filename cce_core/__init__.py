"""cce-core: embedding tables in a hundredth of the memory, while they are being trained.

    import cce_core as cce

    table = cce.make_table("cce", vocab=1_000_000, dim=32, num_params=65_536)
    vectors = table.lookup(ids)
    cce.Adam(lr=1e-3).step(table, table.backward(ids, gradients))
    table.cluster()

A name is loaded when it is first used, so that `import cce_core` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cce_core import datasets as datasets
    from cce_core import tuning as tuning
    from cce_core._threads import get_num_threads as get_num_threads
    from cce_core._threads import set_num_threads as set_num_threads
    from cce_core.clustering import KMeans as KMeans
    from cce_core.hashing import hash_strings as hash_strings
    from cce_core.hashing import mix_hash as mix_hash
    from cce_core.learning.cluster import ClusterReport as ClusterReport
    from cce_core.learning.settling import SettlingReport as SettlingReport
    from cce_core.method import methods as methods
    from cce_core.storage import FileFormatError as FileFormatError
    from cce_core.storage import Ledger as Ledger
    from cce_core.tables import BudgetError as BudgetError
    from cce_core.tables import Collection as Collection
    from cce_core.tables import SparseGradient as SparseGradient
    from cce_core.tables import Table as Table
    from cce_core.tables import TableSpec as TableSpec
    from cce_core.tables import compress as compress
    from cce_core.tables import load as load
    from cce_core.tables import make_collection as make_collection
    from cce_core.tables import make_table as make_table
    from cce_core.tables import most_similar as most_similar
    from cce_core.tables import plan as plan
    from cce_core.training import SGD as SGD
    from cce_core.training import Adagrad as Adagrad
    from cce_core.training import Adam as Adam
    from cce_core.training import AdamW as AdamW

__version__ = "0.1.0"

_ROOMS = {
    "cce_core": ("datasets", "tuning"),
    "cce_core._threads": ("get_num_threads", "set_num_threads"),
    "cce_core.clustering": ("KMeans",),
    "cce_core.hashing": ("hash_strings", "mix_hash"),
    "cce_core.tables": (
        "BudgetError",
        "Collection",
        "SparseGradient",
        "Table",
        "TableSpec",
        "compress",
        "load",
        "make_collection",
        "make_table",
        "most_similar",
        "plan",
    ),
    "cce_core.method": ("methods",),
    "cce_core.learning.cluster": ("ClusterReport",),
    "cce_core.learning.settling": ("SettlingReport",),
    "cce_core.storage": ("FileFormatError", "Ledger"),
    "cce_core.training": ("SGD", "Adagrad", "Adam", "AdamW"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'cce_core' has no attribute {name!r}")
    room = _ROOM_OF[name]
    value = (
        importlib.import_module(f"cce_core.{name}")
        if room == "cce_core"
        else getattr(importlib.import_module(room), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
