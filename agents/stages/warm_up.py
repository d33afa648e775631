"""Stage 0: f_G alone and f_L alone, each as a classifier of whole frames (mean of the frames' scores)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn

from adafocus_env.clips import ClipStore
from agents.config import SupervisedConfig
from agents.supervised import Batch, Part, train_epochs
from classifiers.classifier import Classifier


def warm_up(
    classifier: Classifier, part: Literal["glancer", "focuser"], clips: ClipStore, config: SupervisedConfig, *, seed: int
) -> Iterator[dict[str, float]]:
    """Trains one backbone on whole frames; yields the mean loss and accuracy of every epoch."""
    network = getattr(classifier, part)
    images = classifier.glance if part == "glancer" else network

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        count, steps = batch.frames.shape[:2]
        chosen = torch.from_numpy(batch.rng.random((count, steps)).argsort(1)[:, : config.frames].copy()).to(batch.frames.device)
        frames = batch.frames[torch.arange(count, device=batch.frames.device)[:, None], chosen]
        _, vectors = images(classifier.normalise(frames.flatten(0, 1)))
        return network.scores(vectors).unflatten(0, (count, -1)).mean(1), batch.labels

    parts = [Part(cast(nn.Module, network), config.learning_rate)]
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device)
