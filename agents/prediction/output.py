"""The folder of predictions. A JSON line is appended for each finished video, so that an interrupted command can be resumed.

Several jobs may write to a folder, each of them one shard of the videos. A command without shards then merges their files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adafocus_env.work_shard import WHOLE, WorkShard
from agents.prediction.result import Prediction
from classifiers.atomic_files import remove_leftovers, replacing, write_text
from classifiers.errors import InputError, refuse_if

PREDICTIONS, ORIGIN, LOCK = "predictions.jsonl", "predict.json", ".lock"
PATIENCE = 60.0  # seconds that a shard waits until it may prepare the folder, which takes other shards a moment


class OutputFolder:
    """The folder to which a command writes its predictions. The folder is locked, so that only one process can use it at a time.

    A command that processes one of several shards locks only the file of its shard, so that the other shards can be processed at the same
    time. A command without shards moves the predictions of all shards to ``predictions.jsonl``.

    ``predict.json`` stores the values on which the predictions depend. A command can add predictions only if they depend on the same
    values.

    Args:
        folder: The folder; created if missing.
        origin: The values on which the predictions depend, as plain values.
        force: Remove existing predictions; of a shard, only its own, unless the others depend on other values.
        shard: The shard of the videos that the command processes.

    Attributes:
        path: The file of the predictions, ``predictions.jsonl`` or, for a shard, ``predictions-I-of-N.jsonl``.
        done: The videos that have a prediction. For a shard, predictions in the other files of the same N shards do not count.

    Raises:
        InputError: If the folder contains predictions that depend on other values, if it contains files other than predictions, if it is in
            use, or if it cannot be written.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, force: bool, shard: WorkShard = WHOLE) -> None:
        self.folder, self.shard, self.path = folder, shard, _file_of(folder, shard.suffix)
        self._lock = FileLock(folder / f"{LOCK}{shard.suffix}", timeout=0)
        try:
            entries = [*folder.iterdir()] if folder.is_dir() else []
            refuse_if(
                any(not entry.name.startswith(".") for entry in entries) and not (folder / ORIGIN).is_file() and not force,
                f"out={folder} exists and holds other files; choose another folder, or set force=true to write into it",
            )
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock.acquire(), contextlib.ExitStack() as until_prepared:
                if not shard.whole:
                    until_prepared.enter_context(FileLock(folder / LOCK, timeout=PATIENCE))
                self._prepare(dict(origin), force=force)
                self._lock.acquire()  # a second time, so that it stays locked after the ``with`` statement
        except Timeout as problem:
            raise InputError(f"another process is writing to out={folder}; wait for it, or choose another folder") from problem
        except OSError as problem:
            raise InputError(f"out={folder} cannot be written ({problem.strerror or problem}); choose another folder") from problem

    def _prepare(self, origin: dict[str, Any], *, force: bool) -> None:
        """Check and store the origin, remove what must not stay, and find the videos that have a prediction.

        Raises:
            Timeout: If another shard is being processed although this process needs the whole folder.
        """
        differing = self._differing(origin)
        refuse_if(
            differing and not force,
            f"out={self.folder} holds predictions that were made with another {', '.join(differing)}; set force=true to replace them, "
            "or choose another folder",
        )
        if self.shard.whole or differing:
            self._check_alone()
            remove_leftovers(self.folder)
        if force:
            for path in self._files() if self.shard.whole or differing else [self.path]:
                path.unlink(missing_ok=True)
        write_text(self.folder / ORIGIN, json.dumps(origin, indent=2) + "\n")
        _drop_incomplete_line(self.path)
        if self.shard.whole:
            self._merge()
        same = f"-of-{self.shard.count}"
        others = [] if force or self.shard.whole else [path for path in self._files() if not path.stem.endswith(same)]
        self.done = {line["file"] for path in (self.path, *others) for line in _lines(path)}

    def _differing(self, origin: Mapping[str, Any]) -> list[str]:
        """Return the keys whose values differ from those of the existing predictions, if there are any."""
        stored = self.folder / ORIGIN
        if not stored.is_file():
            return []
        try:
            before = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        return sorted(key for key in {*before, *origin} if before.get(key) != origin.get(key))

    def _check_alone(self) -> None:
        """Check that other processes write no shard. They cannot begin one while this process holds the lock of the folder."""
        for path in self.folder.glob(f"{LOCK}-*"):
            if path != Path(self._lock.lock_file):
                FileLock(path, timeout=0).acquire().lock.release()

    def _files(self) -> list[Path]:
        """Return the existing files of predictions: the one without shards, and those of shards."""
        files = _file_of(self.folder), *sorted(self.folder.glob(_file_of(Path(), "-*-of-*").name))
        return [path for path in files if path.exists()]

    def _merge(self) -> None:
        """Move the predictions of all shards to one file. If this is interrupted, it is done again: every video has one line at the end."""
        files, seen = self._files(), set[str]()
        shards = [path for path in files if path != self.path]
        if not shards:
            return
        with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for path in files:
                _drop_incomplete_line(path)
                for line in _lines(path):
                    if line["file"] not in seen:
                        seen.add(line["file"])
                        stream.write(_text_of(line))
        for path in shards:
            path.unlink()

    def add(self, prediction: Prediction) -> None:
        """Append a prediction and flush it to the disk.

        Raises:
            InputError: If the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_text_of(prediction.to_dict()))
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


def _file_of(folder: Path, shard: str = "") -> Path:
    """Return the path of the predictions of a shard, which is given by the suffix of its names."""
    return folder / f"{Path(PREDICTIONS).stem}{shard}{Path(PREDICTIONS).suffix}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the predictions in a file. The last line is left out if it is incomplete, because another process may be writing it.

    Raises:
        InputError: If a line is damaged.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith("\n"):
                try:
                    yield json.loads(line)
                except ValueError as problem:
                    raise InputError(f"{path} is damaged in line {number}; set force=true to start over") from problem


def _text_of(line: Mapping[str, Any]) -> str:
    """Return the line of a prediction, with escapes if the name of its file is not valid UTF-8."""
    escaped = any("\ud800" <= letter <= "\udfff" for letter in line["file"])
    return json.dumps(line, ensure_ascii=escaped) + "\n"


def _drop_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line break, because a process that was killed may have left an incomplete line."""
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
