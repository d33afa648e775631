"""Refuse settings without effect: a typed key either has an effect or raises an error that names it.

A settings class has a method ``without_effect(command, prefix)``, which yields the settings that are not read in the current state as pairs
of names and reason. The names are separated by spaces and relative to the prefix of the class; the name of a group means all its settings.
The reason includes advice. ``command`` has the settings of the whole command.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from adafocus_env.settings import is_settings
from classifiers.errors import InputError

Reasons = Iterable[tuple[str, str]]


def check_effect(command: Any, typed: Mapping[str, str], more: Callable[[Any], Reasons] | None = None) -> None:
    """Check that every typed setting has an effect. (Defaults and presets may be without effect.)

    Args:
        command: the settings of the command.
        typed: the arguments that the user typed, such as ``env.grid=5``, by key.
        more: function of the command that yields further names and reasons.

    Raises:
        InputError: if a setting has no effect. The message lists all such settings, with reasons and advice.
    """
    found = [f"{argument} has no effect: {reason}" for key, argument in typed.items() if (reason := _reason(command, key, more))]
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))


def check_overrides(typed: Mapping[str, str], ours: Collection[str]) -> None:
    """Check that the ``overrides`` of a command that starts runs do not set keys that the command itself sets in every run.

    Raises:
        InputError: if an override sets such a key. The message names it.
    """
    if refused := [argument for key, argument in typed.items() if key in ours]:
        raise InputError(f"overrides: the command itself sets {', '.join(refused)} in every run; leave it out (--help lists its own keys)")


def _reason(command: Any, key: str, more: Callable[[Any], Reasons] | None) -> str | None:
    """Return the reason why a setting has no effect, the first one from the innermost group to the command; None if it has an effect."""
    groups = [(prefix, group) for prefix, group in _groups(command, key) if hasattr(group, "without_effect")]
    known = [(prefix, group.without_effect(command, prefix)) for prefix, group in reversed(groups)]
    for prefix, reasons in [*known, ("", more(command) if more else ())]:
        for names, reason in reasons:
            if any(f"{key}.".startswith(f"{prefix}{name}.") for name in names.split()):
                return reason
    return None


def _groups(command: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the prefixes and settings objects of the command and of the groups that contain a key."""
    prefix, group = "", command
    yield prefix, group
    for name in key.split(".")[:-1] if getattr(command, "complete", True) else ():
        group = getattr(group, name, None)
        if not is_settings(type(group)):
            return
        prefix += f"{name}."
        yield prefix, group
