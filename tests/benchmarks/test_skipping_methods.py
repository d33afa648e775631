"""Patch masks without learning and conditional exit, on small arrays."""

import numpy as np
import pytest

from agents.evaluation.conditional_exit import confidence_of, exit_steps
from benchmarks.skipping_methods import (
    accuracy_and_confidence,
    apply_exit,
    random_mask,
    solve_exit,
    solve_skip_and_exit,
    uniform_mask,
)
from classifiers.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("method", [uniform_mask, random_mask])
@pytest.mark.parametrize("keep", [0.25, 0.47, 0.89, 1])
def test_every_clip_has_its_share_of_patches(method, keep):
    patch_mask = method(2000, 8, keep, seed=0)
    numbers = patch_mask.sum(1)
    assert set(numbers) <= {int(8 * keep), -int(-8 * keep // 1)} and numbers.mean() == pytest.approx(8 * keep, abs=0.05)
    assert np.allclose(patch_mask.mean(0), keep, atol=0.05), "no step is preferred"
    assert np.array_equal(patch_mask, method(2000, 8, keep, seed=0)) and (
        keep == 1 or not np.array_equal(patch_mask, method(2000, 8, keep, seed=1))
    )


def test_frames_at_equal_distances_are_at_equal_distances():
    for row in uniform_mask(50, 12, 0.25, seed=3):
        assert np.diff(np.flatnonzero(row)).tolist() == [4, 4]
    gaps = np.concatenate([np.diff(np.flatnonzero(row)) for row in uniform_mask(50, 8, 0.4, seed=3)])
    assert set(gaps) == {2, 3}
    assert any(len(set(np.diff(np.flatnonzero(row)))) > 1 for row in random_mask(50, 12, 0.25, seed=3))


def test_a_clip_costs_its_steps_until_it_ends():
    scores = RNG.random((2, 4, 3))
    patch_mask = np.array([[True, False, True, True], [False, True, True, False]])
    last = apply_exit(scores, patch_mask)
    assert np.array_equal(last.scores, scores[:, 3]) and last.num_patches.tolist() == [3, 2] and last.num_steps.tolist() == [4, 4]
    early = apply_exit(scores, patch_mask, np.array([1, 2]))
    assert np.array_equal(early.scores, scores[[0, 1], [1, 2]])
    assert early.num_patches.tolist() == [1, 2] and early.num_steps.tolist() == [2, 3]


def test_accuracy_and_confidence_are_those_of_the_true_class():
    scores = np.log([[0.2, 0.7, 0.1], [0.25, 0.25, 0.5]]).astype(np.float32) + 3
    assert accuracy_and_confidence(scores, np.array([1, 0])) == pytest.approx((0.5, (0.7 + 0.25) / 2))


# Exit


def rising(count, steps):
    """Return confidences that increase along a clip, and the cost of ending after each step."""
    return np.sort(RNG.random((count, steps)), axis=1), np.tile(np.arange(1.0, steps + 1), (count, 1))


@pytest.mark.parametrize("budget", [1, 2, 3.76, 5.36, 7.12, 8])
def test_an_exit_meets_its_budget(budget):
    certain, spent = rising(400, 8)
    steps = exit_steps(certain, solve_exit(certain, spent, budget))
    assert (steps + 1).mean() == pytest.approx(budget, abs=0.05)


def test_the_shares_of_exits_are_a_geometric_series_and_the_most_certain_end():
    certain, spent = rising(2000, 4)
    thresholds = solve_exit(certain, spent, 2.0)
    steps = exit_steps(certain, thresholds)
    shares = np.bincount(steps, minlength=4) / 2000
    assert np.allclose(shares[1:] / shares[:-1], shares[1] / shares[0], atol=0.03)
    assert certain[steps == 0, 0].min() > certain[steps > 0, 0].max()
    assert thresholds[-1] == -np.inf


def test_an_exit_meets_a_budget_in_any_unit():
    certain, _ = rising(400, 8)
    spent = (RNG.random((400, 8)) < 0.5).cumsum(1) * 10 + np.arange(1, 9)
    steps = exit_steps(certain, solve_exit(certain, spent, 20.0))
    assert spent[np.arange(400), steps].mean() == pytest.approx(20, abs=0.5)


def test_an_exit_cannot_cost_less_than_a_step_or_more_than_all():
    certain, spent = rising(20, 8)
    for budget in (0.9, 8.1):
        with pytest.raises(InputError, match=rf"the budget of an exit must be from 1 to 8 per clip, got {budget}"):
            solve_exit(certain, spent, budget)
    with pytest.raises(InputError, match="a budget needs a validation split, which is empty"):
        solve_exit(certain[:0], spent[:0], 2)


# Both


def test_skipping_and_exit_together_are_the_best_on_the_validation_split():
    """Only the patch of one frame per clip shows the class, and P(skip) is low there. Exits without skipping are too early."""
    labels, good = RNG.integers(3, size=60), RNG.integers(6, size=60)
    skip = RNG.random((60, 6)) * 0.1 + 0.5
    skip[np.arange(60), good] = 0.1

    def scores_of(patch_mask):
        scores = np.zeros((60, 6, 3), np.float32)
        scores[:, :, 0] = 1
        seen = (patch_mask & (np.arange(6) == good[:, None])).cumsum(1) > 0
        scores[np.arange(60)[:, None], np.arange(6), labels[:, None]] += 5 * seen
        return scores

    def spent(patch_mask):
        return patch_mask.cumsum(1)

    threshold, exits = solve_skip_and_exit(skip, scores_of, labels, 0.25, spent, 1.5)
    patch_mask = skip < threshold
    scores = scores_of(patch_mask)
    steps = exit_steps(confidence_of(scores, "softmax"), exits)
    result = apply_exit(scores, patch_mask, steps)
    assert result.num_patches.mean() <= 1.6 and accuracy_and_confidence(result.scores, labels)[0] >= 0.9
    alone = scores_of(np.ones_like(patch_mask))
    steps = exit_steps(confidence_of(alone, "softmax"), solve_exit(confidence_of(alone, "softmax"), spent(np.ones_like(patch_mask)), 1.5))
    assert accuracy_and_confidence(apply_exit(alone, np.ones_like(patch_mask), steps).scores, labels)[0] < 0.8
