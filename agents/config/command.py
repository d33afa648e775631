"""The entry point of every command, which converts YAML files and ``key=value`` arguments to settings and reports the user's mistakes."""

import argparse
import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from adafocus_env.settings import fields_of, validate
from agents.config.allocator import keep_freed_memory
from agents.config.compose import compose, sweep, typed_keys
from agents.config.effect import Reasons, check_effect
from agents.config.plugin import import_plugin
from classifiers.errors import InputError

C = TypeVar("C")
BUG, MISTAKE, STOPPED = 1, 2, 130  # exit statuses; if several jobs fail, the lowest status is returned


def run_command(
    main: Callable[[C], int | None],
    schema: type[C],
    config_name: str,
    *,
    config_package: str = "configs",
    arguments: Sequence[str] | None = None,
    without_effect: Callable[[C], Reasons] | None = None,
) -> None:
    """Run ``main`` with the settings of the command line; with ``-m``, run it once for every combination of values.

    A mistake of the user ends the process with a message on stderr and status 2. Ctrl-C ends it with status 130. Any other exception is a
    bug, and its traceback is shown. With ``-m``, all jobs are checked before the first job runs, and a failed job does not stop the others.

    Args:
        main: function that does the work and returns the exit status, or None for 0.
        schema: class of the settings. If the command has a setting ``plugin``, the module named by this setting is imported first.
        config_name: name of the primary YAML file, without ``.yaml``.
        config_package: importable package with the YAML files.
        arguments: the command line; by default, the command line of the process.
        without_effect: function that takes the settings and yields those that have no effect in this command, with the reasons; see
            `agents.config.effect`.
    """
    flags = _flags(arguments)
    command = _Command(main, schema, config_name, config_package, without_effect)
    try:
        if flags.help is not None:
            from agents.config.help import help_page

            sys.stdout.write(help_page(schema, config_name, config_package, sys.modules[main.__module__].__doc__, flags.help))
            return
        keep_freed_memory()
        if flags.cfg:
            sys.stdout.write(command.yaml(flags.overrides))
            return
        status = command.run_all(flags.overrides) if flags.multirun else main(command.checked(flags.overrides))
    except InputError as problem:
        say(str(problem))
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    if status:
        sys.exit(status)


def compose_config(schema: type[C], config_name: str, arguments: Sequence[str] = (), *, config_package: str = "configs") -> C:
    """Return the settings of a command for ``key=value`` arguments.

    This function does not check whether each argument has an effect; see `agents.config.effect`.

    Raises:
        InputError: if an argument has no ``=``, an unknown key or an invalid value, or if it names an unknown choice of a group.
    """
    config = validate(schema, compose(schema, config_name, arguments, config_package))
    if hasattr(config, "typed"):
        config.typed = typed_keys(arguments, schema)
    return config


def say(message: str) -> None:
    """Print a message on stderr without markup, colours or added line breaks. (A line break could split a path.)"""
    from rich.console import Console

    from adafocus_env.terminal import printable

    Console(stderr=True).print(printable(message), markup=False, highlight=False, soft_wrap=True, emoji=False)


@dataclass(frozen=True)
class _Command(Generic[C]):
    main: Callable[[C], int | None]
    schema: type[C]
    config_name: str
    package: str
    without_effect: Callable[[C], Reasons] | None

    def checked(self, arguments: Sequence[str]) -> C:
        """Import the user's plugin, check that every typed argument has an effect, and return the settings."""
        config = compose_config(self.schema, self.config_name, arguments, config_package=self.package)
        import_plugin(getattr(config, "plugin", ""))
        check_effect(config, typed_keys(arguments, self.schema), self.without_effect)
        return config

    def yaml(self, arguments: Sequence[str]) -> str:
        from dataclasses import asdict

        from omegaconf import OmegaConf

        values = asdict(compose_config(self.schema, self.config_name, arguments, config_package=self.package))  # type: ignore[call-overload]
        return OmegaConf.to_yaml({name: values[name] for name in fields_of(self.schema)})

    def jobs(self, arguments: Sequence[str]) -> Iterator[tuple[str, C]]:
        """Yield the name and the settings of every job. If the command has a run folder, each job has a separate run folder."""
        for name, combination in sweep(self.schema, self.config_name, arguments, self.package):
            config: Any = self.checked(combination)
            if name and "run" in fields_of(self.schema):
                config.run = str(Path(config.run or f"runs/{self.config_name}") / _folder_name(name))
            yield name, config

    def run_all(self, arguments: Sequence[str]) -> int:
        """Run the jobs one after the other, and return the exit status. Ctrl-C ends all of them."""
        jobs = list(self.jobs(arguments))
        statuses = dict.fromkeys([name for name, _ in jobs], STOPPED)
        for number, (name, config) in enumerate(jobs, start=1):
            say(f"job {number} of {len(jobs)}: {name}")
            statuses[name] = self._status(config)
            if statuses[name] == STOPPED:
                break
        failed = [name for name, status in statuses.items() if status]
        if failed and len(jobs) > 1:
            say(f"{len(failed)} of {len(jobs)} jobs failed or were stopped: {', '.join(failed)}")
        return min((statuses[name] for name in failed), default=0)

    def _status(self, config: C) -> int:
        try:
            return self.main(config) or 0
        except InputError as problem:
            say(str(problem))
            return MISTAKE
        except (KeyboardInterrupt, SystemExit):  # raised by a run that was stopped and saved
            return STOPPED
        except Exception:
            say(traceback.format_exc())
            return BUG


def _folder_name(name: str) -> str:
    """Return a name that is valid on every file system, with a hash to distinguish names that would become equal."""
    safe = re.sub(r"[^\w.,=+-]+", "_", name)[:100]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--help", "-h", nargs="?", const="", metavar="GROUP")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--multirun", "-m", action="store_true")
    return parser.parse_intermixed_args(arguments)
