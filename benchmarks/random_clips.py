"""Clips of random pixels in memory, which need no videos."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipSource


class RandomClips(ClipSource):
    """Clips of random frames, without crops.

    Args:
        count: Number of clips.
        num_frames: T.
        size: Height and width of the frames in pixels.
    """

    has_truth = False
    failures = ()

    def __init__(self, count: int, num_frames: int, size: int) -> None:
        self.settings = ClipSpec(num_frames, size, size, train=True)
        self.labels: NDArray[np.int64] = np.arange(count) % 10
        self.label_sets = [(int(label),) for label in self.labels]
        self.names = [f"{number:04d}" for number in range(count)]
        self.fingerprint = f"random-{count}-{num_frames}-{size}"
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.randint(256, (count, num_frames, 3, size, size), dtype=torch.uint8, generator=generator)

    def frames(self, clip: int) -> Tensor:
        """Return frames (T, 3, size, size), uint8."""
        return self._pixels[clip]

    def glancer_frames(self, clip: int) -> Tensor:
        """Return the frames of `frames`."""
        return self._pixels[clip]

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the frames twice."""
        return self._pixels[clip], self._pixels[clip]

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Do nothing: no random numbers are used."""
