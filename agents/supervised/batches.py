"""The clips of one training step: drawn for all processes alike, loaded by each for itself."""

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
    """Clips of one step, with crops and flips of their own: all of them, or a part of them.

    Attributes:
        frames: (B, T, 3, H, W) uint8 on the device: the focuser's.
        glance_frames: (B, g, 3, H, W) uint8 on the device: the glancer's, with the same crops; ``frames`` itself where they are the same.
        labels: (B,) int64 on the device.
        clips: (B,) their numbers; none where a process that has no clip takes part with an empty picture that does not count.
        first: how many clips of the step come before these.
        total: clips of the step.
        rng: for further draws; see `draw`.
    """

    frames: Tensor
    glance_frames: Tensor
    labels: Tensor
    clips: NDArray[np.int64]
    first: int
    total: int
    rng: np.random.Generator

    def draw(self, make: Callable[[np.random.Generator, int], NDArray[Any]]) -> NDArray[Any]:
        """The rows (B, …) of these clips of what ``make(rng, total)`` draws for all clips of the step, however they are shared out."""
        return make(self.rng, self.total)[self.first : self.first + len(self.frames)]

    def split(self, parts: int) -> list[Batch]:
        """The same in so many parts, as equal as they can be."""
        if parts == 1:
            return [self]
        return [self._rows(rows) for rows in np.array_split(np.arange(len(self.clips)), parts)]

    def _rows(self, rows: NDArray[np.int64]) -> Batch:
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        frames, separate = self.frames[part], self.glance_frames is not self.frames
        return replace(
            self, frames=frames, glance_frames=self.glance_frames[part] if separate else frames, labels=self.labels[part],
            clips=self.clips[part], first=self.first + part.start,
        )  # fmt: skip


def load_batch(clips: ClipSource, drawn: NDArray[np.int64], rng: np.random.Generator, device: torch.device) -> tuple[Batch, list[int]]:
    """This process's share of the clips ``drawn``, with new crops and flips, and how many clips each process has.

    Every process draws what one alone would draw from ``rng``. Videos that cannot be read are left out.
    """
    shares, mine = distributed.shares(drawn), distributed.rank()
    chosen = clips.readable_clips(shares[mine])
    counts = distributed.counts(len(chosen))
    if sum(counts) < len(drawn):  # what one process could not read, none tries again
        for failures in distributed.gather_objects(clips.failures):
            clips.leave_out(failures)
    for share in shares[:mine]:
        clips.skip_rng(share, rng)
    both = [clips.resampled(int(clip), rng) for clip in chosen] or [_empty(clips)]
    for share in shares[mine + 1 :]:
        clips.skip_rng(share, rng)
    frames = torch.stack([frames for frames, _ in both]).to(device, non_blocking=True)
    separate = clips.settings.glance_frames > 0
    glance_frames = torch.stack([glanced for _, glanced in both]).to(device, non_blocking=True) if separate else frames
    labels = clips.labels[chosen] if len(chosen) else np.zeros(1, np.int64)
    first = sum(counts[:mine]) if len(chosen) else 0
    return Batch(frames, glance_frames, torch.from_numpy(labels).to(device), chosen, first, sum(counts), rng), counts


def _empty(clips: ClipSource) -> tuple[Tensor, Tensor]:
    """Black frames."""
    lengths = clips.num_frames, clips.settings.num_glance_frames
    frames, glance_frames = (torch.zeros(length, 3, clips.size, clips.size, dtype=torch.uint8) for length in lengths)
    return frames, glance_frames
