"""The small commands: ``key=value`` arguments become a dataclass, and a mistake becomes a message and status 2.

The commands in `agents` compose YAML files instead. Here nothing is imported before it is needed, so that ``--help`` and mistyped keys are
answered at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar, get_type_hints

from agents.config.plugin import import_plugin
from agents.config.unread import Unread, check_read
from classifiers.errors import InputError

A = TypeVar("A")


def key(name: str, default: Any = MISSING, of: str = "") -> Any:
    """A field that users type as ``name``, which may hold dots; ``of`` says what a whole number counts."""
    return field(default=default, metadata={"key": name, "of": of})


def run_command(
    action: Callable[[A], int],
    schema: type[A],
    about: str | None,
    arguments: Sequence[str] | None = None,
    *,
    unread: Iterable[Unread] = (),
) -> None:
    """Runs ``action`` with the typed arguments; what it returns is the exit status.

    A mistake that the user can mend ends the process with its message alone on stderr and status 2, Ctrl-C with status 130.

    Args:
        action: does the work.
        schema: a dataclass whose fields are all the keys there are; the module that its ``plugin`` names, if it has one, is imported first.
        about: what ``--help`` shows.
        arguments: the command line; by default that of the process.
        unread: keys that have no effect in some states; one of them that is typed then is an error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(f"{(about or '').strip()}\n")
        return
    try:
        given = parse(schema, arguments)
        import_plugin(getattr(given, "plugin", ""))
        check_read(given, {argument.partition("=")[0]: argument for argument in arguments}, unread)
        status = action(given)
    except InputError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if status:
        sys.exit(status)


def parse(schema: type[A], arguments: Sequence[str]) -> A:
    """The typed arguments as a ``schema``, whose fields are text or whole numbers.

    Raises:
        InputError: one has no ``=``, an unknown key (suggests the nearest) or a wrong value, or one that is needed is missing.
    """
    types = get_type_hints(schema)
    known = {_key(each): each for each in fields(schema)}  # type: ignore[arg-type]  # a dataclass
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} has no '='; arguments are written key=value (--help lists the keys)")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            keys = f"the keys are {', '.join(known)}" if known else "the command has none"
            raise InputError(f"there is no key {name!r}; {hint}{keys}")
        given[known[name].name] = _whole(known[name], value) if types[known[name].name] in (int, int | None) else value
    for name, each in known.items():
        if each.default is MISSING and not given.get(each.name):
            raise InputError(f"{name} is missing: add {name}=VALUE")
    return schema(**given)


def _key(each: Field[Any]) -> str:
    return each.metadata.get("key", each.name)


def _whole(each: Field[Any], value: str) -> int:
    try:
        return int(value)
    except ValueError as problem:
        of = each.metadata.get("of", "")
        raise InputError(f"{_key(each)}={value}: {_key(each)} must be a whole number{of and f' of {of}'}") from problem
