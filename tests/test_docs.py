"""Names in the documentation exist."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = "adafocus_env|agents|benchmarks|classifiers"


def resolve(name):
    """Return the object of a dotted name."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_name_exists(page):
    names = re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)", page.read_text(encoding="utf-8"))
    assert all(resolve(name) is not None for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page):
    commands = re.findall(rf"python -m ((?:{PACKAGES})(?:\.[a-z_]+)*)(?!\.?\w)", page.read_text(encoding="utf-8"))
    for command in commands:
        assert importlib.util.find_spec(command) is not None, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"(?<![\w/])((?:{PACKAGES}|configs|docs|examples|tests)/[a-z\d_/.-]*[a-z\d_]\.(?:py|yaml|md|png|json))", text)
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_the_version_is_the_same_everywhere():
    """The version is in the metadata, the citation and the newest section of the changelog; the date is in the last two."""
    text = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")}
    version = re.search(r'^version = "(.+)"', text["pyproject.toml"], re.MULTILINE)[1]
    number, date = re.search(r"^## \[(\d.*)\] - (.+)", text["CHANGELOG.md"], re.MULTILINE).groups()
    assert number == version and f"version: {version}\ndate-released: {date}\n" in text["CITATION.cff"]
