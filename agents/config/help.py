"""The help pages, which list every setting of a command with its default, its allowed values and its meaning."""

import io
from collections.abc import Iterator
from typing import Any

from adafocus_env.dataset_registry import DATASETS, DataSettings
from adafocus_env.settings import allowed, extra, fields_of, is_settings
from agents.config.compose import files_of, primary
from classifiers.errors import lookup

WIDTH = 100


def help_page(schema: type, config_name: str, package: str, about: str | None, group: str = "") -> str:
    """Return the page of a command, or of one group of its settings.

    Args:
        schema: the class of the settings.
        config_name: the primary YAML file, without ``.yaml``.
        package: the package that holds the YAML files.
        about: text above the settings.
        group: name of the group; empty: the whole command.

    Raises:
        InputError: if the group does not exist.
    """
    from rich.console import Console

    groups = dict(groups_of(schema, config_name, package))
    choices = {name: ", ".join(files_of(name, package)) for name in primary(config_name, package)[0]}
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False, emoji=False)
    if not group:
        console.print((about or config_name).strip(), soft_wrap=True)
        console.print("\nArguments are written key=value. --help GROUP shows one group, --cfg job the values as composed, and")
        console.print("-m runs every combination of values separated by commas, one after the other: -m seed=1,2,3")
    for name in groups if not group else [lookup("--help", group, {each: each for each in groups if each})]:
        console.print()
        _print_group(console, name, groups[name])
        if name in choices:
            console.print(f"{name}=NAME sets several of them: {choices[name]}")
    for name in sorted(choices.keys() - groups.keys()) if not group else ():
        console.print(f"\n{name}=NAME sets keys of several groups: {choices[name]}")
    if group and fields_of(schema)[group].annotation is DataSettings:
        for name, row in DATASETS.items():
            console.print(f"data={name}: {row.help}; reads {', '.join(f'data.{key}' for key in row.reads)}")
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


Rows = list[tuple[str, str, str, str]]  # key, default, values, meaning


def groups_of(schema: type, config_name: str, package: str) -> Iterator[tuple[str, tuple[str, Rows]]]:
    """Yield the name of every group, its title and its settings.

    The first group has an empty name and contains the settings that belong to no group.

    Args:
        schema: the class of the settings.
        config_name: the primary YAML file, without ``.yaml``.
        package: the package that holds the YAML files.
    """
    presets, declared = _presets(config_name, package), fields_of(schema)
    own = [name for name in declared if not is_settings(declared[name].annotation)]
    yield "", ("keys of the command", [_row(name, declared[name], [presets.get(name)]) for name in own])
    for name in [each for each in declared if each not in own]:
        kind: Any = declared[name].annotation
        inner, values = fields_of(kind), presets.get(name) or {}
        title = f"{name}: {declared[name].description}"
        if all(is_settings(each.annotation) for each in inner.values()):  # several groups with the same settings
            first: Any = next(iter(inner.values())).annotation
            word = name.upper().removesuffix("S")
            title += f"; {word}: {', '.join(inner)}"
            rows = [
                _row(f"{name}.{word}.{key}", each, [values.get(part, {}).get(key) for part in inner])
                for key, each in fields_of(first).items()
            ]
        else:
            rows = [_row(f"{name}.{key}", each, [values.get(key)]) for key, each in inner.items()]
        yield name, (title, rows)


def rows_of(kind: type) -> Rows:
    """Return the settings of a class with their declared defaults."""
    return [_row(name, each, [None]) for name, each in fields_of(kind).items()]


def _row(key: str, declared: Any, values: list[Any]) -> tuple[str, str, str, str]:
    """Return the four texts of a setting: key, default, allowed values and meaning.

    The text of the default comes from ``values``; None in ``values`` stands for the declared default.
    """
    shown = [_text(declared.get_default(call_default_factory=True) if value is None else value) for value in values]
    unit = f" [{unit}]" if (unit := extra(declared, "unit")) else ""
    default = "(needed)" if declared.is_required() else shown[0] if len(set(shown)) == 1 else ", ".join(shown)
    values_taken = "" if declared.annotation is Any else allowed(declared).replace(" or a Python object", "")
    return key, default, values_taken, f"{declared.description}{unit}"


def _text(value: Any) -> str:
    """Return a value as a user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) or "''"


def _print_group(console: Any, name: str, group: tuple[str, Rows]) -> None:
    from rich.table import Column, Table

    title, rows = group
    console.print(title, style="bold")
    table = Table(
        Column("key", no_wrap=True), Column("default", max_width=14, overflow="fold"), Column("values", max_width=26), "meaning",
        box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=True,
    )  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _presets(config_name: str, package: str) -> dict[str, Any]:
    """Return the values that the primary YAML file sets, directly or by its choices of groups; None for a group without a choice."""
    import yaml

    groups, values = primary(config_name, package)
    chosen = {name: files_of(name, package)[choice].read_text(encoding="utf-8") if choice else "" for name, choice in groups.items()}
    return {**{name: yaml.safe_load(text) for name, text in chosen.items()}, **values}
