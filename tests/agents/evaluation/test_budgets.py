"""Budgets and the thresholds that meet them, on small arrays."""

from dataclasses import replace

import numpy as np
import pytest

from agents.evaluation.budgets import VideoCost, asked_share, patch_mask_at, solve_threshold
from classifiers.errors import InputError

COST = VideoCost(steps=16, seen=330_000_000, look=1_340_000_000)


def test_a_video_costs_what_is_seen_and_what_is_looked_at():
    num_patches, seen = np.array([0, 2, 0]), np.array([1, 16, 16])
    assert COST.of(num_patches, seen).tolist() == [330e6, 16 * 330e6 + 2 * 1340e6, 16 * 330e6]
    assert replace(COST, unseen=7).of(num_patches, seen).tolist() == [330e6, 16 * 330e6 + 2 * 1340e6, 16 * 330e6 + 7]
    assert COST.at(0.25) == 16 * 330e6 + 4 * 1340e6
    assert COST.range == pytest.approx((5.28, 26.72))


def test_a_budget_is_a_share_of_frames():
    assert COST.keep_for(5.28) == pytest.approx(0) and COST.keep_for(26.72) == pytest.approx(1)
    assert COST.keep_for(COST.at(0.47) / 1e9) == pytest.approx(0.47)
    assert asked_share(19.6, None, COST) == pytest.approx(0.668, abs=1e-3)
    assert asked_share(None, 0.67, COST) == 0.67


@pytest.mark.parametrize(("keep", "wanted"), [(0.25, 50), (0.47, 94), (0.6649, 133), (1, 200), (0.001, 0)])
def test_the_threshold_keeps_the_share_that_is_asked_for(keep, wanted):
    skip = np.random.default_rng(0).random((25, 8)).astype(np.float32)
    assert np.count_nonzero(patch_mask_at(skip, solve_threshold(skip, keep))) == wanted


def test_more_is_kept_the_higher_the_threshold_whatever_the_looks_before_change():
    skip = np.random.default_rng(2).random((25, 8, 8)).astype(np.float32)
    counts = [np.count_nonzero(patch_mask_at(skip, threshold)) for threshold in np.linspace(0, 1, 50)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 200
    for keep in (0.02, 0.25, 0.47, 0.67, 1):
        assert abs(np.count_nonzero(patch_mask_at(skip, solve_threshold(skip, keep))) - 200 * keep) <= 1


def test_all_frames_are_kept_at_a_finite_threshold():
    assert np.isfinite(solve_threshold(np.full((3, 8), 0.5), 1)) and solve_threshold(np.full((3, 8), 0.5), 1) > 0.5


def test_the_threshold_lies_between_what_is_kept_and_what_is_not():
    assert solve_threshold(np.array([[0.1, 0.9], [0.2, 0.4]]), 0.5) == pytest.approx(0.3)
    assert patch_mask_at(np.array([[0.29, 0.31]]), 0.3).tolist() == [[True, False]]


def test_a_threshold_of_one_part_is_good_for_another_of_its_kind():
    draws = np.random.default_rng(1)
    threshold = solve_threshold(draws.beta(0.3, 0.3, (150, 8)), 0.47)
    assert patch_mask_at(draws.beta(0.3, 0.3, (500, 8)), threshold).mean() == pytest.approx(0.47, abs=0.03)


@pytest.mark.parametrize("budget", [5.2, 26.8, float("nan")])
def test_budgets_that_cannot_be_met(budget):
    with pytest.raises(InputError, match=rf"budget={budget} GFLOPs .* glances alone cost 5\.28, .* 26\.72; choose a budget from 5\.28 to"):
        COST.keep_for(budget)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), True, None])
def test_shares_that_are_none(keep):
    with pytest.raises(InputError, match=rf"keep={keep} is no share of frames to keep; choose one above 0 and up to 1"):
        solve_threshold(np.ones((2, 2)), keep)


@pytest.mark.parametrize(("budget", "keep"), [(19.6, 0.67), (None, None)])
def test_one_of_the_two_is_asked_for(budget, keep):
    with pytest.raises(InputError, match=rf"budget={budget}, keep={keep}: give one of them"):
        asked_share(budget, keep, COST)


def test_without_a_validation_part_nothing_is_solved():
    with pytest.raises(InputError, match=r"solved on the validation part, which is empty: set data\.val"):
        solve_threshold(np.zeros((0, 8)), 0.5)
