"""The episodes of a policy, with all data that pictures of them show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import boxes_of
from adafocus_env.features.live import Features
from agents.evaluation.evaluate import evaluate_baseline, evaluate_policy
from agents.evaluation.metrics import PolicyEvaluation, confidence, covers, seen_frames
from agents.policies.baselines import Predictor
from agents.policies.networks import PolicyNetwork


@dataclass(frozen=True)
class Episode:
    """One episode: a clip of T frames, and what a policy did in it.

    Attributes:
        name: Name of the video.
        label: Name of the true class.
        frames: (T, H, W, 3) uint8.
        boxes: (T, 4), the patches as (top, left, bottom, right) in pixels; NaN for skipped frames.
        confidence: (T,), softmax score of the true class after every frame.
        predictions: For every frame, the name of the class with the highest score after the frame.
        hits: For every frame, whether the patch covers the target. The entry is None if the target is not visible or not known, or if the
            frame was skipped.
        patch_size: P, the side of a patch in pixels.
    """

    name: str
    label: str
    frames: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    confidence: NDArray[np.float64]
    predictions: tuple[str, ...]
    hits: tuple[bool | None, ...]
    patch_size: int

    def __len__(self) -> int:
        return len(self.frames)


def play(
    features: Features, policy: PolicyNetwork | Predictor | str, clips: Sequence[int], *, seed: int, skipped: str = "zeros"
) -> Iterator[Episode]:
    """Let a policy act in some clips. Yield the episodes.

    Args:
        features: Features of the clips.
        policy: The policy, or the name of a baseline.
        clips: Indices of the clips.
        seed: Seed of random patches.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.

    Raises:
        InputError: If the policy does not match the features, or if the baseline is unknown. For an unknown baseline, the message suggests
            the nearest name.
    """
    numbers = np.array(clips, np.int64)
    if isinstance(policy, str):
        played = evaluate_baseline(features, policy, numbers, seed=seed)
    else:
        played = evaluate_policy(features, policy, skipped=skipped, clips=numbers)
    boxes, hits = _boxes(features, played), _hits(features, played)
    classes, repeats = features.classifier.classes, features.clips.num_frames // features.num_steps
    confident = confidence(played.scores, played.labels).repeat(repeats, axis=1)
    best = played.scores.argmax(-1).repeat(repeats, axis=1)
    for row, clip in enumerate(numbers.tolist()):
        yield Episode(
            features.clips.names[clip], classes[played.labels[row]], features.clips.frames(clip).permute(0, 2, 3, 1).numpy(), boxes[row],
            confident[row], tuple(classes[number] for number in best[row]), tuple(hits[row]), features.action.patch_size,
        )  # fmt: skip


def _boxes(features: Features, played: PolicyEvaluation) -> NDArray[np.float64]:
    """Return the patches (N, T, 4) of all frames; NaN for skipped frames."""
    assert played.actions is not None  # because all policies here select patches
    boxes = np.where(played.patch_mask[..., None], boxes_of(features.action, played.actions), np.nan)
    return boxes.repeat(features.clips.num_frames // features.num_steps, axis=1)


def _hits(features: Features, played: PolicyEvaluation) -> NDArray[np.object_]:
    """Return whether the patch covers the target in each frame (N, T). See `Episode` for the entries that are None."""
    boxes = _boxes(features, played)
    hits = np.full(boxes.shape[:2], None, object)
    if played.targets is not None and (seen := seen_frames(played)) is not None:
        shown = seen.reshape(hits.shape)
        hits[shown] = covers(boxes, played.targets.boxes)[shown]
    return hits
