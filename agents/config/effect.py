"""Settings without effect: a key that a user typed has an effect or is refused by name; it is never ignored.

A settings class lists the settings that are not read in its present state with a method ``without_effect(command, prefix)``. It yields
pairs: names (separated by spaces, relative to the prefix of the class; the name of a group stands for all its settings), and the reason
with what to do. ``command`` are the settings of the whole command.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from adafocus_env.settings import is_settings
from classifiers.errors import InputError

Reasons = Iterable[tuple[str, str]]


def check_effect(command: Any, typed: Mapping[str, str], more: Callable[[Any], Reasons] | None = None) -> None:
    """Check that every setting that a user typed has an effect. Defaults and presets may have none.

    Args:
        command: its settings.
        typed: the arguments that the user typed, such as ``env.grid=5``, by key.
        more: command → further names and reasons.

    Raises:
        InputError: a setting has no effect (names all such, says why and what to do).
    """
    found = [f"{argument} has no effect: {reason}" for key, argument in typed.items() if (reason := _reason(command, key, more))]
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))


def check_overrides(typed: Mapping[str, str], ours: Collection[str]) -> None:
    """Check that the ``overrides`` of a command that makes runs leave alone what the command itself sets in each.

    Raises:
        InputError: one of them does not (names it).
    """
    if refused := [argument for key, argument in typed.items() if key in ours]:
        raise InputError(f"overrides: the command itself sets {', '.join(refused)} in every run; leave it out (--help lists its own keys)")


def _reason(command: Any, key: str, more: Callable[[Any], Reasons] | None) -> str | None:
    """Return why a setting has no effect: the first reason, from the innermost group to the command."""
    groups = [(prefix, group) for prefix, group in _groups(command, key) if hasattr(group, "without_effect")]
    known = [(prefix, group.without_effect(command, prefix)) for prefix, group in reversed(groups)]
    for prefix, reasons in [*known, ("", more(command) if more else ())]:
        for names, reason in reasons:
            if any(f"{key}.".startswith(f"{prefix}{name}.") for name in names.split()):
                return reason
    return None


def _groups(command: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the command and the groups that a key lies in, with what stands before the names of their settings."""
    prefix, group = "", command
    yield prefix, group
    for name in key.split(".")[:-1] if getattr(command, "complete", True) else ():
        group = getattr(group, name, None)
        if not is_settings(type(group)):
            return
        prefix += f"{name}."
        yield prefix, group
