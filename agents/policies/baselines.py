"""Policies that do not learn, with which trained policies are compared.

`LearnedPolicy` gives a `PolicyNetwork` the same interface as the policies of this module.

All policies of this module implement Stable-Baselines3's `predict` for the observation `reference`. `agents.evaluation.evaluate` and
Stable-Baselines3's `evaluate_policy` therefore accept the policies of this module in place of a trained model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from adafocus_env.action import Action, GridAction, InterpolatedAction, with_skipping
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.policies.networks import PolicyNetwork, check_maps, check_patch_share
from classifiers.errors import refuse_if

References = NDArray[np.int64]
Actions = NDArray[Any]
Prediction = tuple[Actions, None]


class Baseline:
    """Base class of the baselines. Subclasses implement `choose`. `predict` has the same signature as in Stable-Baselines3's models."""

    observation = "reference"

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Prediction:
        """Return the actions (N, *action space) for references (N, 2), or one action for one reference (2,). The returned state is None.

        Raises:
            InputError: if the observations are not references (clip, step).
        """
        references = np.asarray(observation)
        refuse_if(
            references.ndim not in (1, 2) or references.shape[-1] != 2 or not np.issubdtype(references.dtype, np.integer),
            f"observations must be references (clip, step), got shape {references.shape} and dtype {references.dtype}; "
            "make the environment with observation='reference'",
        )
        actions = self.choose(references.reshape(-1, 2))
        return (actions if references.ndim == 2 else actions[0]), None

    def choose(self, references: References) -> Actions:
        """Return the actions (N, *action space) for references (N, 2), which are pairs (clip, step)."""
        raise NotImplementedError


class RandomPatch(Baseline):
    """Select a uniformly random patch in every step."""

    def __init__(self, action: Action, seed: int) -> None:
        self._action, self._rng = action, np.random.default_rng(seed)

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        return self._action.sample(self._rng, (len(references),))


class FixedPatch(Baseline):
    """Select the same patch in every step.

    Args:
        action: the kind of action.
        where: the patch, given as a cell of the grid or as a location (row, column) in [0, 1]².

    Raises:
        ActionError: if ``where`` is outside the action space.
    """

    def __init__(self, action: Action, where: int | Sequence[float] | NDArray[Any]) -> None:
        self._chosen = action.check(np.asarray(where)[None], 1)

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        return np.repeat(self._chosen, len(references), axis=0)


class CentrePatch(FixedPatch):
    """Select the patch in the middle of the frame."""

    def __init__(self, action: Action) -> None:
        super().__init__(action, action.nearest(np.full(2, (action.size - 1) / 2)))


class GaussianPatch(Baseline):
    """Select the patch that is nearest to a random point, which is sampled from a Gaussian around the middle of the frame.

    Args:
        action: the kind of action.
        seed: seed of the random points.
        spread: standard deviation as a fraction of the side of the frame.
    """

    def __init__(self, action: Action, seed: int, *, spread: float = 0.2) -> None:
        self._action, self._rng, self._spread = action, np.random.default_rng(seed), spread

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        size = self._action.size
        points = (size - 1) / 2 + self._spread * size * self._rng.standard_normal((len(references), 2))
        return self._action.nearest(points)


BINOMIAL = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0]))[None, None] / 16


@dataclass(frozen=True)
class Rule:
    """A fixed rule that guesses the target's location. The guessed location is the pixel with the highest score, smoothed over 3×3 pixels.

    Attributes:
        score: function that takes the images of the steps and the images of their neighbouring steps, both (n, C, h, w), and returns pixel
            scores (n, h, w). The neighbour of a step is the previous step; the neighbour of the first step is the second step. In a clip
            with only one step, this step is its own neighbour.
        frames: True if the images are frames (0-255, at glance size), False if they are glance maps. If a step has several frames, their
            images are stacked along the channels.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    frames: bool = False


def saliency(maps: Tensor) -> Tensor:
    """Return the saliency (N, h, w) of the pixels of glance maps (N, C, h, w).

    The saliency is the squared distance of a pixel to the mean over its map, smoothed over 3×3 pixels.
    """
    return _smooth(_distance_to_mean(maps.float()))


def _distance_to_mean(maps: Tensor) -> Tensor:
    return (maps - maps.mean((2, 3), keepdim=True)).square().sum(1)


def _smooth(scores: Tensor) -> Tensor:
    return conv2d(pad(scores[:, None], (1, 1, 1, 1), mode="replicate"), BINOMIAL.to(scores.device))[:, 0]


RULES: dict[str, Rule] = {
    "saliency": Rule(lambda maps, _: _distance_to_mean(maps)),
    "motion": Rule(lambda maps, others: (maps - others).square().sum(1)),
    "map_norm": Rule(lambda maps, _: maps.square().sum(1)),
    "brightness": Rule(lambda frames, _: frames.sum(1), frames=True),
    "frame_difference": Rule(lambda frames, others: (frames - others).abs().sum(1), frames=True),
}
"""Rules by name. To add a rule, add an entry."""


class RulePatch(Baseline):
    """Select the patch nearest to the location that a rule guesses.

    Args:
        features: features of the clips.
        rule: the rule, for example a value of `RULES`.
    """

    def __init__(self, features: Features, rule: Rule) -> None:
        self._features, self._rule = features, rule
        self._planned: dict[int, Actions] = {}

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        self._planned |= {int(clip): self._plan(int(clip)) for clip in np.unique(references[:, 0]) if int(clip) not in self._planned}
        return np.stack([self._planned[int(clip)][step] for clip, step in references])

    def _plan(self, clip: int) -> Actions:
        """Return the actions of all D steps of a clip."""
        images = self._frames(clip) if self._rule.frames else self._maps(clip)
        neighbours = torch.cat([images[1:2], images[:-1]]) if len(images) > 1 else images
        scores = _smooth(self._rule.score(images, neighbours))
        row, column = np.unravel_index(scores.flatten(1).argmax(1).cpu().numpy(), scores.shape[1:])
        stride = np.array(self._features.action.size) / scores.shape[1:]  # pixels of the frame per pixel of the image
        return self._features.action.nearest((np.stack([row, column], 1) + 0.5) * stride - 0.5)

    def _maps(self, clip: int) -> Tensor:
        return self._features.glance_maps(np.array(clip), np.arange(self._features.num_steps)).float()

    def _frames(self, clip: int) -> Tensor:
        frames = self._features.classifier.to_glance_size(self._features.clips.glancer_frames(clip).float())
        return frames.unflatten(0, (self._features.num_steps, -1)).flatten(1, 2)


class SaliencyPatch(RulePatch):
    """Select the patch around the most salient pixel of the glance map: the pixel that differs most from the mean over the map.

    Args:
        features: glances of the clips.
    """

    def __init__(self, features: Features) -> None:
        super().__init__(features, RULES["saliency"])


class Oracle(Baseline):
    """Select the patch nearest to the target's true location. If a step has several frames, use the mean of the locations in its frames.

    Args:
        features: features of clips with a ground-truth track.

    Raises:
        InputError: if the clips have no ground truth.
    """

    def __init__(self, features: Features) -> None:
        refuse_if(not features.clips.has_truth, "the oracle's clips must have a ground-truth track, got clips without one")
        self._features = features
        self._planned: dict[int, Actions] = {}

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        return np.stack([self._track(int(clip))[step] for clip, step in references])

    def _track(self, clip: int) -> Actions:
        if clip not in self._planned:
            truth: Any = self._features.clips.truth(clip)
            self._planned[clip] = self._features.action.nearest(truth.reshape(self._features.num_steps, -1, 2).mean(1))
        return self._planned[clip]


class GreedyOracle(Baseline):
    """Try every patch in each step and select the patch with which the true class has the highest score. This policy uses the label.

    If frames may be skipped, a step is skipped unless the best patch increases the score by more than ``cost_weight``.

    Args:
        dynamics: dynamics of the environment in which the policy acts.
        cost_weight: cost of a patch, in units of the score.
    """

    def __init__(self, dynamics: Dynamics, cost_weight: float = 0.0) -> None:
        self._dynamics = dynamics
        self._costs = cost_weight * dynamics.action.patch_mask(dynamics.action.candidates).astype(np.float32)

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        return self._dynamics.action.candidates[(self._dynamics.confidence_of_candidates() - self._costs).argmax(1)]


class LearnedPolicy(Baseline):
    """A trained `PolicyNetwork` that computes the most likely actions of all steps of a clip at once.

    Args:
        policy: the trained network.
        features: glances of the clips.

    Raises:
        InputError: if the policy does not match the glance maps or the action space of ``features``.
    """

    def __init__(self, policy: PolicyNetwork, features: Features) -> None:
        check_policy(policy, features)
        self._policy, self._features = policy, features
        self.action_space = (with_skipping(features.action) if policy.skips else features.action).space
        self._planned: tuple[bytes, Actions] = (b"", np.zeros(0))

    def choose(self, references: References) -> Actions:
        """Return actions (N, …)."""
        clips, steps = references.T
        if self._planned[0] != clips.tobytes():
            maps = self._features.glance_maps(clips[:, None], np.arange(self._features.num_steps)[None])
            self._planned = clips.tobytes(), self._policy.act(maps).cpu().numpy()
        return self._planned[1][np.arange(len(clips)), steps]


def check_policy(policy: PolicyNetwork, features: Features) -> None:
    """Check that the policy matches the glance maps and the action space of ``features``.

    Raises:
        InputError: if the policy does not match the features.
    """
    check_maps(policy, features.map_shape)
    check_patch_share(policy, features.action.patch_size, features.action.size)
    grid = features.action.grid if isinstance(features.action, GridAction) else None
    chosen, offered = _choice(policy.grid, policy.interpolated), _choice(grid, isinstance(features.action, InterpolatedAction))
    refuse_if(chosen != offered, f"the policy chooses {chosen}, the environment offers {offered}; set them alike")


def _choice(grid: int | None, interpolated: bool) -> str:
    if interpolated:
        return "locations at which patches are interpolated (env.action=interpolated)"
    return "continuous locations (env.action=continuous)" if grid is None else f"cells of a {grid}×{grid} grid (env.grid={grid})"


class Predictor(Protocol):
    """Any object with the method `predict` of Stable-Baselines3's models."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Any]:
        """Return actions (N, *action space) and the next state for observations (N, …), as `BaseAlgorithm.predict` does."""
        ...


def choose_step(
    policy: Predictor, observation: Any, state: Any, episode_start: NDArray[np.bool_], masks: Callable[[], NDArray[np.bool_]]
) -> tuple[Actions, Any]:
    """Return the deterministic actions of a policy in one step, and its next state.

    Args:
        policy: the policy.
        observation: observations of N clips.
        state: state of the policy after the previous step; None before the first step.
        episode_start: (N,), whether an episode begins.
        masks: function that returns a mask (N, actions), which is True for valid actions. The function is called only if
            ``policy.predict`` has a parameter ``action_masks``, as `sb3_contrib.MaskablePPO` has.
    """
    masked = {"action_masks": masks()} if "action_masks" in signature(policy.predict).parameters else {}
    return policy.predict(observation, state=state, episode_start=episode_start, deterministic=True, **masked)
