"""The error for invalid values that a user can fix, and helpers that raise it and word messages."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """An invalid value from the user.

    The message names the field, the value, the values allowed and what to do. Commands print it without a traceback and exit with
    status 2; any other exception is a bug and keeps its traceback.
    """


def lookup(field: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return the value of ``name`` in ``known``.

    Raises:
        InputError: If the name is unknown. The message names the field, suggests the nearest name and lists all names.
    """
    if name not in known:
        raise InputError(f"{field}={name!r} is not known; {suggestion(name, known)}choose one of {sorted(known)}")
    return known[name]


def refuse_if(wrong: object, error: str | Exception) -> None:
    """Raise ``error`` if ``wrong`` is true; if it is a message, raise it as an `InputError`."""
    if wrong:
        raise InputError(error) if isinstance(error, str) else error


def suggestion(name: object, known: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """Return "did you mean 'NEAREST'? " for a misspelt name, or an empty string if no name is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix + near[0] + suffix!r}? " if near else ""


def shortened(entries: Sequence[str], limit: int = 20, more: str = "and {} more") -> list[str]:
    """Return the first ``limit`` entries, followed by the number of remaining entries, if any."""
    return [*entries[:limit], *([more.format(len(entries) - limit)] if len(entries) > limit else [])]


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 clip`` or ``2,000 clips``; ``plural`` is for irregular plurals."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
