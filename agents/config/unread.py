"""Keys that a command does not read in some states: what a user typed is honoured or refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from classifiers.errors import InputError


@dataclass(frozen=True)
class Unread:
    """Keys that have no effect in some configs.

    Attributes:
        keys: their names, separated by blanks; the name of a group stands for all keys in it.
        when: whether a config is one of those.
        why: the reason and what to do; ``{c.data.name}`` in it stands for a value of the config.
    """

    keys: str
    when: Callable[[Any], object]
    why: str

    def names(self, key: str) -> bool:
        """Whether the rule is about this key."""
        return any(key == each or key.startswith(f"{each}.") for each in self.keys.split())


def check_read(config: object, typed: Mapping[str, str], rules: Iterable[Unread]) -> None:
    """Checks that every key that a user typed has an effect. Defaults and presets may have none.

    Args:
        config: what the command would do.
        typed: the arguments that the user typed, such as ``env.grid=5``, by key.
        rules: of the command; the first that applies to a key gives the reason.

    Raises:
        InputError: a key has no effect (names each, says why and what to do).
    """
    rules = list(rules)
    problems = [_problem(config, key, argument, rules) for key, argument in typed.items()]
    if found := [problem for problem in problems if problem]:
        raise InputError("\n".join(dict.fromkeys(found)))


def _problem(config: object, key: str, argument: str, rules: Iterable[Unread]) -> str:
    rule = next((rule for rule in rules if rule.names(key) and rule.when(config)), None)
    return "" if rule is None else f"{argument} has no effect: {rule.why.format(c=config)}"
