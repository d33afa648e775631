"""Shards, which are folders of 64 decoded clips. A shard is either complete or missing.

A shard has two files. ``frames.bin`` has the bytes of the clips (T, 3, H, W), one clip after the other. ``index.json`` has the offset and
the description of every clip. A shard is first written under another name, then synchronised with the disk, and then renamed.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus_env.cache_dir import writing_to
from adafocus_env.clips.transforms import Track
from adafocus_env.videos.readers import DecodedClip
from classifiers.atomic_files import removed, sync

SHARD_SIZE = 64
FORMAT = 1  # part of the key, so that files of other formats are ignored
_UNFINISHED = ".part"


@dataclass(frozen=True)
class StoredClip:
    """The index entry of one clip.

    Attributes:
        name: name of the video.
        offset: offset of the first byte.
        shape: (T, 3, H, W).
        indices: indices (T,) of the frames in the video.
        track: track of the target in the stored frames, if known.
        failure: the reason why the video could not be read; None if it was read. After a failure, the clip has no frames.
    """

    name: str
    offset: int = 0
    shape: Sequence[int] = ()
    indices: Sequence[int] = ()
    track: Track | None = None
    failure: str | None = None


@dataclass
class Shard:
    """A finished shard, open for reading. The file of frames is mapped into memory when a clip is first requested."""

    path: Path
    clips: tuple[StoredClip, ...]
    num_bytes: int
    _mapped: Tensor | None = field(default=None, repr=False)

    def frames(self, position: int) -> Tensor:
        """Return the stored frames of a clip (T, 3, H, W) uint8, as a view of the mapped file.

        Raises:
            InputError: if the file was removed after the shard was opened.
        """
        clip, file = self.clips[position], self.path / "frames.bin"
        if self._mapped is None:
            try:
                # The memory mapping is private: changes of the tensor are not written to the file.
                # Unlike NumPy's memmap, torch.from_file leaves no file open.
                self._mapped = torch.from_file(str(file), shared=False, size=self.num_bytes, dtype=torch.uint8)
            except RuntimeError as problem:  # raised by torch if a file cannot be opened
                if file.exists():
                    raise
                raise removed(file) from problem
        return self._mapped[clip.offset : clip.offset + math.prod(clip.shape)].view(*clip.shape)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}


def open_shard(path: Path, names: list[str]) -> Shard | None:
    """Return the shard at ``path``. Return None if the shard is missing or damaged, or if its clips are not from the videos ``names``."""
    try:
        index = json.loads((path / "index.json").read_text(encoding="utf-8"))
        clips = tuple(_stored_clip(entry) for entry in index["clips"])
        used = max((clip.offset + math.prod(clip.shape) for clip in clips if clip.shape), default=0)
        whole = used <= (path / "frames.bin").stat().st_size == index["bytes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Shard(path, clips, index["bytes"]) if whole and [clip.name for clip in clips] == names else None


def _stored_clip(entry: dict[str, Any]) -> StoredClip:
    values = {key: value for key, value in entry.items() if key != "truth"}  # earlier versions stored null under this key
    track = values.get("track")
    return StoredClip(**{**values, "track": None if track is None else Track(**track)})


class ShardWriter:
    """A writer of one shard. The shard gets its final name only when `finish` is called."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path, self._names = path, names
        self._unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
        self._frames = self._unfinished / "frames.bin"
        self._clips: dict[int, StoredClip] = {}
        self._num_bytes = 0
        with writing_to(path.parent):
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir(parents=True)
            self._frames.touch()

    @property
    def complete(self) -> bool:
        """Whether every clip of the shard has been written or recorded as unreadable."""
        return len(self._clips) == len(self._names)

    def add(self, position: int, clip: DecodedClip, track: Track | None) -> None:
        """Write a clip with the target's track. Clips may be written in any order.

        Raises:
            InputError: if the file cannot be written.
        """
        planes = np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))
        with writing_to(self._path.parent), self._frames.open("r+b") as file:  # "ab" would recreate a removed file
            file.seek(self._num_bytes)
            file.write(planes.data)
        self._clips[position] = StoredClip(self._names[position], self._num_bytes, planes.shape, clip.indices.tolist(), track)
        self._num_bytes += planes.nbytes

    def fail(self, position: int, reason: str) -> None:
        """Record that a clip has no frames, and the reason for it."""
        self._clips[position] = StoredClip(self._names[position], failure=reason)

    def finish(self) -> Shard:
        """Rename the shard to its final name atomically. A damaged shard with the final name is removed first."""
        clips, index = tuple(self._clips[position] for position in range(len(self._names))), self._unfinished / "index.json"
        with writing_to(self._path.parent):
            index.write_text(json.dumps({"bytes": self._num_bytes, "clips": [asdict(clip) for clip in clips]}), encoding="utf-8")
            sync(self._frames)
            sync(index)
            shutil.rmtree(self._path, ignore_errors=True)
            self._unfinished.rename(self._path)
        return Shard(self._path, clips, self._num_bytes)

    def discard(self) -> None:
        """Remove the written files, unless the shard is finished."""
        shutil.rmtree(self._unfinished, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished shards of killed processes. The caller must hold the lock of the folder."""
    for unfinished in folder.glob(f".*{_UNFINISHED}"):
        shutil.rmtree(unfinished, ignore_errors=True)
