"""Lists of class names, in the order of the labels."""

import re
from collections.abc import Iterator
from pathlib import Path

from adafocus_env.videos.text_lines import read_lines, shortened
from classifiers.errors import InputError

_NUMBERED = re.compile(r"(\d+)(?:\s*[,;:]|\s)\s*(\S.*)")


def read_class_names(path: Path | str, what: str | None = None) -> tuple[str, ...]:
    """Return the names in a text file, one per line: plain, or numbered (``0,Archery`` or ``1 Archery``) in every line.

    Args:
        path: the file, UTF-8.
        what: what the file is, for the message; by default what the user typed, ``classes=PATH``.

    Raises:
        InputError: it cannot be read as UTF-8, has an empty line between names, names a class twice, or its numbers are not
            0, 1, 2, … or 1, 2, 3, … (lists the lines).
    """
    what = what or f"classes={path}"
    lines = read_lines(path, what)
    if foreign := [f"line {number} is not valid UTF-8" for number, line in enumerate(lines, 1) if line is None]:
        raise InputError(f"{what} cannot be read ({'; '.join(shortened(foreign))}); give a UTF-8 text file with one name a line")
    names, wrong = _without_numbers([line for line in lines if line is not None])
    if faults := [*wrong, *_faults(names)]:
        raise InputError(f"{what}: {'; '.join(shortened(faults))}")
    return tuple(names)


def _without_numbers(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the names, and what is wrong with the numbers before them, if every line has one."""
    parts = [match.groups() for match in map(_NUMBERED.fullmatch, lines) if match]
    if not parts or len(parts) < len(lines):
        return lines, []
    first = min(int(parts[0][0]), 1)
    wrong = [
        f"line {row + 1} has the number {number} where {row + first} comes next; sort the list by its numbers, which begin at 0 or 1"
        for row, (number, _) in enumerate(parts)
        if int(number) != row + first
    ]
    return [name for _, name in parts], wrong[:1]  # the first one shifts all others


def _faults(names: list[str]) -> Iterator[str]:
    for number, name in enumerate(names, 1):
        if not name:
            yield f"line {number} is empty; give one name a line, in the order of the scores"
        elif (first := names.index(name) + 1) < number:
            yield f"line {number} names {name!r} again (first in line {first})"
