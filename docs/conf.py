"""Configure Sphinx. ``python -m sphinx -W --keep-going -b html docs build/site`` builds the site. Nothing is fetched."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generate import api, docstrings, environments, root_files, settings  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import adafocus_env  # noqa: E402

project = "AdaFocus-Env"
author = "The AdaFocus-Env authors"
copyright = "2026, The AdaFocus-Env authors"
version = release = adafocus_env.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["generate"]
html_theme = "furo"
html_title = "AdaFocus-Env"
html_copy_source = False
html_static_path, html_css_files = ["static"], ["tables.css"]

myst_heading_anchors = 3
default_role = "py:obj"  # names in docstrings stand in single backticks; those that the site has become links
smartquotes_action = "De"  # not quotes: docstrings have "auto" and other values
autodoc_typehints = "none"  # docstrings name types and shapes
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar, napoleon_attr_annotations = True, False


def _write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "generated"
    for pages in (environments.pages(), settings.pages(), api.pages(), root_files.pages()):
        for name, text in pages.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not read again
                path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for pages, and turn Markdown in docstrings into reStructuredText."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", root_files.link)
    app.connect("autodoc-process-docstring", docstrings.convert, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", docstrings.signature)
