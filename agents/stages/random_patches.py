"""Stage 1: f_L and f_C on one uniformly random patch a frame, f_G frozen; cross-entropy after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from adafocus_env.action import crop_patches
from adafocus_env.clips import ClipStore
from agents.config import SupervisedConfig
from agents.supervised import Batch, Part, train_epochs
from classifiers.classifier import Classifier


def train_on_random_patches(classifier: Classifier, clips: ClipStore, config: SupervisedConfig, *, seed: int) -> Iterator[dict[str, float]]:
    """Trains focuser and head; yields the mean loss and accuracy, over all steps, of every epoch."""
    highest = classifier.architecture.size - classifier.architecture.patch_size

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        corners = batch.rng.integers(highest + 1, size=(*batch.frames.shape[:2], 2))
        return classify_patches(classifier, batch, lambda maps: torch.from_numpy(corners).to(maps.device))

    focuser, head = cast(nn.Module, classifier.focuser), cast(nn.Module, classifier.head)
    parts = [Part(focuser, config.learning_rate), Part(head, config.head_learning_rate)]
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device)


def classify_patches(classifier: Classifier, batch: Batch, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Scores (B·T, K) after every step with patches at ``choose(glance maps)`` (B, T, 2), and the labels (B·T,)."""
    shape = batch.frames.shape[:2]
    frames = batch.frames.flatten(0, 1)
    with torch.no_grad():
        maps, glances = classifier.glance(classifier.normalise(frames))
        corners = choose(maps.unflatten(0, shape))
    source = torch.arange(len(frames), device=frames.device)
    patches = crop_patches(frames, source, corners.flatten(0, 1), classifier.architecture.patch_size)
    foci = classifier.focus(classifier.normalise(patches))
    scores, _ = classifier.classify(glances.unflatten(0, shape), foci.unflatten(0, shape))
    return scores.flatten(0, 1), batch.labels.repeat_interleave(shape[1])
