"""Replay of whole clips, so that a recurrent extractor runs once over each clip of a minibatch."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from classifiers.errors import InputError


class ClipReplayBuffer(ReplayBuffer):
    """A replay buffer whose minibatches are made of whole episodes of ``clip_length`` steps, drawn with replacement.

    All environments must begin their episodes at the same time, as those of the vector environment do.

    Args:
        buffer_size: steps that are kept; rounded down to whole episodes of all environments.
        observation_space: of the environment.
        action_space: of the environment.
        clip_length: D, steps of an episode.
        n_envs: environments that are played together.
        kwargs: the further ones of Stable-Baselines3's `ReplayBuffer`.

    Raises:
        InputError: there is no room for an episode of every environment.
    """

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, *,
        clip_length: int, n_envs: int = 1, **kwargs: Any,
    ) -> None:  # fmt: skip
        episodes = buffer_size // (clip_length * n_envs)
        if episodes < 1:
            raise InputError(
                f"buffer_size={buffer_size} has no room for an episode of {clip_length} steps in each of {n_envs} environments; "
                f"choose {clip_length * n_envs} or more"
            )
        super().__init__(episodes * clip_length * n_envs, observation_space, action_space, n_envs=n_envs, **kwargs)
        self.clip_length = clip_length

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A minibatch of ``batch_size`` steps, a multiple of D.

        Raises:
            InputError: it is no multiple, or no episode has ended yet.
        """
        if batch_size % self.clip_length:
            raise InputError(f"batch_size={batch_size} is not a multiple of the {self.clip_length} steps of an episode; choose one that is")
        ended = self._ended()
        if not len(ended):
            raise InputError(
                "there is no whole episode to learn from yet; "
                f"choose learning_starts={self.clip_length * self.n_envs} or more: an episode in every environment"
            )
        count = batch_size // self.clip_length
        first = self.clip_length * np.random.choice(ended, count)  # noqa: NPY002 (Stable-Baselines3's own source)
        rows = np.random.randint(self.n_envs, size=count)  # noqa: NPY002
        steps = (first[:, None] + np.arange(self.clip_length)).ravel()
        return self._at(steps, rows.repeat(self.clip_length), env)

    def _ended(self) -> np.ndarray:
        """Numbers of the episodes that are there from beginning to end."""
        writing, begun = divmod(self.pos, self.clip_length)
        episodes = np.arange(self.buffer_size // self.clip_length if self.full else writing)
        return episodes[episodes != writing] if begun else episodes

    def _at(self, steps: np.ndarray, rows: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        data: tuple[Any, ...] = (
            self._normalize_obs(self.observations[steps, rows], env),
            self.actions[steps, rows],
            self._normalize_obs(self.next_observations[steps, rows], env),
            self.dones[steps, rows].reshape(-1, 1),
            self._normalize_reward(self.rewards[steps, rows].reshape(-1, 1), env),
        )
        return ReplayBufferSamples(*(self.to_torch(each) for each in data))
