"""Generate pages of the site from files of the repository outside docs/."""

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
"""From each file to its page below docs/generated."""
LINK = re.compile(r"\]\((?!https?:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
NAMED = re.compile(r"\[[\w/]+\.md\]\(([^/)#\s][^)#\s]*\.md)(#[^)\s]*)?\)")
"""A link whose text is the name of the file."""


def pages() -> dict[str, str]:
    """Return the pages, with the same links as in the files."""
    return {page: (ROOT / file).read_text(encoding="utf-8") for file, page in FILES.items()}


def link(app: Sphinx, name: str, source: list[str]) -> None:
    """Adapt the links of a page to the site.

    A link to a file of `FILES` leads to the page of that file. On the page of such a file, links lead to the same targets as in the file.
    """
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
    """Return the heading of a linked file, up to the first comma, colon or parenthesis."""
    text = (ROOT / os.path.dirname(written) / link).read_text(encoding="utf-8")  # noqa: PTH120
    return re.split(r"[,:(]", text.removeprefix("# ").partition("\n")[0])[0].strip()
