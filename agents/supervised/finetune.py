"""Stage 3: the head, and the focuser where it is trained too (the paper), on the patches that the frozen policy selects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from adafocus_env.classify import find_skipped
from adafocus_env.clips.store import ClipSource
from agents.config.settings import SupervisedConfig
from agents.evaluation.inference import count_decisions, patches_of
from agents.policies.networks import PolicyNetwork
from agents.supervised.batches import Batch
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.random_patches import classify_patches
from agents.supervised.stage_model import Trainable
from classifiers.classifier import Classifier


def finetune(
    classifier: Classifier,
    policy: PolicyNetwork,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    checkpoints: EpochCheckpoint | None = None,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Iterator[dict[str, float]]:
    """Train on the most likely patches; yield the metrics of every epoch, over all steps, as `train_epochs`.

    The head learns with ``config.head_learning_rate``. The focuser learns with ``config.learning_rate`` where that is above 0
    (paper, section 3.3); with 0 it stays frozen, in eval mode, as in the released ActivityNet code.

    With a policy that skips, the focuser sees the frames with P(skip) below ``keep_threshold``, by default the policy's threshold. In
    the skipped frames the head gets what ``skipped`` says (`adafocus_env.classify`).

    Raises:
        InputError: ``skipped`` is unknown, or a threshold is given for a policy that cannot skip.
    """
    option = find_skipped(skipped)
    steps = count_decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)

    def choose(maps: Tensor) -> tuple[Tensor, Tensor]:
        return patches_of(policy, classifier, policy.act(maps, keep_threshold))

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        return classify_patches(classifier, batch, steps, choose, option)

    glancer, focuser, head = (cast(nn.Module, network) for network in (classifier.glancer, classifier.focuser, classifier.head))
    trainables, frozen = [Trainable(head, config.head_learning_rate)], [glancer]
    if config.learning_rate > 0:
        trainables.append(Trainable(focuser, config.learning_rate, find_unused=True))
    else:
        frozen.append(focuser)
    return train_epochs(trainables, clips, scores, config, seed=seed, device=classifier.device, frozen=frozen, checkpoints=checkpoints)
