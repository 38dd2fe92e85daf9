"""How docstrings say "Example", and how the site's reader of them expects it: as "Examples", so that code is shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """For mkdocstrings: reads one heading as the other."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """griffe's event: an object was read."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
