"""Text that others wrote, such as the names of files and classes, for the terminal."""

import re

from rich.markup import escape

# Control characters, except tab and line feed, those that change the direction of the text, and bytes of names that are not UTF-8.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes, such as ``\x1b``. A terminal would follow them as commands."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain(text: object) -> str:
    """Return printable text without markup, for the cells and titles of tables of rich, where ``[red]`` is a colour. None is empty."""
    return escape(printable("" if text is None else str(text)))
