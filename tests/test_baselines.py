from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_classifier

from adafocus_env.action import GridAction
from adafocus_env.dynamics import Dynamics
from adafocus_env.features import LiveFeatures
from agents.baselines import CentrePatch, GaussianPatch, GreedyOracle, LearnedPolicy, Oracle, RandomPatch
from agents.policies import GlancePolicy, PolicyNetwork
from classifiers.errors import InputError

GRID = GridAction(7, 96, 24)
MANY = np.zeros((4900, 2), np.int64)


def cells_of(policy, observation=MANY):
    cells, state = policy.predict(observation)
    assert cells.shape == (len(observation),) and cells.dtype == np.int64 and state is None
    return cells


def test_random_patches_are_uniform_and_fixed_by_the_seed():
    cells = cells_of(RandomPatch(GRID, 3))
    counts = np.bincount(cells, minlength=49)
    assert len(counts) == 49 and counts.min() > 50 and counts.max() < 150  # 100 expected
    assert np.array_equal(cells, cells_of(RandomPatch(GRID, 3)))
    assert not np.array_equal(cells, cells_of(RandomPatch(GRID, 4)))
    player = RandomPatch(GRID, 3)
    assert not np.array_equal(cells_of(player), cells_of(player))


@pytest.mark.parametrize(("grid", "cell"), [(7, 24), (3, 4), (5, 12)])
def test_the_centre_is_the_cell_in_the_middle(grid, cell):
    grid = GridAction(grid, 96, 24)
    assert (cells_of(CentrePatch(grid)) == cell).all()
    assert np.all(grid.corners[cell] + 12 == 48)


def test_gaussian_patches_lie_around_the_middle():
    cells = cells_of(GaussianPatch(GRID, 0))
    centres = GRID.corners[cells] + 11.5
    assert np.abs(centres.mean(0) - 47.5).max() < 1
    assert np.all(np.abs(centres.std(0) - 0.2 * 96) < 2)
    assert np.array_equal(cells, cells_of(GaussianPatch(GRID, 0)))
    assert (cells_of(GaussianPatch(GRID, 0, spread=0.001)) == 24).all()


def test_the_oracle_looks_at_the_cell_nearest_to_the_target(clips):
    references = np.array([[clip, step] for clip in (4, 0, 11) for step in (3, 0)])
    cells = cells_of(Oracle(LiveFeatures(random_classifier(), clips, GRID)), references)
    for (clip, step), cell in zip(references, cells, strict=True):
        distances = np.linalg.norm(GRID.corners + 11.5 - clips.truth(clip)[step], axis=1)
        assert distances[cell] == pytest.approx(distances.min(), abs=1e-4)


def test_the_oracle_needs_the_truth():
    with pytest.raises(InputError, match="the oracle needs clips with a ground-truth track; these have none"):
        Oracle(SimpleNamespace(clips=SimpleNamespace(has_truth=False)))


def test_no_choice_beats_the_greedy_oracle_at_any_step(bank):
    """All 49 choices of every clip are tried out, in the first step and in the second one."""
    dynamics, rows = Dynamics(bank, 12, reward="confidence"), np.arange(12)

    def confidence(*cells):
        dynamics.restart(rows, np.zeros((12, 4, 0), np.int64))
        return [dynamics.step(each).confidence for each in cells][-1]

    choices = []
    for _ in range(2):
        dynamics.restart(rows, np.zeros((12, 4, 0), np.int64))
        for earlier in choices:
            dynamics.step(earlier)
        best = cells_of(GreedyOracle(dynamics), np.stack([rows, dynamics.step_number], 1))
        every = np.stack([confidence(*choices, np.full(12, cell)) for cell in range(49)], 1)
        reached = confidence(*choices, best)
        assert np.all(reached >= every.max(1) - 1e-6)
        assert np.all(every.min(1) < reached)
        choices.append(best)


def test_a_learned_policy_plays_the_most_likely_cells_of_any_rows(bank):
    torch.manual_seed(1)
    policy = GlancePolicy(PolicyNetwork((16, 6, 6), channels=4, features=10, hidden=8), 7).eval()
    wanted = policy.act(bank.maps(np.arange(12)[:, None], np.arange(4)[None])).numpy()
    player = LearnedPolicy(policy, bank)
    for references in ([[3, 0], [9, 0]], [[3, 1], [9, 1]], [[9, 1], [3, 2]], [[0, 3], [0, 1]]):
        references = np.array(references)
        assert cells_of(player, references).tolist() == wanted[references[:, 0], references[:, 1]].tolist()


def test_a_policy_for_another_grid_is_refused(bank):
    with pytest.raises(InputError, match=r"chooses cells of a 5×5 grid \(env\.grid=5\), the environment offers cells of a 7×7 grid"):
        LearnedPolicy(GlancePolicy(PolicyNetwork((16, 6, 6), channels=4, features=10, hidden=8), 5), bank)
