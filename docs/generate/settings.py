"""Generate the page of all settings from their declarations in `adafocus_env.settings`, `agents.config` and the YAML files."""

import ast
import importlib
import re
from pathlib import Path

import agents
from adafocus_env.dataset_registry import DATASETS
from adafocus_env.settings import EnvSettings
from agents.config.compose import files_of, primary
from agents.config.help import Rows, groups_of, rows_of

HEADINGS = ("key", "default", "values", "meaning")
PACKAGE = "configs"
GROUPS = ("data", "classifier", "architecture", "env", "ppo", "algo", "network", "stages", "joint")
"""The first sections, in this order. The sections of all other groups follow."""

ABOUT = """# Configuration

This page lists every setting of every command. It is generated from the declarations of the settings. Commands take `key=value`.
`python -m agents.COMMAND --help` prints the same for one command, and `--cfg job` prints the values after composition. An unknown
key, a value outside its range and a key without an effect are errors, and the message says what is allowed.

If a default has several values, they belong to several stages, in the order of the heading. `null` stands for no value. A command
can have another default in its YAML file in `configs/`. The table of a group then shows the value of the first command that reads it.
"""


def pages() -> dict[str, str]:
    """Return a dictionary from the file name of the page of all settings to its text."""
    text, groups = [ABOUT, "## Commands\n"], {}
    for module, (schema, config) in _commands().items():
        sections = dict(groups_of(schema, config, PACKAGE))
        own = sections.pop("")
        text += [f"### {module.removeprefix('agents.')}\n", f"`python -m {module}`: {_summary(module)}\n", _table(own[1])]
        if sections:
            text.append(f"Groups of settings: {', '.join(f'[{name}](#{name})' for name in sections)}.\n")
        for name, section in sections.items():
            groups.setdefault(name, (*section, _choices(name, config)))
    text.append("## Groups of settings\n")
    for name in sorted(groups, key=lambda each: (GROUPS.index(each) if each in GROUPS else len(GROUPS), each)):
        title, rows, choices = groups[name]
        text += [f"### {name}\n", f"{_capital(title.removeprefix(f'{name}: '))}.\n", _table(rows), choices]
    text += [
        "## Data sets\n",
        *(f"- `data={name}`: {row.help}; it reads {', '.join(f'`data.{key}`' for key in row.reads)}" for name, row in DATASETS.items()),
        "\n## Presets\n",
        "Files in `configs/` that set keys of several groups at once; each group above names its presets.\n",
        *(_presets(group) for group in sorted(_preset_groups() - groups.keys())),
        "\n## Arguments of environments\n",
        "`gymnasium.make(id, NAME=VALUE)` takes these and the arguments that the docstring of the environment lists.\n",
        _table(rows_of(EnvSettings)),
    ]
    return {"configuration.md": "\n".join(text) + "\n"}


def _commands() -> dict[str, tuple[type, str]]:
    """Return a dictionary from the module of each command of `agents` to the class of its settings and the name of its YAML file."""
    found = {}
    for file in sorted(Path(agents.__path__[0]).glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_command":
                module = importlib.import_module(f"agents.{file.stem}")
                found[module.__name__] = getattr(module, node.args[1].id), node.args[2].value
    return found


def _summary(module: str) -> str:
    return _capital((importlib.import_module(module).__doc__ or "").splitlines()[0])


def _choices(name: str, config: str) -> str:
    if name not in primary(config, PACKAGE)[0]:
        return ""
    return f"{_presets(name, 'sets several of them')}.\n"


def _presets(group: str, about: str = "is one of") -> str:
    return f"`{group}=NAME` {about}: {', '.join(f'`{name}`' for name in files_of(group, PACKAGE))}"


def _preset_groups() -> set[str]:
    folder = Path(importlib.import_module(PACKAGE).__path__[0])
    return {each.name for each in folder.iterdir() if each.is_dir() and list(each.glob("*.yaml"))}


def _table(rows: Rows) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    lines += [(f"`{key}`", f"`{_number(default)}`", _cell(values), _cell(meaning)) for key, default, values, meaning in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _number(default: str) -> str:
    """Write the numbers of YAML files, such as 3e-3, in the format of the declarations, such as 0.003."""
    return re.sub(r"\b\d+e-\d+\b", lambda match: f"{float(match[0]):g}", default)


def _cell(text: str) -> str:
    return re.sub(r"docs/(\w+)\.md", r"[\1](/\1.md)", text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
