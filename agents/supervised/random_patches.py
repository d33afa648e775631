"""Stage 1: focuser and head on one uniformly random patch per frame, glancer frozen; cross-entropy after every step."""

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
from agents.supervised.stage_model import Trainable
from classifiers.classifier import Classifier


def train_on_random_patches(
    classifier: Classifier,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    video_div: int | None = None,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train focuser and head; yield the metrics of every epoch, over all steps, as `train_epochs`."""
    highest = classifier.architecture.size - classifier.architecture.patch_size
    steps = count_steps(classifier, clips, video_div)

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        corners = batch.sample(lambda rng, total: rng.integers(highest + 1, size=(total, steps, 2)))
        return classify_patches(classifier, batch, steps, lambda maps: (torch.from_numpy(corners).to(maps.device), None))

    glancer, focuser, head = (cast(nn.Module, network) for network in (classifier.glancer, classifier.focuser, classifier.head))
    trainables = [Trainable(focuser, config.learning_rate, find_unused=True), Trainable(head, config.head_learning_rate)]
    return train_epochs(trainables, clips, scores, config, seed=seed, device=classifier.device, frozen=[glancer], checkpoints=checkpoints)


def classify_patches(
    classifier: Classifier, batch: Batch, steps: int, choose: Callable[[Tensor], tuple[Tensor, Tensor | None]], skipped: Skipped = "zeros"
) -> tuple[Tensor, Tensor]:
    """Return the scores (B·D, K) after every decision, and the labels (B·D,).

    Args:
        classifier: Its networks.
        batch: B clips.
        steps: D.
        choose: Maps glance maps (B, D, …) to the corners of the patches (B, D, 2) and to the patch mask (B, D); None: all are focused.
        skipped: What the head gets in the skipped frames.
    """
    frames = classifier.normalise(batch.frames)
    with torch.no_grad():
        separate = batch.glance_frames is not batch.frames
        maps, vectors = glance_at(classifier, classifier.normalise(batch.glance_frames) if separate else frames, steps)
        with torch.autocast(maps.device.type, enabled=False):  # the policy runs in float32
            corners, patch_mask = choose(maps.float())
    scores = classify_crops(classifier, frames, vectors, corners, patch_mask, skipped).unflatten(1, (steps, -1))[:, :, -1]
    return scores.flatten(0, 1), batch.labels.repeat_interleave(steps)
