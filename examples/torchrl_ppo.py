"""Train PPO on the glance maps with TorchRL. The environment is wrapped in a `GymWrapper` and checked by `check_env_specs`.

    pip install 'adafocus-env[torchrl]'
    python examples/torchrl_ppo.py                      # 60,000 steps on the demo videos

TorchRL resets environments itself, so the vector environment is made with ``autoreset_mode="Disabled"``. When an episode has ended, TorchRL
resets only the row of this episode (with Gymnasium's ``reset_mask``), and the episodes of the other rows continue.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from measure import TASK, compare
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, check_env_specs
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import adafocus_env  # noqa: F401  (registers the ids)

ID = "AdaFocus-v1"
ENVS, STEPS_PER_UPDATE, MINIBATCHES, EPOCHS = 64, 16, 4, 4


def make(num_envs: int = ENVS) -> GymWrapper:
    """Return the environment for TorchRL. Actions are indices of cells, not one-hot vectors."""
    envs = gym.make_vec(
        ID, num_envs=num_envs, vectorization_mode="vector_entry_point", task=TASK, observation="map", baseline="all",
        autoreset_mode="Disabled"
    )
    return GymWrapper(envs, categorical_action_encoding=True)


def network(outputs: int) -> nn.Module:
    """Return a network that maps glance maps (…, C, h, w) to outputs (…, outputs)."""
    return nn.Sequential(nn.Flatten(-3), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, outputs))


def actor_and_critic(env: GymWrapper, cells: int) -> tuple[ProbabilisticActor, ValueOperator]:
    """Return a categorical policy over the cells, and a value function. The policy and the value function see only the current glance."""
    logits = TensorDictModule(network(cells), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(logits, in_keys=["logits"], spec=env.action_spec, distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(network(1), in_keys=["observation"])
    first = env.reset()
    actor(first), critic(first)  # initialises the lazy layers
    return actor, critic


def train(steps: int, seed: int) -> ProbabilisticActor:
    """Train a policy, and print the progress."""
    torch.manual_seed(seed)
    env = make()
    check_env_specs(env)
    env.set_seed(seed)
    actor, critic = actor_and_critic(env, int(env.single_action_space.n))
    frames = ENVS * STEPS_PER_UPDATE
    total = max(1, steps // frames) * frames
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=total, auto_register_policy_transforms=False)
    estimate = GAE(gamma=0.7, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, critic_coeff=0.5, loss_critic_type="l2", normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3, eps=1e-5)
    for number, played in enumerate(collector, start=1):
        with torch.no_grad():
            estimate(played)
        for _ in range(EPOCHS):
            for rows in torch.randperm(frames).chunk(MINIBATCHES):
                losses = loss(played.reshape(-1)[rows])
                optimizer.zero_grad()
                sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        if number % 10 == 0:
            print(f"{number * frames:>7} steps  reward per step {played['next', 'reward'].mean():.3f}", flush=True)  # noqa: T201
    collector.shutdown()
    return actor


def main(arguments: list[str] | None = None) -> None:
    """Train a policy and evaluate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-clips", type=int, default=500)
    parsed = parser.parse_args(arguments)
    logits = train(parsed.steps, parsed.seed).module[0]

    @torch.no_grad()
    def choose(maps: np.ndarray) -> np.ndarray:
        """Return the most likely cells."""
        return logits(torch.from_numpy(maps)).argmax(-1).numpy()

    compare(ID, "map", choose, parsed.test_clips)


if __name__ == "__main__":
    main()
