"""The folder of predictions. Each finished video appends a JSON line, so that an interrupted command can resume."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agents.prediction.result import Prediction
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, refuse_if

PREDICTIONS, ORIGIN, LOCK = "predictions.jsonl", "predict.json", ".lock"


class OutputFolder:
    """The folder that a command writes its predictions to, locked for one process at a time.

    ``predict.json`` stores the values that the predictions depend on. A command can only add predictions with the same values.

    Args:
        folder: The folder; created if missing.
        origin: The values that the predictions depend on, as plain values.
        force: Remove existing predictions.

    Attributes:
        done: The files that have a prediction.

    Raises:
        InputError: If the folder holds predictions with other values or other files, is in use, or cannot be written.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, force: bool) -> None:
        self.folder, self.path = folder, folder / PREDICTIONS
        stored = folder / ORIGIN
        try:
            foreign = folder.is_dir() and not stored.is_file() and any(not entry.name.startswith(".") for entry in folder.iterdir())
            refuse_if(
                foreign and not force,
                f"out={folder} exists and holds other files; choose another folder, or set force=true to write into it",
            )
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK, timeout=0)
            self._lock.acquire()
        except Timeout as problem:
            raise InputError(f"another process is writing to out={folder}; wait for it, or choose another folder") from problem
        except OSError as problem:
            raise InputError(f"out={folder} cannot be written ({problem.strerror or problem}); choose another folder") from problem
        try:
            self._prepare(stored, dict(origin), force=force)
        except BaseException:
            self.close()
            raise

    def _prepare(self, stored: Path, origin: dict[str, Any], *, force: bool) -> None:
        for leftover in self.folder.rglob(".*.part"):  # temporary files of a killed process
            leftover.unlink()
        if stored.is_file() and not force:
            try:
                before = json.loads(stored.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            differing = sorted(key for key in {*before, *origin} if before.get(key) != origin.get(key))
            refuse_if(
                differing,
                f"out={self.folder} holds predictions that were made with another {', '.join(differing)}; set force=true to replace them, "
                "or choose another folder",
            )
        if force:
            self.path.unlink(missing_ok=True)
        write_text(stored, json.dumps(origin, indent=2) + "\n")
        _drop_incomplete_line(self.path)
        self.done = {line["file"] for line in self.lines()}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the stored predictions.

        Raises:
            InputError: If a line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield json.loads(line)
                except ValueError as problem:
                    raise InputError(f"{self.path} is damaged in line {number}; set force=true to start over") from problem

    def add(self, prediction: Prediction) -> None:
        """Append a prediction and flush it to the disk.

        Raises:
            InputError: If the file cannot be written.
        """
        escaped = any("\ud800" <= letter <= "\udfff" for letter in prediction.file)  # a file name that is not valid UTF-8
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(prediction.to_dict(), ensure_ascii=escaped) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as problem:
            raise InputError(f"cannot write {self.path}: {problem.strerror or problem}; free some space and start again") from problem
        self.done.add(prediction.file)

    def close(self) -> None:
        """Release the lock, so that other processes can open the folder."""
        self._lock.release()

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def _drop_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line break, because a killed process may leave an incomplete line."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            stream.seek(start)
            if (position := stream.read(end - start).rfind(b"\n")) >= 0:
                end = start + position + 1
                break
            end = start
        stream.truncate(end)
