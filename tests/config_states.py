"""Settings of commands with given values, without the YAML files."""

import yaml

from adafocus_env.settings import fields_of, validate


def config_of(schema, state):
    """Return the settings with the values in ``state``, which are ``key=value`` separated by spaces."""
    values = dict.fromkeys((name for name, field in fields_of(schema).items() if field.is_required()), "x")
    for each in state.split():
        key, _, value = each.partition("=")
        *groups, name = key.split(".")
        owner = values
        for group in groups:
            owner = owner.setdefault(group, {})
        owner[name] = yaml.safe_load(value)
    return validate(schema, values)
