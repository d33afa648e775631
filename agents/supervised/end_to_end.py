"""End-to-end training (AdaFocusV2, arXiv:2112.14238): glancer, policy, focuser and head are trained together with one loss.

Patches are interpolated (`classifiers.crop`). The loss is therefore differentiable with respect to the locations of the patches, and the
gradient is propagated from the locations to the policy's weights. No actions are sampled, and there are no rewards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from adafocus_env.classify import classify_clips
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import count_steps
from agents.config.settings import EndToEndConfig
from agents.policies.networks import PolicyNetwork
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.stage_model import Batch, Trainable
from classifiers.classifier import Classifier
from classifiers.crop import crop_at_locations
from classifiers.heads import SeparateMeanHead

LOSSES: Mapping[str, float] = {"policy": 0.5, "random": 0.5, "glance": 1.0, "policy_patch": 0.5, "random_patch": 0.5}
"""Maps every output to the weight of its cross-entropy in the loss.

`policy` and `random` are the scores of the head after every decision, with the policy's patches and with random patches. The other outputs
are scores of auxiliary heads: `glance` for the glance vectors, `policy_patch` for the focus vectors of the policy's patches, and
`random_patch` for the focus vectors of the random patches."""
FROZEN_LOSSES: Mapping[str, float] = {"alone": 1.0}
"""Maps every output to the weight of its loss, `lack_of_confidence`, if only the policy is trained.

The head classifies each decision separately, from its initial state, as in the reward `standalone`. Scores after a whole clip would depend
little on a single patch, because one good patch in a clip is enough."""


def lack_of_confidence(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 − p, averaged over all scores, where p is the probability of the label. p is the reward `standalone`.

    This loss trains a policy while the classifier is frozen. A cross-entropy would be high above all for patches on a digit or object of
    another class. It therefore teaches a policy that has not found the target yet to look at empty places, where it stays.

    Args:
        scores: Class scores (M, K).
        labels: Labels (M,).
    """
    return 1 - scores.float().softmax(-1).gather(1, labels[:, None]).mean()


def train_end_to_end(
    classifier: Classifier,
    policy: PolicyNetwork,
    clips: ClipSource,
    config: EndToEndConfig,
    *,
    seed: int,
    freeze: bool = False,
    video_div: int | None = None,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train the classifier and the policy together. Yield the metrics of every epoch, measured over all decisions, as `train_epochs` does.

    The policy's critic is not trained.

    Args:
        classifier: The classifier.
        policy: A continuous policy without skipping.
        clips: The training clips.
        config: Epochs, optimizer, learning rates and execution of the networks.
        seed: Seed of the order of the clips, the crops and the random locations.
        freeze: Train only the policy.
        video_div: See `adafocus_env.features.live.count_steps`.
        checkpoints: See `train_epochs`.
    """
    steps = count_steps(classifier, clips, video_div)

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        frames = classifier.normalise(batch.frames)
        glance_frames = frames if batch.glance_frames is batch.frames else classifier.normalise(batch.glance_frames)
        labels = batch.labels.repeat_interleave(steps)
        if freeze:
            return policy_scores(classifier, policy, frames, glance_frames, steps)[None], labels
        sampled = batch.sample(lambda rng, total: rng.random((total, steps, 2), np.float32))
        return two_path_scores(classifier, policy, frames, glance_frames, torch.from_numpy(sampled).to(frames.device)), labels

    actor, networks = actor_of(policy, config), networks_of(classifier, config)
    learning = replace(config, dropout=None) if freeze else config  # the policy has no dropout
    return train_epochs(
        [actor] if freeze else [*networks, actor], clips, scores, learning, seed=seed, device=classifier.device,
        frozen=[network.module for network in networks] if freeze else (), weights=FROZEN_LOSSES if freeze else LOSSES,
        loss=lack_of_confidence if freeze else None, max_grad_norm=config.max_grad_norm, checkpoints=checkpoints,
    )  # fmt: skip


def actor_of(policy: PolicyNetwork, config: EndToEndConfig) -> Trainable:
    """Return the modules of a policy that are trained, with their learning rate. All modules except the critic are trained."""
    return Trainable(nn.ModuleList([policy.encoder, policy.actor]), config.learning_rate * config.policy_ratio)


def networks_of(classifier: Classifier, config: EndToEndConfig) -> list[Trainable]:
    """Return the networks of a classifier with their learning rates.

    Each layer of a `SeparateMeanHead` has the learning rate of the network from which it gets its input.
    """
    head, glancer, focuser = (cast(nn.Module, network) for network in (classifier.head, classifier.glancer, classifier.focuser))
    ratios = [(focuser, config.focuser_ratio), (glancer, config.glancer_ratio)]
    if isinstance(head, SeparateMeanHead):
        ratios += [(nn.ModuleList([head.focus_fc, head.dropout]), config.focuser_ratio), (head.glance_fc, config.glancer_ratio)]
    else:
        ratios.append((head, config.head_ratio))
    return [Trainable(network, config.learning_rate * ratio) for network, ratio in ratios]


def two_path_scores(
    classifier: Classifier, policy: PolicyNetwork, frames: Tensor, glance_frames: Tensor, random_locations: Tensor
) -> Tensor:
    """Return the scores (5, N·D, K) of the five outputs in `LOSSES` after every decision.

    The glance maps are detached before the policy, so that the glancer gets gradients only from its auxiliary head and from the head. With
    a `SeparateMeanHead`, the glance vectors and focus vectors are detached before the head, as published. The other networks therefore get
    gradients only from the auxiliary heads.

    Args:
        classifier: The classifier.
        policy: The policy, which maps glance maps to locations.
        frames: Normalised frames (N, T, 3, H, W), from which patches are cropped.
        glance_frames: Normalised frames of the glancer (N, G, 3, H, W).
        random_locations: Locations of the random patches, (N, D, 2), in [0, 1].
    """
    apart = isinstance(classifier.head, SeparateMeanHead)
    maps, vectors = _glance(classifier, glance_frames, random_locations.shape[1])
    by_policy = _path_scores(classifier, frames, vectors.mean(2), _locations(policy, maps), apart=apart)
    at_random = _path_scores(classifier, frames, vectors.mean(2), random_locations, apart=apart)
    glanced = classifier.glancer.scores(vectors.flatten(0, 2)).unflatten(0, vectors.shape[:3]).mean(2)
    return torch.stack([by_policy[0], at_random[0], glanced, by_policy[1], at_random[1]]).flatten(1, 2)


def policy_scores(classifier: Classifier, policy: PolicyNetwork, frames: Tensor, glance_frames: Tensor, steps: int) -> Tensor:
    """Return the scores (N·D, K) of the policy's patches. Each decision is classified separately. See `two_path_scores`."""
    with torch.no_grad():
        maps, vectors = _glance(classifier, glance_frames, steps)
    alone = frames.unflatten(1, (steps, -1)), vectors.mean(2)[:, :, None], _locations(policy, maps)[:, :, None]
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no gradient in eval mode
        return _path_scores(classifier, *(each.flatten(0, 1) for each in alone))[0][:, 0]


def _glance(classifier: Classifier, glance_frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the stacked glance maps (N, D, G/D·C, h, w) of the decisions and the glance vectors (N, D, G/D, C) of their frames."""
    maps, vectors = classifier.glance(glance_frames.flatten(0, 1), num_frames=glance_frames.shape[1])
    by_decision = len(glance_frames), steps, -1
    return maps.unflatten(0, by_decision).flatten(2, 3), vectors.unflatten(0, by_decision)


def _locations(policy: PolicyNetwork, maps: Tensor) -> Tensor:
    """Return the policy's locations (N, D, 2), computed in the precision of the policy's weights."""
    with torch.autocast(maps.device.type, enabled=False):
        return policy(maps.detach().to(next(policy.parameters()).dtype))


def _path_scores(
    classifier: Classifier, frames: Tensor, vectors: Tensor, locations: Tensor, *, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the scores of the head and of the focuser's auxiliary head for every decision, both (N, D, K).

    The scores of the auxiliary head are averaged over the patches of the decision. If ``apart`` is True, the head sends no gradient to the
    vectors.
    """
    (count, length), steps = frames.shape[:2], locations.shape[1]
    repeats = length // steps
    patches = crop_at_locations(frames, locations.repeat_interleave(repeats, dim=1), classifier.architecture.patch_size)
    focus_vectors = classifier.focus(patches.flatten(0, 1), num_frames=repeats)
    inputs = (vectors.detach(), focus_vectors.detach()) if apart else (vectors, focus_vectors)
    scores = classify_clips(classifier, inputs[0].repeat_interleave(repeats, dim=1), inputs[1], num_frames=repeats)
    return scores.unflatten(1, (steps, -1))[:, :, -1], classifier.focuser.scores(focus_vectors).unflatten(0, (count, steps, -1)).mean(2)
