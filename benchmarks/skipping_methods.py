"""Methods of skipping frames. All methods are compared with the same budget, the same clips, the same classifier and the same patch
locations.

The first part of the module has the components of the methods: masks without learning, the conditional exit, and functions that compute the
thresholds for a budget. The components work on arrays of a whole split, which has N clips, D decisions per clip and K classes. The second
part has the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from adafocus_env.action import with_skipping
from adafocus_env.features.live import Features
from agents.evaluation.budgets import PatchMask, Shares, check_keep, check_validation, patch_mask_at, skip_probabilities, solve_threshold
from agents.evaluation.conditional_exit import Values, confidence_of, exit_shares, exit_steps, fit_thresholds
from agents.evaluation.evaluate import CLIPS_AT_ONCE, batches, classify_actions, greedy_oracle_actions
from agents.evaluation.metrics import Scores
from agents.policies.baselines import Actions, saliency
from agents.policies.networks import PolicyNetwork
from classifiers.errors import InputError
from classifiers.flops import VideoFlops

NUM_SHARES = 9  # number of shares that `solve_skip_and_exit` tries
MAX_LOG, HALVINGS = 20.0, 40  # bisection of ln p; beyond ±MAX_LOG, all clips end after the first step or all end after the last
ORACLE_HALVINGS = 10  # halvings of the interval of the greedy oracle's cost weight


@dataclass(frozen=True)
class ExitResult:
    """The step after which each of N clips ends, and the class scores after this step.

    Attributes:
        scores: (N, K), class scores at the end of each clip.
        num_patches: (N,), number of decisions with a patch up to the end of each clip.
        num_steps: (N,), number of decisions up to the end of each clip, at most D.
    """

    scores: Scores
    num_patches: NDArray[np.int64]
    num_steps: NDArray[np.int64]


def apply_exit(scores: Scores, patch_mask: PatchMask, steps: NDArray[np.int64] | None = None) -> ExitResult:
    """Return the `ExitResult` for class scores (N, D, K) that were computed with a patch mask (N, D).

    Args:
        scores: Class scores (N, D, K).
        patch_mask: Patch mask (N, D).
        steps: (N,), the step after which each clip ends; None: the last step.
    """
    rows = np.arange(len(scores))
    last = np.full(len(scores), patch_mask.shape[1] - 1) if steps is None else steps
    return ExitResult(scores[rows, last], patch_mask.cumsum(1)[rows, last], last + 1)


def uniform_mask(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Return a patch mask (count, steps) with evenly spaced patches and a random start in each clip. On average, the share ``keep`` of the
    steps has a patch."""
    start = np.random.default_rng(seed).random((count, 1))
    reached = np.floor(np.arange(steps + 1) * check_keep(keep) + start)
    return np.diff(reached, axis=1) > 0


def random_mask(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Return a patch mask (count, steps) whose patches are in random steps. Each clip has as many patches as with `uniform_mask`."""
    rng = np.random.default_rng(seed)
    number = np.floor(steps * check_keep(keep) + rng.random((count, 1)))
    return rng.random((count, steps)).argsort(1).argsort(1) < number


def solve_exit(certainty: Values, cost: NDArray[np.int64], budget: float) -> Values:
    """Return the thresholds (D,) with which the mean cost per clip is ``budget``.

    The thresholds follow from the shares of clips that exit after each step, which `agents.evaluation.conditional_exit.exit_shares`
    computes from p. The function searches for the p that meets the budget.

    Args:
        certainty: Confidences (N, D) on the validation split.
        cost: (N, D), the cost of each clip if the clip ends after each step. The cost increases from step to step.
        budget: Mean cost per clip, in the unit of the costs.

    Raises:
        InputError: If the validation split is empty, or if no p meets the budget. The message states the range of possible budgets.
    """
    check_validation(certainty)
    rows = np.arange(len(certainty))
    least, most = cost[:, 0].mean(), cost[:, -1].mean()
    if not least <= budget <= most * (1 + 1e-9):
        raise InputError(f"the budget of an exit must be from {least:.4g} to {most:.4g} per clip, got {budget:.4g}")

    def thresholds(logarithm: float) -> Values:
        return fit_thresholds(certainty, exit_shares(math.exp(logarithm), certainty.shape[1]))

    def mean_cost(logarithm: float) -> float:
        return float(cost[rows, exit_steps(certainty, thresholds(logarithm))].mean())

    low, high = -MAX_LOG, MAX_LOG
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) < budget else (low, middle)
    return thresholds(min((low, high), key=lambda logarithm: abs(mean_cost(logarithm) - budget)))


def solve_skip_and_exit(
    skip: Shares,
    scores_of: Callable[[PatchMask], Scores],
    labels: NDArray[np.int64],
    keep: float,
    cost_of: Callable[[PatchMask], NDArray[np.int64]],
    budget: float,
) -> tuple[float, Values]:
    """Return a threshold on P(skip) and thresholds of the exit. Of all combinations that meet the budget, the returned combination has the
    best accuracy on the validation split.

    Args:
        skip: P(skip) (N, D).
        scores_of: Function that takes a patch mask (N, D), and returns the class scores (N, D, K) after every step.
        labels: (N,).
        keep: Share of decisions with a patch that meets the budget if there is no exit.
        cost_of: Function that takes a patch mask (N, D), and returns the cost (N, D) of each clip if the clip ends after each step.
        budget: Mean cost per clip, in the unit of the costs.

    Raises:
        InputError: For the same reasons as `solve_threshold` and `solve_exit`.
    """

    def candidate(share: float) -> tuple[tuple[float, float], tuple[float, Values]]:
        threshold = solve_threshold(skip, share)
        patch_mask = patch_mask_at(skip, threshold)
        scores, cost = scores_of(patch_mask), cost_of(patch_mask)
        certainty = confidence_of(scores, "softmax")
        exits = solve_exit(certainty, cost, min(budget, float(cost[:, -1].mean())))
        result = apply_exit(scores, patch_mask, exit_steps(certainty, exits))
        return accuracy_and_confidence(result.scores, labels), (threshold, exits)

    candidates = map(candidate, np.linspace(check_keep(keep), 1, NUM_SHARES).tolist())
    return max(candidates, key=lambda pair: pair[0])[1]


def accuracy_and_confidence(scores: Scores, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the top-1 accuracy and the mean softmax score of the true class, for class scores (N, K)."""
    confidence = softmax(scores.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]
    return float((scores.argmax(-1) == labels).mean()), float(confidence.mean())


# The methods


@dataclass(frozen=True)
class PolicyOutputs:
    """The outputs of a skipping policy on the clips of one split.

    Attributes:
        features: Features of the frozen networks.
        actions: (N, D, …), the patch action of every step.
        skip: (N, D, D), P(skip) of every clip and step, for every number of patches so far (last axis).
        skipped: Input of the head in skipped steps, a name in `adafocus_env.classify.SKIPPED`.
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
    def size(self) -> tuple[int, int]:
        """N and D."""
        return self.skip.shape[0], self.skip.shape[1]

    @property
    def every(self) -> PatchMask:
        """The patch mask (N, D) with a patch in every frame."""
        return np.ones(self.size, bool)

    def scores(self, patch_mask: PatchMask) -> Scores:
        """Return the class scores (N, D, K) after every step for a patch mask (N, D)."""
        return classify_actions(self.features, self.actions, patch_mask, self.skipped)

    @cached_property
    def all_scores(self) -> Scores:
        """Class scores (N, D, K) with a patch in every frame."""
        return self.scores(self.every)

    @cached_property
    def saliency(self) -> NDArray[np.float32]:
        """Highest saliency in every glance map (N, D)."""
        steps = np.arange(self.size[1])[None]
        maps = (self.features.glance_maps(clips[:, None], steps) for clips in _batches(self.features))
        return np.concatenate([saliency(each.flatten(0, 1)).amax((1, 2)).unflatten(0, each.shape[:2]).cpu().numpy() for each in maps])


@dataclass(frozen=True)
class Problem:
    """The problem that every method solves.

    Attributes:
        val: The validation split, on which thresholds are computed.
        test: The clips to classify.
        keep: Share of the frames that may have a patch.
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


def without_learning(mask: Callable[[int, int, float, int], PatchMask], problem: Problem) -> ExitResult:
    """Focus the frames that `uniform_mask` or `random_mask` selects."""
    return _focus(problem.test, mask(*problem.test.size, problem.keep, problem.seed))


def by_saliency(problem: Problem) -> ExitResult:
    """Focus the frames in which the highest saliency of the glance map is above a threshold."""
    threshold = solve_threshold(-problem.val.saliency, problem.keep)
    return _focus(problem.test, patch_mask_at(-problem.test.saliency, threshold))


def conditional_exit(problem: Problem) -> ExitResult:
    """Focus every frame until the head is certain of the class. Neither glancer nor focuser runs on later frames."""
    return _stop(problem, lambda steps: steps, problem.keep * problem.val.size[1])


def exit_at_equal_cost(problem: Problem) -> ExitResult:
    """Focus every frame until the head is certain, at a cost equal to that of a policy that skips.

    A policy that skips has the cost of a glance at every frame and of a patch in the share ``keep`` of the frames.
    """
    flops = problem.flops
    return _stop(problem, lambda steps: flops.total(steps, steps), min(flops.at(problem.keep), flops.at(1)))


def learned_and_exit(problem: Problem) -> ExitResult:
    """Focus the frames whose P(skip) is below a threshold, until the head is certain."""
    val, test = problem.val, problem.test
    labels = val.features.clips.labels
    threshold, exits = solve_skip_and_exit(
        val.skip, val.scores, labels, problem.keep, lambda patch_mask: patch_mask.cumsum(1), problem.keep * val.size[1]
    )
    patch_mask = patch_mask_at(test.skip, threshold)
    scores = test.scores(patch_mask)
    return apply_exit(scores, patch_mask, exit_steps(confidence_of(scores, "softmax"), exits))


def greedy_oracle(problem: Problem) -> ExitResult:
    """Focus a frame if its best patch increases the score of the true class by more than a cost weight. This method knows the label."""
    check_validation(problem.val.skip)
    low, high = 0.0, 1.0
    for _ in range(ORACLE_HALVINGS):
        middle = (low + high) / 2
        share = _run_oracle(problem.val, middle).num_patches.mean() / problem.val.size[1]
        low, high = (middle, high) if share > problem.keep else (low, middle)
    return _run_oracle(problem.test, high)


METHODS: dict[str, Callable[[Problem], ExitResult]] = {
    "learned": learned,
    "learned + exit": learned_and_exit,
    "exit": conditional_exit,
    "exit at equal GFLOPs": exit_at_equal_cost,
    "uniform": partial(without_learning, uniform_mask),
    "random": partial(without_learning, random_mask),
    "saliency": by_saliency,
    "greedy oracle": greedy_oracle,
}
"""Methods by name. The methods use the learned patch actions, except for the greedy oracle, which searches for the best patch."""


def every_frame(split: PolicyOutputs) -> ExitResult:
    """Focus every frame."""
    return _focus(split, split.every)


def _focus(split: PolicyOutputs, patch_mask: PatchMask) -> ExitResult:
    return apply_exit(split.scores(patch_mask), patch_mask)


def _stop(problem: Problem, cost: Callable[[NDArray[np.int64]], NDArray[np.int64]], budget: float) -> ExitResult:
    """Focus every frame until a conditional exit that meets the budget. ``cost`` is a function that converts numbers of steps (N, D) to the
    unit of the budget."""
    val, test = problem.val, problem.test
    thresholds = solve_exit(confidence_of(val.all_scores, "softmax"), cost(val.every.cumsum(1)), budget)
    return apply_exit(test.all_scores, test.every, exit_steps(confidence_of(test.all_scores, "softmax"), thresholds))


def _run_oracle(split: PolicyOutputs, cost_weight: float) -> ExitResult:
    features, action = split.features, with_skipping(split.features.action)
    batched = (greedy_oracle_actions(features, clips, action, split.skipped, cost_weight) for clips in _batches(features))
    actions = np.concatenate(list(batched))
    patch_mask = action.patch_mask(actions)
    return apply_exit(classify_actions(features, action.to_patch_action(actions), patch_mask, split.skipped), patch_mask)


def _batches(features: Features) -> list[NDArray[np.int64]]:
    return batches(np.arange(len(features.clips)), CLIPS_AT_ONCE)
