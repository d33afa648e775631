"""Policies that learn nothing, with Stable-Baselines3's `predict` on the observation `reference`.

They play wherever a trained model does: in `agents.evaluation.evaluate`, and in Stable-Baselines3's `evaluate_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from adafocus_env.action import Action, ContinuousSkipAction, GridAction, SkipAction, with_skipping
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.evaluation.inference import check_maps
from agents.policies.predictor import Actions
from agents.policies.sb3 import GlancePolicy
from classifiers.errors import InputError

References = NDArray[np.int64]
Prediction = tuple[Actions, None]


class Baseline:
    """A policy that learns nothing: `choose` looks at references alone, and `predict` is Stable-Baselines3's."""

    observation = "reference"

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Prediction:
        """References (N, 2), or one (2,) → actions (N, *action space), or one; the state is None.

        Raises:
            InputError: the observations are no references.
        """
        references = np.asarray(observation)
        if references.ndim not in (1, 2) or references.shape[-1] != 2 or not np.issubdtype(references.dtype, np.integer):
            raise InputError(
                f"a baseline was given observations of shape {references.shape} and dtype {references.dtype}; it reads references "
                "(clip, step): make the environment with observation='reference'"
            )
        actions = self.choose(references.reshape(-1, 2))
        return (actions if references.ndim == 2 else actions[0]), None

    def choose(self, references: References) -> Actions:
        """References (N, 2) as (clip, step) → actions (N, *action space)."""
        raise NotImplementedError


class RandomPatch(Baseline):
    """A uniformly random patch in every step."""

    def __init__(self, action: Action, seed: int) -> None:
        self._action, self._rng = action, np.random.default_rng(seed)

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        return self._action.sample(self._rng, (len(references),))


class FixedPatch(Baseline):
    """The same patch in every step.

    Args:
        action: what can be looked at.
        where: a cell of a grid, or a place (row, column) in [0, 1]².

    Raises:
        ActionError: there is no such patch.
    """

    def __init__(self, action: Action, where: int | Sequence[float] | NDArray[Any]) -> None:
        self._chosen = action.check(np.asarray(where)[None], 1)

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        return np.repeat(self._chosen, len(references), axis=0)


class CentrePatch(FixedPatch):
    """The patch in the middle of the frame."""

    def __init__(self, action: Action) -> None:
        super().__init__(action, action.nearest(np.full(2, (action.size - 1) / 2)))


class GaussianPatch(Baseline):
    """The patch nearest to a point drawn around the middle of the frame.

    Args:
        action: what can be looked at.
        seed: of the draws.
        spread: standard deviation in sides of the frame.
    """

    def __init__(self, action: Action, seed: int, *, spread: float = 0.2) -> None:
        self._action, self._rng, self._spread = action, np.random.default_rng(seed), spread

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        size = self._action.size
        points = (size - 1) / 2 + self._spread * size * self._rng.standard_normal((len(references), 2))
        return self._action.nearest(points)


BINOMIAL = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0]))[None, None] / 16


class SaliencyPatch(Baseline):
    """The patch around the place of the glance map that is least like the rest of it.

    A place stands out by its squared distance to the mean over the map, in the glancer's features, smoothed over 3×3 places.

    Args:
        features: glances of the clips that are being played.
    """

    def __init__(self, features: Features) -> None:
        self._features = features

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        salient = saliency(self._features.glance_maps(*references.T))
        row, column = np.unravel_index(salient.flatten(1).argmax(1).cpu().numpy(), salient.shape[1:])
        pixels = np.array(self._features.action.size) / salient.shape[1:]  # of the frame, a place of the map
        return self._features.action.nearest((np.stack([row, column], 1) + 0.5) * pixels - 0.5)


def saliency(maps: Tensor) -> Tensor:
    """Glance maps (N, C, h, w) → how much each of their places stands out (N, h, w); see `SaliencyPatch`."""
    maps = maps.float()
    distance = (maps - maps.mean((2, 3), keepdim=True)).square().sum(1, keepdim=True)
    return conv2d(pad(distance, (1, 1, 1, 1), mode="replicate"), BINOMIAL.to(maps.device))[:, 0]


class Oracle(Baseline):
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

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        return np.stack([self._track(int(clip))[step] for clip, step in references])

    def _track(self, clip: int) -> Actions:
        if clip not in self._planned:
            truth = self._features.clips.truth(clip)
            assert truth is not None
            self._planned[clip] = self._features.action.nearest(truth.reshape(self._features.num_steps, -1, 2).mean(1))
        return self._planned[clip]


class GreedyOracle(Baseline):
    """The patch with the highest score of the true class after the next step. It knows the label, and looks everywhere.

    Where frames may be skipped it does so unless the best patch adds more to that score than ``cost_weight``.

    Args:
        dynamics: of the environment that is being played.
        cost_weight: of a look, in units of the score.
    """

    def __init__(self, dynamics: Dynamics, cost_weight: float = 0.0) -> None:
        self._dynamics = dynamics
        self._cost_weights = cost_weight * dynamics.action.patch_mask(dynamics.action.candidates).astype(np.float32)

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        return self._dynamics.action.candidates[(self._dynamics.confidence_of_candidates() - self._cost_weights).argmax(1)]


class Skipping(Baseline):
    """Looks where another policy looks, in the decisions that are kept, and skips the others.

    Args:
        look: chooses the patches.
        action: what can be done: look at a patch, or skip.
        patch_mask: (clips, D) bool, by number of the clip.
    """

    def __init__(self, look: Baseline, action: SkipAction | ContinuousSkipAction, patch_mask: NDArray[np.bool_]) -> None:
        self._look, self._action, self._kept = look, action, patch_mask

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        return self._action.with_skips(self._look.choose(references), self._kept[tuple(references.T)])


class LearnedPolicy(Baseline):
    """A trained policy: the most likely action of every step, for whole clips at once.

    Args:
        policy: what was learned.
        features: glances of the clips that are being played.

    Raises:
        InputError: policy and environment do not fit.
    """

    def __init__(self, policy: GlancePolicy, features: Features) -> None:
        check_policy(policy, features)
        self._policy, self._features = policy, features
        self.action_space = (with_skipping(features.action) if policy.skips else features.action).space
        self._planned: tuple[bytes, Actions] = (b"", np.zeros(0))

    def choose(self, references: References) -> Actions:
        """Actions (N, …)."""
        clips, steps = references.T
        if self._planned[0] != clips.tobytes():
            maps = self._features.glance_maps(clips[:, None], np.arange(self._features.num_steps)[None])
            self._planned = clips.tobytes(), self._policy.act(maps).cpu().numpy()
        return self._planned[1][np.arange(len(clips)), steps]


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
