"""Tiny classifiers with every head and policies of every kind, with random weights, to export."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import TINY

from agents.policies.networks import NetworkArchitecture, PolicyNetwork
from agents.policies.published import PolicyArchitecture
from agents.policies.spatial import SpatialArchitecture
from classifiers.classifier import Classifier, ClipFormat

SPATIAL, PUBLISHED = SpatialArchitecture((16, 6, 6), 0.25), PolicyArchitecture((16, 6, 6), channels=4, features=8, hidden=8)


def tiny(head: str = "gru", *, shift: float = 0.0, glance_frames: int = 0) -> Classifier:
    """Return a frozen classifier of four frames with large random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = 4 if head == "max_per_step" else 0
        architecture = replace(TINY, head=head, head_steps=steps, shift=shift, shift_place="block")
        classifier = Classifier(architecture, tuple("abcde")).freeze()
    for parameter in classifier.head.parameters():
        parameter.mul_(5)
    classifier.clip_format = ClipFormat(4, glance_frames)
    return classifier


def policy_of(
    architecture: NetworkArchitecture = SPATIAL, grid: int | None = 3, *, skips: bool = False, threshold: float = 0.5,
    interpolated: bool = False,
) -> PolicyNetwork:  # fmt: skip
    """Return a frozen policy that is not uniform, and skips some frames if skipping is allowed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = PolicyNetwork(architecture, grid, skips=skips, keep_threshold=threshold, interpolated=interpolated)
    policy.eval().requires_grad_(False)
    for parameter in policy.parameters():
        parameter.mul_(2)
    if architecture is not PUBLISHED:  # whose last layer begins small
        policy.actor.scores.layers[-1].weight.mul_(50)
    return policy
