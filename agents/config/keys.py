"""What a config may hold, read from its dataclass, and what to say of an argument that does not fit."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf.errors import MissingMandatoryValue, ValidationError

from classifiers.errors import InputError


def field_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """The type of every key of a dataclass and of the dataclasses in it, by dotted key, in the order written."""
    hints = get_type_hints(schema)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if field.metadata.get("omegaconf_ignore"):  # no key
            continue
        key, kind = prefix + field.name, hints[field.name]
        found[key] = kind
        nested = next((each for each in _alternatives(kind) if isinstance(each, type) and dataclasses.is_dataclass(each)), None)
        if nested is not None:
            found |= field_types(nested, f"{key}.")
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def check_key(key: str, known: Mapping[str, Any], groups: Iterable[str]) -> None:
    """Raises `InputError` for a key that is neither a field, nor below a free-form field, nor a config group."""
    groups = list(groups)
    if key in known or key in groups or is_free_form(key, known):
        return
    if key.split(".")[0].split("/")[0] == "hydra":
        raise InputError(f"{key}: Hydra only composes the config here, so its own settings have no effect; use run=DIR for the folder")
    raise InputError(f"there is no key {key!r}; {_nearest(key, [*known, *groups]) or _siblings(key, known)}")


def is_free_form(key: str, known: Mapping[str, Any]) -> bool:
    """Whether the key lies in a dictionary or list, whose keys the dataclass does not fix."""
    parents = _parents(key)
    owner = next((parent for parent in parents if parent in known), None)
    return owner is not None and any(each is Any or get_origin(each) or each in (dict, list) for each in _alternatives(known[owner]))


def check_choice(group: str, choice: str, choices: Sequence[str]) -> None:
    """Raises `InputError` for a choice that the config group does not have."""
    if choice not in choices:
        hint = _nearest(choice, choices)
        raise InputError(f"{group}={choice}: {hint + ' ' if hint else ''}{group} is one of {', '.join(sorted(choices))}")


def explain(problem: Exception, arguments: Sequence[str], known: Mapping[str, Any]) -> str:
    """Says in one message what an exception of Hydra or OmegaConf means for the arguments that were typed."""
    cause = problem.__cause__ or problem
    key = getattr(cause, "full_key", None) or ""
    typed = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") == key]
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} is missing: add {key}=VALUE"
    if isinstance(cause, ValidationError) and typed and key in known:
        return f"{typed[-1]}: {key} must be {_type_name(key, known[key])}"
    if cause is problem:
        return str(problem)
    return f"{problem}: {cause}"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _nearest(word: str, words: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _siblings(key: str, known: Mapping[str, Any]) -> str:
    """The keys beside an unknown one: those of its group where that exists, else those of the top."""
    parent = next((parent for parent in _parents(key) if parent in known), None)
    prefix = f"{parent}." if parent else ""
    beside = [name for name in known if name.startswith(prefix) and "." not in name[len(prefix) :]]
    return f"the keys are {', '.join(beside or [name for name in known if '.' not in name])}"


def _type_name(key: str, kind: Any) -> str:
    return " or ".join(_one_type_name(key, each) for each in _alternatives(kind))


def _one_type_name(key: str, kind: Any) -> str:
    names = {int: "a whole number (int)", float: "a number (float)", bool: "true or false (bool)", str: "a text (str)", type(None): "null"}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(member.name for member in kind)
    if dataclasses.is_dataclass(kind):
        return f"set by the keys below it, as {key}.{dataclasses.fields(kind)[0].name}=VALUE"
    return names.get(kind, str(kind).replace("typing.", ""))
