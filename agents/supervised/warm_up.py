"""Stage 0: f_G alone and f_L alone, each as a classifier of whole frames (mean of the frames' scores)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn

from adafocus_env.clips.store import ClipSource
from agents.config.settings import SupervisedConfig
from agents.supervised.batches import Batch
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.stage_model import Part
from classifiers.classifier import Classifier


def warm_up(
    classifier: Classifier,
    part: Literal["glancer", "focuser"],
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    saved: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Trains one backbone on whole frames; yields the mean loss and accuracy of every epoch; ``saved`` as `train_epochs`.

    A backbone with temporal shift sees all frames of a clip in their order, any other a random choice of ``config.frames``.
    """
    network = getattr(classifier, part)
    look = classifier.glance if part == "glancer" else network

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.glance_frames if part == "glancer" else batch.frames
        if not classifier.architecture.shift:
            frames = _some(frames, config.frames, batch)
        _, vectors = look(classifier.normalise(frames.flatten(0, 1)), num_frames=frames.shape[1])
        return network.scores(vectors).unflatten(0, (len(frames), -1)).mean(1), batch.labels

    parts = [Part(cast(nn.Module, network), config.learning_rate)]
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device, saved=saved)


def _some(frames: Tensor, number: int, batch: Batch) -> Tensor:
    """``number`` random frames of each clip: (B, T, …) → (B, number, …)."""
    count, length = frames.shape[:2]
    ranks = batch.draw(lambda rng, total: rng.random((total, length)))
    chosen = torch.from_numpy(ranks.argsort(1)[:, :number].copy()).to(frames.device)
    return frames[torch.arange(count, device=frames.device)[:, None], chosen]
