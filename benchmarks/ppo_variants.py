"""Subclasses of PPO for `benchmarks.learning_study`. Each has one change. ``algo=benchmarks.ppo_variants.NAME`` trains with one of them."""

from typing import Any, cast

import numpy as np
from stable_baselines3 import PPO

from agents.rl.buffers import ClipRolloutBuffer


class StepNormalizedPPO(PPO):
    """PPO whose advantages are normalized separately for each step, over the clips of a rollout, so that all steps have equal weight."""

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout and normalize its advantages."""
        complete = super().collect_rollouts(*args, **kwargs)
        buffer = cast(ClipRolloutBuffer, self.rollout_buffer)
        by_step = buffer.advantages.reshape(-1, buffer.clip_length, buffer.n_envs)
        centred = by_step - by_step.mean((0, 2), keepdims=True)
        buffer.advantages = (centred / (centred.std((0, 2), keepdims=True) + np.float32(1e-8))).reshape(buffer.advantages.shape)
        return complete


class AnnealedEntropyPPO(PPO):
    """PPO whose weight of the entropy bonus decreases linearly to 0 during training."""

    def train(self) -> None:
        """Update the policy with the weight that the entropy bonus has at the current step."""
        initial = self.ent_coef
        self.ent_coef = initial * self._current_progress_remaining
        super().train()
        self.ent_coef = initial
