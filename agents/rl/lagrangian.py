"""The price λ of a look, driven so that a share of the frames is kept: dual ascent on the constraint, damped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classifiers.errors import InputError

if TYPE_CHECKING:
    from agents.config.settings import EnvConfig
    from classifiers.flops import VideoFlops

SKIPPING = ("skip", "continuous_skip")
DAMPING = 4.0


class PIDLagrangian:
    """λ for a target, moved once an update by how far the share of kept frames is off it.

    A sum of the errors alone swings around the target, since a policy needs some updates to follow; the present error is added to it
    with a larger weight, which damps it (proportional-integral control of a multiplier: arXiv:2007.03964, section 5).

    Args:
        target: share of the steps that shall look at a patch.
        rate: prices for an error of 1, in the sum.
        summed: the sum of the errors so far, in prices; what λ begins at.
    """

    def __init__(self, target: float, rate: float, summed: float) -> None:
        self.target, self.rate, self.summed = target, rate, summed

    def after(self, patch_mask: float) -> float:
        """The price of the next update, when this one kept that share."""
        error = self.rate * (patch_mask - self.target)
        self.summed = max(0.0, self.summed + error)
        return max(0.0, self.summed + DAMPING * error)


def check_cost_weight(env: EnvConfig) -> None:
    """Check the target of λ.

    Raises:
        InputError: both targets are given, or actions cannot skip.
    """
    targets = {key: value for key in ("target_keep", "target_gflops") if (value := getattr(env, key)) is not None}
    if len(targets) == 2:
        raise InputError(f"env.target_keep={env.target_keep} and env.target_gflops={env.target_gflops} are two targets; give one of them")
    for key, value in targets.items():
        if env.action not in SKIPPING:
            raise InputError(f"env.{key}={value} needs actions that can skip: set env.action=skip or env.action=continuous_skip")


def pid_lagrangian(env: EnvConfig, flops: VideoFlops) -> PIDLagrangian | None:
    """The price that a target asks for; None where there is none.

    Args:
        env: the environment's settings.
        flops: of a video, with those of the policy.

    Raises:
        InputError: the GFLOPs asked for are out of the range of what a video can cost (says the range).
    """
    if env.target_gflops is not None:
        try:
            return PIDLagrangian(flops.keep_for(env.target_gflops), env.cost_weight_rate, env.cost_weight)
        except InputError as problem:
            raise InputError(f"env.target_gflops={env.target_gflops}: {problem}") from problem
    return None if env.target_keep is None else PIDLagrangian(env.target_keep, env.cost_weight_rate, env.cost_weight)
