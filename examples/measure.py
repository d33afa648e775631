"""Measure the policies of the examples: the accuracy of the classifier on test clips, with the patches that a policy chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

import adafocus_env  # noqa: F401  (registers the ids)

TASK = "normal@v0"
"""The task of the examples. This task can be solved without memory, which the networks of three examples do not have."""


def episodes(env_id: str, observation: str, count: int = 500, **arguments: Any) -> gym.vector.VectorEnv:
    """Return a vector environment with one environment for each of the first ``count`` test clips."""
    return gym.make_vec(
        env_id, num_envs=count, vectorization_mode="vector_entry_point", clips="test", observation=observation,
        reward="confidence", bank=False, autoreset_mode="Disabled", **arguments,
    )  # fmt: skip


def accuracy(envs: gym.vector.VectorEnv, choose: Callable[[Any], Any]) -> float:
    """Run one episode per environment and return the share of clips that are classified correctly.

    Args:
        envs: A vector environment that `episodes` returned.
        choose: Function that takes the observations of all environments and returns their actions.
    """
    observations, _ = envs.reset(options={"clips": np.arange(envs.num_envs)})
    terminated = np.zeros(envs.num_envs, bool)
    while not terminated.all():
        observations, _, terminated, _, info = envs.step(choose(observations))
    return float(info["correct"].mean())


def compare(env_id: str, observation: str, choose: Callable[[Any], Any], count: int = 500) -> tuple[float, float]:
    """Print and return the accuracies of a policy and of random patches."""
    envs = episodes(env_id, observation, count, task=TASK)
    envs.action_space.seed(0)
    learned, chance = accuracy(envs, choose), accuracy(envs, lambda _: envs.action_space.sample())
    print(f"top-1 on {count} test clips: learned {learned:.1%}, random patches {chance:.1%}")  # noqa: T201
    return learned, chance
