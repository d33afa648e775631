"""Refuse settings without effect. If a setting that the user typed has no effect, an error that names the setting is raised.

Every settings class may define a method ``without_effect(command, prefix)``. `without_effect` yields the settings that have no effect with
the current values of the other settings, as pairs (names, reason). ``names`` is a string of names, separated by spaces, without the prefix
of the class. If ``names`` contains the name of a group of settings, it stands for all settings of the group. The reason includes advice.
``command`` has the settings of the whole command.
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
        typed: dictionary from key to the argument that the user typed, such as ``env.grid=5``.
        more: function that takes the settings of the command and yields further pairs of names and reason.

    Raises:
        InputError: if a setting has no effect. The message lists all settings that have no effect, with reasons and advice.
    """
    found = [f"{argument} has no effect: {reason}" for key, argument in typed.items() if (reason := _reason(command, key, more))]
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))


def check_overrides(typed: Mapping[str, str], ours: Collection[str]) -> None:
    """Check that the ``overrides`` of a command do not contain a key that the command itself sets in every run that it starts.

    Raises:
        InputError: if an override sets a key that the command itself sets. The message names the key.
    """
    if refused := [argument for key, argument in typed.items() if key in ours]:
        raise InputError(f"overrides: the command itself sets {', '.join(refused)} in every run; leave it out (--help lists its own keys)")


def _reason(command: Any, key: str, more: Callable[[Any], Reasons] | None) -> str | None:
    """Return the reason why a setting has no effect; None if it has an effect.

    The settings objects are searched for a reason in order, from the innermost group to the command. The first reason is returned.
    """
    groups = [(prefix, group) for prefix, group in _groups(command, key) if hasattr(group, "without_effect")]
    known = [(prefix, group.without_effect(command, prefix)) for prefix, group in reversed(groups)]
    for prefix, reasons in [*known, ("", more(command) if more else ())]:
        for names, reason in reasons:
            if any(f"{key}.".startswith(f"{prefix}{name}.") for name in names.split()):
                return reason
    return None


def _groups(command: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the prefix and the settings object of the command, and of every group that contains the key."""
    prefix, group = "", command
    yield prefix, group
    for name in key.split(".")[:-1] if getattr(command, "complete", True) else ():
        group = getattr(group, name, None)
        if not is_settings(type(group)):
            return
        prefix += f"{name}."
        yield prefix, group
