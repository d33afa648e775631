"""Clips of random pixels in memory, where videos would only have to be made, carried and decoded."""

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
        count: clips.
        num_frames: T.
        size: side of the frames in pixels.
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
        drawn = torch.Generator().manual_seed(0)
        self._frames = torch.randint(256, (count, num_frames, 3, size, size), dtype=torch.uint8, generator=drawn)

    def __len__(self) -> int:
        return self.epoch_size

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """All clips in an order drawn from ``rng``."""
        return rng.permutation(self.epoch_size)

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """All of them."""
        return clips

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Nothing can be unreadable."""

    def frames(self, clip: int) -> Tensor:
        """(T, 3, size, size) uint8."""
        return self._frames[clip]

    def glancer_frames(self, clip: int) -> Tensor:
        """The same."""
        return self._frames[clip]

    def fresh(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same, twice: no other crop is drawn."""
        return self._frames[clip], self._frames[clip]

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Nothing is drawn."""

    def expect(self, clips: NDArray[np.int64]) -> None:
        """Everything lies in memory."""

    def truth(self, clip: int) -> None:
        """None: random pixels have no target."""

    def indices(self, clip: int) -> NDArray[np.int64]:
        """The first T frames."""
        return np.arange(self.num_frames)

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """The same."""
        return np.arange(self.num_frames)
