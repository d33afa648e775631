"""The error that a person can mend."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """A value that the user gave cannot be used.

    The message names the field, the value that came, the values allowed and what to do. Commands print it alone,
    without a traceback, and exit with status 2; anything else that is raised is a bug of ours and keeps its traceback.
    """


def lookup(field: str, name: str, known: Mapping[str, Value]) -> Value:
    """The value of that name.

    Raises:
        InputError: no such name (names the field, suggests the nearest, lists them all).
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{field}={name!r} is not known; {hint}choose one of {sorted(known)}")
    return known[name]
