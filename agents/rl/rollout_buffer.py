"""Rollouts of whole clips, so that a recurrent extractor runs once over each clip of a minibatch."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from classifiers.errors import InputError


class ClipRolloutBuffer(RolloutBuffer):
    """A rollout buffer whose minibatches are made of whole episodes of ``clip_length`` steps.

    Args:
        args: those of Stable-Baselines3's `RolloutBuffer`.
        clip_length: D, steps of an episode.
        kwargs: those of `RolloutBuffer`.

    Raises:
        InputError: `n_steps` is not a multiple of D.
    """

    def __init__(self, *args: Any, clip_length: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.buffer_size % clip_length:
            raise InputError(f"n_steps={self.buffer_size} is not a multiple of the {clip_length} steps of an episode; choose one that is")
        self.clip_length = clip_length

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yields minibatches of ``batch_size`` steps, a multiple of D, in random order of clips; all steps if None.

        Raises:
            InputError: the batch size is not a multiple of D.
        """
        if not self.generator_ready:
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        total = self.buffer_size * self.n_envs
        batch_size = batch_size or total
        if batch_size % self.clip_length:
            raise InputError(f"batch_size={batch_size} is not a multiple of the {self.clip_length} steps of an episode; choose one that is")
        first = self.clip_length * np.random.permutation(total // self.clip_length)  # noqa: NPY002 (Stable-Baselines3's own source)
        steps = (first[:, None] + np.arange(self.clip_length)).ravel()
        for start in range(0, total, batch_size):
            yield self._get_samples(steps[start : start + batch_size])


class NormalisedReturnsBuffer(ClipRolloutBuffer):
    """The same, with Monte-Carlo returns, normalised over the rollout: the released recipe.

    The critic learns normalised returns, so there is no mixing of values into them: ``gae_lambda`` has no part in it.
    """

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Returns become (return − mean) / (standard deviation + 1e-5), advantages what of it the values did not foretell.

        The standard deviation is the unbiased one; a single return becomes 0 (the released code's becomes NaN). The arguments are
        those of `RolloutBuffer`; a rollout ends with its episodes, so they tell nothing.
        """
        returns = self.monte_carlo_returns()
        spread = returns.std(ddof=1) if returns.size > 1 else 0.0
        self.returns = (returns - returns.mean()) / (spread + 1e-5)
        self.advantages = self.returns - self.values

    def monte_carlo_returns(self) -> NDArray[np.float32]:
        """Discounted sums of the rewards from each step to the end of its episode (n_steps, n_envs).

        Straight from the rewards: taken as advantage plus value, as Stable-Baselines3 does, small ones would drown in rounding.
        """
        returns = self.rewards.copy()
        for step in reversed(range(self.buffer_size - 1)):
            returns[step] += self.gamma * returns[step + 1] * (1 - self.episode_starts[step + 1])
        return returns
