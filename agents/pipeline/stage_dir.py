"""The share of one stage in a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.runs.run_dir import RunDir


class StageDir(RunDir):
    """A run directory as one stage sees it: its checkpoints, and the lines of metrics from its first one on.

    Args:
        run: The whole run directory.
        folder: Name of the stage's folder in ``checkpoints``.
        first: Number of lines that earlier stages have logged.
        fields: Values at the beginning of every line of the stage.
    """

    def __init__(self, run: RunDir, folder: str, first: int, fields: Mapping[str, object]) -> None:
        super().__init__(run.root)
        self._run, self._folder, self._first, self._fields = run, folder, first, dict(fields)

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self._run.checkpoints / self._folder

    def log(self, metrics: Mapping[str, object]) -> None:
        """Append a line; see `RunDir.log`."""
        self._run.log({**self._fields, **metrics})

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of this stage and of later ones."""
        return self._run.metrics()[self._first :]

    def truncate(self, lines: int) -> None:
        """Drop all but the first ``lines`` lines of this stage, and all lines of later ones; see `RunDir.truncate`."""
        self._run.truncate(self._first + lines)
