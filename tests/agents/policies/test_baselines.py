from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_classifier
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from adafocus_env.action import ActionError, ContinuousAction, GridAction
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import LiveFeatures
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.policies.baselines import (
    RULES,
    CentrePatch,
    FixedPatch,
    GaussianPatch,
    GreedyOracle,
    LearnedPolicy,
    Oracle,
    RandomPatch,
    RulePatch,
    SaliencyPatch,
)
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
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


def test_the_oracle_selects_the_cell_nearest_to_the_target(clips):
    references = np.array([[clip, step] for clip in (4, 0, 11) for step in (3, 0)])
    cells = cells_of(Oracle(LiveFeatures(random_classifier(), clips, GRID)), references)
    for (clip, step), cell in zip(references, cells, strict=True):
        distances = np.linalg.norm(GRID.corners + 11.5 - clips.truth(clip)[step], axis=1)
        assert distances[cell] == pytest.approx(distances.min(), abs=1e-4)


def test_the_oracle_needs_the_truth():
    with pytest.raises(InputError, match="the oracle's clips must have a ground-truth track, got clips without one"):
        Oracle(SimpleNamespace(clips=SimpleNamespace(has_truth=False)))


def test_no_choice_beats_the_greedy_oracle_at_any_step(bank):
    """The test tries all 49 choices of every clip in the first step and in the second step."""
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
    policy = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7).eval()
    wanted = policy.act(bank.glance_maps(np.arange(12)[:, None], np.arange(4)[None])).numpy()
    player = LearnedPolicy(policy, bank)
    for references in ([[3, 0], [9, 0]], [[3, 1], [9, 1]], [[9, 1], [3, 2]], [[0, 3], [0, 1]]):
        references = np.array(references)
        assert cells_of(player, references).tolist() == wanted[references[:, 0], references[:, 1]].tolist()


def test_a_policy_for_another_grid_is_refused(bank):
    with pytest.raises(InputError, match=r"chooses cells of a 5×5 grid \(env\.grid=5\), the environment offers cells of a 7×7 grid"):
        LearnedPolicy(PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 5), bank)


def test_a_fixed_patch_is_the_one_that_was_asked_for():
    assert (cells_of(FixedPatch(GRID, 17)) == 17).all()
    locations, _ = FixedPatch(ContinuousAction(96, 24), (0.25, 0.75)).predict(MANY[:3])
    assert locations.tolist() == [[0.25, 0.75]] * 3
    with pytest.raises(ActionError, match=r"action 49 .* is outside the space; choose a cell from 0 to 48"):
        FixedPatch(GRID, 49)


@pytest.mark.parametrize(("pixel", "wanted"), [((0, 0), (0, 0)), ((3, 5), (56, 88)), ((5, 2), (88, 40))])
def test_saliency_selects_the_pixel_that_is_unlike_the_rest(pixel, wanted):
    """Maps have 6×6 pixels of 16 frame pixels each; the patch is centred on the pixel that differs."""
    maps = torch.full((1, 3, 6, 6), 0.5)
    maps[0, 1, pixel[0], pixel[1]] = 4.0
    grid = GridAction(25, 96, 24)  # 3 pixels from cell to cell
    features = SimpleNamespace(action=grid, num_steps=2, glance_maps=lambda clip, steps: maps.expand(len(steps), -1, -1, -1))
    centre = grid.corners[cells_of(SaliencyPatch(features), MANY[:2])] + 11.5
    assert np.all(np.abs(centre - np.clip(np.array(wanted) - 0.5, 11.5, 83.5)) <= 16), "within the smoothing"


def marked(pixel, value):
    """Return a map of 12×12 pixels (8 frame pixels each) that is 1 except for 2×2 pixels."""
    image = torch.ones(3, 12, 12)
    image[:, pixel[0] : pixel[0] + 2, pixel[1] : pixel[1] + 2] = value
    return image


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [("motion", (2, 7), (2, 7)), ("map_norm", (6, 6), (2, 7)), ("brightness", (6, 6), (2, 7)), ("frame_difference", (2, 7), (2, 7))],
)
def test_rules_select_what_stands_out_or_changes(rule, first, second):
    """There is a bright spot in all steps, and a brighter one from the second step on; the change is visible from the first step on."""
    still = marked((6, 6), 20.0)
    images = torch.stack([still, torch.maximum(still, marked((2, 7), 40.0))])
    grid = GridAction(25, 96, 24)  # 3 pixels from cell to cell
    features = SimpleNamespace(
        action=grid, num_steps=2, glance_maps=lambda clip, steps: images[steps],
        clips=SimpleNamespace(glancer_frames=lambda clip: images.to(torch.uint8)),
        classifier=SimpleNamespace(to_glance_size=lambda frames: frames),
    )  # fmt: skip
    chosen = cells_of(RulePatch(features, RULES[rule]), np.array([[5, 0], [5, 1]]))
    for cell, pixel in zip(chosen, (first, second), strict=True):
        wanted = np.clip((np.array(pixel) + 1) * 8 - 0.5, 11.5, 83.5)
        assert np.abs(grid.corners[cell] + 11.5 - wanted).max() <= 8, "within the smoothing"


def test_rules_read_the_frames_of_all_steps_of_real_clips(bank):
    """Brightness is that of the frames at glance size, and its maximum is taken after smoothing."""
    cells = RulePatch(bank, RULES["brightness"]).predict(np.array([[3, 2]]))[0]
    frame = bank.classifier.to_glance_size(bank.clips.frames(3)[2:3].float()).sum(1)[0]
    weights = torch.tensor([1.0, 2.0, 1.0])
    padded = torch.nn.functional.pad(frame[None, None], (1, 1, 1, 1), mode="replicate")
    smooth = torch.nn.functional.conv2d(padded, weights.outer(weights)[None, None])[0, 0]
    pixel = np.array(np.unravel_index(int(smooth.argmax()), smooth.shape))
    assert cells[0] == bank.action.nearest(((pixel + 0.5) * 96 / 24 - 0.5)[None])[0]


def test_in_a_clip_of_one_step_nothing_moves():
    features = SimpleNamespace(action=GRID, num_steps=1, glance_maps=lambda clip, steps: torch.rand(1, 3, 6, 6))
    assert cells_of(RulePatch(features, RULES["motion"]), MANY[:1]) == 0


def test_one_observation_gives_one_action_as_in_stable_baselines3():
    cell, state = CentrePatch(GRID).predict(np.array([3, 1]))
    assert cell == 24 and np.shape(cell) == () and state is None


@pytest.mark.parametrize("observation", [np.zeros((4, 16, 6, 6), np.float32), np.zeros((4, 2), np.float32), np.zeros((4, 3), np.int64)])
def test_observations_that_are_no_references_are_refused(observation):
    with pytest.raises(InputError, match=r"must be references \(clip, step\), got .*; make the environment with observation='reference'"):
        RandomPatch(GRID, 0).predict(observation)


def test_stable_baselines3_evaluates_every_baseline(bank):
    """The greedy oracle ranks first by definition, since it maximises the score of the true class."""
    vector = AdaFocusVectorEnv(
        12, bank.classifier, bank.clips, observation="reference", reward="confidence", bank=bank, autoreset_mode="SAME_STEP",
        clip_order="epoch",
    )  # fmt: skip
    env = VecMonitor(AdaFocusVecEnv(vector))
    policies = {
        "random": RandomPatch(GRID, 0), "centre": CentrePatch(GRID), "gaussian": GaussianPatch(GRID, 0), "fixed": FixedPatch(GRID, 0),
        "saliency": SaliencyPatch(bank), "oracle": Oracle(bank), "greedy": GreedyOracle(vector.dynamics),
    }  # fmt: skip
    returns = {name: evaluate_policy(policy, env, n_eval_episodes=12)[0] for name, policy in policies.items()}
    assert max(returns, key=returns.get) == "greedy" and len(set(returns.values())) == len(returns)
