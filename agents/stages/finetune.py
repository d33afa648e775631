"""Stage 3: f_C on the patches that the frozen policy picks (released ActivityNet code)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from adafocus_env.action import GridAction
from adafocus_env.clips import ClipStore
from agents.config import SupervisedConfig
from agents.policies import GlancePolicy
from agents.stages.random_patches import classify_patches
from agents.supervised import Batch, Part, train_epochs
from classifiers.classifier import Classifier


def finetune(
    classifier: Classifier, policy: GlancePolicy, clips: ClipStore, config: SupervisedConfig, *, seed: int
) -> Iterator[dict[str, float]]:
    """Trains the head on the most likely patches; yields the mean loss and accuracy, over all steps, of every epoch."""
    grid = GridAction(policy.grid, classifier.architecture.size, classifier.architecture.patch_size)
    places = torch.from_numpy(grid.corners).to(classifier.device)

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        return classify_patches(classifier, batch, lambda maps: places[policy.act(maps)])

    parts = [Part(cast(nn.Module, classifier.head), config.head_learning_rate)]
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device)
