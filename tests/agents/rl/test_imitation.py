"""Imitation of tracks and of rewards: learning, resuming, and refused settings."""

import signal

import numpy as np
import pytest
import torch
from conftest import FINE_GRID
from stable_baselines3.common.logger import configure
from tiny_algorithms import NETWORK, SPATIAL, after_line, learn, metrics
from tiny_training import Crash, crash

from agents.config.settings import AlgoConfig, EnvConfig, PPOConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.metrics import ratios
from agents.policies.baselines import Oracle
from agents.policies.sb3 import bind
from agents.rl.environment import make_environment
from agents.rl.settings import algorithm_settings
from agents.runs.interrupts import Stopped
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = FINE_GRID
IMITATION = AlgoConfig("imitation")
QUICK = {
    "n_steps": 4, "batch_size": None, "n_epochs": 2, "ent_coef": 0.0, "validate_every": 2, "save_every": 2, "total_steps": 96,
    "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture
def without_tracks(clips, monkeypatch):
    """Return the shared clips without their ground truth."""
    monkeypatch.setattr(clips, "has_truth", False)


def model_on(features, temperature=0.1, **env):
    env = EnvConfig(num_envs=4, **env)
    algo = AlgoConfig("imitation", settings={"temperature": temperature})
    settings = algorithm_settings(features, env, NETWORK, PPOConfig(**{**QUICK, "learning_rate": 1e-30}), algo)
    model = settings.make_model(make_environment(features, env), 0)
    bind(model.policy, features, cache=False)
    model.set_logger(configure(None, []))
    return model


@pytest.mark.slow
def test_the_target_is_found(tmp_path, bank):
    """Twelve clips are memorised quickly."""
    policy = learn(tmp_path, bank, IMITATION, network=SPATIAL, ppo=PPOConfig(**{**QUICK, "total_steps": 3200, "validate_every": 200}))
    assert ratios(evaluate_policy(bank, policy))["hit_rate"] > 0.6
    assert {"cross_entropy", "entropy"} <= set(RunDir(tmp_path).metrics()[0])


def test_the_loss_is_the_cross_entropy_with_the_nearest_cells_where_the_target_is_shown(bank, monkeypatch):
    model = model_on(bank)
    model.learn(16)
    batch = next(model.rollout_buffer.get(None))
    references = batch.observations[:, :2].long().numpy()
    visible = references[:, 1] != 2

    def hidden_in_the_third_frame(clip, targets=bank.clips.targets):
        found = targets(clip)
        return found._replace(visible=np.array([True, True, False, True]))

    monkeypatch.setattr(bank.clips, "targets", hidden_in_the_third_frame)
    log_probs = model.policy.get_distribution(batch.observations).distribution.logits
    cells = torch.from_numpy(Oracle(bank).choose(references))
    expected = torch.nn.functional.cross_entropy(log_probs[visible], cells[visible])
    assert model.loss(batch, 0.0)[1]["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_without_tracks_the_softmax_of_the_rewards_is_learned(bank, without_tracks, temperature):
    model = model_on(bank, temperature, full_information=True)
    model.learn(16)
    batch = next(model.rollout_buffer.get(None))
    log_probs = model.policy.get_distribution(batch.observations).distribution.logits
    targets = torch.softmax(batch.action_rewards / temperature, dim=1)
    expected = torch.nn.functional.cross_entropy(log_probs, targets)
    assert model.loss(batch, 0.0)[1]["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_that_is_stopped_and_killed_ends_as_one_that_is_not(tmp_path, bank):
    arguments = {"ppo": PPOConfig(**QUICK)}
    learn(tmp_path / "whole", bank, IMITATION, **arguments)
    with after_line(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped):
        learn(tmp_path / "stopped", bank, IMITATION, **arguments)
    with after_line(2, crash), pytest.raises(Crash):
        learn(tmp_path / "stopped", bank, IMITATION, **arguments)
    learn(tmp_path / "stopped", bank, IMITATION, **arguments)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    for name in ("policy.json", "policy.safetensors"):
        stopped, whole = (tmp_path / run / "checkpoints" / "best" / name for run in ("stopped", "whole"))
        assert stopped.read_bytes() == whole.read_bytes()


def test_neither_tracks_nor_rewards(bank, without_tracks):
    with pytest.raises(InputError, match="algo=imitation needs clips with tracks, or the reward of every action: set env"):
        model_on(bank)


def test_a_temperature_of_zero(bank):
    with pytest.raises(InputError, match="temperature must be positive and finite, got 0"):
        model_on(bank, 0)


