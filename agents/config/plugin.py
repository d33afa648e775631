"""Plugins are user-defined modules. A plugin is imported before a command starts, and can add entries to the tables of names.

The tables are plain dictionaries: `BACKBONES`, `HEADS`, `ARCHITECTURES`, `REWARDS`, `OBSERVATIONS`, `NETWORKS` and `DATASETS`. Files such
as a classifier's card contain names of entries but not of modules, so reading a file never imports a plugin. A command imports only the
plugin whose module the user typed.
"""

import importlib

from classifiers.errors import InputError


def import_plugin(name: str) -> None:
    """Import the module ``name``, unless it is empty.

    Raises:
        InputError: if the module does not exist. Errors inside the module are not caught.
    """
    if not name:
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{name}.".startswith(f"{problem.name}."):  # an import inside the module failed
            raise
        raise InputError(
            f"plugin={name}: there is no module {problem.name!r} in this folder or among the installed packages; give the name of a "
            "module as Python imports it, such as plugin=my_reward for my_reward.py"
        ) from problem
    except (TypeError, ValueError) as problem:
        raise InputError(f"plugin={name} is not the name of a module ({problem}); give one as Python imports it") from problem
