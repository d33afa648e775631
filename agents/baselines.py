"""Policies that learn nothing, with Stable-Baselines3's `predict` on the observation `reference`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import Action, GridAction
from adafocus_env.dynamics import Dynamics
from adafocus_env.features import Features
from agents.inference import check_maps
from agents.policies import GlancePolicy
from classifiers.errors import InputError

References = NDArray[np.int64]
Actions = NDArray[Any]
Prediction = tuple[Actions, None]


class Predictor(Protocol):
    """Anything that chooses patches: references (N, 2) as (clip, step) → actions (N, *action space) and a recurrent state."""

    def predict(
        self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Actions, Any]:
        """As `stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        ...


class RandomPatch:
    """A uniformly random patch in every step."""

    def __init__(self, action: Action, seed: int) -> None:
        self._action, self._rng = action, np.random.default_rng(seed)

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        return self._action.draw(self._rng, (len(observation),)), None


class CentrePatch:
    """The patch in the middle of the frame."""

    def __init__(self, action: Action) -> None:
        self._middle = action.nearest(np.full(2, (action.size - 1) / 2))

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        return np.repeat(self._middle[None], len(observation), axis=0), None


class GaussianPatch:
    """The patch nearest to a point drawn around the middle of the frame.

    Args:
        action: what can be looked at.
        seed: of the draws.
        spread: standard deviation in sides of the frame.
    """

    def __init__(self, action: Action, seed: int, *, spread: float = 0.2) -> None:
        self._action, self._rng, self._spread = action, np.random.default_rng(seed), spread

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        size = self._action.size
        points = (size - 1) / 2 + self._spread * size * self._rng.standard_normal((len(observation), 2))
        return self._action.nearest(points), None


class Oracle:
    """The patch that lies nearest to the target, or to its mean place over the frames of the step, from the ground truth.

    Args:
        features: of clips with a track.

    Raises:
        InputError: the clips have no ground truth.
    """

    def __init__(self, features: Features) -> None:
        if not features.clips.has_truth:
            raise InputError("the oracle needs clips with a ground-truth track; these have none")
        self._features = features
        self._planned: dict[int, Actions] = {}

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        return np.stack([self._track(int(clip))[step] for clip, step in observation]), None

    def _track(self, clip: int) -> Actions:
        if clip not in self._planned:
            truth = self._features.clips.truth(clip)
            assert truth is not None
            self._planned[clip] = self._features.action.nearest(truth.reshape(self._features.num_steps, -1, 2).mean(1))
        return self._planned[clip]


class GreedyOracle:
    """The patch with the highest score of the true class after the next step. It knows the label, and looks everywhere.

    Args:
        dynamics: of the environment that is being played.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        return self._dynamics.action.candidates[self._dynamics.confidence_of_candidates().argmax(1)], None


class LearnedPolicy:
    """A trained policy: the most likely patch of every step, for whole clips at once.

    Args:
        policy: what was learned.
        features: glances of the clips that are being played.

    Raises:
        InputError: policy and environment do not fit.
    """

    def __init__(self, policy: GlancePolicy, features: Features) -> None:
        check_policy(policy, features)
        self._policy, self._features = policy, features
        self._planned: tuple[bytes, Actions] = (b"", np.zeros(0))

    def predict(self, observation: References, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Actions (N, …)."""
        clips, steps = observation.T
        if self._planned[0] != clips.tobytes():
            maps = self._features.maps(clips[:, None], np.arange(self._features.num_steps)[None])
            self._planned = clips.tobytes(), self._policy.act(maps).cpu().numpy()
        return self._planned[1][np.arange(len(clips)), steps], None


def check_policy(policy: GlancePolicy, features: Features) -> None:
    """Checks that the policy reads these glances and takes these actions.

    Raises:
        InputError: it reads or takes others.
    """
    check_maps(policy, features.map_shape)
    grid = features.action.grid if isinstance(features.action, GridAction) else None
    if policy.grid != grid:
        raise InputError(f"the policy chooses {_choice(policy.grid)}, the environment offers {_choice(grid)}; set them alike")


def _choice(grid: int | None) -> str:
    return "continuous places (env.action=continuous)" if grid is None else f"cells of a {grid}×{grid} grid (env.grid={grid})"
