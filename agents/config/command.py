"""The entry of every command: ``key=value`` arguments and the YAML files of a package become one typed config object.

Hydra composes, and that is all it does here: jobs run in this process, and no folder, log or file is made for Hydra's sake.
The primary YAML file names the schema and the groups that it is made of::

    defaults:
      - train_ppo_schema     # the dataclass that `run_command` is given: its name is the config's with `_schema` after it
      - data: demo           # configs/data/demo.yaml fills the field `data`
      - _self_
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from agents.config.keys import check_choice, check_key, explain, field_types, flat, is_free_form
from agents.config.launch import PACKAGES, Job, run_jobs, run_main, say
from agents.config.plugin import import_plugin
from agents.runs.allocator import keep_freed_memory
from classifiers.errors import InputError

PATH_KEYS = frozenset({"run", "root", "data.root", "file", "out", "video", "classifier", "policy"})
"""Keys whose value is taken as it was typed, whatever characters it holds."""

BY_PATH = frozenset({"algo"})
"""Groups that also take the dotted path of a class: ``algo=package.Class`` means ``algo=custom algo.name=package.Class``."""

C = TypeVar("C")


def run_command(
    main: Callable[[C], None],
    schema: type[C],
    config_name: str,
    *,
    config_package: str = "configs",
    arguments: Sequence[str] | None = None,
) -> None:
    """Runs ``main`` with the config that the command line asks for, once, or under ``-m`` once for every combination.

    A mistake of the user ends the process with its message alone on stderr and status 2, Ctrl-C with status 130. Any other
    exception is a bug and keeps its traceback. Under ``-m`` a job that fails does not stop the others; see `agents.config.launch`.

    Args:
        main: does the work.
        schema: a dataclass whose fields are all the keys there are; the module that its ``plugin`` names, if it has one, is imported
            first. A field ``typed`` that OmegaConf ignores gets the arguments that were typed, by key.
        config_name: the primary YAML file, without ``.yaml``.
        config_package: the importable package that holds the YAML files.
        arguments: the command line; by default that of the process.
    """
    keep_freed_memory()
    parser = _flag_parser()
    flags = parser.parse_intermixed_args(arguments)
    if flags.resolve and not flags.cfg:
        parser.error("--resolve is for --cfg; add --cfg job, or leave it out")
    command = _Command(schema, config_name, config_package)
    try:
        if flags.help:
            sys.stdout.write(command.help(flags.overrides, sys.modules[main.__module__].__doc__))
        elif flags.cfg:
            sys.stdout.write(command.yaml(flags.overrides, resolve=flags.resolve))
        elif flags.multirun:
            jobs, launcher = command.jobs(flags.overrides)
            run_jobs(main, jobs, launcher)
        else:
            run_main(main, command.checked_config(flags.overrides))
    except InputError as problem:
        say(str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def compose_config(schema: type[C], config_name: str, overrides: Sequence[str] = (), *, config_package: str = "configs") -> C:
    """The config object that a command called with these ``key=value`` arguments would get.

    Whether each of them has an effect is for the caller to check, if it matters; see `typed_keys`.

    Raises:
        InputError: an argument has no ``=``, an unknown key, a value of the wrong type or an unknown choice.
    """
    return _Command(schema, config_name, config_package).config(overrides)


def typed_keys(arguments: Sequence[str]) -> dict[str, str]:
    """The ``key=value`` arguments by key, for `agents.config.unread_keys.check_config`; of one with a dictionary every key in it.

    Raises:
        InputError: one cannot be parsed.
    """
    paths, overrides = _split(arguments)
    typed = {key: f"{key}={value}" for key, value in paths.items()}
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as problem:
        raise InputError(str(problem)) from problem
    for override in parsed:
        value, key, argument = override.value(), override.key_or_group, str(override.input_line).lstrip("+")
        typed |= dict.fromkeys([f"{key}.{each}" for each in flat(value)] if isinstance(value, dict) else [key], argument)
    return typed


def plain_text(text: str) -> str:
    """Escapes ``text`` such that OmegaConf resolves it to itself: ``${x}`` in it is no interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


@dataclass(frozen=True)
class _Command(Generic[C]):
    schema: type[C]
    config_name: str
    config_package: str

    def config(self, arguments: Sequence[str]) -> C:
        with self._session(arguments):
            return self._object(self._compose(arguments), typed_keys(arguments))

    def checked_config(self, arguments: Sequence[str]) -> C:
        return self._checked(self.config(arguments), typed_keys(arguments))

    def yaml(self, arguments: Sequence[str], *, resolve: bool) -> str:
        with self._session(arguments):
            return OmegaConf.to_yaml(_without_hydra(self._compose(arguments)), resolve=resolve)

    def help(self, arguments: Sequence[str], header: str | None) -> str:
        """Hydra's help page: the groups with their choices, and the config as composed."""
        with self._session(arguments):
            config = self._compose(arguments)
            page = config.hydra.help
            # The page is a string.Template inside an OmegaConf string: a dollar of the docstring must pass both.
            page.header = plain_text((header or self.config_name).strip().replace("$", "$$")) + "\n"
            page.footer = (
                "Several values, as in -m seed=1,2,3, run one after the other; add hydra/launcher=joblib hydra.launcher.n_jobs=2 to run "
                "two at a time. Powered by Hydra (https://hydra.cc)"
            )
            return _hydra().get_help(page, _without_hydra(config), _flag_parser(), resolve=False)

    def jobs(self, arguments: Sequence[str]) -> tuple[list[Job], dict[str, Any]]:
        """Every combination of the swept values, all checked before any can run; and Hydra's config of what shall run them."""
        with self._session(arguments):
            paths, overrides = _split(arguments)
            quoted = [f"{key}={value}" for key, value in paths.items()] + [each for each in overrides if _is_launcher(each)]
            overrides = [each for each in overrides if not _is_launcher(each)]
            options = [_options(override) for override in OverridesParser.create(_hydra().config_loader).parse_overrides(overrides)]
            jobs: list[Job] = []
            launcher: dict[str, Any] = {}
            for combination in itertools.product(*options):
                swept = [text for text, choices in zip(combination, options, strict=True) if len(choices) > 1]
                name = ",".join(swept or combination)
                config = self._compose([*quoted, *combination], sweeping=True)
                launcher = dict(OmegaConf.to_container(config.hydra.launcher))  # type: ignore[arg-type]
                if name and "run" in field_types(self.schema):
                    config.run = plain_text(str(Path(config.run or f"runs/{self.config_name}") / _folder_name(name)))
                typed = typed_keys([*quoted, *combination])
                jobs.append(Job(name, self._checked(self._object(config, typed), typed)))
            return jobs, launcher

    @contextmanager
    def _session(self, arguments: Sequence[str]) -> Iterator[None]:
        """Hydra with the schema and the YAML files at hand; its errors come out as `InputError`."""
        ConfigStore.instance().store(name=f"{self.config_name}_schema", node=self.schema)
        try:
            with initialize_config_module(self.config_package, job_name=self.config_name, version_base="1.3"):
                yield
        except (HydraException, OmegaConfBaseException) as problem:
            raise InputError(explain(problem, arguments, field_types(self.schema))) from problem

    def _compose(self, arguments: Sequence[str], *, sweeping: bool = False) -> DictConfig:
        paths, overrides = _split(arguments)
        launching = [each for each in overrides if _is_launcher(each)]
        if launching and not sweeping:
            raise InputError(f"{launching[0]} is for several jobs: add --multirun, or leave it out")
        self._check(paths, [each for each in overrides if each not in launching])
        _check_launcher(launching)
        config = compose(self.config_name, [self._added(override) for override in overrides], return_hydra_config=True)
        for key, value in paths.items():
            OmegaConf.update(config, key, plain_text(value))
        return config

    def _added(self, override: str) -> str:
        """The override; one of a key in a dictionary that takes any marked such that the YAML files need not have it."""
        return f"++{override}" if is_free_form(override.partition("=")[0], field_types(self.schema)) else override

    def _check(self, paths: Mapping[str, str], overrides: Sequence[str]) -> None:
        types = field_types(self.schema)
        groups = _groups(self.config_package)
        for key in paths:
            check_key(key, types, groups)
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            group = override.key_or_group
            check_key(group, types, groups)
            if override.is_delete():
                raise InputError(f"{override.input_line}: a key cannot be taken away; leave it out or give it another value")
            choice = override.value()
            if group in groups and isinstance(choice, str | int | float):
                check_choice(group, str(choice), groups[group])

    def _object(self, config: DictConfig, typed: Mapping[str, str]) -> C:
        result = OmegaConf.to_object(_without_hydra(config))
        assert isinstance(result, self.schema), f"{self.config_name}.yaml must begin its defaults with {self.config_name}_schema"
        if hasattr(result, "typed"):
            result.typed = dict(typed)
        return result

    def _checked(self, config: C, typed: Mapping[str, str]) -> C:
        """The config, if every key that was typed has an effect in it. The user's plugin may add to what there is."""
        from agents.config.unread_keys import check_config  # here, so that --help answers at once

        import_plugin(getattr(config, "plugin", ""))
        check_config(config, typed)
        return config


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Parts the arguments in path keys with their values, exactly as typed, and overrides that Hydra shall parse."""
    paths: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise InputError(f"{argument!a} is not valid UTF-8; rename the file")
        if not equals:
            raise InputError(f"{argument!r} has no '='; arguments are written key=value (--help lists the keys)")
        name = key.lstrip("+")
        if name in BY_PATH and re.fullmatch(r"\w+(\.\w+)+", value):
            overrides += [f"{key}=custom", f"{key}.name={value}"]
        elif name not in PATH_KEYS:
            overrides.append(argument)
        elif value == "???":
            raise InputError(f"{argument}: ??? alone stands for a missing value; write ./??? for a file of that name")
        else:
            paths[name] = value
    return paths, overrides


def _options(override: Override) -> list[str]:
    """The override once for each value that it sweeps over; itself if it does not sweep."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _folder_name(name: str) -> str:
    """A name that every file system takes; a hash tells names apart that would become the same."""
    safe = re.sub(r"[^\w.,=+-]+", "_", name)[:100]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _is_launcher(override: str) -> bool:
    """Whether it says what runs the jobs of a sweep: the one thing beside the config that Hydra is asked."""
    return override.startswith(("hydra/launcher=", "hydra.launcher."))


def _check_launcher(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _, name = override.partition("=")
        if key != "hydra/launcher":
            continue
        there = _hydra().config_loader.get_group_options(key)
        check_choice(key, name, sorted({*there, *PACKAGES}))
        if name not in there:
            raise InputError(f"{override} needs a package more: pip install {PACKAGES[name]}, or leave it out")


def _without_hydra(config: DictConfig) -> DictConfig:
    job = copy.deepcopy(config)
    with open_dict(job):
        del job["hydra"]
    return job


@functools.cache
def _groups(package: str) -> dict[str, list[str]]:
    """Return the choices of every config group of a package. Its folders are read directly: Hydra takes ten times as long to list them."""
    groups: dict[str, list[str]] = {}
    for root in map(Path, importlib.import_module(package).__path__):
        for file in sorted(each.relative_to(root) for each in root.rglob("*.yaml")):
            for folder in file.parents[:-1]:
                groups.setdefault(folder.as_posix(), [])
            if len(file.parts) > 1:
                groups[file.parent.as_posix()].append(file.stem)
    return groups


def _hydra() -> Any:
    return GlobalHydra.instance().hydra


def _flag_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Any key=value of the config")
    parser.add_argument("--help", "-h", action="store_true", help="Shows the config groups and the config, and ends")
    parser.add_argument("--cfg", "-c", choices=["job"], help="Shows the config as YAML, and ends")
    parser.add_argument("--resolve", action="store_true", help="With --cfg: interpolations resolved")
    parser.add_argument("--multirun", "-m", action="store_true", help="Runs every combination of comma-separated values")
    return parser
