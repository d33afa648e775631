"""Ways to skip frames for a budget: the learned one and its competitors, all on the same places, solved on the validation part.

Everything here works on arrays of whole parts: N clips, D decisions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.budgets import PatchMask, Shares, check_keep, check_validation, patch_mask_at, solve_threshold
from agents.evaluation.metrics import Scores
from classifiers.errors import InputError

ScoresOf = Callable[[PatchMask], Scores]
Thresholds = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a way to skip did to N clips.

    Attributes:
        scores: (N, K), class scores when a clip was answered.
        num_patches: (N,), decisions whose frames were looked at.
        seen: (N,), decisions before the clip was answered: D, or fewer where it was stopped.
    """

    scores: Scores
    num_patches: NDArray[np.int64]
    seen: NDArray[np.int64]


def answered(scores: Scores, patch_mask: PatchMask, stopped: NDArray[np.int64] | None = None) -> Answers:
    """The answers of clips, from the class scores (N, D, K) after every step.

    Args:
        scores: when the frames of ``patch_mask`` (N, D) are looked at.
        patch_mask: see above.
        stopped: (N,), the step after which each clip is answered; None: the last.
    """
    rows = np.arange(len(scores))
    last = np.full(len(scores), patch_mask.shape[1] - 1) if stopped is None else stopped
    return Answers(scores[rows, last], patch_mask.cumsum(1)[rows, last], last + 1)


# Frames that are chosen without learning


def evenly(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Keeps decisions (count, steps) at equal distances, from a place on that is drawn for each clip: on average a share ``keep``.

    Args:
        count: N.
        steps: D.
        keep: the share.
        seed: of the draws.
    """
    start = np.random.default_rng(seed).random((count, 1))
    reached = np.floor(np.arange(steps + 1) * check_keep(keep) + start)
    return np.diff(reached, axis=1) > 0


def at_random(count: int, steps: int, keep: float, seed: int) -> PatchMask:
    """Keeps random decisions of each clip, in number as `evenly` does: on average a share ``keep``."""
    rng = np.random.default_rng(seed)
    number = np.floor(steps * check_keep(keep) + rng.random((count, 1)))
    return rng.random((count, steps)).argsort(1).argsort(1) < number


# Conditional exit: a clip is answered as soon as the head is sure enough


def certainty(scores: Scores) -> NDArray[np.float64]:
    """The highest softmax score (N, D) of class scores (N, D, K)."""
    powers = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return 1 / powers.sum(-1)


def exit_steps(certain: NDArray[np.float64], thresholds: Thresholds) -> NDArray[np.int64]:
    """The step (N,) after which each clip is answered: the first whose certainty (N, D) reaches the threshold (D,) of the step."""
    return (certain >= thresholds).argmax(1)


def solve_exit(certain: NDArray[np.float64], spent: NDArray[np.int64], budget: float) -> Thresholds:
    """The thresholds (D,) with which clips cost ``budget`` on average, found as in AdaFocusV2 and, before it, in MSDNet.

    The shares of clips that are answered after each step t are in proportion to qᵗ; those are taken whose certainty is highest. q is
    solved for the budget.

    Args:
        certain: of the validation part (N, D).
        spent: (N, D), what a clip has cost if it is answered after each step; rising along a clip.
        budget: of a clip, on average, in the same unit.

    Raises:
        InputError: there is no validation part, or no q meets the budget (says the range).
    """
    check_validation(certain)
    rows = np.arange(len(certain))
    least, most = spent[:, 0].mean(), spent[:, -1].mean()
    if not least <= budget <= most * (1 + 1e-9):
        raise InputError(f"an exit cannot cost {budget:.4g} a clip; choose a budget from {least:.4g} to {most:.4g}")

    def cost(logarithm: float) -> float:
        return float(spent[rows, exit_steps(certain, exit_thresholds(certain, logarithm))].mean())

    low, high = -LARGEST, LARGEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < budget else (low, middle)
    nearest = min((low, high), key=lambda each: abs(cost(each) - budget))
    return exit_thresholds(certain, nearest)


LARGEST, HALVINGS = 20.0, 40  # of ln q: beyond it all clips are answered after the first step, or after the last


def exit_thresholds(certain: NDArray[np.float64], logarithm: float) -> Thresholds:
    """Thresholds (D,) with which a share of the clips in proportion to qᵗ is answered after step t; that of the last is −∞.

    Args:
        certain: (N, D).
        logarithm: ln q.
    """
    count, steps = certain.shape
    weights = np.exp(logarithm * np.arange(steps) - max(0.0, logarithm * (steps - 1)))
    reached = np.rint(count * weights.cumsum() / weights.sum()).astype(int)  # clips that are answered by then
    left, thresholds = np.ones(count, bool), np.full(steps, np.inf)
    for step in range(steps - 1):
        number = reached[step] - np.count_nonzero(~left)
        if number > 0:
            thresholds[step] = np.sort(certain[left, step])[-number]
            left &= certain[:, step] < thresholds[step]
    thresholds[-1] = -np.inf
    return thresholds


# Both


@dataclass(frozen=True)
class SkipAndExit:
    """A threshold on the skip probability, and those of an exit on what is kept.

    Attributes:
        skip: kept are the decisions whose P(skip) is below it.
        exits: (D,), of the head's certainty.
    """

    skip: float
    exits: Thresholds


def solve_both(
    skip: Shares,
    scores_of: ScoresOf,
    labels: NDArray[np.int64],
    keep: float,
    spent: Callable[[PatchMask], NDArray[np.int64]],
    budget: float,
) -> SkipAndExit:
    """Of all pairs of thresholds that meet the budget on the validation part, the one with which most clips are right.

    Args:
        skip: P(skip) (N, D).
        scores_of: kept decisions (N, D) → class scores (N, D, K) after every step.
        labels: (N,).
        keep: the share of decisions that skipping alone has to keep for the budget.
        spent: kept decisions (N, D) → what a clip has cost if it is answered after each step (N, D).
        budget: of a clip, on average, in the same unit.

    Raises:
        InputError: as `solve_threshold` and `solve_exit`.
    """
    best: tuple[tuple[float, float], SkipAndExit] | None = None
    for share in np.linspace(check_keep(keep), 1, SHARES):
        threshold = solve_threshold(skip, float(share))
        patch_mask = patch_mask_at(skip, threshold)
        scores = scores_of(patch_mask)
        certain = certainty(scores)
        pair = SkipAndExit(threshold, solve_exit(certain, spent(patch_mask), min(budget, float(spent(patch_mask)[:, -1].mean()))))
        value = right_and_sure(answered(scores, patch_mask, exit_steps(certain, pair.exits)).scores, labels)
        if best is None or value > best[0]:
            best = value, pair
    assert best is not None
    return best[1]


SHARES = 9  # that are tried


def right_and_sure(scores: Scores, labels: NDArray[np.int64]) -> tuple[float, float]:
    """The share of clips whose answer is right, and the mean softmax score of the true class, of class scores (N, K)."""
    powers = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    true = (powers / powers.sum(-1, keepdims=True))[np.arange(len(labels)), labels]
    return float((scores.argmax(-1) == labels).mean()), float(true.mean())
