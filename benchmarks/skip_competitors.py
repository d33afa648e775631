"""The methods of skipping frames that are compared: same budget, same clips, same classifier and same patch locations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import with_skipping
from adafocus_env.features.live import Features
from agents.evaluation.budgets import PatchMask, Shares, check_validation, patch_mask_at, skip_probabilities, solve_threshold
from agents.evaluation.evaluate import CLIPS_AT_ONCE, batches, classify_actions, greedy_oracle_actions
from agents.evaluation.metrics import Scores
from agents.policies.baselines import Actions, saliency
from agents.policies.networks import PolicyNetwork
from benchmarks.skipping_methods import (
    ExitResult,
    apply_exit,
    exit_steps,
    max_softmax,
    random_mask,
    solve_exit,
    solve_skip_and_exit,
    uniform_mask,
)
from classifiers.flops import VideoFlops

HALVINGS = 10  # of the interval of the greedy oracle's cost weight


@dataclass(frozen=True)
class PolicyOutputs:
    """The clips of one split, and the outputs of a skipping policy on them.

    Attributes:
        features: Features of the frozen networks.
        actions: (N, D, …), the patch action of every step.
        skip: (N, D, D), P(skip) by the number of patches so far.
        skipped: Input of the head on a skipped step, a name in `adafocus_env.classify.SKIPPED`.
    """

    features: Features
    actions: Actions
    skip: Shares
    skipped: str

    @classmethod
    def of(cls, features: Features, policy: PolicyNetwork, skipped: str) -> PolicyOutputs:
        """Run the policy on all clips."""
        return cls(features, *skip_probabilities(policy, features), skipped)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (N,) of the clips."""
        return self.features.clips.labels

    @property
    def size(self) -> tuple[int, int]:
        """N and D."""
        return self.skip.shape[0], self.skip.shape[1]

    @property
    def every(self) -> PatchMask:
        """The patch mask (N, D) that focuses every frame."""
        return np.ones(self.size, bool)

    def scores(self, patch_mask: PatchMask) -> Scores:
        """Return the class scores (N, D, K) after every step for a patch mask (N, D)."""
        return classify_actions(self.features, self.actions, patch_mask, self.skipped)

    @cached_property
    def all_scores(self) -> Scores:
        """Class scores (N, D, K) when every frame is focused."""
        return self.scores(self.every)

    @cached_property
    def saliency(self) -> NDArray[np.float32]:
        """Highest saliency of every glance map (N, D)."""
        steps = np.arange(self.size[1])[None]
        maps = (self.features.glance_maps(clips[:, None], steps) for clips in _batches(self.features))
        return np.concatenate([saliency(each.flatten(0, 1)).amax((1, 2)).unflatten(0, each.shape[:2]).cpu().numpy() for each in maps])


@dataclass(frozen=True)
class Problem:
    """What every method has to solve.

    Attributes:
        val: The validation split, on which thresholds are solved.
        test: The clips to classify.
        keep: Share of the frames that may be focused.
        flops: Multiply-adds of a video.
        seed: Seed of random choices.
    """

    val: PolicyOutputs
    test: PolicyOutputs
    keep: float
    flops: VideoFlops
    seed: int


def learned(problem: Problem) -> ExitResult:
    """Focus the frames whose P(skip) is below a threshold."""
    return _focus(problem.test, patch_mask_at(problem.test.skip, solve_threshold(problem.val.skip, problem.keep)))


def uniform(problem: Problem) -> ExitResult:
    """Focus frames at equal distances."""
    return _focus(problem.test, uniform_mask(*problem.test.size, problem.keep, problem.seed))


def random(problem: Problem) -> ExitResult:
    """Focus random frames."""
    return _focus(problem.test, random_mask(*problem.test.size, problem.keep, problem.seed))


def by_saliency(problem: Problem) -> ExitResult:
    """Focus the frames whose glance map has a salient location."""
    threshold = solve_threshold(-problem.val.saliency, problem.keep)
    return _focus(problem.test, patch_mask_at(-problem.test.saliency, threshold))


def conditional_exit(problem: Problem) -> ExitResult:
    """Focus every frame until the head is certain. Neither glancer nor focuser runs on the rest of a video that is stopped."""
    return _stop(problem, lambda steps: steps, problem.keep * problem.val.size[1])


def exit_at_equal_cost(problem: Problem) -> ExitResult:
    """Exit at the cost of skipping that share of the frames, with the glances of all frames."""
    flops = problem.flops
    return _stop(problem, lambda steps: flops.total(steps, steps), min(flops.at(problem.keep), flops.at(1)))


def learned_and_exit(problem: Problem) -> ExitResult:
    """Focus the frames whose P(skip) is below a threshold, until the head is certain."""
    val, test = problem.val, problem.test
    num_patches = problem.keep * val.size[1]
    threshold, exits = solve_skip_and_exit(
        val.skip, val.scores, val.labels, problem.keep, lambda patch_mask: patch_mask.cumsum(1), num_patches
    )
    patch_mask = patch_mask_at(test.skip, threshold)
    scores = test.scores(patch_mask)
    return apply_exit(scores, patch_mask, exit_steps(max_softmax(scores), exits))


def greedy_oracle(problem: Problem) -> ExitResult:
    """Focus the best patch of the frames where it raises the true class's score by more than a cost weight. It knows the label."""
    check_validation(problem.val.skip)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        share = _run_oracle(problem.val, middle).num_patches.mean() / problem.val.size[1]
        low, high = (middle, high) if share > problem.keep else (low, middle)
    return _run_oracle(problem.test, high)


METHODS: dict[str, Callable[[Problem], ExitResult]] = {
    "learned": learned,
    "learned + exit": learned_and_exit,
    "exit": conditional_exit,
    "exit at equal GFLOPs": exit_at_equal_cost,
    "uniform": uniform,
    "random": random,
    "saliency": by_saliency,
    "greedy oracle": greedy_oracle,
}
"""All use the learned patch actions, except the greedy oracle, which searches for the best patch."""


def every_frame(split: PolicyOutputs) -> ExitResult:
    """Focus every frame."""
    return _focus(split, split.every)


def _focus(split: PolicyOutputs, patch_mask: PatchMask) -> ExitResult:
    return apply_exit(split.scores(patch_mask), patch_mask)


def _stop(problem: Problem, cost: Callable[[NDArray[np.int64]], NDArray[np.int64]], budget: float) -> ExitResult:
    """Focus every frame up to an exit solved for the budget; ``cost`` maps the number of steps (N, D) to units of the budget."""
    val, test = problem.val, problem.test
    thresholds = solve_exit(max_softmax(val.all_scores), cost(val.every.cumsum(1)), budget)
    return apply_exit(test.all_scores, test.every, exit_steps(max_softmax(test.all_scores), thresholds))


def _run_oracle(split: PolicyOutputs, cost_weight: float) -> ExitResult:
    features, action = split.features, with_skipping(split.features.action)
    batched = (greedy_oracle_actions(features, clips, action, split.skipped, cost_weight) for clips in _batches(features))
    actions = np.concatenate(list(batched))
    patch_mask = action.patch_mask(actions)
    return apply_exit(classify_actions(features, action.to_patch_action(actions), patch_mask, split.skipped), patch_mask)


def _batches(features: Features) -> list[NDArray[np.int64]]:
    return batches(np.arange(len(features.clips)), CLIPS_AT_ONCE)
