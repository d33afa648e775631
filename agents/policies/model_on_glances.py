"""A model of any algorithm as a policy for inference: it reads glance maps that are given, not those of an environment's clips."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafocus_env.action import Action, ContinuousAction, GridAction, with_skipping
from adafocus_env.dynamics import masks_of
from adafocus_env.features.live import Features, Indices
from agents.policies.baselines import choose_step
from agents.policies.sb3 import bind, parse_action_space
from classifiers.errors import refuse_if
from classifiers.flops import multiply_adds


class ModelOnGlances(nn.Module):
    """A trained model with the part of `PolicyNetwork`'s interface that inference needs.

    Args:
        trained: Acts on the observation `reference` or `reference_looks`; with attributes ``model`` (of Stable-Baselines3), ``observation``
            and ``action_space``.
        interface: Of the environment that it was trained in, with ``map_shape`` and ``patch_share``; see `agents.rl.algorithms.Interface`.

    Attributes:
        grid: G, cells per axis; None: continuous locations.
        skips: Whether it may skip frames.
        architecture: Its glance maps: the ``interface``.
    """

    def __init__(self, trained: Any, interface: Any) -> None:
        super().__init__()
        self.trained, self.model, self.architecture = trained, trained.model, interface
        self.network: nn.Module = trained.model.policy
        self.grid, self.skips = parse_action_space(trained.action_space)

    @torch.no_grad()
    def act(self, maps: Tensor, keep_threshold: float | None = None) -> Tensor:
        """Glance maps (N, D, C, h, w) → the model's deterministic actions, as those of `PolicyNetwork.act`.

        Raises:
            InputError: A threshold on P(skip) is given, which only policy networks have.
        """
        refuse_if(
            keep_threshold is not None,
            f"keep_threshold={keep_threshold} is for policy networks, such as algo=ppo trains; models of other algorithms have none",
        )
        bind(self.network, _GivenMaps(maps), cache=True)
        (count, steps), looks = maps.shape[:2], self.trained.observation == "reference_looks"
        num_patches = np.zeros(count, np.int64)
        state: Any = None
        actions: list[NDArray[Any]] = []
        for step in range(steps):
            observed = np.stack([np.arange(count), np.full(count, step), *([num_patches] if looks else [])], axis=1)
            masks = partial(masks_of, self._action, (num_patches == 0) & (step == steps - 1))
            chosen, state = choose_step(self.trained, observed, state, np.full(count, step == 0), masks)
            actions.append(np.asarray(chosen))
            num_patches = num_patches + self._action.patch_mask(actions[-1])
        return torch.from_numpy(np.stack(actions, axis=1)).to(maps.device)

    def act_next(
        self, maps: Tensor, state: Tensor | None, num_patches: Tensor, keep_threshold: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the actions of the next decision, as `PolicyNetwork.act_next`; the state holds all glances so far, which are read again.

        Raises:
            InputError: The model skips frames: some do so by how many decisions are left, and an exit leaves that open.
        """
        refuse_if(self.skips, "exit must be left out with a model that skips frames; policy networks, such as algo=ppo trains, do both")
        glances = maps[:, None] if state is None else torch.cat([state, maps[:, None]], dim=1)
        return self.act(glances, keep_threshold)[:, -1], glances

    @cached_property
    def step_macs(self) -> int:
        """Multiply-adds of one decision."""
        maps = torch.zeros(1, 1, *self.architecture.map_shape, device=self.model.device)
        with torch.backends.cudnn.flags(enabled=False):  # the counter does not see into its recurrent networks
            return multiply_adds(lambda: self.act(maps))

    @property
    def _action(self) -> Action:
        """The kind of action; the sides do not matter for what is asked of it."""
        action: Action = ContinuousAction(2, 1) if self.grid is None else GridAction(self.grid, 2 * self.grid, self.grid)
        return with_skipping(action) if self.skips else action


class _GivenMaps(Features):
    """Glance maps (N, D, C, h, w) as the features of N clips."""

    def __init__(self, maps: Tensor) -> None:
        self._maps, self.num_steps = maps, maps.shape[1]

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Return the glance maps (…, C, h, w) of those steps."""
        return self._maps[torch.from_numpy(np.asarray(clips)), torch.from_numpy(np.asarray(steps))]
