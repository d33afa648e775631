"""The ways to skip that a learned one competes with, on small arrays."""

import numpy as np
import pytest

from agents.evaluation.skipping import (
    answered,
    at_random,
    certainty,
    evenly,
    exit_steps,
    right_and_sure,
    solve_both,
    solve_exit,
)  # fmt: skip
from classifiers.errors import InputError

DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize("way", [evenly, at_random])
@pytest.mark.parametrize("keep", [0.25, 0.47, 0.89, 1])
def test_every_clip_keeps_its_share(way, keep):
    patch_mask = way(2000, 8, keep, seed=0)
    numbers = patch_mask.sum(1)
    assert set(numbers) <= {int(8 * keep), -int(-8 * keep // 1)} and numbers.mean() == pytest.approx(8 * keep, abs=0.05)
    assert np.allclose(patch_mask.mean(0), keep, atol=0.05), "no step is preferred"
    assert np.array_equal(patch_mask, way(2000, 8, keep, seed=0)) and (
        keep == 1 or not np.array_equal(patch_mask, way(2000, 8, keep, seed=1))
    )


def test_frames_at_equal_distances_are_at_equal_distances():
    for row in evenly(50, 12, 0.25, seed=3):
        assert np.diff(np.flatnonzero(row)).tolist() == [4, 4]
    gaps = np.concatenate([np.diff(np.flatnonzero(row)) for row in evenly(50, 8, 0.4, seed=3)])
    assert set(gaps) == {2, 3}
    assert any(len(set(np.diff(np.flatnonzero(row)))) > 1 for row in at_random(50, 12, 0.25, seed=3))


def test_an_answer_is_paid_for_up_to_where_it_is_given():
    scores = DRAWS.random((2, 4, 3))
    patch_mask = np.array([[True, False, True, True], [False, True, True, False]])
    last = answered(scores, patch_mask)
    assert np.array_equal(last.scores, scores[:, 3]) and last.num_patches.tolist() == [3, 2] and last.seen.tolist() == [4, 4]
    early = answered(scores, patch_mask, np.array([1, 2]))
    assert np.array_equal(early.scores, scores[[0, 1], [1, 2]]) and early.num_patches.tolist() == [1, 2] and early.seen.tolist() == [2, 3]


def test_certainty_is_the_highest_softmax_score():
    scores = np.log([[[0.2, 0.7, 0.1]], [[0.25, 0.25, 0.5]]]).astype(np.float32) + 3
    assert np.allclose(certainty(scores), [[0.7], [0.5]])
    assert right_and_sure(scores[:, 0], np.array([1, 0])) == pytest.approx((0.5, (0.7 + 0.25) / 2))


# Exit


def rising(count, steps):
    """Certainties that grow along a clip, and what it costs to be answered after each step."""
    return np.sort(DRAWS.random((count, steps)), axis=1), np.tile(np.arange(1.0, steps + 1), (count, 1))


@pytest.mark.parametrize("budget", [1, 2, 3.76, 5.36, 7.12, 8])
def test_an_exit_costs_what_it_is_allowed_to(budget):
    certain, spent = rising(400, 8)
    steps = exit_steps(certain, solve_exit(certain, spent, budget))
    assert (steps + 1).mean() == pytest.approx(budget, abs=0.05)


def test_the_shares_of_exits_are_a_geometric_series_and_the_surest_go():
    certain, spent = rising(2000, 4)
    thresholds = solve_exit(certain, spent, 2.0)
    steps = exit_steps(certain, thresholds)
    shares = np.bincount(steps, minlength=4) / 2000
    assert np.allclose(shares[1:] / shares[:-1], shares[1] / shares[0], atol=0.03)
    assert certain[steps == 0, 0].min() > certain[steps > 0, 0].max()
    assert thresholds[-1] == -np.inf


def test_exits_are_paid_for_in_any_unit():
    certain, _ = rising(400, 8)
    spent = (DRAWS.random((400, 8)) < 0.5).cumsum(1) * 10 + np.arange(1, 9)
    steps = exit_steps(certain, solve_exit(certain, spent, 20.0))
    assert spent[np.arange(400), steps].mean() == pytest.approx(20, abs=0.5)


def test_an_exit_cannot_cost_less_than_a_step_or_more_than_all():
    certain, spent = rising(20, 8)
    for budget in (0.9, 8.1):
        with pytest.raises(InputError, match=rf"an exit cannot cost {budget} a clip; choose a budget from 1 to 8"):
            solve_exit(certain, spent, budget)
    with pytest.raises(InputError, match="validation part, which is empty"):
        solve_exit(certain[:0], spent[:0], 2)


# Both


def test_skipping_and_exit_together_do_what_is_best_on_the_validation_part():
    """Only a look at a clip's one good frame answers it, and P(skip) tells which that is: skipping alone is right, exits are too early."""
    labels, good = DRAWS.integers(3, size=60), DRAWS.integers(6, size=60)
    skip = DRAWS.random((60, 6)) * 0.1 + 0.5
    skip[np.arange(60), good] = 0.1

    def scores_of(patch_mask):
        scores = np.zeros((60, 6, 3), np.float32)
        scores[:, :, 0] = 1
        seen = (patch_mask & (np.arange(6) == good[:, None])).cumsum(1) > 0
        scores[np.arange(60)[:, None], np.arange(6), labels[:, None]] += 5 * seen
        return scores

    def spent(patch_mask):
        return patch_mask.cumsum(1)

    solved = solve_both(skip, scores_of, labels, 0.25, spent, 1.5)
    patch_mask = skip < solved.skip
    scores = scores_of(patch_mask)
    steps = exit_steps(certainty(scores), solved.exits)
    given = answered(scores, patch_mask, steps)
    assert given.num_patches.mean() <= 1.6 and right_and_sure(given.scores, labels)[0] >= 0.9
    alone = scores_of(np.ones_like(patch_mask))
    steps = exit_steps(certainty(alone), solve_exit(certainty(alone), spent(np.ones_like(patch_mask)), 1.5))
    assert right_and_sure(answered(alone, np.ones_like(patch_mask), steps).scores, labels)[0] < 0.8
