"""Convert Markdown headings and tables in docstrings to reStructuredText, because autodoc reads reStructuredText."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SHAPE = re.compile(r"(?<=\()\*|(?<=, )\*")
"""The star in a shape such as (N, *space.shape), which does not mean emphasis."""


def convert(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Replace the lines of a docstring by reStructuredText."""
    found: list[str] = []
    for is_table, group in groupby(lines, lambda line: line.lstrip().startswith("|")):
        block = list(group)
        found += _table(block) if is_table else [each for line in block for each in _heading(line)]
    lines[:] = [SHAPE.sub(r"\*", line) for line in found]


def signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Return the signature to print. It is empty for a protocol, which has no constructor. Abbreviate defaults that are functions."""
    if getattr(obj, "_is_protocol", False):
        return "", ""
    return arguments and re.sub(r"<function [^>]*>+", "…", arguments), returns


def _heading(line: str) -> list[str]:
    return ["", f".. rubric:: {line.removeprefix('## ')}", ""] if line.startswith("## ") else [line]


def _table(rows: list[str]) -> list[str]:
    """Return a table whose first row is the heading, without the separator line of Markdown in the second row."""
    cells = [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in rows[:1] + rows[2:]]
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in cells:
        lines += [f"   {'*' if not number else ' '} - {cell}" for number, cell in enumerate(row)]
    return [*lines, ""]
