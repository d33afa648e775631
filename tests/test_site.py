"""The generated pages of the documentation are complete. (CI builds the site, with warnings as errors.)"""

import importlib
import json
import re
from pathlib import Path

import pytest
from test_docs import resolve

from adafocus_env.settings import EnvSettings, fields_of, is_settings
from agents.config.settings import Evaluate, Predict, TrainStages

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def generate(monkeypatch):
    """Return a function that imports a module of docs/generate."""
    monkeypatch.syspath_prepend(DOCS)
    return lambda name: importlib.import_module(f"generate.{name}")


def test_every_setting_is_in_the_reference(generate):
    page = generate("settings").pages()["configuration.md"]
    for schema in (TrainStages, Evaluate, Predict):
        for name, declared in fields_of(schema).items():
            inner = fields_of(declared.annotation) if is_settings(declared.annotation) else {}
            keys = [f"{name}.{key}" for key in inner if not is_settings(inner[key].annotation)] if inner else [name]
            assert all(f"| `{key}` |" in page for key in keys), keys
    assert all(f"| `{name}` |" in page for name in fields_of(EnvSettings))
    assert "| `ppo.gamma` | `0.0` | a number of at least 0 and at most 1 | discount factor" in page
    assert "| `ppo.validate_every` | `5` | an integer of at least 1 | updates between two validations" in page


def test_the_reference_links_every_command_to_its_groups(generate):
    page = generate("settings").pages()["configuration.md"]
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert {"train_ppo", "predict", "data", "env", "ppo"} <= headings
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= headings


def test_every_benchmark_id_has_a_page_with_its_scores(generate):
    pages = generate("environments").pages()
    aliases = {"AdaFocus-v1", "AdaFocusContinuous-v1", "AdaFocusSkip-v1"}
    scores = json.loads((DOCS.parent / "adafocus_env" / "scores.json").read_text(encoding="utf-8"))
    assert {f"environments/{name}.md" for name in set(scores) - aliases} == set(pages) - {"environments/index.md"}
    track, skip = (pages[f"environments/AdaFocusTrack{form}-v1.md"] for form in ("", "Skip"))
    assert "Discrete(49)" in track and "| ppo | 3 |" in track and "| oracle | 1 | 100.0 |" in track
    assert "Discrete(50)" in skip and "λ = 0.05" in skip
    assert "Box(0, 6, (32, 8, 8), float32)" in track


def test_the_names_of_the_reference_exist_and_have_docstrings(generate):
    for _, names in generate("api").TOPICS.values():
        for name in names:
            found = resolve(name)
            assert isinstance(found, dict) or found.__doc__, name


def test_docstrings_with_markdown_become_restructured_text(generate):
    lines = ["Text.", "## Rewards", "| name | value |", "|---|---|", "| `a` | b |", "Text."]
    generate("docstrings").convert(None, "class", "name", None, None, lines)
    assert lines == [
        "Text.", "", ".. rubric:: Rewards", "", "", ".. list-table::", "   :header-rows: 1", "",
        "   * - name", "     - value", "   * - `a`", "     - b", "", "Text.",
    ]  # fmt: skip


def test_links_lead_to_the_pages_of_the_site(generate):
    def linked(page, text):
        source = [text]
        generate("root_files").link(None, page, source)
        return source[0]

    assert linked("speed", "[a](../benchmarks/RESULTS.md#steps) [b](tasks.md)") == "[a](/generated/results.md#steps) [b](tasks.md)"
    assert linked("generated/contributing", "[a](docs/extend.md) [b](CHANGELOG.md)") == "[a](/extend.md) [b](/generated/changelog.md)"
    assert linked("generated/contributing", "[a](LICENSE) [b](https://x.org) [c](#d)") == "[a](/../LICENSE) [b](https://x.org) [c](#d)"


def test_links_that_are_named_after_a_file_show_the_title_of_its_page(generate):
    source = ["[extend.md](extend.md#a-reward), [docs](tasks.md), [benchmarks/RESULTS.md](../benchmarks/RESULTS.md)"]
    generate("root_files").link(None, "speed", source)
    assert source == ["[Extending](extend.md#a-reward), [docs](tasks.md), [Results](/generated/results.md)"]


def test_pages_of_ids_name_what_has_not_been_measured(generate, monkeypatch):
    module = generate("environments")
    monkeypatch.setattr(module, "EXPECTED", ("ppo", "no_such_policy"))
    page = module.pages()["environments/AdaFocusTrackSkip-v1.md"]
    assert "Not measured on this task: no_such_policy." in page and "| ppo | 3 |" in page


def test_signatures_without_functions_and_constructors_of_protocols(generate):
    signature = generate("docstrings").signature
    found = signature(None, "function", "name", len, None, "(seed, progress=<function <lambda>>)", None)
    assert found == ("(seed, progress=…)", None)
    assert signature(None, "class", "name", resolve("classifiers.protocols.Head"), None, "(*args, **kwargs)", None) == ("", "")


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^(.* <)?{page.stem}>?$", index, re.MULTILINE), page.name
