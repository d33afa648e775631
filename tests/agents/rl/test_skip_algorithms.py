"""All algorithms that support skipping learn it with their default settings, and evaluation uses their patch masks."""

from dataclasses import replace

import pytest
import torch
from conftest import FINE_GRID, slow_except
from rich.console import Console
from test_algorithms import NETWORKS, locations, named, settings  # noqa: F401  the fixture is asked for by its name
from tiny_algorithms import NETWORK, SPATIAL

from agents.config.settings import EnvConfig, PPOConfig
from agents.evaluation.evaluate import evaluate, evaluate_policy
from agents.rl import settings as rl_settings
from agents.rl import trainer
from agents.rl.algorithms import DISCRETE, new_model
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import train_policy
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = FINE_GRID
SKIPPING = [case for case in NETWORKS if case[0] != "ars"]
COUNTING = ("a2c", "trpo", "crossq", "qrdqn", "td3", "maskable_ppo")


def learn(folder, features, name, kind, observation="reference", network=NETWORK):
    env = EnvConfig(num_envs=4, action="skip" if kind == DISCRETE else "continuous_skip", baseline=1, cost_weight=0.05, skipped="last")
    with RunDir.open(folder, {}, force=False) as run, Display(Console(quiet=True)) as display:
        algo = replace(settings(name), observation=observation)
        how = algorithm_settings(features, env, network, PPOConfig(), algo)
        return train_policy(features, features, run, display, how, env=env, seed=0)


@pytest.mark.parametrize(
    ("name", "kind", "network"), slow_except([("dqn", DISCRETE, SPATIAL)], SKIPPING), ids=named
)
def test_every_algorithm_learns_to_skip(tmp_path, bank, locations, name, kind, network):  # noqa: F811
    features = bank if kind == DISCRETE else locations
    player = learn(tmp_path, features, name, kind, network=network).on(features)
    measures, plays = evaluate(features, player, seed=0, skipped="last")
    assert measures["learned"]["kept"] == plays["learned"].patch_mask.mean() and plays["learned"].patch_mask.shape == (12, 4)
    assert measures["random"]["kept"] == 1


@pytest.mark.parametrize("observation", slow_except(["reference_looks"], ["reference", "reference_looks"]))
def test_masks_apply_in_training_validation_and_the_table(tmp_path, bank, monkeypatch, observation):
    """A policy that skips whenever possible focuses only the last frame, because of its masks."""
    validated = []

    def lazy(*about):
        model = new_model(*about)
        with torch.no_grad():
            model.policy.action_net.bias[-1] = 1000.0
        return model

    monkeypatch.setattr(rl_settings, "new_model", lazy)
    evaluation = lambda *about, **more: validated.append(evaluate_policy(*about, **more)) or validated[-1]  # noqa: E731
    monkeypatch.setattr(trainer, "evaluate_policy", evaluation)
    player = learn(tmp_path, bank, "maskable_ppo", DISCRETE, observation).on(bank)
    measures, plays = evaluate(bank, player, seed=0, skipped="last")
    for played in (*validated, plays["learned"]):
        assert (played.patch_mask == [False, False, False, True]).all()
    assert len(validated) == 3 and measures["learned"]["kept"] == 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "network"),
    slow_except([("a2c", DISCRETE, NETWORK), ("qrdqn", DISCRETE, SPATIAL)], [case for case in SKIPPING if case[0] in COUNTING]), ids=named,
)  # fmt: skip
def test_the_number_of_patches_can_be_observed(tmp_path, bank, locations, name, kind, network):  # noqa: F811
    features = bank if kind == DISCRETE else locations
    player = learn(tmp_path, features, name, kind, "reference_looks", network).on(features)
    assert player.observation == "reference_looks" and player.model.observation_space.shape == (3,)
    _, plays = evaluate(features, player, seed=0, skipped="last")
    assert plays["learned"].patch_mask.shape == (12, 4)


def test_a_spatial_softmax_policy_says_that_it_cannot(tmp_path, bank):
    with pytest.raises(InputError, match="cannot skip"):
        learn(tmp_path, bank, "ars", DISCRETE)
