"""Every way to skip frames, for the same budget, on the same clips, with the same classifier and the same places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import skipping
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.evaluation.budgets import PatchMask, Shares, VideoCost, check_validation, patch_mask_at, solve_threshold
from agents.evaluation.evaluate import CLIPS_AT_ONCE, batches, scores_of
from agents.evaluation.metrics import Scores
from agents.evaluation.skipping import Answers, answered, at_random, certainty, evenly, exit_steps, solve_both, solve_exit
from agents.policies.baselines import Actions, GreedyOracle, saliency
from agents.policies.networks import PolicyNetwork


@dataclass(frozen=True)
class Part:
    """The clips of one part, and what a skipping policy says about them.

    Attributes:
        features: what the frozen networks see.
        places: (N, D, …), where it looks if it looks.
        skip: (N, D, D), P(skip) by the number of looks before.
        skipped: what the head gets on a skipped step, a name in `adafocus_env.skipped.SKIPPED`.
    """

    features: Features
    places: Actions
    skip: Shares
    skipped: str

    @classmethod
    def of(cls, features: Features, policy: PolicyNetwork, skipped: str) -> Part:
        """Asks the policy about all clips."""
        places, skip = [], []
        for clips in batches(np.arange(len(features.clips)), CLIPS_AT_ONCE):
            maps = features.maps(clips[:, None], np.arange(features.num_steps)[None])
            where, chance = policy.choose(maps)
            places.append(where.cpu().numpy())
            skip.append(chance.cpu().numpy())
        return cls(features, np.concatenate(places), np.concatenate(skip), skipped)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the clips (N,)."""
        return self.features.clips.labels

    @property
    def size(self) -> tuple[int, int]:
        """N and D."""
        return self.skip.shape[0], self.skip.shape[1]

    def scores(self, patch_mask: PatchMask) -> Scores:
        """Class scores (N, D, K) after every step, when ``patch_mask`` (N, D) frames are looked at."""
        return scores_of(self.features, self.places, patch_mask, self.skipped)

    @cached_property
    def every(self) -> PatchMask:
        """All frames (N, D)."""
        return np.ones(self.size, bool)

    @cached_property
    def all_scores(self) -> Scores:
        """Class scores (N, D, K) when all frames are looked at."""
        return self.scores(self.every)

    @cached_property
    def saliency(self) -> NDArray[np.float32]:
        """How much the place of each glance stands out that does so the most (N, D)."""
        steps = np.arange(self.size[1])[None]
        maps = (self.features.maps(clips[:, None], steps) for clips in batches(np.arange(self.size[0]), CLIPS_AT_ONCE))
        return np.concatenate([saliency(each.flatten(0, 1)).amax((1, 2)).unflatten(0, each.shape[:2]).cpu().numpy() for each in maps])


@dataclass(frozen=True)
class Task:
    """What every way is asked for.

    Attributes:
        val: the validation part, on which thresholds are solved.
        test: the clips to answer.
        keep: share of the frames that may be looked at.
        cost: of a video.
        seed: of what is drawn.
    """

    val: Part
    test: Part
    keep: float
    cost: VideoCost
    seed: int


def learned(task: Task) -> Answers:
    """The frames whose P(skip) is below a threshold."""
    return _at(task.test, patch_mask_at(task.test.skip, solve_threshold(task.val.skip, task.keep)))


def uniform(task: Task) -> Answers:
    """Frames at equal distances."""
    return _at(task.test, evenly(*task.test.size, task.keep, task.seed))


def random(task: Task) -> Answers:
    """Random frames."""
    return _at(task.test, at_random(*task.test.size, task.keep, task.seed))


def by_saliency(task: Task) -> Answers:
    """The frames whose glances have a place that stands out."""
    return _at(task.test, patch_mask_at(-task.test.saliency, solve_threshold(-task.val.saliency, task.keep)))


def conditional_exit(task: Task) -> Answers:
    """Every frame until the head is sure. Where a video is stopped, neither the glancer nor the focuser sees the rest of it."""
    return _stopped(task, lambda seen: seen, task.keep * task.val.size[1])


def exit_at_equal_cost(task: Task) -> Answers:
    """The same, but it may cost as much as skipping that share of the frames does, whose glancer sees all of every video."""
    return _stopped(task, lambda seen: task.cost.of(seen, seen), min(task.cost.at(task.keep), task.cost.at(1)))


def learned_and_exit(task: Task) -> Answers:
    """The frames whose P(skip) is below a threshold, until the head is sure."""
    val, test = task.val, task.test
    num_patches = task.keep * val.size[1]
    solved = solve_both(val.skip, val.scores, val.labels, task.keep, lambda patch_mask: patch_mask.cumsum(1), num_patches)
    patch_mask = patch_mask_at(test.skip, solved.skip)
    scores = test.scores(patch_mask)
    return answered(scores, patch_mask, exit_steps(certainty(scores), solved.exits))


def greedy_oracle(task: Task) -> Answers:
    """The best patch of those frames where it adds more to the true class's score than a price. It knows the label."""
    check_validation(task.val.skip)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        share = _play_oracle(task.val, middle).num_patches.mean() / task.val.size[1]
        low, high = (middle, high) if share > task.keep else (low, middle)
    return _play_oracle(task.test, high)


HALVINGS = 10

WAYS: dict[str, Callable[[Task], Answers]] = {
    "learned": learned,
    "learned + exit": learned_and_exit,
    "exit": conditional_exit,
    "exit at equal GFLOPs": exit_at_equal_cost,
    "uniform": uniform,
    "random": random,
    "saliency": by_saliency,
    "greedy oracle": greedy_oracle,
}
"""All take the learned places, but for the greedy oracle, which finds its own."""


def every_frame(part: Part) -> Answers:
    """All frames are looked at."""
    return _at(part, part.every)


def _at(part: Part, patch_mask: PatchMask) -> Answers:
    return answered(part.scores(patch_mask), patch_mask)


def _stopped(task: Task, spent: Callable[[NDArray[np.int64]], NDArray[np.int64]], budget: float) -> Answers:
    """Every frame up to an exit that is solved for the budget; ``spent`` tells it from the number of steps (N, D)."""
    thresholds = solve_exit(certainty(task.val.all_scores), spent(task.val.every.cumsum(1)), budget)
    return answered(task.test.all_scores, task.test.every, exit_steps(certainty(task.test.all_scores), thresholds))


def _play_oracle(part: Part, cost_weight: float) -> Answers:
    found = [_oracle_on(part, clips, cost_weight) for clips in batches(np.arange(part.size[0]), CLIPS_AT_ONCE)]
    return Answers(*(np.concatenate(each) for each in zip(*((one.scores, one.num_patches, one.seen) for one in found), strict=True)))


def _oracle_on(part: Part, clips: NDArray[np.int64], cost_weight: float) -> Answers:
    action = skipping(part.features.action)
    dynamics = Dynamics(part.features, len(clips), reward="confidence", action=action, skipped=part.skipped)
    dynamics.restart(clips, dynamics.baseline)
    oracle, num_patches = GreedyOracle(dynamics, cost_weight), np.zeros(len(clips), np.int64)
    for step in range(dynamics.num_steps):
        chosen = oracle.choose(np.stack([clips, np.full_like(clips, step)], 1))
        dynamics.step(chosen)
        num_patches += action.patch_mask(chosen)
    return Answers(dynamics.scores.cpu().numpy(), num_patches, np.full(len(clips), dynamics.num_steps))
