"""The server of files, `cce serve` (the extra `serve`): an ASGI application over `Reader`, without Numba, SciPy or torch."""

import logging

log = logging.getLogger("cce.serve")
