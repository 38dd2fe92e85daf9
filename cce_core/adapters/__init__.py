"""Tables inside other frameworks: each adapter is thin, holds no mathematics of its own, and is imported by name.

from cce_core.adapters.torch import Embedding
"""
