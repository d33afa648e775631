"""The training environment of stage 2, and its cost weight λ, which a target share of focused frames controls."""

from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.policy import SKIPPING
from agents.config.settings import EnvConfig
from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import policy_flops
from agents.policies.networks import NetworkArchitecture, PolicyNetwork
from classifiers.errors import InputError, refuse_if

DAMPING = 4.0


def make_environment(features: Features, config: EnvConfig, observation: str | None = None) -> "EpisodeStatsWrapper":
    """Return the training environment, which plays every clip once per epoch.

    Args:
        features: of the training clips.
        config: the environment's settings.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`; None: by reference, with the number of patches if actions can skip.
    """
    observation = observation or ("reference_looks" if config.action in SKIPPING else "reference")
    vector = AdaFocusVectorEnv(
        config.num_envs, features.classifier, features.clips,
        observation=observation, reward=reward_of(config), baseline=cast(Any, config.baseline), action=config.action, grid=config.grid,
        full_information=config.full_information, cost_weight=config.cost_weight, skipped=config.skipped, video_div=config.video_div,
        bank=features, autoreset_mode="SAME_STEP", clip_order="epoch",
    )  # fmt: skip
    return EpisodeStatsWrapper(AdaFocusVecEnv(vector))


def reward_of(config: EnvConfig) -> str:
    """Return the name of the reward. Only a reward that accumulates over the clip values a frame that is skipped."""
    by_action = "random" if config.action in SKIPPING else "standalone"
    return by_action if config.reward == "auto" else config.reward


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
        return cast(Dynamics, self.venv.get_attr("dynamics", 0)[0])

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows and collect the episodes that end."""
        observations, rewards, dones, infos = super().step_wait()
        self.steps += self.num_envs
        self._ended += [(float(infos[row]["episode"]["r"]), bool(infos[row]["correct"])) for row in np.flatnonzero(dones)]
        return observations, rewards, dones, infos

    def at_episode_start(self) -> bool:
        """Return whether all episodes are at their beginning, so that the environment can be saved."""
        return not self.dynamics.step_number.any()

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


class PIDLagrangian:
    """λ for a target, updated once per rollout by the error of the share of focused frames: damped dual ascent.

    The integral of the errors alone oscillates around the target, since a policy needs some updates to follow; the current error, with a
    larger weight, damps it (proportional-integral control of a multiplier: arXiv:2007.03964, section 5).

    Args:
        target: share of the steps that focus a patch.
        rate: weight of an error of 1 in the integral, in units of λ.
        integral: the sum of the weighted errors so far; the initial λ.
    """

    def __init__(self, target: float, rate: float, integral: float) -> None:
        self.target, self.rate, self.integral = target, rate, integral

    def update(self, focused: float) -> float:
        """Return λ for the next rollout, given the share of focused steps in the last one."""
        error = self.rate * (focused - self.target)
        self.integral = max(0.0, self.integral + error)
        return max(0.0, self.integral + DAMPING * error)


def check_targets(env: EnvConfig) -> None:
    """Check the targets.

    Raises:
        InputError: if both are given, or actions cannot skip.
    """
    refuse_if(
        env.target_keep is not None and env.target_gflops is not None,
        f"env.target_keep={env.target_keep} and env.target_gflops={env.target_gflops} exclude each other; set one of them",
    )
    for key in ("target_keep", "target_gflops"):
        refuse_if(
            (value := getattr(env, key)) is not None and env.action not in SKIPPING,
            f"env.{key}={value} needs actions that can skip: set env.action=skip or env.action=continuous_skip",
        )


def pid_lagrangian(env: EnvConfig, features: Features, architecture: NetworkArchitecture) -> PIDLagrangian | None:
    """Return the controller of λ that a target asks for; None without a target.

    Args:
        env: the environment's settings.
        features: of the clips, whose cost is counted.
        architecture: of the policy, which is part of the cost.

    Raises:
        InputError: if the target GFLOPs are out of the range of a video's cost (names the range).
    """
    target = env.target_keep
    if env.target_gflops is not None:
        policy = PolicyNetwork(architecture, None if env.action == "continuous_skip" else env.grid, skips=True)
        try:
            target = flops_of(features, env.skipped, policy_flops(policy)).keep_for(env.target_gflops)
        except InputError as problem:
            raise InputError(f"env.target_gflops={env.target_gflops}: {problem}") from problem
    return None if target is None else PIDLagrangian(target, env.cost_weight_rate, env.cost_weight)
