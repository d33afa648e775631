"""What is asked of a policy that is measured: Stable-Baselines3's `predict`, with masks where it takes them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[Any]


class Predictor(Protocol):
    """Anything that chooses patches, as Stable-Baselines3's models do: observations (N, …) → actions (N, *action space) and a state."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Actions, Any]:
        """As `stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        ...


def choose_step(
    policy: Predictor, observation: Any, state: Any, begins: NDArray[np.bool_], masks: Callable[[], NDArray[np.bool_]]
) -> tuple[Actions, Any]:
    """What a policy does in one step, and its next state.

    Args:
        policy: chooses, deterministically.
        observation: of N clips.
        state: its own after the step before; None at first.
        begins: (N,), whether an episode begins.
        masks: gives the actions that make sense (N, actions). It is called for a policy whose `predict` has a parameter
            ``action_masks``, such as `sb3_contrib.MaskablePPO`.
    """
    further = {"action_masks": masks()} if "action_masks" in signature(policy.predict).parameters else {}
    return policy.predict(observation, state=state, episode_start=begins, deterministic=True, **further)
