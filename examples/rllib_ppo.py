"""Train PPO with RLlib on the new API stack. Two local env runners step this project's vector environment.

    pip install 'adafocus-env[rllib]'
    python examples/rllib_ppo.py                        # 60,000 steps on the demo videos

The id ``adafocus_env:AdaFocus-v1`` includes the name of a module, which Gymnasium imports in every worker. RLlib expects the default
``autoreset_mode``. With ``gym_env_vectorize_mode="vector_entry_point"``, each worker steps all its clips in one call of the networks.
"""

from __future__ import annotations

import argparse

import numpy as np
import ray
import torch
from measure import TASK, compare
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

ID = "adafocus_env:AdaFocus-v1"
STEPS_PER_UPDATE = 1024


def config(env_runners: int = 2, seed: int = 0) -> PPOConfig:
    """Return the config of PPO with a small network on flattened glance maps."""
    return (
        PPOConfig()
        .environment(ID, env_config={"task": TASK, "observation": "map", "baseline": "all"})
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=32,
            gym_env_vectorize_mode="vector_entry_point",
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
            sample_timeout_s=600,  # the first samples wait until the videos are decoded
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128], fcnet_activation="relu"))
        .training(
            train_batch_size_per_learner=STEPS_PER_UPDATE, minibatch_size=256, num_epochs=4, lr=1e-3, gamma=0.7, lambda_=0.95,
            clip_param=0.2, entropy_coeff=0.01, vf_loss_coeff=0.5, grad_clip=0.5, use_kl_loss=False,
        )
        .debugging(seed=seed)
    )  # fmt: skip


def train(steps: int, env_runners: int, seed: int) -> Algorithm:
    """Train a policy, and print the progress."""
    algorithm = config(env_runners, seed).build_algo()
    for number in range(1, max(1, steps // STEPS_PER_UPDATE) + 1):
        measured = algorithm.train()["env_runners"]
        if number % 10 == 0:
            print(f"{number * STEPS_PER_UPDATE:>7} steps  return {measured['episode_return_mean']:.2f}", flush=True)  # noqa: T201
    return algorithm


def main(arguments: list[str] | None = None) -> None:
    """Train a policy and evaluate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-clips", type=int, default=500)
    parsed = parser.parse_args(arguments)
    ray.init(num_cpus=parsed.env_runners + 1, include_dashboard=False)
    algorithm = train(parsed.steps, parsed.env_runners, parsed.seed)
    module = algorithm.get_module()

    @torch.no_grad()
    def choose(maps: np.ndarray) -> np.ndarray:
        """Return the most likely cells."""
        output = module.forward_inference({Columns.OBS: torch.from_numpy(maps).flatten(1)})
        return output[Columns.ACTION_DIST_INPUTS].argmax(-1).numpy()

    compare(ID, "map", choose, parsed.test_clips)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
