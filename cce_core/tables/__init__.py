"""Addresses and memory to vectors, and back: the one lookup, the one scatter, and a small file a method."""

from cce_core.method.base import Method as Method
from cce_core.method.spec import BudgetError as BudgetError
from cce_core.method.spec import TableSpec as TableSpec
from cce_core.sketching.gradient import SparseGradient as SparseGradient
from cce_core.tables.collection import Collection as Collection
from cce_core.tables.compressing import compress as compress
from cce_core.tables.deltas import Delta as Delta
from cce_core.tables.deltas import Signature as Signature
from cce_core.tables.deltas import load_delta as load_delta
from cce_core.tables.loading import load as load
from cce_core.tables.make import make_collection as make_collection
from cce_core.tables.make import make_table as make_table
from cce_core.tables.planning import Plan as Plan
from cce_core.tables.planning import plan as plan
from cce_core.tables.similarity import most_similar as most_similar
from cce_core.tables.table import Table as Table
from cce_core.tables.tiered import TieredCollection as TieredCollection
