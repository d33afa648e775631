"""What a worker does for a store of clips: decodes a clip and writes its bytes where they are kept, so that they pass no pipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.readers import DecodeRequest, decode_clip


@dataclass(frozen=True)
class PackRequest:
    """What to decode, and the file to whose end it is written."""

    decode: DecodeRequest
    file: Path


@dataclass(frozen=True)
class PackedClip:
    """Where the bytes of a clip are, (T, 3, H, W), and what is known of it; see `adafocus_env.videos.readers.DecodedClip`.

    Attributes:
        offset: of its first byte in the file.
        shape: (T, 3, H, W).
        indices: numbers (T,) of its frames in the video.
        num_frames: in the video.
        size: (height, width) of the video.
    """

    offset: int
    shape: tuple[int, ...]
    indices: NDArray[np.int64]
    num_frames: int
    size: tuple[int, int]

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels."""
        return self.shape[2], self.shape[3]


def pack_clip(request: PackRequest) -> PackedClip | OSError:
    """Decodes a clip and writes it; what the system says against writing is a result, since it is no fault of the video.

    Raises:
        DecodeError: the video cannot be read.
    """
    clip = decode_clip(request.decode)
    planes = np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))
    try:
        # Other workers write to the same file. One that is killed at it leaves some bytes that no clip lays claim to.
        # The file is not made here: a new one in place of one that was removed would lack the clips before.
        with filelock.FileLock(lock_of(request.file)).acquire(poll_interval=0.001), request.file.open("r+b") as file:
            offset = file.seek(0, os.SEEK_END)
            file.write(planes.data)
    except OSError as problem:
        return problem
    return PackedClip(offset, planes.shape, clip.indices, clip.num_frames, clip.size)


def lock_of(file: Path) -> Path:
    """The lock file beside ``file``."""
    return file.with_suffix(".lock")
