"""Stages 0, 1 and 3: the networks that each stage trains, and the frames or patches on which it trains them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from adafocus_env.classify import Skipped, find_skipped
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import count_steps
from agents.config.settings import SupervisedConfig
from agents.evaluation.inference import classify_crops, count_decisions, glance_at, patches_of
from agents.policies.networks import PolicyNetwork
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.epochs import train_epochs
from agents.supervised.stage_model import Batch, Trainable
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
    """Train one backbone on whole frames. Yield the metrics of every epoch, as `train_epochs` does.

    A backbone with temporal shift sees all frames of a clip in order. Any other backbone sees ``config.frames`` random frames.
    """

    def scores(batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.glance_frames if name == "glancer" else batch.frames
        sampled = frames if classifier.architecture.shift else _random_frames(frames, config.frames, batch)
        return frame_scores(classifier, name, sampled), batch.labels

    trainables = [Trainable(getattr(classifier, name), config.learning_rate)]
    return train_epochs(trainables, clips, scores, config, seed=seed, device=classifier.device, checkpoints=checkpoints)


def frame_scores(classifier: Classifier, name: BackboneName, frames: Tensor) -> Tensor:
    """Return the scores (N, K) of one backbone, averaged over the frames of each clip. ``frames`` is (N, T, 3, H, W) uint8."""
    network = getattr(classifier, name)
    forward = classifier.glance if name == "glancer" else network
    _, vectors = forward(classifier.normalise(frames.flatten(0, 1)), num_frames=frames.shape[1])
    return network.scores(vectors).unflatten(0, (len(frames), -1)).mean(1)


def _random_frames(frames: Tensor, number: int, batch: Batch) -> Tensor:
    """Select ``number`` random frames of each clip. Return (B, number, …) for ``frames`` (B, T, …)."""
    count, length = frames.shape[:2]
    ranks = batch.sample(lambda rng, total: rng.random((total, length)))
    indices = torch.from_numpy(ranks.argsort(1)[:, :number].copy()).to(frames.device)
    return frames[torch.arange(count, device=frames.device)[:, None], indices]


def train_on_random_patches(
    classifier: Classifier,
    clips: ClipSource,
    config: SupervisedConfig,
    *,
    seed: int,
    video_div: int | None = None,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train focuser and head on random patches. Yield the metrics of every epoch, measured over all steps, as `train_epochs` does."""
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
        classifier: The classifier.
        batch: B clips.
        steps: D, decisions per clip.
        choose: Function that takes glance maps (B, D, …) and returns the corners of the patches (B, D, 2) in pixels, and the patch mask
            (B, D). If every decision has a patch, ``choose`` returns None instead of the mask.
        skipped: Input of the head for skipped frames.
    """
    frames = classifier.normalise(batch.frames)
    with torch.no_grad():
        separate = batch.glance_frames is not batch.frames
        maps, vectors = glance_at(classifier, classifier.normalise(batch.glance_frames) if separate else frames, steps)
        with torch.autocast(maps.device.type, enabled=False):  # the policy runs in float32
            corners, patch_mask = choose(maps.float())
    scores = classify_crops(classifier, frames, vectors, corners, patch_mask, skipped).unflatten(1, (steps, -1))[:, :, -1]
    return scores.flatten(0, 1), batch.labels.repeat_interleave(steps)


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
    """Train on the policy's most likely patches. Yield the metrics of every epoch, measured over all steps, as `train_epochs` does.

    The learning rate of the head is ``config.head_learning_rate``, and that of the focuser is ``config.learning_rate`` (paper, section
    3.3). If ``config.learning_rate`` is 0, the focuser stays frozen and in eval mode, as in the released ActivityNet code.

    With a policy that skips, the focuser sees only the frames whose P(skip) is below ``keep_threshold``, which is the policy's threshold by
    default. ``skipped`` is the head's input for the skipped frames, a name in `adafocus_env.classify.SKIPPED`.

    Raises:
        InputError: If ``skipped`` is unknown, or if a threshold is given for a policy that cannot skip.
    """
    scores = partial(
        classify_patches, classifier, skipped=find_skipped(skipped),
        steps=count_decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames),
        choose=lambda maps: patches_of(policy, classifier, policy.act(maps, keep_threshold)),
    )  # fmt: skip
    glancer, focuser, head = (cast(nn.Module, network) for network in (classifier.glancer, classifier.focuser, classifier.head))
    trainables, frozen = [Trainable(head, config.head_learning_rate)], [glancer, focuser]
    if config.learning_rate > 0:
        trainables, frozen = [*trainables, Trainable(focuser, config.learning_rate, find_unused=True)], [glancer]
    return train_epochs(trainables, clips, scores, config, seed=seed, device=classifier.device, frozen=frozen, checkpoints=checkpoints)
