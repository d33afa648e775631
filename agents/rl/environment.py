"""The training environment of stage 2."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import EnvConfig
from agents.rl.lagrangian import SKIPPING


def make_environment(features: Features, config: EnvConfig, observation: str | None = None) -> EpisodeStatsWrapper:
    """Return the training environment, which plays every clip once per epoch.

    Args:
        features: of the training clips.
        config: the environment's settings.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`; None: by reference, with the number of patches if actions can skip.
    """
    observation = observation or ("reference_looks" if config.action in SKIPPING else "reference")
    vector = AdaFocusVectorEnv(
        config.num_envs, features.classifier, features.clips,
        observation=observation, reward=config.reward, baseline=cast(Any, config.baseline), action=config.action, grid=config.grid,
        cost_weight=config.cost_weight, skipped=config.skipped, video_div=config.video_div, bank=features,
        autoreset_mode="SAME_STEP", clip_order="epoch",
    )  # fmt: skip
    return EpisodeStatsWrapper(AdaFocusVecEnv(vector))


class EpisodeStatsWrapper(VecMonitor):
    """A `VecMonitor` that also counts steps, and collects return and correctness of the episodes that end.

    Args:
        venv: the training environment.

    Attributes:
        steps: environment steps so far, over all rows.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps = 0
        self._ended: list[tuple[float, bool]] = []

    @property
    def dynamics(self) -> Dynamics:
        """The dynamics of the environment."""
        dynamics: Dynamics = self.venv.get_attr("dynamics", 0)[0]
        return dynamics

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows and collect the episodes that end."""
        observations, rewards, dones, infos = super().step_wait()
        self.steps += self.num_envs
        self._ended += [(float(infos[row]["episode"]["r"]), bool(infos[row]["correct"])) for row in np.flatnonzero(dones)]
        return observations, rewards, dones, infos

    def at_episode_start(self) -> bool:
        """Return whether all episodes are at their beginning, so that the environment can be saved."""
        steps: NDArray[np.int64] = self.dynamics.step_number
        return not steps.any()

    def state(self) -> dict[str, Any]:
        """Return plain values for `restore`."""
        return {"steps": self.steps, "ended": list(self._ended)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.steps, self._ended = state["steps"], [(value, correct) for value, correct in state["ended"]]

    def take_means(self, dtype: DTypeLike) -> dict[str, float]:
        """Return mean return, averaged in ``dtype``, and accuracy since the last call; empty if no episode has ended."""
        ended, self._ended = self._ended, []
        if not ended:
            return {}
        returns, correct = zip(*ended, strict=True)
        return {"return": float(np.mean(np.array(returns, dtype))), "accuracy": float(np.mean(correct))}
