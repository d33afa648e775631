"""The score of a classifier on the validation split while it is trained: the measure that selects checkpoints."""

from __future__ import annotations

from dataclasses import replace

import torch

from adafocus_env.clips.store import ClipSource
from agents.config.settings import EnvConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.pipeline.builders import features_of
from agents.policies.baselines import LearnedPolicy, RandomPatch
from agents.policies.networks import PolicyNetwork
from agents.policies.predictor import Predictor
from agents.supervised.warm_up import BackboneName, frame_scores
from classifiers.classifier import Classifier

CLIPS_AT_ONCE = 16

Score = tuple[float, float]
"""Top-1 accuracy, and the mean softmax score of the true class, which breaks ties."""


def patch_score(classifier: Classifier, policy: PolicyNetwork | None, clips: ClipSource, env: EnvConfig, seed: int) -> Score:
    """Score the classes after the last step, with the policy's patches; without a policy, with random ones fixed by ``seed``."""
    features = features_of(classifier, clips, replace(env, bank=False))
    predictor: Predictor = LearnedPolicy(policy, features) if policy else RandomPatch(features.action, seed)
    played = evaluate_policy(features, predictor, skipped=env.skipped)
    return float(played.correct.mean()), float(played.confidence.mean())


@torch.no_grad()
def frame_score(classifier: Classifier, name: BackboneName, clips: ClipSource) -> Score:
    """Score the classes of one backbone alone: the mean of its scores of all frames."""
    read = clips.glancer_frames if name == "glancer" else clips.frames
    correct, confidence = 0, 0.0
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        batch = range(start, min(start + CLIPS_AT_ONCE, len(clips)))
        frames = torch.stack([read(clip) for clip in batch]).to(classifier.device)
        labels = torch.from_numpy(clips.labels[list(batch)]).to(classifier.device)
        scores = frame_scores(classifier, name, frames)
        correct += int((scores.argmax(-1) == labels).sum())
        confidence += float(scores.softmax(-1)[torch.arange(len(labels)), labels].sum())
    return correct / len(clips), confidence / len(clips)


def score_metrics(score: Score | None) -> dict[str, float]:
    """Return the score as fields of a line of metrics; empty without a validation split."""
    return {} if score is None else dict(zip(("val_top1", "val_confidence"), score, strict=True))


def is_at_least(score: Score | None, other: Score | None) -> bool:
    """Return whether a score is as good as another; always, without a validation split."""
    return score is None or other is None or tuple(score) >= tuple(other)
