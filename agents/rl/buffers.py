"""Buffers whose minibatches consist of whole clips, so that a recurrent extractor runs once over every clip of a minibatch."""

from collections.abc import Generator
from typing import Any, NamedTuple, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from classifiers.errors import refuse_if

Indices = NDArray[np.int64]


def check_whole_clips(name: str, steps: int, clip_length: int) -> None:
    """Check that ``steps`` is a multiple of ``clip_length``, the number of steps per episode.

    Raises:
        InputError: if ``steps`` is not a multiple of ``clip_length``. The message names the setting.
    """
    refuse_if(steps % clip_length, f"{name} must be a multiple of the {clip_length} steps of an episode, got {steps}")


def _steps_of(episodes: Indices, clip_length: int) -> Indices:
    """Return the indices (n · D,) of all steps of the given ``episodes`` (n,)."""
    return (clip_length * episodes[:, None] + np.arange(clip_length)).ravel()


class ClipRolloutBuffer(RolloutBuffer):
    """A rollout buffer whose minibatches are whole episodes of ``clip_length`` steps.

    Args:
        args: positional arguments of Stable-Baselines3's `RolloutBuffer`.
        clip_length: D, steps per episode.
        kwargs: keyword arguments of `RolloutBuffer`.

    Raises:
        InputError: if `n_steps` is not a multiple of D.
    """

    per_step: tuple[str, ...] = ("observations", "actions", "values", "log_probs", "advantages", "returns")

    def __init__(self, *args: Any, clip_length: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_whole_clips("n_steps", self.buffer_size, clip_length)
        self.clip_length = clip_length

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield minibatches of ``batch_size`` steps (a multiple of D), with the clips in random order. None means all steps.

        Raises:
            InputError: if the batch size is not a multiple of D.
        """
        episodes = np.random.permutation(self.buffer_size * self.n_envs // self.clip_length)  # noqa: NPY002 (Stable-Baselines3's)
        return self._minibatches(episodes, batch_size)

    def _minibatches(self, episodes: Indices, batch_size: int | None) -> Generator[Any, None, None]:
        """Yield the steps of all episodes in the given order, ``batch_size`` at a time."""
        if not self.generator_ready:
            for name in self.per_step:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        steps = _steps_of(episodes, self.clip_length)
        batch_size = batch_size or len(steps)
        check_whole_clips("batch_size", batch_size, self.clip_length)
        for start in range(0, len(steps), batch_size):
            yield self._get_samples(steps[start : start + batch_size])


class NormalizedReturnsBuffer(ClipRolloutBuffer):
    """A `ClipRolloutBuffer` with Monte-Carlo returns that are normalised over the rollout, as in the released code.

    ``gae_lambda`` has no effect, because the critic predicts normalised returns, which differ in scale from the rewards that GAE adds.
    """

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Set returns to (return − mean) / (standard deviation + 1e-5) and advantages to returns − values.

        The standard deviation is the unbiased estimate. If there is only one return, it becomes 0 (the released code computes NaN).
        ``last_values`` and ``dones`` are ignored, because all episodes end with the rollout.
        """
        returns = self.monte_carlo_returns()
        std = returns.std(ddof=1) if returns.size > 1 else 0.0
        self.returns = (returns - returns.mean()) / (std + 1e-5)
        self.advantages = self.returns - self.values

    def monte_carlo_returns(self) -> NDArray[np.float32]:
        """Return the discounted sums of rewards (n_steps, n_envs) from every step to the end of its episode.

        Stable-Baselines3 computes returns as advantage plus value, which would round small returns. This method adds up rewards instead.
        """
        returns = self.rewards.copy()
        for step in reversed(range(self.buffer_size - 1)):
            returns[step] += self.gamma * returns[step + 1] * (1 - self.episode_starts[step + 1])
        return returns


class AllActionSamples(NamedTuple):
    """A minibatch of an `AllActionRolloutBuffer`.

    The minibatch has the fields of `RolloutBufferSamples`, the rewards (B,), and the rewards and log-probabilities of all actions (B, A).
    """

    observations: Tensor
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    action_rewards: Tensor
    action_log_probs: Tensor


class AllActionRolloutBuffer(ClipRolloutBuffer):
    """A `ClipRolloutBuffer` that also stores the rewards and the log-probabilities of all actions.

    Args:
        args: positional arguments of `ClipRolloutBuffer`.
        kwargs: keyword arguments of `ClipRolloutBuffer`.

    Attributes:
        env: the environment of the rollout, made with ``full_information=True``. Set this attribute before the first `add`.
        action_rewards: rewards of all actions (n_steps, n_envs, A). The array is flattened when the first minibatch is requested.
        action_log_probs: log-probabilities of all actions (n_steps · n_envs, A), with the steps in the order of `in_order`;
            `agents.rl.expected_pg.ExpectedPG` sets them.
    """

    env: VecEnv
    action_rewards: NDArray[np.float32]
    action_log_probs: NDArray[np.float32]
    per_step = (*ClipRolloutBuffer.per_step, "rewards", "action_rewards")

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        shape: tuple[int, ...] = (self.buffer_size, self.n_envs, int(cast(spaces.Discrete, self.action_space).n))
        self.action_rewards, self.action_log_probs = np.zeros(shape, np.float32), np.zeros((shape[0] * shape[1], shape[2]), np.float32)

    def add(self, *step: Any, **named: Any) -> None:
        """Add a step as `RolloutBuffer` does, and store the rewards of all actions, which the environment reports.

        Raises:
            InputError: if the environment does not report the rewards of all actions.
        """
        self.action_rewards[self.pos] = self.env.get_attr("action_rewards")
        super().add(*step, **named)

    def in_order(self, batch_size: int | None) -> Generator[AllActionSamples, None, None]:
        """Yield minibatches as `get` does, without shuffling the clips."""
        return self._minibatches(np.arange(self.buffer_size * self.n_envs // self.clip_length), batch_size)

    def _get_samples(self, batch_inds: Indices, env: VecNormalize | None = None) -> Any:
        stored = super()._get_samples(batch_inds, env)
        more = (self.rewards.flatten(), self.action_rewards, self.action_log_probs)
        return AllActionSamples(*stored, *(self.to_torch(values[batch_inds]) for values in more))


class ClipReplayBuffer(ReplayBuffer):
    """A replay buffer whose minibatches are whole episodes of ``clip_length`` steps, sampled with replacement.

    All environments must begin their episodes at the same time, as the rows of the vector environment do.

    Args:
        buffer_size: capacity in steps, which is rounded down so that every environment has the same number of whole episodes.
        observation_space: observation space of the environment.
        action_space: action space of the environment.
        clip_length: D, steps per episode.
        n_envs: number of environments.
        kwargs: further arguments of Stable-Baselines3's `ReplayBuffer`.

    Raises:
        InputError: if the capacity is less than one episode per environment.
    """

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, *,
        clip_length: int, n_envs: int = 1, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_if(
            (episodes := buffer_size // (clip_length * n_envs)) < 1,
            f"buffer_size must be {clip_length * n_envs} or more, an episode of {clip_length} steps in {n_envs} environments, "
            f"got {buffer_size}",
        )
        super().__init__(episodes * clip_length * n_envs, observation_space, action_space, n_envs=n_envs, **kwargs)
        self.clip_length = clip_length

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return a minibatch of ``batch_size`` steps, which must be a multiple of D.

        Raises:
            InputError: if the batch size is not a multiple of D, or no episode has ended yet.
        """
        check_whole_clips("batch_size", batch_size, self.clip_length)
        ended = self._ended_episodes()
        refuse_if(
            not len(ended),
            f"learning_starts must be {self.clip_length * self.n_envs} or more, an episode of every environment: "
            "there is no whole episode to learn from yet",
        )
        count = batch_size // self.clip_length
        steps = _steps_of(np.random.choice(ended, count), self.clip_length)  # noqa: NPY002 (Stable-Baselines3's random source)
        rows = np.random.randint(self.n_envs, size=count).repeat(self.clip_length)  # noqa: NPY002
        data: tuple[Any, ...] = (
            self._normalize_obs(self.observations[steps, rows], env),
            self.actions[steps, rows],
            self._normalize_obs(self.next_observations[steps, rows], env),
            self.dones[steps, rows].reshape(-1, 1),
            self._normalize_reward(self.rewards[steps, rows].reshape(-1, 1), env),
        )
        return ReplayBufferSamples(*(self.to_torch(array) for array in data))

    def _ended_episodes(self) -> Indices:
        """Return the indices of completely stored episodes."""
        current, started = divmod(self.pos, self.clip_length)
        episodes = np.arange(self.buffer_size // self.clip_length if self.full else current)
        return episodes[episodes != current] if started else episodes
