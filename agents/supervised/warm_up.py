"""Stage 0: glancer and focuser, each as a classifier of whole frames (the mean of the frames' scores)."""

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
from agents.supervised.stage_model import Trainable
from classifiers.classifier import Classifier

BackboneName = Literal["glancer", "focuser"]


def warm_up(
    classifier: Classifier,
    name: BackboneName,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train one backbone on whole frames; yield the metrics of every epoch, as `train_epochs`.

    A backbone with temporal shift sees all frames of a clip in order, any other ``config.frames`` random ones.
    """
    network = getattr(classifier, name)

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.glance_frames if name == "glancer" else batch.frames
        if not classifier.architecture.shift:
            frames = _random_frames(frames, config.frames, batch)
        return frame_scores(classifier, name, frames), batch.labels

    trainables = [Trainable(cast(nn.Module, network), config.learning_rate)]
    return train_epochs(trainables, clips, scores, config, seed=seed, device=classifier.device, checkpoints=checkpoints)


def frame_scores(classifier: Classifier, name: BackboneName, frames: Tensor) -> Tensor:
    """Return the mean scores (N, K) of one backbone over the frames (N, T, 3, H, W), uint8."""
    network = getattr(classifier, name)
    forward = classifier.glance if name == "glancer" else network
    _, vectors = forward(classifier.normalise(frames.flatten(0, 1)), num_frames=frames.shape[1])
    return network.scores(vectors).unflatten(0, (len(frames), -1)).mean(1)


def _random_frames(frames: Tensor, number: int, batch: Batch) -> Tensor:
    """Sample frames of each clip: (B, T, …) → (B, number, …)."""
    count, length = frames.shape[:2]
    ranks = batch.sample(lambda rng, total: rng.random((total, length)))
    indices = torch.from_numpy(ranks.argsort(1)[:, :number].copy()).to(frames.device)
    return frames[torch.arange(count, device=frames.device)[:, None], indices]
