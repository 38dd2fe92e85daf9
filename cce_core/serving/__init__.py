"""Reading tables where they are served: `reader.py` needs NumPy and Python alone, and nothing else of this package."""

from cce_core.serving.reader import FileFormatError as FileFormatError
from cce_core.serving.reader import Reader as Reader
from cce_core.serving.reader import hash_strings as hash_strings
