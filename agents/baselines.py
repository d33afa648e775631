"""Policies that learn nothing, with Stable-Baselines3's `predict` on the observation `reference`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import GridAction
from adafocus_env.clips import ClipStore
from adafocus_env.dynamics import Dynamics
from adafocus_env.features import Features
from agents.inference import check_maps
from agents.policies import GlancePolicy
from classifiers.errors import InputError

Cells = NDArray[np.int64]
Prediction = tuple[Cells, None]


class Predictor(Protocol):
    """Anything that chooses cells: references (N, 2) as (clip, step) → cells (N,) and a recurrent state."""

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> tuple[Cells, Any]:
        """As `stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        ...


class RandomPatch:
    """A uniformly random cell for every frame."""

    def __init__(self, grid: GridAction, seed: int) -> None:
        self._cells, self._rng = grid.num_cells, np.random.default_rng(seed)

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        return self._rng.integers(self._cells, size=len(observation)), None


class CentrePatch:
    """The cell in the middle of the frame."""

    def __init__(self, grid: GridAction) -> None:
        self._cell = int(grid.nearest(np.full(2, (grid.size - 1) / 2)))

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        return np.full(len(observation), self._cell), None


class GaussianPatch:
    """The cell nearest to a point drawn around the middle of the frame.

    Args:
        grid: the cells.
        seed: of the draws.
        spread: standard deviation in sides of the frame.
    """

    def __init__(self, grid: GridAction, seed: int, *, spread: float = 0.2) -> None:
        self._grid, self._rng, self._spread = grid, np.random.default_rng(seed), spread

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        middle = (self._grid.size - 1) / 2
        return self._grid.nearest(middle + self._spread * self._grid.size * self._rng.standard_normal((len(observation), 2))), None


class Oracle:
    """The cell whose patch lies nearest to the target, from the ground truth.

    Args:
        grid: the cells.
        clips: clips with a track.

    Raises:
        InputError: the clips have no ground truth.
    """

    def __init__(self, grid: GridAction, clips: ClipStore) -> None:
        if not clips.has_truth:
            raise InputError("the oracle needs clips with a ground-truth track; these have none")
        self._grid, self._clips = grid, clips
        self._cells: dict[int, Cells] = {}

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        return np.array([self._track(int(clip))[step] for clip, step in observation]), None

    def _track(self, clip: int) -> Cells:
        if clip not in self._cells:
            truth = self._clips.truth(clip)
            assert truth is not None
            self._cells[clip] = self._grid.nearest(truth)
        return self._cells[clip]


class GreedyOracle:
    """The cell with the highest score of the true class after the next step. It knows the label, and looks at every cell.

    Args:
        dynamics: of the environment that is being played.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        return self._dynamics.confidence_of_all_cells().argmax(1), None


class LearnedPolicy:
    """A trained policy: the most likely cell of every frame, for whole clips at once.

    Args:
        policy: what was learned.
        features: glances of the clips that are being played.

    Raises:
        InputError: policy and glances do not fit.
    """

    def __init__(self, policy: GlancePolicy, features: Features) -> None:
        check_maps(policy, features.map_shape)
        if policy.grid != features.grid.grid:
            raise InputError(f"the policy chooses from a grid of {policy.grid}, the environment has grid={features.grid.grid}")
        self._policy, self._features = policy, features
        self._planned: tuple[bytes, Cells] = (b"", np.zeros((0, 0), np.int64))

    def predict(self, observation: Cells, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Prediction:
        """Cells (N,)."""
        clips, steps = observation.T
        if self._planned[0] != clips.tobytes():
            maps = self._features.maps(clips[:, None], np.arange(self._features.clips.num_frames)[None])
            self._planned = clips.tobytes(), self._policy.act(maps).cpu().numpy()
        return self._planned[1][np.arange(len(clips)), steps], None
