"""Imitation: supervised training of a policy, as a reference for other policies. The policy learns in the states that it visits itself.

If the clips have tracks, the policy learns, in every frame that shows the target, the cell nearest to the target. This is a diagnostic: it
shows how good a policy these glances and this network allow. The training uses labels, so do not report its result as learned without
labels. Without tracks, the policy learns the softmax over the rewards of all actions, and the environment must be made with
``full_information``. Other trainings can start from a policy trained in this way.
"""

import math
from collections import defaultdict
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adafocus_env import distributed
from adafocus_env.dynamics import Dynamics
from adafocus_env.transfers import to_device
from agents.policies.baselines import Oracle
from agents.rl.buffers import ClipRolloutBuffer
from agents.rl.distributed import owned
from agents.rl.expected_pg import ExpectedPG
from classifiers.errors import refuse_if


class Imitation(ExpectedPG):
    """An algorithm that minimises the cross-entropy between the policy and a target, which is a cell or a distribution over actions.

    Args:
        args: positional arguments of `ExpectedPG`. The discount factor, clipping and the value function have no effect.
        temperature: τ of the softmax over the rewards, in units of the reward; ignored if the clips have tracks.
        kwargs: keyword arguments of `ExpectedPG`.

    Raises:
        InputError: if actions are not discrete, if the temperature is not positive, or if there are neither tracks of the clips nor the
            rewards of all actions.
    """

    def __init__(self, *args: Any, temperature: float = 0.1, **kwargs: Any) -> None:
        refuse_if(not 0 < temperature < math.inf, f"temperature must be positive and finite, got {temperature}")
        self.temperature = temperature
        super().__init__(*args, **kwargs)

    @property
    def _dynamics(self) -> Dynamics:
        assert self.env is not None
        return cast(Dynamics, self.env.get_attr("dynamics", 0)[0])

    def _buffer_class(self) -> type[ClipRolloutBuffer]:
        if self._dynamics.features.clips.has_truth:
            return ClipRolloutBuffer
        refuse_if(
            not len(self._dynamics.alternatives),
            "algo=imitation needs clips with tracks, or the reward of every action: set env.full_information=true, which needs a bank",
        )
        return super()._buffer_class()

    def train(self) -> None:
        """Update the policy with the states of the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        logged: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.n_epochs):
            self._train_epoch(0.0, logged)
        self._record(logged)

    def loss(self, batch: Any, clip_range: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a minibatch, and a dictionary of values to log. ``clip_range`` is ignored."""
        log_probs = self._log_probs(batch)
        by_track = self._dynamics.features.clips.has_truth
        target = self._cells(batch.observations, log_probs) if by_track else (batch.action_rewards / self.temperature).softmax(1)
        cross_entropy = -(target * log_probs).sum() / target.sum().clamp_min(1)
        entropy_loss = (log_probs.exp() * log_probs).sum(1).mean()
        loss = cross_entropy + self.ent_coef * entropy_loss
        measured = {"cross_entropy": cross_entropy, "entropy_loss": entropy_loss, "loss": loss}
        return loss, {name: value.item() for name, value in measured.items()}

    def _cells(self, references: Tensor, log_probs: Tensor) -> Tensor:
        """Return the distributions (B, A) that the policy should learn.

        The cell nearest to the tracked target has probability 1. If the frame does not show the target, all entries are 0. Each process
        reads the tracks of the clips that it owns.
        """
        features, steps = self._dynamics.features, references[:, :2].long().cpu().numpy()
        ours = np.flatnonzero(owned(steps[:, 0]))
        clips, rows = np.unique(steps[ours, 0], return_inverse=True)
        shown = np.ones((len(clips), features.num_steps), bool)
        for row, clip in enumerate(clips.tolist()):
            if (known := features.clips.targets(clip)) is not None:
                shown[row] = known.visible.reshape(features.num_steps, -1).any(1)
        ours = ours[shown[rows.ravel(), steps[ours, 1]]]
        target = torch.zeros_like(log_probs)
        if len(ours):
            target[to_device(ours, target.device), to_device(Oracle(features).choose(steps[ours]), target.device)] = 1.0
        return distributed.all_sum(target)
