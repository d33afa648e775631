"""The interface of a policy in evaluation: Stable-Baselines3's `predict`, with action masks if it accepts them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[Any]


class Predictor(Protocol):
    """Anything with the `predict` of Stable-Baselines3's models: observations (N, …) → actions (N, *action space) and a state."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Actions, Any]:
        """As `stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        ...


def choose_step(
    policy: Predictor, observation: Any, state: Any, episode_start: NDArray[np.bool_], masks: Callable[[], NDArray[np.bool_]]
) -> tuple[Actions, Any]:
    """Return a policy's actions of one step and its next state.

    Args:
        policy: asked for deterministic actions.
        observation: of N clips.
        state: the policy's, after the previous step; None at first.
        episode_start: (N,), whether an episode begins.
        masks: returns the valid actions (N, actions). Called only if ``policy.predict`` has a parameter ``action_masks``, as that of
            `sb3_contrib.MaskablePPO`.
    """
    masked = {"action_masks": masks()} if "action_masks" in signature(policy.predict).parameters else {}
    return policy.predict(observation, state=state, episode_start=episode_start, deterministic=True, **masked)
