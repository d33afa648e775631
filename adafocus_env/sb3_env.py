"""The API for Stable-Baselines3: an adapter from the vector environment to `VecEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from adafocus_env.vector_env import AdaFocusVectorEnv, infos_of_rows
from classifiers.errors import InputError, refuse_if


class AdaFocusVecEnv(VecEnv):
    """An adapter from an `AdaFocusVectorEnv` with the autoreset mode SAME_STEP to Stable-Baselines3.

    Args:
        env: the vector environment, which `close` closes.

    Raises:
        InputError: if it is another kind of environment, such as a single one, or has another autoreset mode.
    """

    def __init__(self, env: AdaFocusVectorEnv) -> None:
        refuse_if(
            not isinstance(given := getattr(env, "unwrapped", env), AdaFocusVectorEnv),
            f"env must be an AdaFocusVectorEnv, got {type(given).__name__}; make one with gymnasium.make_vec(ID, num_envs=64, "
            "vectorization_mode='vector_entry_point', autoreset_mode='SameStep')",
        )
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InputError(f"autoreset_mode must be SAME_STEP for Stable-Baselines3, got {env.autoreset_mode.name}")
        self.vector = env
        self._actions: NDArray[np.int64] = np.zeros(0, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> NDArray[Any]:
        """Begin an episode in every row, with the seeds and options set before."""
        chosen = self._options[0] if any(self._options) else None
        observations, infos = self.vector.reset(seed=self._seeds if any(s is not None for s in self._seeds) else None, options=chosen)
        self.reset_infos = infos_of_rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows. If a row's episode ended, its info is that of the ended episode, with ``terminal_observation``."""
        observations, rewards, terminated, _, infos = self.vector.step(self._actions)
        rows = infos_of_rows(infos, self.num_envs)
        if terminated.any():
            ended = infos_of_rows(infos["final_info"], self.num_envs)
            for row in np.flatnonzero(terminated):
                rows[row] = {**ended[row], "terminal_observation": infos["final_obs"][row], "TimeLimit.truncated": False}
        return observations, rewards.astype(np.float32), terminated, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.vector.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per row."""
        return self.vector.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of the vector environment, once per requested row.

        ``action_rewards`` (N, A) of the last step are divided among the rows; reading them here is cheaper than reading the infos.
        """
        value = getattr(self.vector, attr_name)
        return [value[row] if attr_name == "action_rewards" else value for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the vector environment, for all rows."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise InputError(f"{attr_name} is shared by all rows; set it for all of them (indices=None)")
        setattr(self.vector, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once and return its result for every requested row.

        The result of ``action_masks`` is divided among the rows, as `sb3_contrib.MaskablePPO` expects.
        """
        result = getattr(self.vector, method_name)(*args, **kwargs)
        return [result[row] if method_name == "action_masks" else result for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every row, since the rows are not separate environments."""
        return [False for _ in self._get_indices(indices)]
