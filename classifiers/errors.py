"""The error for a value that the user can fix, the look-up that raises it, and the wording of its message and of others."""

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
    """Return the value of that name.

    Raises:
        InputError: The name is unknown (names the field, suggests the nearest, lists all).
    """
    if name not in known:
        raise InputError(f"{field}={name!r} is not known; {suggestion(name, known)}choose one of {sorted(known)}")
    return known[name]


def refuse_if(wrong: object, error: str | Exception) -> None:
    """Raise ``error`` if ``wrong`` is true; a message is raised as an `InputError`."""
    if wrong:
        raise InputError(error) if isinstance(error, str) else error


def suggestion(name: object, known: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """Return "did you mean 'NEAREST'? " for a misspelt name, or an empty text where none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix + near[0] + suffix!r}? " if near else ""


def shortened(entries: Sequence[str], limit: int = 20, more: str = "and {} more") -> list[str]:
    """Return the first ``limit`` entries, and the number of the others as the last one."""
    return [*entries[:limit], *([more.format(len(entries) - limit)] if len(entries) > limit else [])]


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 clip``, ``2,000 clips``; ``plural`` is for nouns that take another ending than s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
