"""Files of the repository that lie outside docs/ and are pages of the site too."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
FILES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""File → page below docs/generated."""
LINK = re.compile(r"\]\((?!https?:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
NAMED = re.compile(r"\[[\w/]+\.md\]\(([^/)#\s][^)#\s]*\.md)(#[^)\s]*)?\)")
"""A link whose text is the name of the file."""


def pages() -> dict[str, str]:
    """Return the pages; their links stand as they do in the files."""
    return {page: (ROOT / file).read_text(encoding="utf-8") for file, page in FILES.items()}


def link(app: Sphinx, name: str, source: list[str]) -> None:
    """Make the links of a page that lead to a file of `FILES` lead to its page, and those of its page lead to where the file's do."""
    written = next((file for file, page in FILES.items() if name == f"generated/{Path(page).stem}"), f"docs/{name}.md")

    def target(match: re.Match[str]) -> str:
        file = os.path.normpath(os.path.join(os.path.dirname(written), match[1]))  # noqa: PTH118, PTH120  # not on the disk
        if file == "README.md":
            return f"](/index.md{match[2] or ''})"
        if file in FILES:
            return f"](/generated/{FILES[file]}{match[2] or ''})"
        if written in FILES and file.startswith("docs/"):
            return f"](/{file.removeprefix('docs/')}{match[2] or ''})"
        return f"](/../{file})" if written in FILES else match[0]

    source[0] = LINK.sub(target, NAMED.sub(lambda match: f"[{_title(written, match[1])}]({match[1]}{match[2] or ''})", source[0]))


def _title(written: str, link: str) -> str:
    """Return the heading of the file that a page links to, up to a comma, colon or parenthesis."""
    text = (ROOT / os.path.dirname(written) / link).read_text(encoding="utf-8")  # noqa: PTH120
    return re.split(r"[,:(]", text.removeprefix("# ").partition("\n")[0])[0].strip()
