"""Subclasses of PPO for `benchmarks.learning_study` with one change each. ``algo=benchmarks.ppo_variants.NAME`` trains one."""

from typing import Any, cast

import numpy as np
from stable_baselines3 import PPO

from agents.rl.buffers import ClipRolloutBuffer


class StepNormalizedPPO(PPO):
    """PPO with advantages normalized over the clips of a rollout, separately for each step, so that all steps have equal weight."""

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout and normalize its advantages."""
        complete = super().collect_rollouts(*args, **kwargs)
        buffer = cast(ClipRolloutBuffer, self.rollout_buffer)
        by_step = buffer.advantages.reshape(-1, buffer.clip_length, buffer.n_envs)
        centred = by_step - by_step.mean((0, 2), keepdims=True)
        buffer.advantages = (centred / (centred.std((0, 2), keepdims=True) + np.float32(1e-8))).reshape(buffer.advantages.shape)
        return complete


class AnnealedEntropyPPO(PPO):
    """PPO whose weight of the entropy decreases linearly to 0 at the end of training."""

    def train(self) -> None:
        """Update the policy with the weight of the current step."""
        initial = self.ent_coef
        self.ent_coef = initial * self._current_progress_remaining
        super().train()
        self.ent_coef = initial
