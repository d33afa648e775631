"""Compose the command line and the YAML files of a package into a dictionary of plain values, with Hydra.

The primary YAML file of a command names its groups, and sets values that differ from the defaults of the command's settings::

    defaults:
      - data: demo           # configs/data/demo.yaml sets the keys below `data`
      - _self_

Hydra only composes values. Jobs run in this process, and Hydra creates no folders, logs or files.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from adafocus_env.settings import extra, fields_of, is_settings, unknown
from classifiers.errors import InputError, lookup

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

BY_PATH = frozenset({"algo"})
"""Groups whose choice may also be the dotted path of a class: ``algo=package.Class`` means ``algo=custom algo.name=package.Class``."""


def compose(schema: type, config_name: str, arguments: Sequence[str], package: str = "configs") -> dict[str, Any]:
    """Return the values of the YAML files and the arguments as nested dictionaries. (`adafocus_env.settings.validate` checks the values.)

    Raises:
        InputError: if an argument has no ``=``, if it begins with an unknown key, or if it names an unknown choice of a group.
    """
    import hydra
    from omegaconf import OmegaConf

    paths, overrides = _split(schema, arguments)
    with _composing(config_name, package):
        groups = {name: list(files_of(name, package)) for name in primary(config_name, package)[0]}
        added = [_checked(each, schema, groups) for each in _parsed(overrides)]
        lacks = any(not (_folder(package) / name).is_dir() for name in groups)
        searched = ["hydra.searchpath=[pkg://configs]"] if lacks else []
        config = hydra.compose(config_name, [*added, *searched])
        OmegaConf.set_struct(config, False)
        for key, value in paths.items():
            OmegaConf.update(config, key, plain_text(value))
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def sweep(schema: type, config_name: str, arguments: Sequence[str], package: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a name and the arguments of every combination of swept values. The name consists of these values.

    Raises:
        InputError: if an argument cannot be parsed.
    """
    from hydra.core.global_hydra import GlobalHydra

    paths, overrides = _split(schema, arguments)
    with _composing(config_name, package):
        loader = GlobalHydra.instance().hydra.config_loader  # type: ignore[union-attr]
        options = [
            [f"{each.get_key_element()}={value}" for value in (each.sweep_string_iterator() if each.is_sweep_override() else ())]
            or [each.input_line]
            for each in _parsed(overrides, loader)
        ]
    for combination in itertools.product(*options):
        swept = [text for text, choices in zip(combination, options, strict=True) if len(choices) > 1]
        yield ",".join(swept or combination), [*(f"{key}={value}" for key, value in paths.items()), *combination]


def typed_keys(arguments: Sequence[str], schema: type) -> dict[str, str]:
    """Return a dictionary from key to ``key=value`` argument, as `agents.config.effect` expects it.

    If the value of an argument is a dictionary, the result has one entry per key of this dictionary.

    Raises:
        InputError: if an argument cannot be parsed.
    """
    paths, overrides = _split(schema, arguments)
    typed = {key: f"{key}={value}" for key, value in paths.items()}
    for override in _parsed(overrides):
        value, key, argument = override.value(), override.key_or_group, override.input_line.lstrip("+")
        typed |= dict.fromkeys([f"{key}.{each}" for each in flat(value)] if isinstance(value, dict) else [key], argument)
    return typed


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as a flat dictionary with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain_text(text: str) -> str:
    """Escape ``text`` so that OmegaConf returns it unchanged, without interpolating ``${x}``."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def unescaped_text(text: str) -> str:
    """Return the text that `plain_text` escaped."""
    return re.sub(r"(\\+)\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", text)


def primary(config_name: str, package: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the groups that the primary YAML file names, with their choices, and the values that the file sets."""
    import yaml

    content = yaml.safe_load((_folder(package) / f"{config_name}.yaml").read_text(encoding="utf-8"))
    return {name: choice for each in content.pop("defaults") if isinstance(each, dict) for name, choice in each.items()}, content


def files_of(group: str, package: str) -> dict[str, Path]:
    """Return the YAML files of a group, by the names of the choices. If ``package`` lacks the group, the files are those in `configs`."""
    folders = [_folder(each) / group for each in (package, "configs")]
    return {file.stem: file for file in sorted(next(each for each in folders if each.is_dir()).glob("*.yaml"))}


def is_path(schema: type, key: str) -> bool:
    """Return whether the value of a key is used exactly as typed."""
    declared = _declared(schema, key)
    return declared is not None and bool(extra(declared, "path"))


def _is_list(schema: type, key: str) -> bool:
    """Return whether the value of a key may be a list."""
    declared = _declared(schema, key)
    return declared is not None and any(get_origin(each) is list for each in (declared.annotation, *get_args(declared.annotation)))


def _declared(schema: type, key: str) -> FieldInfo | None:
    """Return the declaration of a dotted key; None if there is none."""
    name, _, rest = key.partition(".")
    declared = fields_of(schema).get(name)
    if not rest or declared is None:
        return declared
    return _declared(declared.annotation, rest) if is_settings(declared.annotation) else None  # type: ignore[arg-type]


@contextmanager
def _composing(config_name: str, package: str) -> Iterator[None]:
    """Return a context in which Hydra finds the YAML files, and in which Hydra's errors are converted to `InputError`."""
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_module(package, job_name=config_name, version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as problem:
        raise InputError(str(problem) if problem.__cause__ is None else f"{problem}: {problem.__cause__}") from problem


def _parsed(overrides: Sequence[str], config_loader: Any = None) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader)
    parsed: list[Any] = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as problem:
            key, reason = override.partition("=")[0], str(problem).splitlines()[0].rstrip(".")
            raise InputError(
                f"{override} cannot be parsed ({reason}); put text that contains any of = [ ] {{ }} ( ) , : in two pairs of quotes: "
                f"{key}='\"a=b\"', or in a list {key}='[\"a=b\"]'"
            ) from problem
    return parsed


def _split(schema: type, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the arguments into values of path settings, which are used exactly as typed, and overrides, which Hydra parses."""
    paths: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise InputError(f"{argument!a} is not valid UTF-8; rename the file")
        if not equals:
            raise InputError(f"{argument!r} has no '='; arguments are written key=value (--help lists the keys)")
        name = key.lstrip("+")
        if name in BY_PATH and re.fullmatch(r"\w+(\.\w+)+", value):
            overrides += [f"{key}=custom", f"{key}.name={value}"]
        elif not is_path(schema, name):
            overrides.append(argument)
        elif value == "???":
            raise InputError(f"{argument}: ??? alone stands for a missing value; write ./??? for a file of that name")
        else:
            paths[name] = value
    return paths, overrides


def _checked(override: Any, schema: type, choices: Mapping[str, Sequence[str]]) -> str:
    """Return an override in a form that Hydra accepts even if the YAML files do not have its key. Users may omit the brackets of a list.

    Raises:
        InputError: if the first word of the override is neither a setting nor a group, or if the group does not have the choice. For a
            setting of another command (``schema.elsewhere``), the message names that command.
    """
    key, line = override.key_or_group, override.input_line
    if override.is_delete():
        raise InputError(f"{line}: a key cannot be removed; leave it out or give it another value")
    if override.is_sweep_override() and not _is_list(schema, key):
        raise InputError(f"{line} has several values: add --multirun, or quote it: {key}='\"a,b\"'")
    names, word = {*fields_of(schema), *choices}, key.split(".")[0]
    if key not in choices and word not in names:
        reason = getattr(schema, "elsewhere", {}).get(word)
        raise unknown(key, names) if reason is None else InputError(f"{line} has no effect: {reason}")
    if override.is_sweep_override():
        return f"++{key}=[{line.partition('=')[2]}]"
    value = override.value()
    if key not in choices or isinstance(value, dict):
        return f"++{line.lstrip('+')}"
    if isinstance(value, str | int | float):
        lookup(key, str(value), dict.fromkeys(choices[key]))
    return line


def _folder(package: str) -> Path:
    return Path(importlib.import_module(package).__path__[0])
