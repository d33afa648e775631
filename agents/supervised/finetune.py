"""Stage 3: f_C, and f_L where it learns too (the paper), on the patches that the frozen policy picks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from adafocus_env.clips.store import ClipSource
from adafocus_env.skipped import find_skipped
from agents.config.settings import SupervisedConfig
from agents.evaluation.inference import decisions, patches_of
from agents.policies.networks import PolicyNetwork
from agents.supervised.batches import Batch
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.random_patches import classify_patches
from agents.supervised.stage_model import Part
from classifiers.classifier import Classifier


def finetune(
    classifier: Classifier,
    policy: PolicyNetwork,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    saved: EpochCheckpoint | None = None,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Iterator[dict[str, float]]:
    """Trains on the most likely patches; yields the mean loss and accuracy, over all steps, of every epoch; ``saved`` as `train_epochs`.

    The head learns with ``config.head_learning_rate``. The focuser learns with ``config.learning_rate`` where that is above 0
    (paper, section 3.3); with 0 it stays frozen, in eval mode, as in the released ActivityNet code.

    A policy that skips shows the focuser what it keeps: the frames with P(skip) below ``keep_threshold``, or its own threshold. In the
    others the head gets what ``skipped`` says (`adafocus_env.skipped`).

    Raises:
        InputError: there is no such option, or a threshold for a policy that cannot skip.
    """
    option = find_skipped(skipped)
    steps = decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)

    def choose(maps: Tensor) -> tuple[Tensor, Tensor]:
        return patches_of(policy, classifier, policy.act(maps, keep_threshold))

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        return classify_patches(classifier, batch, steps, choose, option)

    glancer, focuser, head = (cast(nn.Module, each) for each in (classifier.glancer, classifier.focuser, classifier.head))
    learning = [Part(head, config.head_learning_rate), Part(focuser, config.learning_rate, partly=True)]
    parts, frozen = (learning, [glancer]) if config.learning_rate > 0 else (learning[:1], [glancer, focuser])
    return train_epochs(parts, clips, scores, config, seed=seed, device=classifier.device, frozen=frozen, saved=saved)
