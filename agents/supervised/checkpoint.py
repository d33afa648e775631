"""Where a supervised stage is saved: after every epoch, and within one when it is long or the user asks to stop."""

from __future__ import annotations

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
from classifiers.errors import InputError

SUFFIX = ".pt"


class Savable(Protocol):
    """A training that can be saved between two batches."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What two trainings must have in common so that one can go on where the other was: plain values."""

    @property
    def name(self) -> str:
        """Of a checkpoint; later ones come later in the alphabet."""

    def state(self) -> Mapping[str, Any]:
        """All that the rest of the training depends on: tensors and plain values, nothing whose reading would run code."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`; an `InputError` says why that cannot be."""


class EpochCheckpoint:
    """The checkpoints of one supervised stage, in a folder of their own.

    A file is whole or absent, whatever kills the process; the last ``keep`` stay. Reading one runs no code that it holds. Of several
    processes only the main one reads and writes files.

    Args:
        folder: made when something is saved.
        lines: tells how many lines of metrics there are.
        stop: asks training to stop, if anything does.
        keep: files that stay.
        save_every_seconds: how much work within an epoch may be lost.

    Attributes:
        resumed_lines: lines of metrics when the checkpoint that training goes on from was saved; None: it begins.
        extra: plain values of the caller, saved and restored with everything else.
        progress: called between batches with the epochs that are done, and the share of the one that is worked on.

    Raises:
        InputError: the last checkpoint is broken (names it, says what to do), or ``keep`` is less than 1.
    """

    def __init__(
        self, folder: Path, lines: Callable[[], int], stop: StopRequest | None = None, *, keep: int = 2, save_every_seconds: float = 600.0
    ) -> None:
        if keep < 1:
            raise InputError(f"keep={keep} would leave no checkpoint to go on from; choose 1 or more")
        self.folder, self._lines, self._stop = folder, lines, stop
        self._keep, self._seconds, self._saved_at = keep, save_every_seconds, time.monotonic()
        self._found = distributed.broadcast_object(self._newest() if distributed.is_main() else None)
        self.resumed_lines: int | None = None if self._found is None else self._found["lines"]
        self.progress: Callable[[float], object] = lambda epochs: None
        self.extra: dict[str, Any] = {} if self._found is None else self._found["extra"]

    @property
    def any(self) -> bool:
        """Whether something is saved."""
        return bool(self._files())

    def begin(self, training: Savable) -> None:
        """Saves ``training`` from now on; where it was saved before, it goes on from there.

        Raises:
            InputError: what is saved is of another training (says in what they differ).
        """
        self._training, self._saved_at, found = training, time.monotonic(), self._found
        if found is None:
            return
        before, now = found["identity"], training.identity
        if differing := [f"{key} was {before.get(key)!r} and is {now[key]!r}" for key in now if before.get(key) != now[key]]:
            raise InputError(f"{self._files()[-1]} was saved by another training: {', '.join(differing)}; force=true starts over")
        try:
            training.restore(found["state"])
        except InputError as problem:
            raise InputError(f"{self._files()[-1]} was saved by another training: {problem}; force=true starts over") from problem
        self._found = None  # its memory is free again

    def between_batches(self, epochs: float) -> None:
        """Tells how many ``epochs`` are done; saves if it is time, or if the user asks to stop.

        Raises:
            Stopped: the user asked to; everything is saved.
            InputError: it cannot be saved.
        """
        self.progress(epochs)
        asked, due = self._asked(), time.monotonic() - self._saved_at >= self._seconds
        if distributed.all_sum(torch.tensor([asked or due], dtype=torch.int64)).item():
            self.between_epochs()

    def between_epochs(self) -> None:
        """Saves; raises as `between_batches`."""
        self._save()
        if distributed.all_sum(torch.tensor([self._asked()], dtype=torch.int64)).item():
            raise Stopped

    def _asked(self) -> bool:
        return self._stop is not None and self._stop.requested

    def _save(self) -> None:
        """Writes a checkpoint beside those that are there, and removes all but the last ones."""
        training, packed, state = self._training, io.BytesIO(), self._training.state()
        self._saved_at = time.monotonic()
        if not distributed.is_main():
            return
        torch.save({"identity": training.identity, "lines": self._lines(), "extra": self.extra, "state": state}, packed)
        with replacing(self.folder / (training.name + SUFFIX)) as temporary:
            temporary.write_bytes(packed.getbuffer())
        for old in self._files()[: -self._keep]:
            old.unlink()

    def _files(self) -> list[Path]:
        return sorted(file for file in self.folder.glob("*" + SUFFIX) if not file.name.startswith("."))

    def _newest(self) -> dict[str, Any] | None:
        for leftover in self.folder.glob(f".*{SUFFIX}.*.part"):  # of a process that was killed while it wrote
            leftover.unlink()
        files = self._files()
        return _read(files[-1], others=len(files) > 1) if files else None


def _read(file: Path, *, others: bool) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {torn} is wrong")
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or found.keys() != {"identity", "lines", "extra", "state"}:
            raise ValueError("it holds something else")
    except Exception as problem:  # zipfile, torch and the unpickler each have their own
        back = "remove it to go on from the one before, or " if others else ""
        reason = str(problem).splitlines()[0] if str(problem) else repr(problem)
        raise InputError(f"{file} is not a whole checkpoint of this program ({reason}); {back}force=true starts over") from problem
    return found
