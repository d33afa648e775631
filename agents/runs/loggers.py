"""The curves of a run, for TensorBoard and Weights & Biases: what `metrics.jsonl` holds, through Stable-Baselines3's logger."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from agents.runs.run_dir import TENSORBOARD, WANDB_ID, RunDir
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, lookup

STEPS = ("steps", "epoch")
"""Keys of a line of metrics that say how far its stage has come; the first that is there counts."""

NAMES = frozenset({"stage", "part", "round", "update", *STEPS})
"""Keys that say what a line is about; the others are measurements."""


def check_log(to: Sequence[str]) -> None:
    """Checks that curves can be drawn there.

    Raises:
        InputError: there is no such writer, or its package is not installed.
    """
    for name in to:
        lookup("log", name, WRITERS)
    if "wandb" in to and find_spec("wandb") is None:
        raise InputError(f"log={list(to)} needs the package wandb: pip install wandb, or leave it out: log=[tensorboard]")


class Curves:
    """Draws every line that a run logs; give it to `RunDir.watch`.

    A curve is called after its stage and part: ``stage 1 random patches/loss``, ``stage 2/return``. Its steps are the epochs or
    environment steps of that stage since the beginning of the run: those of a later round go on where those of the round
    before ended.

    TensorBoard's files repeat ``metrics.jsonl`` and are written anew from it with the first line of every start, and whenever lines
    were taken back: what came after the checkpoint that a run goes on from is not drawn twice.

    Args:
        run: whose lines they are.
        to: names in `WRITERS`; see `check_log`.
    """

    def __init__(self, run: RunDir, to: Sequence[str]) -> None:
        self._run, self._to = run, tuple(to)
        self._logger: Logger | None = None
        self._clear()

    def __call__(self, line: Mapping[str, object] | None) -> None:
        """Draws a line that has just been logged; None: lines were taken back."""
        if line is None:
            self._clear()
        elif self._to:
            if self._count == 0:
                self._replay()
            self._draw(line)

    def close(self) -> None:
        """Lets the writers end their files."""
        if self._logger is not None:
            self._logger.close()
        self._logger = None
        self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._ends: dict[str, float] = {}
        self._rounds: dict[str, tuple[object, float]] = {}

    def _replay(self) -> None:
        """Begins TensorBoard's files anew with the lines before the last; what was sent elsewhere is there still."""
        if self._logger is None:
            self._logger = Logger(None, [WRITERS[name](self._run) for name in self._to if name != TENSORBOARD])
        if TENSORBOARD in self._to:
            old = [each for each in self._logger.output_formats if isinstance(each, TensorBoardOutputFormat)]
            for each in old:
                each.close()
                self._logger.output_formats.remove(each)
            self._logger.output_formats.append(WRITERS[TENSORBOARD](self._run))
        for line in self._run.metrics()[:-1]:
            self._draw(line, again=True)

    def _draw(self, line: Mapping[str, object], *, again: bool = False) -> None:
        assert self._logger is not None
        self._count += 1
        curve = " ".join(str(part) for part in ("stage", line.get("stage", ""), line.get("part", "")) if part != "")
        for key, value in line.items():
            if key not in NAMES and isinstance(value, int | float) and math.isfinite(value):
                self._logger.record(f"{curve}/{key}", float(value), exclude=("wandb",) if again else None)
        self._logger.record("line", self._count, exclude=(TENSORBOARD, *(("wandb",) if again else ())))
        self._logger.dump(self._step(curve, line))

    def _step(self, curve: str, line: Mapping[str, object]) -> int:
        """The epochs or steps of the rounds before, and those of this one."""
        done = next((line[key] for key in STEPS if key in line), self._count)
        assert isinstance(done, int)
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
    """Sends what Stable-Baselines3's logger is told to Weights & Biases, as one of its runs.

    ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and the other variables of wandb count. The same run folder stays the same run there.
    A line is a step of wandb's: one that is sent again, after a stop, is passed over there. Curves are drawn over ``STAGE/step``.

    Args:
        run: whose lines they are.
    """

    def __init__(self, run: RunDir) -> None:
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it takes our package `agents` for somebody else's, and says so
        import wandb

        file = run.path(WANDB_ID)
        if not file.exists():
            write_text(file, secrets.token_hex(8))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adafocus-env"), id=file.read_text(encoding="utf-8"), resume="allow",
            name=run.root.name, dir=run.root, config=run.config(), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._stages: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Sends the values of one line."""
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
        """Ends the run there."""
        self._run.finish()


WRITERS: dict[str, Callable[[RunDir], KVWriter]] = {TENSORBOARD: _tensorboard, "wandb": WandbOutputFormat}
