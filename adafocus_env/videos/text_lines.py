"""Text files with one entry per line, and lists of everything that is wrong with one of them."""

from collections.abc import Sequence
from pathlib import Path

from classifiers.errors import InputError


def read_lines(path: Path | str, what: str) -> list[str | None]:
    """Return the lines without surrounding blanks; None for one that is not UTF-8. Empty lines at the end are left out.

    Args:
        path: the file; a byte order mark at its start is skipped.
        what: what the file is, for the message.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"{what} cannot be read ({problem.strerror or problem}); give a UTF-8 text file") from problem
    return [_decoded(line) for line in data.removeprefix(b"\xef\xbb\xbf").rstrip().splitlines()]


def shortened(entries: Sequence[str], limit: int = 20, more: str = "and {} more") -> list[str]:
    """Return the first ``limit`` entries, and the number of the others as the last one."""
    return [*entries[:limit], *([more.format(len(entries) - limit)] if len(entries) > limit else [])]


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        return None
