"""What a classifier is worth on the validation part while it is trained: the measure that choices are made by."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from adafocus_env.clips.store import ClipSource
from agents.config.settings import EnvConfig
from agents.evaluation.evaluate import play
from agents.pipeline.builders import features_of
from agents.policies.baselines import LearnedPolicy, RandomPatch
from agents.policies.networks import PolicyNetwork
from agents.policies.predictor import Predictor
from classifiers.classifier import Classifier

CLIPS_AT_ONCE = 16

Score = tuple[float, float]
"""Top-1, and the mean softmax score of the true class, which decides between equals."""


def patch_score(classifier: Classifier, policy: PolicyNetwork | None, clips: ClipSource, env: EnvConfig, seed: int) -> Score:
    """The answers after the last step, with the policy's patches; with random ones, always the same, where there is no policy."""
    features = features_of(classifier, clips, replace(env, bank=False))
    player: Predictor = LearnedPolicy(policy, features) if policy else RandomPatch(features.action, seed)
    played = play(features, player, skipped=env.skipped)
    return float(played.correct.mean()), float(played.confidence.mean())


@torch.no_grad()
def frame_score(classifier: Classifier, part: Literal["glancer", "focuser"], clips: ClipSource) -> Score:
    """The answers of one backbone alone: the mean of its scores of all frames."""
    network = getattr(classifier, part)
    look = classifier.glance if part == "glancer" else network
    read = clips.glancer_frames if part == "glancer" else clips.frames
    right, confidence = 0, 0.0
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        numbers = range(start, min(start + CLIPS_AT_ONCE, len(clips)))
        frames = torch.stack([read(number) for number in numbers]).to(classifier.device)
        labels = torch.from_numpy(clips.labels[list(numbers)]).to(classifier.device)
        _, vectors = look(classifier.normalise(frames.flatten(0, 1)), num_frames=frames.shape[1])
        scores = network.scores(vectors).unflatten(0, (len(frames), -1)).mean(1)
        right += int((scores.argmax(-1) == labels).sum())
        confidence += float(scores.softmax(-1)[torch.arange(len(labels)), labels].sum())
    return right / len(clips), confidence / len(clips)
