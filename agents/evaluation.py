"""Accuracy against cost, for the learned policy and every baseline, on the same clips with the same classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import GridAction
from adafocus_env.features import Features
from adafocus_env.vector import AdaFocusVectorEnv
from agents.baselines import Cells, CentrePatch, GaussianPatch, GreedyOracle, LearnedPolicy, Oracle, Predictor, RandomPatch
from agents.inference import policy_cost
from agents.policies import GlancePolicy
from classifiers.cost import classifier_cost

CLIPS_AT_ONCE = 250


@dataclass(frozen=True)
class Played:
    """What a policy did on all clips of a store.

    Attributes:
        cells: (clips, T), what it looked at.
        correct: (clips,) bool, whether the answer after the last step is right.
        confidence: (clips,), softmax score of the true class after the last step.
    """

    cells: Cells
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float64]


def play(features: Features, make: Callable[[AdaFocusVectorEnv], Predictor]) -> Played:
    """Plays every clip once, in order.

    Args:
        features: what the frozen networks see in the clips; a bank saves most of the work.
        make: environment → the policy that plays it.
    """
    total, steps = len(features.clips), features.clips.num_frames
    env = AdaFocusVectorEnv(
        min(total, CLIPS_AT_ONCE), features.classifier, features.clips,
        observation="reference", reward="confidence", grid=features.grid.grid, bank=features, autoreset_mode="DISABLED",
    )  # fmt: skip
    policy = make(env)
    cells, correct, confidence = np.zeros((total, steps), np.int64), np.zeros(total, bool), np.zeros(total)
    for start in range(0, total, env.num_envs):
        rows = np.arange(start, start + env.num_envs) % total  # the last call starts again from the front: always full
        observation, _ = env.reset(seed=0, options={"clips": rows.tolist()})
        for step in range(steps):
            cells[rows, step], _ = policy.predict(observation)
            observation, _, _, _, info = env.step(cells[rows, step])
        correct[rows], confidence[rows] = info["correct"], info["confidence"]
    return Played(cells, correct, confidence)


def play_learned(features: Features, policy: GlancePolicy) -> Played:
    """Plays every clip once with a trained policy."""
    return play(features, lambda env: LearnedPolicy(policy, features))


def evaluate(
    features: Features, policy: GlancePolicy | None, *, seed: int, progress: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, dict[str, float]], dict[str, Played]]:
    """Measures the learned policy and all baselines.

    Args:
        features: what the frozen networks see in the clips.
        policy: what was learned, if anything.
        seed: of the random baselines.
        progress: called with the name of each policy before it plays.

    Returns:
        The measures of each policy, by name (`top1` in 0-1, `gflops` a video with a multiply-add as one, `confidence` in the
        true class, `location_entropy` in nats, `movement` in fractions of H − P), and what each did.
    """
    cost, steps, grid = classifier_cost(features.classifier), features.clips.num_frames, features.grid
    looking = steps * (cost.glance + cost.focus + cost.head)
    players: dict[str, Callable[[AdaFocusVectorEnv], Predictor]] = {
        "random": lambda env: RandomPatch(grid, seed),
        "centre": lambda env: CentrePatch(grid),
        "gaussian": lambda env: GaussianPatch(grid, seed),
        "greedy_oracle": lambda env: GreedyOracle(env.dynamics),
    }
    if features.clips.has_truth:
        players["oracle"] = lambda env: Oracle(grid, features.clips)
    measures: dict[str, dict[str, float]] = {}
    plays: dict[str, Played] = {}
    if policy is not None:
        progress("learned")
        plays["learned"] = play_learned(features, policy)
        measures["learned"] = _measures(plays["learned"], looking + steps * policy_cost(policy), grid)
    for name, make in players.items():
        progress(name)
        plays[name] = play(features, make)
        measures[name] = _measures(plays[name], looking, grid)
    for name, focus, multiply_adds in (
        ("glance_only", _no_focus, steps * (cost.glance + cost.head)),
        ("full_frame", _whole_frame, steps * (cost.glance + cost.focus_frame + cost.head)),
    ):
        progress(name)
        measures[name] = {"top1": _accuracy_of(features, focus), "gflops": multiply_adds / 1e9}
    return measures, plays


def location_entropy(cells: Cells, num_cells: int) -> float:
    """Entropy in nats of the cells chosen over all clips and steps; at most ln G²."""
    shares = np.bincount(cells.ravel(), minlength=num_cells) / cells.size
    return float(np.sum(shares[shares > 0] * -np.log(shares[shares > 0])))


def movement(cells: Cells, grid: GridAction) -> float:
    """Mean distance between the patches of consecutive frames, in fractions of H − P; 0 for clips of one frame."""
    places = grid.corners[cells] / max(1, grid.size - grid.patch_size)
    moves = np.linalg.norm(np.diff(places, axis=1), axis=-1)
    return float(moves.mean()) if moves.size else 0.0


def _measures(played: Played, multiply_adds: int, grid: GridAction) -> dict[str, float]:
    return {
        "top1": float(played.correct.mean()),
        "gflops": multiply_adds / 1e9,
        "confidence": float(played.confidence.mean()),
        "location_entropy": location_entropy(played.cells, grid.num_cells),
        "movement": movement(played.cells, grid),
    }


def _no_focus(features: Features, clip: int) -> Tensor:
    return torch.zeros(features.clips.num_frames, features.classifier.focuser.vector_size, device=features.classifier.device)


def _whole_frame(features: Features, clip: int) -> Tensor:
    frames = features.clips.frames(clip).to(features.classifier.device)
    return features.classifier.focus(features.classifier.normalise(frames))


@torch.inference_mode()
def _accuracy_of(features: Features, focus: Callable[[Features, int], Tensor]) -> float:
    """Top-1 at the last step where the focus vectors (T, F) of a clip come from ``focus``."""
    correct = 0
    for clip, label in enumerate(features.clips.labels):
        glances = features.vectors(np.array(clip), np.arange(features.clips.num_frames))
        scores, _ = features.classifier.classify(glances[None], focus(features, clip)[None])
        correct += int(scores[0, -1].argmax() == label)
    return correct / len(features.clips)
