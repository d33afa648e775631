"""The directory of a run: its config, machine, metrics, checkpoints and result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from agents.config.compose import flat, plain_text, unescaped_text
from agents.runs.system import system_information
from classifiers.atomic_files import remove_leftovers, write_text
from classifiers.errors import InputError

EXECUTION_KEYS = frozenset({"run", "force", "device", "data.workers", "log", "trust"})  # trust: of earlier versions
"""Keys that may change between two starts of a run, because they affect only where and how it runs, not its results."""

METRICS, TIMING, RESULT, CONFIG, SYSTEM = "metrics.jsonl", "timing.jsonl", "result.json", "config.yaml", "system.json"
COMPARISON, CONTACT_SHEET, PREDICTIONS, PAGE = "result.png", "contact_sheet.png", "predictions.csv", "report.html"
EXIT_CURVE = "exit.png"  # written by `agents.evaluate`
WATCHED = "watch.gif"
CHECKPOINTS, TENSORBOARD, WANDB, WANDB_ID = "checkpoints", "tensorboard", "wandb", "wandb_id"
LOCK = ".lock"

WRITTEN = (
    RESULT,  # removed first, so that the run is unfinished if the removal is interrupted
    METRICS, TIMING, COMPARISON, CONTACT_SHEET, PREDICTIONS, PAGE, WATCHED, TENSORBOARD, WANDB, WANDB_ID,
    *(f"{CHECKPOINTS}/{name}" for name in ("last.json", "*-[0-9]*.safetensors", ".*.part")),  # of `agents.rl.saved_model`
    *(f"{CHECKPOINTS}/{name}" for name in ("*-[0-9]*.zip", "*-[0-9]*.replay")),  # of earlier versions
    *(f"{CHECKPOINTS}/{name}" for name in ("best", "classifier", "given")),
    # of `agents.pipeline.stages`:
    *(f"{CHECKPOINTS}/{name}" for name in ("stage0-glancer", "stage0-focuser", "stage[1-3]", "round*-stage[23]")),
    f"{CHECKPOINTS}/end_to_end",  # of `agents.pipeline.end_to_end`
)  # fmt: skip
"""Patterns of the files and directories that a run writes and ``force`` removes, except `CONFIG`, `SYSTEM` and `LOCK`."""


class RunDir:
    """The files of a run. The constructor opens the files for reading; `open` opens the files for writing, by one process at a time.

    ``config.yaml`` and ``system.json`` are written when the run is opened. ``metrics.jsonl`` and ``timing.jsonl`` have a line for every
    update or epoch. ``result.json`` is written at the end of the run. The training code manages ``checkpoints``. Times are only in
    ``timing.jsonl``, so that the files ``metrics.jsonl`` of two runs with the same seed are byte-identical.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        self._logged = time.perf_counter(), time.process_time()
        self._lock = FileLock(self.root / LOCK, timeout=0, thread_local=False)
        self._watchers: list[Callable[[Mapping[str, object] | None], object]] = []

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, force: bool) -> RunDir:
        """Create the directory, or resume the run in it.

        Use the returned `RunDir` in a ``with`` statement, or `close` it. Other processes cannot open the directory until it is closed or
        this process ends.

        Args:
            path: The directory.
            config: The resolved config, as nested dictionaries of plain values.
            force: Whether to remove the files that an earlier run wrote (`WRITTEN`), and start over. Other files stay.

        Raises:
            InputError: if the directory belongs to a run with another config, if another process has it open, if it has files that do not
                belong to a run, or if it cannot be written. If the configs differ, the message names the keys that differ.
        """
        run = cls(path)
        run._acquire()
        try:
            # The config is compared in the form in which its file is read: tuples become lists, and enum members become names.
            run._prepare(_from_yaml(_to_yaml(config)), force=force)
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Release the lock, so that other processes can open the directory."""
        self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.path(RESULT).is_file()

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints, which is created when the first checkpoint is saved."""
        return self.path(CHECKPOINTS)

    def path(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.root / name

    def config(self) -> dict[str, Any]:
        """Return the config of the run.

        Raises:
            InputError: if the directory is not a run directory, or if its ``config.yaml`` cannot be read.
        """
        file = self.path(CONFIG)
        if not file.is_file():
            raise InputError(f"{self.root} is not a run directory: it has no {CONFIG}")
        try:
            return _from_yaml(file.read_text(encoding="utf-8"))
        except Exception as problem:  # OmegaConf, PyYAML and the decoder raise different exceptions
            raise InputError(f"{file} cannot be read ({problem}); fix it or choose another run=DIR") from problem

    @property
    def in_use(self) -> bool:
        """Whether a process has opened the directory for writing. The check acquires the lock for a moment."""
        if not self.path(LOCK).is_file():
            return False
        try:
            with FileLock(self.path(LOCK), timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # no permission to lock another user's file
            return False

    def watch(self, watcher: Callable[[Mapping[str, object] | None], object]) -> None:
        """Call ``watcher`` with every line after the line is logged, and call it with None after lines were removed."""
        self._watchers.append(watcher)

    def log(self, metrics: Mapping[str, object]) -> None:
        """Append a line to ``metrics.jsonl``. Also append the seconds since the previous line, or since the start, to ``timing.jsonl``.

        The seconds are wall-clock time and CPU time of this process. The line of metrics is flushed to the disk.
        """
        _append_line(self.path(METRICS), metrics)
        now = time.perf_counter(), time.process_time()
        seconds, cpu_seconds = (round(after - before, 3) for after, before in zip(now, self._logged, strict=True))
        _append_line(self.path(TIMING), {"seconds": seconds, "cpu_seconds": cpu_seconds}, sync=False)
        self._logged = now
        for watcher in self._watchers:
            watcher(metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``."""
        return [json.loads(line) for line in _complete_lines(self.path(METRICS))]

    def timing(self) -> list[dict[str, float]]:
        """Return the lines of ``timing.jsonl``, one per line of metrics."""
        return [json.loads(line) for line in _complete_lines(self.path(TIMING))]

    def truncate(self, lines: int) -> None:
        """Remove all lines of metrics and timing after the first ``lines`` lines, because the run resumes from an earlier checkpoint.

        Raises:
            InputError: if there are fewer than ``lines`` lines of metrics. (There were at least ``lines`` lines when the checkpoint was
                saved.)
        """
        logged = len(_complete_lines(self.path(METRICS)))
        if logged < lines:
            raise InputError(f"{self.path(METRICS)} has {logged} lines, but the checkpoint was made after {lines}; force=true starts over")
        for file in (self.path(METRICS), self.path(TIMING)):
            _truncate(file, lines)
        if logged > lines:
            for watcher in self._watchers:
                watcher(None)

    def forget(self) -> None:
        """If the run has logged and saved nothing yet, remove its config.

        Without a stored config, the next start accepts any config, so that a mistyped value can be corrected.
        """
        if all(entry.name in (CONFIG, SYSTEM) for entry in self._entries()):
            self.path(CONFIG).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, which marks the run as finished."""
        write_text(self.path(RESULT), to_json(result, indent=2, sort_keys=True) + "\n")

    def result(self) -> dict[str, Any]:
        """Return the content of ``result.json``.

        Raises:
            InputError: if the run is not finished.
        """
        if not self.finished:
            raise InputError(f"{self.root} has no {RESULT}: the run is not finished; start it again with run={self.root} to continue")
        return json.loads(self.path(RESULT).read_text(encoding="utf-8"))

    def _acquire(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.path(CONFIG).is_file() and any(entry.name != SYSTEM for entry in self._entries()):
                raise InputError(f"{self.root} is neither empty nor a run directory (it has no {CONFIG}); choose another run=DIR")
            self._lock.acquire()  # after the check, so that no lock file is created in a directory that is refused
        except Timeout as problem:
            raise InputError(f"another process is using {self.root}; wait for it, or choose another run=DIR") from problem
        except OSError as problem:
            raise InputError(f"run={self.root} cannot be written ({problem.strerror or problem}); choose another run=DIR") from problem

    def _prepare(self, config: dict[str, Any], *, force: bool) -> None:
        remove_leftovers(self.root)
        if self.path(CONFIG).is_file():
            if force:
                self._clear()
            else:
                _compare(self.root, self.config(), config)
        if self.finished:  # system.json describes the machine that computed the result
            return
        # The config is written last, so that a directory that has a config also has the other files.
        write_text(self.path(SYSTEM), to_json(system_information(), indent=2) + "\n")
        write_text(self.path(CONFIG), _to_yaml(config))
        for file in (self.path(METRICS), self.path(TIMING)):
            _truncate(file, None)

    def _entries(self) -> list[Path]:
        return [entry for entry in self.root.iterdir() if not entry.name.startswith(".")]

    def _clear(self) -> None:
        """Remove the files that runs write, except for the config, which is replaced."""
        for pattern in WRITTEN:
            for path in sorted(self.root.glob(pattern)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        with contextlib.suppress(OSError):  # missing or not empty
            self.checkpoints.rmdir()


def _compare(root: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = flat(old), flat(new)
    keys = sorted((before.keys() | after.keys()) - EXECUTION_KEYS)
    values = {key: [repr(config[key]) if key in config else "(absent)" for config in (before, after)] for key in keys}
    differing = [f"  {key}: {' → '.join(both)}" for key, both in values.items() if len(set(both)) > 1]
    if differing:
        remedy = "force=true starts over, another run=DIR keeps both"
        raise InputError("\n".join([f"{root} holds a run with another config ({remedy}):", *differing]))


def _to_yaml(config: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _from_yaml(text: str) -> dict[str, Any]:
    """Return the values of a YAML file. Interpolations are not resolved, because the file may be of somebody else: they stay as text."""
    config = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(config, dict):
        raise TypeError(f"it is a {type(config).__name__} in place of keys and values")
    return {str(key): _unescaped(value) for key, value in config.items()}


def _unescaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unescaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_unescaped(each) for each in value]
    return unescaped_text(value) if isinstance(value, str) else value


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(each) for each in value]
    return plain_text(value) if isinstance(value, str) else value


def to_json(value: object, **options: Any) -> str:
    """Return JSON for nested values. NumPy and torch values become Python values. NaN and infinity do not exist in JSON and become null."""
    return json.dumps(_jsonable(value), allow_nan=False, ensure_ascii=False, **options)


def _append_line(file: Path, values: Mapping[str, object], *, sync: bool = True) -> None:
    """Append ``values`` as one line, with the keys in order.

    With ``sync``, the line is flushed to the disk, which takes some milliseconds. Without ``sync``, the line survives if the process ends,
    but not if the power fails.

    Raises:
        InputError: if the file cannot be written, for example because the disk is full.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(to_json(values) + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
    except OSError as problem:
        raise InputError(f"cannot write {file}: {problem.strerror or problem}; free some space and start again to continue") from problem


def _complete_lines(file: Path) -> list[str]:
    """Return the lines of a file, including their line ends; empty if there is no file.

    An incomplete last line, which a killed process leaves, is left out.
    """
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]


def _truncate(file: Path, lines: int | None) -> None:
    """Remove all lines after the first ``lines`` lines. Also remove an incomplete last line, so that the next line starts on a new line."""
    if file.exists():
        write_text(file, "".join(_complete_lines(file)[:lines]))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
