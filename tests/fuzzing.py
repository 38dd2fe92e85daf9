"""Calls with one argument that is wrong: the values, and what an error must be.

A call that is given nonsense may take it (where it makes sense after all) or refuse it by one of `ALLOWED`, in a message of ours
that names the argument. What comes from within (an AttributeError, an OverflowError, "object is not iterable") is a fault.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ALLOWED = (TypeError, ValueError, IndexError, KeyError, OSError)

# How Python, NumPy and Numba word what was not checked.
FOREIGN = re.compile(
    r"object is not (iterable|subscriptable|callable)|unsupported operand|has no (len|attribute)|not supported between|"
    r"expected str, bytes or os.PathLike|invalid literal|could not convert|must be real number|unhashable|inhomogeneous|"
    r"cannot unpack|argument must be|cannot be interpreted|not allowed|object cannot|setting an array element|"
    r"only integer scalar|too large|ufunc|ambiguous|unexpected keyword|missing \d|broadcast|cannot reshape"
)


class Strange:
    """An object of no use."""

    def __repr__(self) -> str:
        return "<strange>"


def endless() -> list[Any]:
    """A list that holds itself."""
    out: list[Any] = []
    out.append(out)
    return out


def wrong_values() -> dict[str, Any]:
    """Nonsense by name, fresh each time."""
    return {
        "None": None,
        "an object": Strange(),
        "a str": "nonsense",
        "an empty str": "",
        "a NUL": "a\0b",
        "bytes": b"x",
        "a dict": {"a": 1},
        "an empty dict": {},
        "a set": {1},
        "nan": float("nan"),
        "inf": float("inf"),
        "complex": 1j,
        "huge": 10**30,
        "minus huge": -(10**30),
        "2^63": 2**63,
        "minus one": -1,
        "zero": 0,
        "a half": 0.5,
        "True": True,
        "an empty list": [],
        "nested empty": [[]],
        "list of str": ["a", "b"],
        "list of None": [None],
        "ragged": [[1], [1, 2]],
        "endless": endless(),
        "0-d": np.array(3),
        "objects": np.array([None, Strange()]),
        "object ints": np.array([1, 2], object),
        "bools": np.array([True]),
        "halves": np.ones(2, np.float16),
        "complex array": np.ones(2, complex),
        "dates": np.array(["2020-01-01"], "M8[D]"),
        "strs": np.array(["a"]),
        "nans": np.full((2, 2), np.nan),
        "no rows": np.empty((0, 3)),
        "4-d": np.ones((1, 1, 1, 1)),
        "records": np.zeros(2, "i4,f4"),
        "a function": len,
        "a lambda": lambda *a, **k: None,
        "a type": int,
        "a slice": slice(1),
        "ellipsis": ...,
        "a range": range(3),
        "a generator": (i for i in range(3)),
        "a memoryview": memoryview(b"abc"),
        "a module": re,
        "NotImplemented": NotImplemented,
        "list of huge": [10**30],
        "an error": ValueError("x"),
    }


def fault(call: Callable[..., Any], arguments: dict[str, Any], words: tuple[str, ...]) -> str | None:
    """What is wrong with how a call refuses an argument, which `words` name; None where nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = call(**arguments)
            if isinstance(given, Iterator):
                next(given, None)
    except ALLOWED as error:
        text = str(error)
        if type(error) is KeyError:
            return f"KeyError: {text}"
        if not any(re.search(rf"\b{re.escape(word)}", text) for word in words):
            return f"does not name it: {type(error).__name__}: {text}"
        if FOREIGN.search(text) and "must be" not in text and "expected" not in text:
            return f"foreign words: {type(error).__name__}: {text}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def faults(
    calls: dict[str, Callable[[], tuple[Callable[..., Any], dict[str, Any]]]],
    also: dict[str, Any],
    words: dict[str, tuple[str, ...]],
    beyond: set[tuple[str, str]] = frozenset(),
) -> list[str]:
    """Every fault of every call, one argument replaced at a time.

    Args:
        calls: what makes a valid call and its arguments, by title.
        also: further wrong values, by name.
        words: what may stand for an argument's name, by name, or by title and name.
        beyond: (argument, or title and argument; wrong value) that are left out.
    """
    out = []
    for title, make in calls.items():
        names = list(make()[1])
        for name in names:
            for kind in [*wrong_values(), *also]:
                if (name, kind) in beyond or (f"{title}.{name}", kind) in beyond:
                    continue
                call, arguments = make()
                arguments[name] = {**wrong_values(), **also}[kind]
                said = fault(call, arguments, (name, *words.get(name, ()), *words.get(f"{title}.{name}", ())))
                if said:
                    out.append(f"{title}({name}={kind}): {said}"[:300])
    return out
