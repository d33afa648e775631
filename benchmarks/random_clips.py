"""Clips of random pixels in memory, which need no videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.clips.clip_spec import ClipSpec


class RandomClips:
    """A `adafocus_env.clips.store.ClipSource` of random frames.

    Args:
        count: Number of clips.
        num_frames: T.
        size: Height and width of the frames in pixels.
    """

    has_truth = False
    failures: Sequence[tuple[str, str]] = ()

    def __init__(self, count: int, num_frames: int, size: int) -> None:
        self.settings = ClipSpec(num_frames, size, size, train=True)
        self.num_frames, self.size, self.epoch_size = num_frames, size, count
        self.labels: NDArray[np.int64] = np.arange(count) % 10
        self.label_sets: Sequence[tuple[int, ...]] = [(int(label),) for label in self.labels]
        self.names: Sequence[str] = [f"{number:04d}" for number in range(count)]
        self.fingerprint = f"random-{count}-{num_frames}-{size}"
        generator = torch.Generator().manual_seed(0)
        self._frames = torch.randint(256, (count, num_frames, 3, size, size), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.epoch_size

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all clips in random order."""
        return rng.permutation(self.epoch_size)

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all of them."""
        return clips

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Do nothing: every clip is readable."""

    def frames(self, clip: int) -> Tensor:
        """Return frames (T, 3, size, size), uint8."""
        return self._frames[clip]

    def glancer_frames(self, clip: int) -> Tensor:
        """Return the frames of `frames`."""
        return self._frames[clip]

    def fresh(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the frames twice, uncropped."""
        return self._frames[clip], self._frames[clip]

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Do nothing: no random numbers are used."""

    def expect(self, clips: NDArray[np.int64]) -> None:
        """Do nothing: all clips are in memory."""

    def truth(self, clip: int) -> None:
        """Return None: random pixels have no target."""

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Return the first T frames."""
        return np.arange(self.num_frames)

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """Return the first T frames."""
        return np.arange(self.num_frames)
