"""A target share of focused frames: met in training by the cost weight λ, and on saved policies by the threshold on P(skip)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import policy_flops
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers.errors import InputError

if TYPE_CHECKING:
    from adafocus_env.features.live import Features
    from agents.config.settings import EnvConfig

SKIPPING = ("skip", "continuous_skip")
DAMPING = 4.0


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
    if env.target_keep is not None and env.target_gflops is not None:
        raise InputError(f"env.target_keep={env.target_keep} and env.target_gflops={env.target_gflops} exclude each other; set one of them")
    for key in ("target_keep", "target_gflops"):
        if (value := getattr(env, key)) is not None and env.action not in SKIPPING:
            raise InputError(f"env.{key}={value} needs actions that can skip: set env.action=skip or env.action=continuous_skip")


def pid_lagrangian(env: EnvConfig, features: Features, architecture: PolicyArchitecture) -> PIDLagrangian | None:
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
