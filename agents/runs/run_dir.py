"""The folder of one run: what was asked for, on which machine, what was measured, and how it ended."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from agents.config.compose import flat, plain_text
from agents.runs.jsonl import append_line, drop_half_line, to_json, whole_lines
from agents.runs.system import system_information
from classifiers.atomic_files import write_text
from classifiers.errors import InputError

PASSING_KEYS = frozenset({"run", "force", "device", "data.workers", "log", "trust"})  # trust: of earlier versions
"""Keys that may change between two starts of one run: they say where and how it works, not what it computes."""

METRICS, TIMING, RESULT, CONFIG, SYSTEM = "metrics.jsonl", "timing.jsonl", "result.json", "config.yaml", "system.json"
COMPARISON, CONTACT_SHEET = "result.png", "contact_sheet.png"
CHECKPOINTS, TENSORBOARD, WANDB, WANDB_ID = "checkpoints", "tensorboard", "wandb", "wandb_id"
LOCK = ".lock"

WRITTEN = (
    RESULT,  # first: without it, a run that was cut short here is an unfinished one
    METRICS, TIMING, COMPARISON, CONTACT_SHEET, TENSORBOARD, WANDB, WANDB_ID,
    *(f"{CHECKPOINTS}/{name}" for name in ("last.json", "*-[0-9]*.safetensors", ".*.part")),  # of `agents.rl.training_state`
    *(f"{CHECKPOINTS}/{name}" for name in ("*-[0-9]*.zip", "*-[0-9]*.replay")),  # of earlier versions
    *(f"{CHECKPOINTS}/{name}" for name in ("best", "classifier", "given")),
    # of `agents.pipeline.stages`:
    *(f"{CHECKPOINTS}/{name}" for name in ("stage0-glancer", "stage0-focuser", "stage[1-3]", "round*-stage[23]")),
)  # fmt: skip
"""Patterns of the files and folders that a run writes, all but `CONFIG`, `SYSTEM` and `LOCK`: those that ``force`` removes."""


class RunDir:
    """The files of a run. `open` gives one to write to, which no other process can have; the constructor one to read.

    ``config.yaml`` and ``system.json`` are written when it is opened, ``metrics.jsonl`` and ``timing.jsonl`` get a line for
    every update or epoch, ``result.json`` is there when the run is finished, ``checkpoints`` is for whoever trains.
    Times go to ``timing.jsonl`` only: ``metrics.jsonl`` of two runs with the same seed are equal byte for byte.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        self._logged = time.perf_counter(), time.process_time()
        self._lock = FileLock(self.root / LOCK, timeout=0, thread_local=False)
        self._watchers: list[Callable[[Mapping[str, object] | None], object]] = []

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, force: bool) -> RunDir:
        """Makes the folder, or goes on in one that a run with the same config left.

        Use it in a ``with``, or `close` it: until then, or until the process dies, nobody else can open the folder.

        Args:
            path: the folder.
            config: the resolved config, nested dictionaries of plain values.
            force: removes what an earlier run wrote (`WRITTEN`), and starts over. Everything else in the folder stays.

        Raises:
            InputError: the folder belongs to a run with another config (names the keys), is in use, holds something that
                is no run, or cannot be written.
        """
        folder = cls(path)
        folder._acquire()
        try:
            folder._prepare(_as_stored(config), force=force)
        except BaseException:
            folder.close()
            raise
        return folder

    def close(self) -> None:
        """Lets others open the folder."""
        self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.path(RESULT).is_file()

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints. It is made by what is saved there."""
        return self.path(CHECKPOINTS)

    def path(self, name: str) -> Path:
        """Where a file of the run is or will be."""
        return self.root / name

    def config(self) -> dict[str, Any]:
        """The config of the run.

        Raises:
            InputError: there is no run in the folder, or its ``config.yaml`` cannot be read.
        """
        file = self.path(CONFIG)
        if not file.is_file():
            raise InputError(f"{self.root} is no run folder: it has no {CONFIG}")
        try:
            return _from_yaml(file.read_text(encoding="utf-8"))
        except Exception as problem:  # OmegaConf, PyYAML and the decoder each have their own
            raise InputError(f"{file} cannot be read ({problem}); mend it or choose another run=DIR") from problem

    @property
    def in_use(self) -> bool:
        """Whether a process holds the folder. To find out, it is held for a moment if nobody does."""
        if not self.path(LOCK).is_file():
            return False
        try:
            with FileLock(self.path(LOCK), timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # of somebody else, who does not let us lock it
            return False

    def watch(self, watcher: Callable[[Mapping[str, object] | None], object]) -> None:
        """Has ``watcher`` called with every line once it is logged, and with None when lines have been taken back."""
        self._watchers.append(watcher)

    def log(self, metrics: Mapping[str, object]) -> None:
        """Appends a line to ``metrics.jsonl``, and to ``timing.jsonl`` the seconds since the line before or the start.

        Those are the seconds that passed, and those that this process had of a CPU. The metrics are on the disk when this returns.
        """
        append_line(self.path(METRICS), metrics)
        now = time.perf_counter(), time.process_time()
        passed, worked = (round(after - before, 3) for after, before in zip(now, self._logged, strict=True))
        append_line(self.path(TIMING), {"seconds": passed, "cpu_seconds": worked}, sync=False)
        self._logged = now
        for watcher in self._watchers:
            watcher(metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return [json.loads(line) for line in whole_lines(self.path(METRICS))]

    def timing(self) -> list[dict[str, float]]:
        """The lines of ``timing.jsonl``, one for each of the metrics."""
        return [json.loads(line) for line in whole_lines(self.path(TIMING))]

    def truncate(self, lines: int) -> None:
        """Keeps the first ``lines`` lines of metrics and timing: what a run logged after the checkpoint it goes on from.

        Raises:
            InputError: there are fewer lines of metrics than the checkpoint saw.
        """
        found = len(whole_lines(self.path(METRICS)))
        if found < lines:
            raise InputError(f"{self.path(METRICS)} has {found} lines, but the checkpoint was made after {lines}; force=true starts over")
        for file in (self.path(METRICS), self.path(TIMING)):
            if file.exists():
                write_text(file, "".join(whole_lines(file)[:lines]))
        if found > lines:
            for watcher in self._watchers:
                watcher(None)

    def forget(self) -> None:
        """Lets any config have the folder, if nothing has been measured or saved: a mistyped value needs no ``force``."""
        if all(entry.name in (CONFIG, SYSTEM) for entry in self._entries()):
            self.path(CONFIG).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes ``result.json``, which marks the run as finished."""
        write_text(self.path(RESULT), to_json(result, indent=2, sort_keys=True) + "\n")

    def result(self) -> dict[str, Any]:
        """What `write_result` wrote.

        Raises:
            InputError: the run is not finished.
        """
        if not self.finished:
            raise InputError(f"{self.root} has no {RESULT}: the run is not finished; start it again with run={self.root} to go on")
        return json.loads(self.path(RESULT).read_text(encoding="utf-8"))

    def _acquire(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.path(CONFIG).is_file() and any(entry.name != SYSTEM for entry in self._entries()):
                raise InputError(f"{self.root} is not empty and no run folder (it has no {CONFIG}); choose another run=DIR")
            self._lock.acquire()  # only now: nothing is put into a folder that is not ours
        except Timeout as problem:
            raise InputError(f"another process is using {self.root}; wait for it, or choose another run=DIR") from problem
        except OSError as problem:
            raise InputError(f"run={self.root} cannot be written ({problem.strerror or problem}); choose another run=DIR") from problem

    def _prepare(self, config: dict[str, Any], *, force: bool) -> None:
        if self.path(CONFIG).is_file():
            if force:
                self._clear()
            else:
                _compare(self.root, self.config(), config)
        if self.finished:  # its record is that of the machine that did the work
            return
        # The config comes last: a folder that has one is a whole run folder.
        write_text(self.path(SYSTEM), to_json(system_information(), indent=2) + "\n")
        write_text(self.path(CONFIG), _to_yaml(config))
        for file in (self.path(METRICS), self.path(TIMING)):
            drop_half_line(file)

    def _entries(self) -> list[Path]:
        return [entry for entry in self.root.iterdir() if not entry.name.startswith(".")]

    def _clear(self) -> None:
        """Removes what runs write; the config stays, to be replaced."""
        for pattern in WRITTEN:
            for path in sorted(self.root.glob(pattern)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        with contextlib.suppress(OSError):  # it is missing, or holds files of others
            self.checkpoints.rmdir()


def _compare(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = flat(old), flat(new)
    keys = sorted((before.keys() | after.keys()) - PASSING_KEYS)
    differing = [f"  {key}: {_shown(before, key)} → {_shown(after, key)}" for key in keys if _shown(before, key) != _shown(after, key)]
    if differing:
        remedy = "force=true starts over, another run=DIR keeps both"
        raise InputError("\n".join([f"{root} holds a run with another config ({remedy}):", *differing]))


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(absent)"


def _to_yaml(config: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _from_yaml(text: str) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _as_stored(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it will read from its file, where a tuple is a list and an enum member its name."""
    return _from_yaml(_to_yaml(config))


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(each) for each in value]
    return plain_text(value) if isinstance(value, str) else value
