"""Settings: each is declared once, with its type, range, unit, default and help text.

`EnvSettings` holds the arguments of the environments, the commands' ``env.*`` keys and what a feature bank depends on. Other settings
classes follow the same form; `validate` turns what a user gave into an object, or into an error that says what is allowed.
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
"""An integer of at least 1, where a setting takes other values too: limits of `setting` are for settings that are only numbers."""
ActionName = Literal["grid", "continuous", "interpolated", "skip", "continuous_skip"]
NumberFormat = Literal["float32", "float16", "bfloat16"]


@dataclass_transform(field_specifiers=(Field,), kw_only_default=False)
def settings(kind: type[T]) -> type[T]:
    """Make a dataclass whose values are validated: no conversions but from int to float, no unknown names."""
    return dataclass(config=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True))(kind)  # type: ignore[return-value]


def setting(default: Any, help: str, *, unit: str = "", path: bool = False, **limits: Any) -> Any:
    """Declare one setting.

    Args:
        default: its default; a callable without arguments makes a new one for each object, and ``...`` means that a value must be given.
        help: what it means, in a sentence.
        unit: of the value, where it has one.
        path: a command takes the value exactly as typed, also special characters.
        limits: of the value: ``ge``, ``gt``, ``le``, ``lt``, and others that `pydantic.Field` takes.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**given, description=help, json_schema_extra={"unit": unit, "path": path}, **limits)


def validate(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the settings object with these values.

    Args:
        kind: a class made by `settings`.
        values: by name; of nested settings, mappings.
        prefix: what stands before a name in error messages, such as ``env.``.

    Raises:
        InputError: a name is unknown (suggests the nearest), or a value has the wrong type or lies outside its range.
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
    """Return the values that a setting takes, in words: ``an integer of at least 1``, ``'a' or 'b'``."""
    return " or ".join(_words(each, _limits(field.metadata)) for each in _alternatives(field.annotation))


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """Return the declarations of a settings class by name; see `allowed`, and the attributes of `pydantic.fields.FieldInfo`."""
    return {name: field for name, field in kind.__pydantic_fields__.items() if field.init is not False}  # type: ignore[attr-defined]


def declared_in(kind: type, name: str) -> Any:
    """Return the declaration of a setting of another class, to declare it again with a narrower type or in another group."""
    return fields_of(kind)[name]


def extra(field: FieldInfo, name: str) -> Any:
    """Return the ``unit`` of a declared setting, or whether it is a ``path``."""
    return (field.json_schema_extra or {}).get(name)  # type: ignore[union-attr]


def unknown(name: str, known: Iterable[str], prefix: str = "") -> InputError:
    """Return the error for a name that is not among the known ones; it suggests the nearest."""
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
    """Return what is wrong with the first bad value, and what is allowed."""
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
    """The environment: what an agent chooses, what it is rewarded with, and where features are stored."""

    action: ActionName | Callable[..., Any] = setting(
        "grid", "grid, continuous, interpolated (not rounded to pixels), skip (a grid and an action without a patch) or continuous_skip"
    )
    grid: int = setting(7, "G: the patch lies on one of G × G cells", unit="cells per axis", ge=1)
    video_div: int | None = setting(None, "decisions per video, where the head averages the scores of frames", ge=1)
    reward: Any = setting("random", "a name in `adafocus_env.reward.REWARDS`: what the confidence is compared with")
    baseline: Count | Literal["all"] = setting(
        1, "random patches whose mean the reward compares with; all: the exact mean over the grid"
    )
    full_information: bool | Count = setting(
        False, "each step also reports the reward of every action, which standard algorithms do not get; K: of K sampled locations"
    )
    cost_weight: float = setting(0.0, "λ, the cost of a step with a patch", unit="reward", ge=0, allow_inf_nan=False)
    skipped: Literal["zeros", "last", "none"] = setting("zeros", "what the head receives for a skipped frame")
    bank: Any = setting("auto", "where features are stored: true (memory), false (nowhere), auto (memory where they fit) or a folder")
    bank_dtype: NumberFormat = setting("float32", "number format of stored features")
    bank_gib: float | None = setting(None, "largest size of a bank in memory; the least recently used clips are dropped", unit="GiB", gt=0)
