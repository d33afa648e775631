"""Stage 1: f_L and f_C on one uniformly random patch a frame, f_G frozen; cross-entropy after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from adafocus_env.classify import Skipped
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import count_steps
from agents.config.settings import SupervisedConfig
from agents.evaluation.inference import classify_crops, glance_at
from agents.supervised.batches import Batch
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.stage_model import Part
from classifiers.classifier import Classifier


def train_on_random_patches(
    classifier: Classifier,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    video_div: int | None = None,
    saved: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Trains focuser and head; yields the mean loss and accuracy, over all steps, of every epoch."""
    highest = classifier.architecture.size - classifier.architecture.patch_size
    steps = count_steps(classifier, clips, video_div)

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        corners = batch.draw(lambda rng, total: rng.integers(highest + 1, size=(total, steps, 2)))
        return classify_patches(classifier, batch, steps, lambda maps: (torch.from_numpy(corners).to(maps.device), None))

    focuser, head = cast(nn.Module, classifier.focuser), cast(nn.Module, classifier.head)
    parts = [Part(focuser, config.learning_rate, partly=True), Part(head, config.head_learning_rate)]  # the focuser's last layer is left
    frozen = [cast(nn.Module, classifier.glancer)]
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device, frozen=frozen, saved=saved)


def classify_patches(
    classifier: Classifier, batch: Batch, steps: int, choose: Callable[[Tensor], tuple[Tensor, Tensor | None]], skipped: Skipped = "zeros"
) -> tuple[Tensor, Tensor]:
    """Scores (B·D, K) after every decision, and the labels (B·D,).

    Args:
        classifier: its networks.
        batch: B clips.
        steps: D.
        choose: glance maps (B, D, …) → the corners of the patches (B, D, 2), and which of them are looked at (B, D); None: all.
        skipped: what the head gets in the others.
    """
    frames = classifier.normalise(batch.frames)
    with torch.no_grad():
        separate = batch.glance_frames is not batch.frames
        maps, vectors = glance_at(classifier, classifier.normalise(batch.glance_frames) if separate else frames, steps)
        with torch.autocast(maps.device.type, enabled=False):  # who chooses computes as ever
            corners, patch_mask = choose(maps.float())
    scores = classify_crops(classifier, frames, vectors, corners, patch_mask, skipped).unflatten(1, (steps, -1))[:, :, -1]
    return scores.flatten(0, 1), batch.labels.repeat_interleave(steps)
