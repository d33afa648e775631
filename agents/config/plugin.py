"""A user's own module, imported before a command starts: what it adds to the tables is then known by name, like what the package has.

The tables are plain dictionaries: `BACKBONES`, `HEADS`, `ARCHITECTURES`, `REWARDS`, `OBSERVATIONS`, `NETWORKS`, `DATASETS`. Files that are
read, such as a classifier's card, hold names only, so reading one imports no plugin: only what the user typed is imported.
"""

import importlib

from classifiers.errors import InputError


def import_plugin(name: str) -> None:
    """Import the module; nothing is done for an empty name.

    Raises:
        InputError: there is no module of that name. What the module itself raises is passed on.
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
