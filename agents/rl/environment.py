"""The training environment of stage 2, and a controller that adjusts its cost weight λ to reach a target share of focused frames."""

from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from adafocus_env import distributed
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.policy import SKIPPING
from agents.config.settings import EnvConfig
from agents.evaluation.evaluate import flops_of
from agents.policies.networks import NetworkArchitecture, PolicyNetwork
from agents.rl.distributed import SharedVectorEnv
from classifiers.errors import InputError, refuse_if

DAMPING = 4.0


def make_environment(features: Features, config: EnvConfig, observation: str | None = None) -> "EpisodeStatsWrapper":
    """Return the training environment, which plays every clip once per epoch. Several processes share its work.

    Args:
        features: features of the training clips.
        config: the environment's settings.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`; None: `reference`, or `reference_looks` if actions can skip.
    """
    observation = observation or ("reference_looks" if config.action in SKIPPING else "reference")
    kind = SharedVectorEnv if distributed.world_size() > 1 else AdaFocusVectorEnv
    vector = kind(
        config.num_envs, features.classifier, features.clips,
        observation=observation, reward=reward_of(config), baseline=cast(Any, config.baseline), action=config.action, grid=config.grid,
        full_information=config.full_information, cost_weight=config.cost_weight, skipped=config.skipped, video_div=config.video_div,
        bank=features, autoreset_mode="SAME_STEP", clip_order="epoch",
    )  # fmt: skip
    return EpisodeStatsWrapper(AdaFocusVecEnv(vector))


def reward_of(config: EnvConfig) -> str:
    """Return the name of the reward.

    If actions can skip, ``auto`` means a reward that depends on the whole clip so far, because other rewards cannot value skipped frames.
    """
    by_action = "random" if config.action in SKIPPING else "standalone"
    return by_action if config.reward == "auto" else config.reward


class EpisodeStatsWrapper(VecMonitor):
    """A `VecMonitor` that also counts steps and records, for every finished episode, its return and whether its prediction was correct.

    Args:
        venv: the training environment.

    Attributes:
        steps: total number of environment steps of all rows so far.
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
        """Step all rows and collect finished episodes."""
        observations, rewards, dones, infos = super().step_wait()
        self.steps += self.num_envs
        self._ended += [(float(infos[row]["episode"]["r"]), bool(infos[row]["correct"])) for row in np.flatnonzero(dones)]
        return observations, rewards, dones, infos

    def at_episode_start(self) -> bool:
        """Return whether all episodes have just begun. The environment can be saved only at the start of all episodes."""
        return not self.dynamics.step_number.any()

    def state(self) -> dict[str, Any]:
        """Return plain values for `restore`."""
        return {"steps": self.steps, "ended": list(self._ended)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.steps, self._ended = state["steps"], [(value, correct) for value, correct in state["ended"]]

    def take_means(self, dtype: DTypeLike) -> dict[str, float]:
        """Return the mean return and the accuracy of the episodes that ended since the last call; empty if there are none.

        Returns are averaged in ``dtype``.
        """
        ended, self._ended = self._ended, []
        if not ended:
            return {}
        returns, correct = zip(*ended, strict=True)
        return {"return": float(np.mean(np.array(returns, dtype))), "accuracy": float(np.mean(correct))}


class PIDLagrangian:
    """A controller that adjusts λ after every rollout, by damped dual ascent, so that a target share of the frames is focused.

    If λ were only the integral of the errors, the share of focused frames would oscillate around its target, because the policy needs some
    updates to react to a new λ. Adding the current error with a larger weight damps the oscillation (proportional-integral control of a
    multiplier, arXiv:2007.03964, section 5).

    Args:
        target: the target share of steps with a patch.
        rate: increase of the integral for an error of 1, in units of λ.
        integral: the sum of weighted errors so far, which starts at the initial λ.
    """

    def __init__(self, target: float, rate: float, integral: float) -> None:
        self.target, self.rate, self.integral = target, rate, integral

    def update(self, focused: float) -> float:
        """Return λ for the next rollout; ``focused`` is the share of focused steps in the last rollout."""
        error = self.rate * (focused - self.target)
        self.integral = max(0.0, self.integral + error)
        return max(0.0, self.integral + DAMPING * error)


def check_targets(env: EnvConfig) -> None:
    """Check the targets ``target_keep`` and ``target_gflops``.

    Raises:
        InputError: if both targets are given, or if a target is given although actions cannot skip.
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
    """Return the controller of λ for the target in the settings; None without a target.

    Args:
        env: the environment's settings.
        features: features of the clips whose cost is counted.
        architecture: architecture of the policy, which is part of the cost.

    Raises:
        InputError: if no share of focused frames costs the target GFLOPs per video. The message states the possible range.
    """
    target = env.target_keep
    if env.target_gflops is not None:
        policy = PolicyNetwork(architecture, None if env.action == "continuous_skip" else env.grid, skips=True)
        try:
            target = flops_of(features, env.skipped, policy.step_macs).keep_for(env.target_gflops)
        except InputError as problem:
            raise InputError(f"env.target_gflops={env.target_gflops}: {problem}") from problem
    return None if target is None else PIDLagrangian(target, env.cost_weight_rate, env.cost_weight)
