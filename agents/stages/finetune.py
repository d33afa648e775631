"""Stage 3: f_C, and f_L where it learns too (the paper), on the patches that the frozen policy picks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from adafocus_env.clips import ClipSource
from adafocus_env.skipped import find_skipped
from agents.config import SupervisedConfig
from agents.inference import decisions, patches_of
from agents.policies import GlancePolicy
from agents.stages.random_patches import classify_patches
from agents.supervised import Batch, Part, train_epochs
from classifiers.classifier import Classifier


def finetune(
    classifier: Classifier,
    policy: GlancePolicy,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Iterator[dict[str, float]]:
    """Trains on the most likely patches; yields the mean loss and accuracy, over all steps, of every epoch.

    The head learns with ``config.head_learning_rate``. The focuser learns with ``config.learning_rate`` where that is above 0
    (paper, section 3.3); with 0 it stays frozen, in eval mode, as in the released ActivityNet code.

    A policy that skips shows the focuser what it keeps: frames of which skipping is not the most likely action or, with
    ``keep_threshold``, those with a lower P(skip). In the others the head gets what ``skipped`` says (`adafocus_env.skipped`).

    Raises:
        InputError: there is no such option, or a threshold for a policy that cannot skip.
    """
    option = find_skipped(skipped)
    steps = decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)

    def choose(maps: Tensor) -> tuple[Tensor, Tensor]:
        return patches_of(policy, classifier, policy.act(maps, keep_threshold))

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        return classify_patches(classifier, batch, steps, choose, option)

    parts = [Part(cast(nn.Module, classifier.head), config.head_learning_rate)]
    if config.learning_rate > 0:
        parts.append(Part(cast(nn.Module, classifier.focuser), config.learning_rate))
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device)
