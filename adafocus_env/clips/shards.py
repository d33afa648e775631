"""Files of decoded clips: 64 to a folder, which is there whole or not at all.

A shard is a folder with ``frames.bin``, the bytes of its clips one after the other, each (T, 3, H, W), and ``index.json``, which says
where each clip starts and what it is. It is written under another name, waited for until it is on the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import writing_to
from adafocus_env.clips.packing import PackedClip, lock_of
from classifiers.atomic_files import removed, sync

SHARD_SIZE = 64
FORMAT = 1  # of the files; another number is another key, so that old files are left alone
_PART = ".part"


@dataclass(frozen=True)
class StoredClip:
    """What the index says of one clip: where its bytes start, its shape, its frames and its truth, or why there is none.

    Attributes:
        name: of the video.
        offset: of its first byte.
        shape: (T, 3, H, W).
        indices: numbers (T,) of its frames in the video.
        truth: (T, 2) centres of the target as (y, x) in pixels of the stored frames, where known.
        failure: why the video could not be read; then there are no frames.
    """

    name: str
    offset: int = 0
    shape: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    truth: tuple[tuple[float, float], ...] | None = None
    failure: str | None = None


@dataclass
class Shard:
    """A finished shard, opened for reading; its file is mapped into memory when the first clip is asked for."""

    path: Path
    clips: tuple[StoredClip, ...]
    num_bytes: int
    _mapped: Tensor | None = field(default=None, repr=False)

    def frames(self, position: int) -> Tensor:
        """The stored frames of a clip: a view (T, 3, H, W) uint8 of the mapped file.

        Raises:
            InputError: the file was removed since the shard was opened.
        """
        clip = self.clips[position]
        if self._mapped is None:
            self._mapped = self._map(self.path / "frames.bin")
        return self._mapped[clip.offset : clip.offset + int(np.prod(clip.shape))].view(clip.shape)

    def _map(self, file: Path) -> Tensor:
        try:
            # A private mapping: nothing that is done to the tensor reaches the file. torch's mapping keeps no file open, numpy's does.
            return torch.from_file(str(file), shared=False, size=self.num_bytes, dtype=torch.uint8)
        except RuntimeError as problem:  # torch's way to say that a file cannot be opened
            if file.exists():
                raise
            raise removed(file) from problem

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}


def open_shard(path: Path, names: list[str]) -> Shard | None:
    """The shard at ``path``; None where it is missing, broken, or does not hold the clips of the videos ``names``."""
    try:
        index = json.loads((path / "index.json").read_text(encoding="utf-8"))
        clips = tuple(_stored_clip(entry) for entry in index["clips"])
        held = max((clip.offset + int(np.prod(clip.shape)) for clip in clips if clip.shape), default=0)
        whole = held <= (path / "frames.bin").stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Shard(path, clips, index["bytes"]) if whole and [clip.name for clip in clips] == names else None


def _stored_clip(entry: dict) -> StoredClip:
    truth = entry["truth"]
    return StoredClip(
        **{
            **entry,
            "shape": tuple(entry["shape"]),
            "indices": tuple(entry["indices"]),
            "truth": None if truth is None else tuple((y, x) for y, x in truth),
        }
    )


class ShardWriter:
    """Writes one shard; nothing can be seen under its name before `finish`.

    Attributes:
        file: to which the clips are written, by other processes.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path, self._names = path, names
        self._part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
        self.file = self._part / "frames.bin"
        self._clips: dict[int, StoredClip] = {}
        with writing_to(path.parent):
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir(parents=True)
            self.file.touch()

    @property
    def complete(self) -> bool:
        """Whether every clip is there, or known to be unreadable."""
        return len(self._clips) == len(self._names)

    def add(self, position: int, packed: PackedClip, truth: NDArray[np.float64] | None) -> None:
        """Adds a clip that has been written to `file`, and the target's centres (T, 2); clips may come in any order."""
        points = None if truth is None else tuple((float(y), float(x)) for y, x in truth)
        self._clips[position] = StoredClip(self._names[position], packed.offset, packed.shape, tuple(map(int, packed.indices)), points)

    def fail(self, position: int, reason: str) -> None:
        """Notes that a clip has no frames, and why."""
        self._clips[position] = StoredClip(self._names[position], failure=reason)

    def finish(self) -> Shard:
        """Puts the shard under its name, in one step; whatever was there before has to be broken and is removed."""
        clips = tuple(self._clips[position] for position in range(len(self._names)))
        with writing_to(self._path.parent):
            num_bytes = self.file.stat().st_size
            index = {"bytes": num_bytes, "clips": [asdict(clip) for clip in clips]}
            lock_of(self.file).unlink(missing_ok=True)
            (self._part / "index.json").write_text(json.dumps(index), encoding="utf-8")
            sync(self.file)
            sync(self._part / "index.json")
            if self._path.exists():
                shutil.rmtree(self._path)
            self._part.rename(self._path)
        return Shard(self._path, clips, num_bytes)

    def discard(self) -> None:
        """Removes what was written, if it was not finished."""
        shutil.rmtree(self._part, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left unfinished; only for the one that holds the folder's lock."""
    for part in folder.glob(f".*{_PART}"):
        shutil.rmtree(part, ignore_errors=True)
