"""A wrapper with which a model of any algorithm acts on glance maps that the caller passes, without an environment."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafocus_env.action import Action, ContinuousAction, GridAction, masks_of, with_skipping
from adafocus_env.features.live import Features, Indices
from agents.policies.baselines import choose_step
from agents.policies.sb3 import bind, parse_action_space
from classifiers.errors import refuse_if
from classifiers.flops import multiply_adds


class ModelOnGlances(nn.Module):
    """A wrapper for a trained model. The wrapper has those members of `PolicyNetwork` that inference needs.

    Args:
        trained: The trained model, with the attributes ``model`` (a Stable-Baselines3 algorithm), ``observation`` (`reference` or
            `reference_looks`) and ``action_space``.
        interface: Interface of the training environment, with ``map_shape`` and ``patch_share``; see `agents.rl.algorithms.Interface`.

    Attributes:
        grid: G, cells per axis; None: continuous locations.
        skips: Whether the model may skip frames.
        architecture: The argument ``interface``. The interface has the attribute ``map_shape``, like the architecture of a `PolicyNetwork`.
        interpolated: Always False, which means that patches are cut at whole pixels. The model's card does not record how patches were
            cropped in training.
    """

    interpolated = False

    def __init__(self, trained: Any, interface: Any) -> None:
        super().__init__()
        self.trained, self.model, self.architecture = trained, trained.model, interface
        self.network: nn.Module = trained.model.policy
        self.grid, self.skips = parse_action_space(trained.action_space)

    @torch.no_grad()
    def act(self, maps: Tensor, keep_threshold: float | None = None) -> Tensor:
        """Return the model's deterministic actions for glance maps (N, D, C, h, w), in the format of `PolicyNetwork.act`.

        Raises:
            InputError: If a threshold on P(skip) is given, because only policy networks support it.
        """
        refuse_if(
            keep_threshold is not None,
            f"keep_threshold must be left out with a model of another algorithm than algo=ppo, got {keep_threshold}; use a policy network",
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
        """Return the actions of the next decision, as `PolicyNetwork.act_next` does. The state contains all glance maps so far.

        Raises:
            InputError: If the model can skip frames. The actions of some models that can skip depend on the number of remaining decisions,
                and a conditional exit changes this number.
        """
        refuse_if(self.skips, "exit must be left out with a model that skips frames; use a policy network, such as algo=ppo trains")
        glances = maps[:, None] if state is None else torch.cat([state, maps[:, None]], dim=1)
        return self.act(glances, keep_threshold)[:, -1], glances

    @cached_property
    def step_macs(self) -> int:
        """Multiply-adds of one decision."""
        maps = torch.zeros(1, 1, *self.architecture.map_shape, device=self.model.device)
        with torch.backends.cudnn.flags(enabled=False):  # the counter cannot count inside cuDNN's recurrent networks
            return multiply_adds(lambda: self.act(maps))

    @property
    def _action(self) -> Action:
        """The kind of action. The sizes of this action are arbitrary, because no method that depends on them is called."""
        action: Action = ContinuousAction(2, 1) if self.grid is None else GridAction(self.grid, 2 * self.grid, self.grid)
        return with_skipping(action) if self.skips else action


class _GivenMaps(Features):
    """Features of N clips whose glance maps (N, D, C, h, w) are given."""

    def __init__(self, maps: Tensor) -> None:
        self._maps, self.num_steps = maps, maps.shape[1]

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Return the glance maps (…, C, h, w) of the given steps."""
        return self._maps[torch.from_numpy(np.asarray(clips)), torch.from_numpy(np.asarray(steps))]
