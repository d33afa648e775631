"""The learning study: what its subclasses of PPO change, and how much patches are worth."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from tiny_algorithms import NETWORK

from adafocus_env.dynamics import Dynamics
from agents.config.settings import AlgoConfig, EnvConfig, PPOConfig
from agents.policies.sb3 import bind
from agents.rl.environment import make_environment
from agents.rl.settings import algorithm_settings
from benchmarks.learning_study import worth_of_patches


def learned(features, name, steps):
    """Return a model after ``steps`` steps, with rollouts of eight steps in four environments."""
    env, ppo = EnvConfig(num_envs=4), PPOConfig(n_steps=8, batch_size=None, ent_coef=0.1)
    settings = algorithm_settings(features, env, NETWORK, ppo, AlgoConfig(f"benchmarks.ppo_variants.{name}"))
    model = settings.make_model(make_environment(features, env), 0)
    bind(model.policy, features, cache=False)
    model.set_logger(configure(None, []))
    return model.learn(steps)


def test_advantages_are_normalized_for_each_step_of_a_clip(bank, monkeypatch):
    monkeypatch.setattr(PPO, "train", lambda self: None)  # which flattens the buffer
    advantages = learned(bank, "StepNormalizedPPO", 32).rollout_buffer.advantages
    by_step = advantages.reshape(2, bank.num_steps, 4)
    np.testing.assert_allclose(by_step.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(by_step.std((0, 2)), 1, atol=1e-3)


def test_the_weight_of_the_entropy_falls_to_zero(bank, monkeypatch):
    weights = []
    monkeypatch.setattr(PPO, "train", lambda self: weights.append(self.ent_coef))
    model = learned(bank, "AnnealedEntropyPPO", 128)
    assert weights == pytest.approx([0.075, 0.05, 0.025, 0]) and model.ent_coef == 0.1


def test_the_worth_of_a_patch_is_what_it_gains_over_the_others(bank, monkeypatch):
    """The target is always in the middle cell here."""
    middle = np.arange(49) == 24
    monkeypatch.setattr("benchmarks.learning_study.covers", lambda patches, boxes: np.broadcast_to(middle, (*boxes.shape[:2], 49)))
    count = len(bank.clips)
    dynamics = Dynamics(bank, count, reward="confidence")
    dynamics.restart(np.arange(count), dynamics.baseline)
    confidences = dynamics.confidence_of_candidates()
    (gain, share), *later = worth_of_patches(bank, "confidence", count)
    assert gain == pytest.approx((confidences[:, middle][:, 0] - confidences[:, ~middle].mean(1)).mean(), abs=1e-5)
    assert share == (confidences.argmax(1) == 24).mean() and len(later) == bank.num_steps - 1
