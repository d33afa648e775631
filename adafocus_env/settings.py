"""Settings. Each setting is declared once, with its type, range, unit, default and help text.

`EnvSettings` declares the arguments of the environments. Commands accept the same settings as ``env.*`` keys. Other classes with settings
are declared in the same way as `EnvSettings`. `validate` converts a user's values to a settings object, or raises an error that says which
values are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

from classifiers.errors import InputError, suggestion

T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]
"""An integer of at least 1, for settings that also accept other values. (The limits of `setting` can be used only for settings that accept
nothing but numbers.)"""
ActionName = Literal["grid", "continuous", "interpolated", "skip", "continuous_skip"]
NumberFormat = Literal["float32", "float16", "bfloat16"]


@dataclass_transform(field_specifiers=(Field,), kw_only_default=False)
def settings(kind: type[T]) -> type[T]:
    """Make a dataclass whose values are validated. Unknown names are refused. Values are not converted, except from int to float."""
    return dataclass(config=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True))(kind)  # type: ignore[return-value]


def setting(default: Any, help: str, *, unit: str = "", path: bool = False, **limits: Any) -> Any:
    """Declare one setting.

    Args:
        default: the default value. A function without arguments is called once per settings object, and returns the default value. With
            ``...``, the setting is required.
        help: the meaning, in a sentence.
        unit: unit of the value, if any.
        path: whether the value is a path. Commands use a path exactly as typed, including special characters.
        limits: limits of the value: ``ge``, ``gt``, ``le``, ``lt``, and other arguments of `pydantic.Field`.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**given, description=help, json_schema_extra={"unit": unit, "path": path}, **limits)


def validate(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the settings object with the given values.

    Args:
        kind: a class made by `settings`.
        values: mapping from names to values. The values of nested settings are mappings, too.
        prefix: prefix of names in error messages, such as ``env.``.

    Raises:
        InputError: if a name is unknown, or if a value has the wrong type or is out of range. For an unknown name, the message suggests the
            nearest name.
    """
    declared = fields_of(kind)
    nested = {
        name: validate(declared[name].annotation, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        for name, value in values.items()
        if name in declared and is_settings(declared[name].annotation) and isinstance(value, Mapping)
    }
    try:
        return kind(**{**values, **nested})
    except ValidationError as problem:
        raise InputError(_message(kind, problem, prefix)) from None


def allowed(field: FieldInfo) -> str:
    """Return the allowed values of a setting in words, such as ``an integer of at least 1`` or ``'a' or 'b'``."""
    return " or ".join(_words(each, _limits(field.metadata)) for each in _alternatives(field.annotation))


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """Return the declared settings of a class as a dictionary from name to declaration.

    The declarations are pydantic's `FieldInfo`, which has type, default and help text; `allowed` describes the allowed values.
    """
    return {name: field for name, field in kind.__pydantic_fields__.items() if field.init is not False}  # type: ignore[attr-defined]


def declared_in(kind: type, name: str) -> Any:
    """Return the declaration of one setting of a class.

    With this declaration, another class can declare the same setting with a narrower type or in another group.
    """
    return fields_of(kind)[name]


def extra(field: FieldInfo, name: str) -> Any:
    """Return extra information on a declared setting: ``unit`` or ``path``."""
    return (field.json_schema_extra or {}).get(name)  # type: ignore[union-attr]


def unknown(name: str, known: Iterable[str], prefix: str = "") -> InputError:
    """Return the error for an unknown name. The error message suggests the nearest known name."""
    known = sorted(known)
    return InputError(f"{prefix}{name} is not a setting; {suggestion(name, known)}choose one of {', '.join(known)}")


def is_settings(kind: object) -> bool:
    """Return whether a type is a class made by `settings`."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_fields__")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _limits(metadata: Iterable[Any]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {getattr(limit, name):.10g}" for limit in metadata for name in words if hasattr(limit, name))


def _words(kind: Any, limits: str = "") -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if get_origin(kind) is Annotated:
        return _words(get_args(kind)[0], _limits(get_args(kind)[1].metadata))
    if get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in get_args(kind))
    if get_origin(kind) is list:
        return f"a list, each {_words(get_args(kind)[0])}"
    name = names.get(kind, "a dictionary" if is_settings(kind) or get_origin(kind) is dict else "a Python object")
    if kind not in (int, float) or not limits:
        return name
    return f"{name} of {limits}" if limits.startswith("at ") else f"{name} {limits}"


def _message(kind: type, problem: ValidationError, prefix: str) -> str:
    """Return an error message that names the first invalid value and the allowed values."""
    error = problem.errors()[0]
    if not error["loc"]:
        return f"{prefix or kind.__name__}: {error['msg']}"
    name, declared = str(error["loc"][0]), fields_of(kind)
    if name not in declared:
        return str(unknown(name, declared, prefix))
    if error["type"] in ("missing", "string_too_short"):
        return f"{prefix}{name} is missing: add {prefix}{name}=VALUE"
    choices = [value for each in _alternatives(declared[name].annotation) if get_origin(each) is Literal for value in get_args(each)]
    hint = suggestion(error["input"], choices) if isinstance(error["input"], str) else ""
    return f"{prefix}{name} must be {allowed(declared[name])}, got {error['input']!r}{hint and f'; {hint.strip()}'}"


@settings
class EnvSettings:
    """Settings of the environment: actions, rewards and the storage of features."""

    action: ActionName | Callable[..., Any] = setting(
        "grid", "grid, continuous, interpolated (not rounded to pixels), skip (a grid and skipping) or continuous_skip"
    )
    grid: int = setting(7, "G, for a grid of G × G patch positions", unit="cells per axis", ge=1)
    video_div: int | None = setting(None, "decisions per video, if the head averages the scores of frames", ge=1)
    reward: Any = setting("random", "the reward, a name in `adafocus_env.reward.REWARDS`")
    baseline: Count | Literal["all"] = setting(
        1, "number of random patches for the reward's baseline; all: the exact mean over the grid"
    )
    full_information: bool | Count = setting(
        False, "report the rewards of all actions in each step, which standard algorithms do not use; K: of K sampled locations"
    )
    cost_weight: float = setting(0.0, "λ, the cost of a step with a patch", unit="reward", ge=0, allow_inf_nan=False)
    skipped: Literal["zeros", "last", "none"] = setting("zeros", "input of the head for a skipped frame")
    bank: Any = setting("auto", "storage of features: true (memory), false (none), auto (memory if they fit) or a folder")
    bank_dtype: NumberFormat = setting("float32", "number format of stored features")
    bank_gib: float | None = setting(None, "largest size of a bank in memory; the least recently used clips are dropped", unit="GiB", gt=0)
