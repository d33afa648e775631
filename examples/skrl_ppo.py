"""Train PPO on the glance maps with skrl.

    pip install 'adafocus-env[skrl]'
    python examples/skrl_ppo.py                         # 60,000 steps on the demo videos

With ``autoreset_mode="SameStep"``, which skrl needs, the vector environment begins a new episode in the step in which the old episode ends.
skrl's wrapper flattens observations and converts arrays to tensors.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from measure import TASK, compare
from skrl.agents.torch import ExperimentCfg
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import Wrapper, wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
from skrl.utils import set_seed
from torch import Tensor, nn

import adafocus_env  # noqa: F401  (registers the ids)

ID = "AdaFocus-v1"
ENVS, STEPS_PER_UPDATE = 64, 16


def make(num_envs: int = ENVS) -> Wrapper:
    """Return the environment for skrl."""
    envs = gym.make_vec(
        ID, num_envs=num_envs, vectorization_mode="vector_entry_point", task=TASK, observation="map", baseline="all",
        autoreset_mode="SameStep"
    )
    return wrap_env(envs, wrapper="gymnasium")


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Return a network that maps flattened glance maps to outputs."""
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, outputs))


class Policy(CategoricalMixin, Model):
    """A categorical policy over the cells of the grid."""

    def __init__(self, env: Wrapper) -> None:
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        CategoricalMixin.__init__(self)
        self.net = network(self.num_observations, self.num_actions)

    def compute(self, inputs: dict[str, Tensor], role: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of the cells for observations."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """The value function."""

    def __init__(self, env: Wrapper) -> None:
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, 1)

    def compute(self, inputs: dict[str, Tensor], role: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the values of observations."""
        return self.net(inputs["observations"]), {}


def train(steps: int, seed: int) -> Policy:
    """Train a policy, with skrl's progress bar."""
    set_seed(seed)
    env = make()
    models = {"policy": Policy(env), "value": Value(env)}
    settings = PPO_CFG(
        rollouts=STEPS_PER_UPDATE, learning_epochs=4, mini_batches=4, discount_factor=0.7, gae_lambda=0.95, learning_rate=1e-3,
        grad_norm_clip=0.5, ratio_clip=0.2, entropy_loss_scale=0.01, value_loss_scale=0.5,
        experiment=ExperimentCfg(write_interval=0, checkpoint_interval=0),
    )  # fmt: skip
    agent = PPO(
        models=models, memory=RandomMemory(memory_size=STEPS_PER_UPDATE, num_envs=ENVS), cfg=settings,
        observation_space=env.observation_space, action_space=env.action_space,
    )  # fmt: skip
    updates = max(1, steps // (ENVS * STEPS_PER_UPDATE))
    trainer = SequentialTrainerCfg(
        timesteps=updates * STEPS_PER_UPDATE, headless=True, disable_progressbar=None, close_environment_at_exit=False
    )
    SequentialTrainer(env=env, agents=agent, cfg=trainer).train()
    env.close()
    return models["policy"]


def main(arguments: list[str] | None = None) -> None:
    """Train a policy and evaluate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-clips", type=int, default=500)
    parsed = parser.parse_args(arguments)
    policy = train(parsed.steps, parsed.seed)

    @torch.no_grad()
    def choose(maps: np.ndarray) -> np.ndarray:
        """Return the most likely cells."""
        logits, _ = policy.compute({"observations": torch.from_numpy(maps).to(policy.device).flatten(1)}, "policy")
        return logits.argmax(-1).cpu().numpy()

    compare(ID, "map", choose, parsed.test_clips)


if __name__ == "__main__":
    main()
