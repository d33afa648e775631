"""Loggers of a run, which send lines of `metrics.jsonl` to TensorBoard and Weights & Biases through Stable-Baselines3's logger."""

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from agents.runs.run_dir import METRICS, TENSORBOARD, WANDB_ID, RunDir
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, lookup

WANDB_PROJECT = "adafocus-env"
"""Default project at Weights & Biases. The environment variable ``WANDB_PROJECT`` overrides it."""

STEPS = ("steps", "epoch")
"""Keys that state the progress of a stage in a line of metrics. If a line has several of them, the first one is used."""

NAMES = frozenset({"stage", "part", "round", "update", *STEPS})
"""Keys that identify a line of metrics. The values of all other keys are measurements."""


def check_log(names: Sequence[str]) -> None:
    """Check that these loggers can be used.

    Raises:
        InputError: if a name is unknown, or its package is not installed.
    """
    for name in names:
        lookup("log", name, WRITERS)
    if "wandb" in names and find_spec("wandb") is None:
        raise InputError(f"log={list(names)} needs the package wandb: pip install wandb, or leave it out: log=[tensorboard]")


class Curves:
    """A watcher that writes the curves of a run to its loggers; pass it to `RunDir.watch`.

    A curve is named after its stage and network, such as ``stage 1 random patches/loss`` or ``stage 2/return``. The x axis of a
    curve is the number of epochs or environment steps of its stage since the start of the run, including earlier joint rounds.

    TensorBoard's files have the same content as ``metrics.jsonl``. A resumed run logs the lines after its checkpoint again. The files are
    rewritten when the first line of a start is logged, and whenever lines were removed. Therefore, no line appears twice.

    Args:
        run: The run.
        names: Names in `WRITERS`; see `check_log`.
    """

    def __init__(self, run: RunDir, names: Sequence[str]) -> None:
        self._run, self._names = run, tuple(names)
        self._logger: Logger | None = None
        self._clear()

    def __call__(self, line: Mapping[str, object] | None) -> None:
        """Write a line that has just been logged; None means that lines were removed.

        Raises:
            InputError: if a file cannot be written, for example because the disk is full.
        """
        if line is None:
            self._clear()
        elif self._names:
            with self._writing():
                if self._count == 0:
                    self._replay()
                self._write(line)

    def close(self) -> None:
        """Close the files of the writers. Raises the same error as a call."""
        logger, self._logger = self._logger, None
        self._clear()
        if logger is not None:
            with self._writing():
                logger.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Run the body, and convert any `OSError` to an `InputError`. (TensorBoard's thread also prints its traceback.)"""
        try:
            yield
        except OSError as problem:
            raise InputError(
                f"cannot write the curves of {self._run.root}: {problem.strerror or problem}; free some space and start again to continue"
            ) from problem

    def _clear(self) -> None:
        self._count = 0
        self._ends: dict[str, float] = {}
        self._rounds: dict[str, tuple[object, float]] = {}

    def _replay(self) -> None:
        """Rewrite TensorBoard's files with all lines except the last. (Other loggers already have these lines.)"""
        if self._logger is None:
            self._logger = Logger(None, [WRITERS[name](self._run) for name in self._names if name != TENSORBOARD])
        if TENSORBOARD in self._names:
            old = [each for each in self._logger.output_formats if isinstance(each, TensorBoardOutputFormat)]
            for each in old:
                each.close()
                self._logger.output_formats.remove(each)
            self._logger.output_formats.append(WRITERS[TENSORBOARD](self._run))
        for line in self._run.metrics()[:-1]:
            self._write(line, replayed=True)

    def _write(self, line: Mapping[str, object], *, replayed: bool = False) -> None:
        assert self._logger is not None
        self._count += 1
        curve = " ".join(str(part) for part in ("stage", line.get("stage", ""), line.get("part", "")) if part != "")
        for key, value in line.items():
            if key not in NAMES and isinstance(value, int | float) and math.isfinite(value):
                self._logger.record(f"{curve}/{key}", float(value), exclude=("wandb",) if replayed else None)
        self._logger.record("line", self._count, exclude=(TENSORBOARD, *(("wandb",) if replayed else ())))
        self._logger.dump(self._step(curve, line))

    def _step(self, curve: str, line: Mapping[str, object]) -> int:
        """Return the number of epochs or steps so far, in the earlier rounds and this round together."""
        done = next((line[key] for key in STEPS if key in line), self._count)
        if not isinstance(done, int):
            raise InputError(f"{self._run.path(METRICS)} must count steps or epochs in integers, got {done!r}; force=true starts over")
        number, before = self._rounds.get(curve, (line.get("round"), 0))
        if number != line.get("round"):
            before = self._ends[curve]
        self._rounds[curve] = line.get("round"), before
        self._ends[curve] = before + done
        return int(self._ends[curve])


def _tensorboard(run: RunDir) -> KVWriter:
    folder = run.path(TENSORBOARD)
    shutil.rmtree(folder, ignore_errors=True)
    return TensorBoardOutputFormat(str(folder))


class WandbOutputFormat(KVWriter):
    """An output format of Stable-Baselines3's logger for Weights & Biases.

    The environment variables of wandb apply, such as ``WANDB_MODE=offline`` and ``WANDB_PROJECT``. All starts of a run directory belong to
    one run of wandb. Each line of metrics is one step of wandb, so wandb ignores lines that are sent again. The x axis of curves is
    ``STAGE/step``.

    Args:
        run: The run.
    """

    def __init__(self, run: RunDir) -> None:
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # Weave mistakes this project's package `agents` for another one, and warns
        import wandb

        file = run.path(WANDB_ID)
        if not file.exists():
            write_text(file, secrets.token_hex(8))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT), id=file.read_text(encoding="utf-8"), resume="allow",
            name=run.root.name, dir=run.root, config=run.config(), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._stages: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send the values of one line."""
        values = {key: value for key, value in key_values.items() if "wandb" not in (key_excluded[key] or ())}
        if not values:
            return
        stage = next((key.partition("/")[0] for key in values if "/" in key), "")
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        line = values.pop("line")
        self._run.log({**values, f"{stage}/step": step}, step=line)

    def close(self) -> None:
        """End the run at Weights & Biases."""
        self._run.finish()


WRITERS: dict[str, Callable[[RunDir], KVWriter]] = {TENSORBOARD: _tensorboard, "wandb": WandbOutputFormat}
