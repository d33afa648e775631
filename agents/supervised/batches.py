"""The clips of one training step: sampled for all processes alike, loaded by each process for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource


@dataclass(frozen=True)
class Batch:
    """Clips of one step, each with its own crop and flip: those of a process, or a microbatch of them.

    Attributes:
        frames: (B, T, 3, H, W) uint8 on the device: the focuser's.
        glance_frames: (B, g, 3, H, W) uint8 on the device: the glancer's, with the same crops; ``frames`` itself where they are the same.
        labels: (B,) int64 on the device.
        clips: (B,) clip indices; empty on a rank without data, which runs a zero-weight dummy batch of one clip.
        first: Index of the first clip among all clips of the step.
        total: Number of clips of the step, over all processes.
        rng: Random state for further samples; see `sample`.
    """

    frames: Tensor
    glance_frames: Tensor
    labels: Tensor
    clips: NDArray[np.int64]
    first: int
    total: int
    rng: np.random.Generator

    def sample(self, make: Callable[[np.random.Generator, int], NDArray[Any]]) -> NDArray[Any]:
        """Return the rows (B, …) of these clips in ``make(rng, total)``, which samples for all clips of the step in every process."""
        return make(self.rng, self.total)[self.first : self.first + len(self.frames)]

    def split(self, microbatches: int) -> list[Batch]:
        """Return microbatches of nearly equal size."""
        if microbatches == 1:
            return [self]
        return [self._rows(int(rows[0]), int(rows[-1]) + 1) for rows in np.array_split(np.arange(len(self.clips)), microbatches)]

    def _rows(self, start: int, stop: int) -> Batch:
        frames = self.frames[start:stop]
        glance_frames = frames if self.glance_frames is self.frames else self.glance_frames[start:stop]
        return replace(
            self, frames=frames, glance_frames=glance_frames, labels=self.labels[start:stop], clips=self.clips[start:stop],
            first=self.first + start,
        )  # fmt: skip


def load_batch(clips: ClipSource, indices: NDArray[np.int64], rng: np.random.Generator, device: torch.device) -> tuple[Batch, list[int]]:
    """Load this process's share of a step, with new crops and flips.

    Every process advances ``rng`` as a single process would. Videos that cannot be read are left out.

    Args:
        clips: The training clips.
        indices: (N,) clips of the step, the same in every process.
        rng: Random state of the epoch.
        device: Where the batch goes.

    Returns:
        The batch, and the number of clips of every process.
    """
    shards, rank = distributed.shard(indices), distributed.rank()
    readable = clips.readable_clips(shards[rank])
    counts = distributed.all_gather_counts(len(readable))
    if sum(counts) < len(indices):  # no process retries what another one could not read
        for failures in distributed.gather_objects(clips.failures):
            clips.leave_out(failures)
    for shard in shards[:rank]:
        clips.skip_rng(shard, rng)
    loaded = [clips.resampled(int(clip), rng) for clip in readable] or [_black_frames(clips)]
    for shard in shards[rank + 1 :]:
        clips.skip_rng(shard, rng)
    frames = torch.stack([frames for frames, _ in loaded]).to(device, non_blocking=True)
    glance_frames = frames
    if clips.settings.glance_frames:
        glance_frames = torch.stack([glance_frames for _, glance_frames in loaded]).to(device, non_blocking=True)
    labels = torch.from_numpy(clips.labels[readable] if len(readable) else np.zeros(1, np.int64)).to(device)
    first = sum(counts[:rank]) if len(readable) else 0
    return Batch(frames, glance_frames, labels, readable, first, sum(counts), rng), counts


def _black_frames(clips: ClipSource) -> tuple[Tensor, Tensor]:
    lengths = clips.num_frames, clips.settings.num_glance_frames
    frames, glance_frames = (torch.zeros(length, 3, clips.size, clips.size, dtype=torch.uint8) for length in lengths)
    return frames, glance_frames
