"""The all-action policy gradient, which computes the expectation over actions instead of sampling it.

An environment with ``full_information`` reports the reward r(s, a) of every action from a state s. The gradient of the expected reward,
Σ_a ∇π(a|s) r(s, a), then has sampling noise only from the states (expected policy gradients, Ciosek & Whiteson 2018, arXiv:1706.05374;
mean actor-critic, Allen et al. 2017, arXiv:1709.00503). The rewards of later steps are known only for the selected action. With a discount
factor γ > 0, these later rewards are added as in PPO:

    Σ_a ∇π(a|s_t) r(s_t, a) + ∇log π(a_t|s_t) γ (G_{t+1} − b(s_t))

G_{t+1} is the λ-return starting at the next state, and γ b(s_t) = V(s_t) − Σ_a π(a|s_t) r(s_t, a) is the critic's estimate of γ G_{t+1}.
With γ = 0, the gradient is exact and needs no critic.
"""

from collections import defaultdict
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from agents.rl.buffers import AllActionRolloutBuffer, AllActionSamples, ClipRolloutBuffer
from classifiers.errors import refuse_if


class ExpectedPG(PPO):
    """Stable-Baselines3's PPO with the all-action policy gradient in place of the sampled policy gradient.

    Rollouts, arguments and logs are those of PPO. Actions must be discrete, and the environment must be made with
    ``full_information=True``. The objective of PPO has a single term, which is clipped. Here, the objective is a sum over all actions, in
    which each term is clipped by its own ratio ρ_a = π(a) / π_old(a): Σ_a π_old(a) min(ρ_a A_a, clip(ρ_a) A_a). A_a is the reward of action
    a minus the mean reward of all actions; subtracting the mean does not change the expected gradient. With ``normalize_advantage``, A_a is
    divided by its standard deviation over the states and actions of the minibatch.

    Minibatches consist of whole clips of ``rollout_buffer_kwargs["clip_length"]`` steps, by default 1 step.

    Raises:
        InputError: if actions are not discrete, observations are a `Dict`, or a step of the environment does not report the reward of
            every action.
    """

    rollout_buffer: AllActionRolloutBuffer

    def _setup_model(self) -> None:
        refuse_if(
            not isinstance(self.action_space, spaces.Discrete),
            f"ExpectedPG sums over all actions and needs a finite set of them, got {self.action_space}; set action='grid' or 'skip'",
        )
        refuse_if(
            isinstance(self.observation_space, spaces.Dict),
            f"ExpectedPG stores observations that are one array each, got {self.observation_space}; choose another one, such as map",
        )
        self.rollout_buffer_class = self._buffer_class()
        self.rollout_buffer_kwargs = {"clip_length": 1, **self.rollout_buffer_kwargs}
        super()._setup_model()

    def _buffer_class(self) -> type[ClipRolloutBuffer]:
        return AllActionRolloutBuffer

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collect a rollout as PPO does. The buffer reads the rewards of all actions from the environment."""
        rollout_buffer.env = env
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def train(self) -> None:
        """Update the policy with the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        logged: dict[str, list[float]] = defaultdict(list)
        with torch.no_grad():
            log_probs = [self._log_probs(batch) for batch in self.rollout_buffer.in_order(self.batch_size)]
        self.rollout_buffer.action_log_probs = torch.cat(log_probs).cpu().numpy()
        for _ in range(self.n_epochs):
            if not self._train_epoch(clip_range, logged):
                break
        self._record(logged)
        if self.gamma:
            explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
            self.logger.record("train/explained_variance", explained)
        self.logger.record("train/clip_range", clip_range)

    def _record(self, logged: dict[str, list[float]]) -> None:
        for name, values in logged.items():
            self.logger.record(f"train/{name}", np.mean(values[-1:] if name == "loss" else values))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _train_epoch(self, clip_range: float, logged: dict[str, list[float]]) -> bool:
        """Take a gradient step on each minibatch; return False if the policy has changed by more than ``target_kl`` allows."""
        self._n_updates += 1
        for batch in self.rollout_buffer.get(self.batch_size):
            loss, measured = self.loss(batch, clip_range)
            for name, value in measured.items():
                logged[name].append(value)
            if self.target_kl is not None and measured.get("approx_kl", 0.0) > 1.5 * self.target_kl:
                return False
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        return True

    def loss(self, batch: AllActionSamples, clip_range: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a minibatch, and a dictionary of values for Stable-Baselines3's logger."""
        values, _, entropy = self.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
        log_probs, old = self._last_log_probs(), batch.action_log_probs
        ratio, old_probs = (log_probs - old).exp(), old.exp()
        advantages = batch.action_rewards - batch.action_rewards.mean(1, keepdim=True)
        scale = advantages.std() + 1e-8 if self.normalize_advantage else 1.0
        objective = (old_probs * clipped(ratio, advantages / scale, clip_range)).sum(1)
        if self.gamma:
            expected_reward = (old_probs * batch.action_rewards).sum(1)
            later = batch.advantages - (batch.rewards - expected_reward)
            taken = ratio.gather(1, batch.actions.long())[:, 0]
            objective = objective + clipped(taken, later / scale, clip_range)
        policy_loss, entropy_loss = -objective.mean(), -cast(Tensor, entropy).mean()
        loss = policy_loss + self.ent_coef * entropy_loss
        measured = {
            "policy_gradient_loss": policy_loss, "entropy_loss": entropy_loss, "approx_kl": (old_probs * (old - log_probs)).sum(1).mean(),
            "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        }  # fmt: skip
        if self.gamma:
            measured["value_loss"] = F.mse_loss(batch.returns, values.flatten())
            loss = loss + self.vf_coef * measured["value_loss"]
        return loss, {name: value.item() for name, value in {**measured, "loss": loss}.items()}

    def _log_probs(self, batch: AllActionSamples) -> Tensor:
        """Return the log-probabilities (B, A) of all actions."""
        self.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
        return self._last_log_probs()

    def _last_log_probs(self) -> Tensor:
        """Return the log-probabilities (B, A) of all actions for the observations that the policy has just evaluated."""
        return self.policy.action_dist.distribution.logits  # type: ignore[union-attr]  # of a Categorical: normalised


def clipped(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return PPO's clipped objective elementwise."""
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
