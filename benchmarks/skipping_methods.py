"""Which frames get a patch, and where a clip ends early: masks without learning, conditional exit, and both solved for a budget.

Everything works on arrays of a whole split: N clips, D decisions, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from agents.evaluation.budgets import PatchMask, Shares, check_keep, check_validation, patch_mask_at, solve_threshold
from agents.evaluation.metrics import Scores
from classifiers.errors import InputError

Thresholds = NDArray[np.float64]
NUM_SHARES = 9  # tried by `solve_skip_and_exit`
MAX_LOG, HALVINGS = 20.0, 40  # of ln q: beyond it all clips end after the first step, or after the last


@dataclass(frozen=True)
class ExitResult:
    """Where N clips end, and their class scores there.

    Attributes:
        scores: (N, K), class scores at the end.
        num_patches: (N,), decisions with a patch until then.
        num_steps: (N,), decisions until then: D, or fewer where a clip ends early.
    """

    scores: Scores
    num_patches: NDArray[np.int64]
    num_steps: NDArray[np.int64]


def apply_exit(scores: Scores, patch_mask: PatchMask, steps: NDArray[np.int64] | None = None) -> ExitResult:
    """Return the result of clips with class scores (N, D, K) for a patch mask (N, D).

    Args:
        scores: See above.
        patch_mask: See above.
        steps: (N,), the step after which each clip ends; None: the last.
    """
    rows = np.arange(len(scores))
    last = np.full(len(scores), patch_mask.shape[1] - 1) if steps is None else steps
    return ExitResult(scores[rows, last], patch_mask.cumsum(1)[rows, last], last + 1)


def uniform_mask(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Return a patch mask (count, steps) with equal distances and a random start in each clip: on average a share ``keep``."""
    start = np.random.default_rng(seed).random((count, 1))
    reached = np.floor(np.arange(steps + 1) * check_keep(keep) + start)
    return np.diff(reached, axis=1) > 0


def random_mask(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Return a patch mask (count, steps) of random decisions, as many as `uniform_mask` has: on average a share ``keep``."""
    rng = np.random.default_rng(seed)
    number = np.floor(steps * check_keep(keep) + rng.random((count, 1)))
    return rng.random((count, steps)).argsort(1).argsort(1) < number


def max_softmax(scores: Scores) -> NDArray[np.float64]:
    """Return the highest softmax score (N, D) of class scores (N, D, K)."""
    return softmax(scores.astype(np.float64), axis=-1).max(-1)


def exit_steps(certainty: NDArray[np.float64], thresholds: Thresholds) -> NDArray[np.int64]:
    """Return the first step (N,) of each clip whose certainty (N, D) reaches the threshold (D,) of the step."""
    return (certainty >= thresholds).argmax(1)


def solve_exit(certainty: NDArray[np.float64], cost: NDArray[np.int64], budget: float) -> Thresholds:
    """Return the thresholds (D,) with which clips cost ``budget`` on average, as in AdaFocusV2 and, before it, in MSDNet.

    The shares of clips that end after step t are in proportion to qᵗ; those with the highest certainty end. q is solved for the budget.

    Args:
        certainty: Of the validation split (N, D).
        cost: (N, D), cost of a clip that ends after each step; rising along a clip.
        budget: Of a clip, on average, in the same unit.

    Raises:
        InputError: The validation split is empty, or no q meets the budget (names the range).
    """
    check_validation(certainty)
    rows = np.arange(len(certainty))
    least, most = cost[:, 0].mean(), cost[:, -1].mean()
    if not least <= budget <= most * (1 + 1e-9):
        raise InputError(f"the budget of an exit must be from {least:.4g} to {most:.4g} per clip, got {budget:.4g}")

    def mean_cost(logarithm: float) -> float:
        return float(cost[rows, exit_steps(certainty, exit_thresholds(certainty, logarithm))].mean())

    low, high = -MAX_LOG, MAX_LOG
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) < budget else (low, middle)
    return exit_thresholds(certainty, min((low, high), key=lambda logarithm: abs(mean_cost(logarithm) - budget)))


def exit_thresholds(certainty: NDArray[np.float64], logarithm: float) -> Thresholds:
    """Return thresholds (D,) with which a share of the clips in proportion to qᵗ ends after step t; the last is −∞.

    Args:
        certainty: (N, D).
        logarithm: ln q.
    """
    count, steps = certainty.shape
    weights = np.exp(logarithm * np.arange(steps) - max(0.0, logarithm * (steps - 1)))
    ended = np.rint(count * weights.cumsum() / weights.sum()).astype(int)  # clips that have ended by then
    left, thresholds = np.ones(count, bool), np.full(steps, np.inf)
    for step in range(steps - 1):
        number = ended[step] - np.count_nonzero(~left)
        if number > 0:
            thresholds[step] = np.sort(certainty[left, step])[-number]
            left &= certainty[:, step] < thresholds[step]
    thresholds[-1] = -np.inf
    return thresholds


def solve_skip_and_exit(
    skip: Shares,
    scores_of: Callable[[PatchMask], Scores],
    labels: NDArray[np.int64],
    keep: float,
    cost_of: Callable[[PatchMask], NDArray[np.int64]],
    budget: float,
) -> tuple[float, Thresholds]:
    """Return the thresholds on P(skip) and of the exit that meet the budget on the validation split with the highest accuracy.

    Args:
        skip: P(skip) (N, D).
        scores_of: Patch mask (N, D) → class scores (N, D, K) after every step.
        labels: (N,).
        keep: The share of decisions with a patch that meets the budget without an exit.
        cost_of: Patch mask (N, D) → cost of a clip that ends after each step (N, D).
        budget: Of a clip, on average, in the same unit.

    Raises:
        InputError: As `solve_threshold` and `solve_exit`.
    """

    def candidate(share: float) -> tuple[tuple[float, float], tuple[float, Thresholds]]:
        threshold = solve_threshold(skip, share)
        patch_mask = patch_mask_at(skip, threshold)
        scores, cost = scores_of(patch_mask), cost_of(patch_mask)
        certainty = max_softmax(scores)
        exits = solve_exit(certainty, cost, min(budget, float(cost[:, -1].mean())))
        result = apply_exit(scores, patch_mask, exit_steps(certainty, exits))
        return accuracy_and_confidence(result.scores, labels), (threshold, exits)

    candidates = map(candidate, np.linspace(check_keep(keep), 1, NUM_SHARES).tolist())
    return max(candidates, key=lambda pair: pair[0])[1]


def accuracy_and_confidence(scores: Scores, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return top-1 and the mean softmax score of the true class, of class scores (N, K)."""
    confidence = softmax(scores.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]
    return float((scores.argmax(-1) == labels).mean()), float(confidence.mean())
