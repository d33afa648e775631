"""The share of one stage in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.runs.run_dir import RunDir


class StageDir(RunDir):
    """A run folder as one stage sees it: checkpoints of its own, and of the metrics the lines from a certain one on.

    Args:
        run: the whole.
        name: of the folder below ``checkpoints``.
        first: lines that the stages before it have logged.
        about: values that stand at the beginning of each of its lines.
    """

    def __init__(self, run: RunDir, name: str, first: int, about: Mapping[str, object]) -> None:
        super().__init__(run.root)
        self._run, self._name, self._first, self._about = run, name, first, dict(about)

    @property
    def checkpoints(self) -> Path:
        """The stage's own folder for checkpoints."""
        return self._run.checkpoints / self._name

    def log(self, metrics: Mapping[str, object]) -> None:
        """Appends a line; see `RunDir.log`."""
        self._run.log({**self._about, **metrics})

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of this stage, and of those after it."""
        return self._run.metrics()[self._first :]

    def truncate(self, lines: int) -> None:
        """Keeps the first ``lines`` lines of this stage, and none of a later one; see `RunDir.truncate`."""
        self._run.truncate(self._first + lines)
