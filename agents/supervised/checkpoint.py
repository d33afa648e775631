"""Checkpoints of a supervised stage, saved after every epoch, and within an epoch if the epoch is long or if the user asks to stop."""

import io
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from adafocus_env import distributed
from agents.runs.interrupts import Stopped, StopRequest
from classifiers.atomic_files import replacing
from classifiers.errors import InputError, refuse_if

SUFFIX, STORED = ".pt", 2


class Savable(Protocol):
    """A training that can be saved between two batches."""

    @property
    def identity(self) -> Mapping[str, object]:
        """Plain values that identify the training.

        Training can resume from a checkpoint only if the values in the checkpoint are the same.
        """

    @property
    def name(self) -> str:
        """Name of the current checkpoint. A later checkpoint has a name that is later in alphabetical order."""

    def state(self) -> Mapping[str, Any]:
        """Return everything on which the remaining training depends, as tensors and plain values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`. Raise `InputError` if the state does not fit this training."""


class EpochCheckpoint:
    """The checkpoints of one supervised stage, in a folder.

    Files are written atomically, so that a killed process leaves no partial checkpoint. The last two checkpoints are stored. Loading a
    checkpoint runs no code from the file. If there are several processes, only the main process reads and writes files.

    Args:
        folder: The folder of the checkpoints, which is created with the first checkpoint.
        lines: Function that returns the number of lines of metrics.
        stop: The user's request to stop the training.
        save_every_seconds: Longest time between two checkpoints within an epoch.

    Attributes:
        resumed_lines: Number of lines of metrics at the checkpoint from which training resumes. None if training starts from scratch.
        extra: Plain values of the caller, which are saved and restored with the training.
        progress: Function that is called between batches with the number of finished epochs, including the finished share of the current
            epoch.

    Raises:
        InputError: If the last checkpoint is damaged. The message names the file and says what to do.
    """

    def __init__(
        self, folder: Path, lines: Callable[[], int], stop: StopRequest | None = None, *, save_every_seconds: float = 600.0
    ) -> None:
        self.folder, self._lines, self._stop = folder, lines, stop or StopRequest()
        self._seconds, self._saved_at = save_every_seconds, time.monotonic()
        self._loaded = distributed.broadcast_object(self._load_last() if distributed.is_main() else None)
        self.resumed_lines: int | None = None if self._loaded is None else self._loaded["lines"]
        self.extra: dict[str, Any] = {} if self._loaded is None else self._loaded["extra"]
        self.progress: Callable[[float], object] = lambda epochs: None

    @property
    def any(self) -> bool:
        """Whether a checkpoint exists."""
        return bool(self._files())

    def begin(self, training: Savable) -> None:
        """Resume ``training`` from the last checkpoint, if one exists, and save it from now on.

        Raises:
            InputError: If the checkpoint belongs to another training. The message lists the differences.
        """
        self._training, self._saved_at, loaded = training, time.monotonic(), self._loaded
        if loaded is None:
            return
        before, now = loaded["identity"], training.identity
        differences = [f"{key} was {before.get(key)!r} and is {now[key]!r}" for key in now if before.get(key) != now[key]]
        try:
            refuse_if(differences, ", ".join(differences))
            training.restore(loaded["state"])
        except InputError as problem:
            raise InputError(f"{self._files()[-1]} was saved by another training: {problem}; force=true starts over") from problem
        self._loaded = None  # free the memory of the state

    def between_batches(self, epochs: float) -> None:
        """Report the progress ``epochs``, and save a checkpoint if one is due or if the user asks to stop.

        Raises:
            Stopped: If the user asked to stop. Everything is saved before.
            InputError: If the checkpoint cannot be written.
        """
        self.progress(epochs)
        if _any_process(self._stop.requested or time.monotonic() - self._saved_at >= self._seconds):
            self.between_epochs()

    def between_epochs(self) -> None:
        """Save a checkpoint. Raises the same errors as `between_batches`."""
        self._save()
        if _any_process(self._stop.requested):
            raise Stopped

    def _save(self) -> None:
        """Write a checkpoint and remove the old checkpoints."""
        training, state = self._training, self._training.state()
        self._saved_at = time.monotonic()
        if not distributed.is_main():
            return
        content = io.BytesIO()
        torch.save({"identity": training.identity, "lines": self._lines(), "extra": self.extra, "state": state}, content)
        with replacing(self.folder / (training.name + SUFFIX)) as temporary:
            temporary.write_bytes(content.getbuffer())
        for old in self._files()[:-STORED]:
            old.unlink()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.glob("*" + SUFFIX) if not file.name.startswith("."))

    def _load_last(self) -> dict[str, Any] | None:
        for leftover in self.folder.glob(f".*{SUFFIX}.*.part"):  # temporary files of a killed process
            leftover.unlink()
        files = self._files()
        return _load(files[-1], others=len(files) > 1) if files else None


def _any_process(value: bool) -> bool:
    return bool(distributed.all_sum(torch.tensor([value], dtype=torch.int64)).item())


def _load(file: Path, *, others: bool) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {torn} is wrong")
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or loaded.keys() != {"identity", "lines", "extra", "state"}:
            raise ValueError("its keys are not those of a checkpoint")
    except Exception as problem:  # zipfile, torch and the unpickler raise different classes
        previous = "remove it to resume from the previous one, or " if others else ""
        reason = str(problem).splitlines()[0] if str(problem) else repr(problem)
        raise InputError(f"{file} is not a complete checkpoint of this program ({reason}); {previous}force=true starts over") from problem
    return loaded
