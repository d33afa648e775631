"""Budgets and the thresholds that meet them, on small arrays."""

import numpy as np
import pytest

from agents.evaluation.budgets import patch_mask_at, requested_keep, solve_threshold
from classifiers.errors import InputError
from classifiers.flops import VideoFlops

FLOPS = VideoFlops(16, glancer=16 * 300_000_000, policy=16 * 30_000_000, focuser=16 * 1_340_000_000, head=0)


def test_a_budget_is_a_share_of_frames():
    assert FLOPS.keep_for(5.28) == pytest.approx(0) and FLOPS.keep_for(26.72) == pytest.approx(1)
    assert FLOPS.keep_for(FLOPS.at(0.47) / 1e9) == pytest.approx(0.47)
    assert requested_keep(19.6, None, FLOPS) == pytest.approx(0.668, abs=1e-3)
    assert requested_keep(None, 0.67, FLOPS) == 0.67


@pytest.mark.parametrize(("keep", "count"), [(0.25, 50), (0.47, 94), (0.6649, 133), (1, 200), (0.001, 0)])
def test_the_threshold_selects_the_requested_share(keep, count):
    skip = np.random.default_rng(0).random((25, 8)).astype(np.float32)
    assert np.count_nonzero(patch_mask_at(skip, solve_threshold(skip, keep))) == count


def test_the_share_rises_with_the_threshold_for_every_number_of_earlier_patches():
    skip = np.random.default_rng(2).random((25, 8, 8)).astype(np.float32)
    counts = [np.count_nonzero(patch_mask_at(skip, threshold)) for threshold in np.linspace(0, 1, 50)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 200
    for keep in (0.02, 0.25, 0.47, 0.67, 1):
        assert abs(np.count_nonzero(patch_mask_at(skip, solve_threshold(skip, keep))) - 200 * keep) <= 1


def test_a_finite_threshold_selects_all_frames():
    assert np.isfinite(solve_threshold(np.full((3, 8), 0.5), 1)) and solve_threshold(np.full((3, 8), 0.5), 1) > 0.5


def test_the_threshold_lies_half_way_between_two_values():
    assert solve_threshold(np.array([[0.1, 0.9], [0.2, 0.4]]), 0.5) == pytest.approx(0.3)
    assert patch_mask_at(np.array([[0.29, 0.31]]), 0.3).tolist() == [[True, False]]


def test_a_threshold_of_one_split_holds_for_another_of_the_same_distribution():
    rng = np.random.default_rng(1)
    threshold = solve_threshold(rng.beta(0.3, 0.3, (150, 8)), 0.47)
    assert patch_mask_at(rng.beta(0.3, 0.3, (500, 8)), threshold).mean() == pytest.approx(0.47, abs=0.03)


@pytest.mark.parametrize("budget", [5.2, 26.8, float("nan")])
def test_budgets_that_cannot_be_met(budget):
    with pytest.raises(InputError, match=rf"budget must be from 5\.28 GFLOPs per video \(glances alone\) to 26\.72 .*, got {budget}"):
        FLOPS.keep_for(budget)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), True, None])
def test_invalid_shares(keep):
    with pytest.raises(InputError, match=rf"keep must be a share of frames above 0 and at most 1, such as 0.47, got {keep}"):
        solve_threshold(np.ones((2, 2)), keep)


@pytest.mark.parametrize(("budget", "keep"), [(19.6, 0.67), (None, None)])
def test_one_of_the_two_is_required(budget, keep):
    with pytest.raises(InputError, match=rf"budget={budget}, keep={keep}: set one of them"):
        requested_keep(budget, keep, FLOPS)


def test_a_budget_needs_a_validation_split():
    with pytest.raises(InputError, match=r"a budget needs a validation split, which is empty: set data\.val"):
        solve_threshold(np.zeros((0, 8)), 0.5)
