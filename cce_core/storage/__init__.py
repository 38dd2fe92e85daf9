"""What lies in memory and on disk: packed pointers, files, and the ledger of every byte."""

from cce_core.storage.files import load_arrays as load_arrays
from cce_core.storage.files import save_arrays as save_arrays
from cce_core.storage.header import FileFormatError as FileFormatError
from cce_core.storage.ledger import Ledger as Ledger
from cce_core.storage.packed import Packing as Packing
from cce_core.storage.packed import bits_for as bits_for
