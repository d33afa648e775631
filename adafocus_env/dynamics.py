"""The physics of the problem: N clips, one step. Crop, focus, classify, reward, end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import boxes_of
from adafocus_env.features import Features, Indices
from adafocus_env.reward import REWARDS
from classifiers.cost import classifier_cost
from classifiers.errors import InputError, named


@dataclass(frozen=True)
class Episode:
    """Everything random about one episode, drawn when it begins.

    Attributes:
        clip: number of the clip.
        baseline: (D, k, *action space), the random patches that the reward compares with.
    """

    clip: int
    baseline: NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """What one step did to N clips. Arrays are new at every step and never written to afterwards.

    Attributes:
        reward: (N,) float32.
        confidence: (N,) float32, softmax score of the true class.
        baseline: (N,) float32, that of the patches which the reward compares with; 0 where it compares with none.
        prediction: (N,) int64, the class with the highest score.
        boxes: (N, 4) int64, the patches as (top, left, bottom, right) in pixels.
        terminated: (N,) bool.
    """

    reward: NDArray[np.float32]
    confidence: NDArray[np.float32]
    baseline: NDArray[np.float32]
    prediction: NDArray[np.int64]
    boxes: NDArray[np.int64]
    terminated: NDArray[np.bool_]


class Dynamics:
    """The decision problem for N clips at once, each at a step of its own.

    Args:
        features: glances and foci of the clips that episodes are made of.
        num_clips: N.
        reward: a name in `adafocus_env.reward.REWARDS`.
        baseline: k, random patches that stand for the expectation in the reward `random`, or "all" cells of a grid: the exact one.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self, features: Features, num_clips: int, *, reward: str = "random", baseline: int | Literal["all"] = 1
    ) -> None:
        if num_clips < 1:
            raise InputError(f"num_envs={num_clips} is too small; choose 1 or more")
        if baseline != "all" and (not isinstance(baseline, int) or isinstance(baseline, bool) or baseline < 1):
            raise InputError(f"baseline={baseline!r} is not a number of random patches; choose 1 or more, or 'all'")
        if baseline == "all" and features.action.num_cells is None:
            raise InputError("baseline='all' needs a grid: continuous actions have no end of patches; choose a number, such as baseline=1")
        self.features, self.action, self.num_clips = features, features.action, num_clips
        self.reward = named("reward", reward, REWARDS)
        self._exact = baseline == "all"
        self._sampled = 0 if baseline == "all" or self.reward.baseline != "random patches" else int(baseline)
        self._labels = features.clips.labels
        self.clip: Indices = np.zeros(num_clips, np.int64)
        self.step_number: Indices = np.zeros(num_clips, np.int64)
        self.running: NDArray[np.bool_] = np.zeros(num_clips, bool)
        self.started: NDArray[np.bool_] = np.zeros(num_clips, bool)
        space = self.action.space
        self.baseline: NDArray[Any] = np.zeros((num_clips, self.num_steps, self._sampled, *(space.shape or ())), space.dtype)
        self.state: Tensor = features.classifier.initial_state(num_clips)
        self._confidence = self.state.new_zeros(num_clips)
        cost = classifier_cost(features.classifier)
        glances, frames = features.clips.settings.num_glance_frames, features.clips.num_frames
        self.step_cost = (glances * cost.glance + frames * (cost.focus + cost.head)) // self.num_steps

    @property
    def num_steps(self) -> int:
        """D, steps of an episode: the decisions that are taken in a clip."""
        return self.features.num_steps

    def draw(self, rng: np.random.Generator, clip: int | None = None) -> Episode:
        """Draws an episode: its clip (unless one is given) and its random patches."""
        count = len(self.features.clips)
        if clip is None:
            clip = int(rng.integers(count))
        elif not isinstance(clip, int | np.integer) or isinstance(clip, bool):
            raise InputError(f"clip {clip!r} is no whole number; choose one from 0 to {count - 1}")
        elif not 0 <= clip < count:
            raise InputError(f"clip {clip} does not exist; choose one from 0 to {count - 1}")
        return Episode(int(clip), self.action.draw(rng, (self.num_steps, self._sampled)))

    def start(self, rows: Indices, episodes: list[Episode]) -> None:
        """Begins ``episodes`` in the given rows; the other rows go on."""
        self.clip, self.step_number, self.running = self.clip.copy(), self.step_number.copy(), self.running.copy()
        self.started[rows] = True
        self.clip[rows] = [episode.clip for episode in episodes]
        self.baseline[rows] = np.stack([episode.baseline for episode in episodes])
        self.step_number[rows], self.running[rows] = 0, True
        index = torch.from_numpy(rows).to(self.state.device)
        self.state = self.state.index_fill(0, index, 0.0)
        self._confidence = self._confidence.index_fill(0, index, 0.0)

    def restart(self, clips: Indices, baseline: NDArray[Any]) -> None:
        """Begins the episodes (clips (N,), baseline (N, D, k, *action space)) in all rows."""
        self.start(np.arange(self.num_clips), [Episode(int(clip), drawn) for clip, drawn in zip(clips, baseline, strict=True)])

    @torch.no_grad()
    def step(self, actions: NDArray[Any] | Sequence[Any], rows: Indices | None = None) -> Outcome:
        """Looks at the patches ``actions`` in the given rows (all of them by default) and moves on by a step.

        Raises:
            ActionError: an action lies outside the space; nothing has changed.
            ResetNeeded: a row has no episode running.
        """
        rows = np.arange(self.num_clips) if rows is None else rows
        checked = self.action.check(actions, len(rows))
        if not self.running[rows].all():
            raise ResetNeeded(f"clip {rows[~self.running[rows]][0]} has no episode running; call reset before step")
        clips, steps = self.clip[rows], self.step_number[rows]
        patches = self._patches(checked, rows, steps)
        probabilities, states = self._look(clips, steps, patches, self.state[rows], padding=self.reward.baseline == "zeros")
        confidence, baseline = self._confidences(probabilities, clips)
        reward = self.reward.value(confidence, self._confidence[rows], baseline)
        whole = len(rows) == self.num_clips
        self.state = states if whole else self.state.index_copy(0, torch.from_numpy(rows).to(states.device), states)
        self._confidence = self._confidence.clone()
        self._confidence[rows] = confidence
        terminated = self._advance(rows)
        numbers = torch.stack([reward, confidence, baseline, probabilities[:, 0].argmax(-1).float()]).cpu().numpy()
        return Outcome(numbers[0], numbers[1], numbers[2], numbers[3].astype(np.int64), boxes_of(self.action, checked), terminated)

    @torch.no_grad()
    def confidence_of_candidates(self) -> NDArray[np.float32]:
        """The true class's softmax score (N, M) if a clip looked at each of the action's candidates next; changes nothing."""
        probabilities, _ = self._look(self.clip, self.step_number, self._candidates(self.num_clips), self.state)
        return probabilities[np.arange(self.num_clips), :, self._labels[self.clip]].cpu().numpy()

    def _patches(self, actions: NDArray[Any], rows: Indices, steps: Indices) -> NDArray[Any]:
        """Actions (N, 1 + k, *action space): the chosen one, then those that the reward compares with."""
        exact = self._exact and self.reward.baseline == "random patches"
        others = self._candidates(len(rows)) if exact else self.baseline[rows, steps]
        return np.concatenate([actions[:, None], others], axis=1)

    def _candidates(self, count: int) -> NDArray[Any]:
        return np.repeat(self.action.candidates[None], count, axis=0)

    def _look(
        self, clips: Indices, steps: Indices, actions: NDArray[Any], state: Tensor, *, padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Softmax scores (N, k, K) after each of ``actions`` (N, k, …), all from ``state``, and the state after the first.

        With ``padding`` one more follows: zeros in place of a focus vector.
        """
        foci = self.features.foci(clips[:, None], steps[:, None], actions)
        if padding:
            foci = torch.cat([foci, torch.zeros_like(foci[:, :1])], dim=1)
        count = foci.shape[1]
        glances = self.features.vectors(clips, steps)[:, None].expand(-1, count, -1)
        scores, states = self.features.classifier.classify(
            glances.flatten(0, 1)[:, None], foci.flatten(0, 1)[:, None], state.repeat_interleave(count, 0)
        )
        return scores[:, 0].unflatten(0, (-1, count)).softmax(-1), states.unflatten(0, (-1, count))[:, 0]

    def _confidences(self, probabilities: Tensor, clips: Indices) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(self._labels[clips]).to(probabilities.device)
        scores = probabilities.gather(-1, labels[:, None, None].expand(-1, probabilities.shape[1], 1))[..., 0]
        return scores[:, 0], scores[:, 1:].mean(1) if scores.shape[1] > 1 else torch.zeros_like(scores[:, 0])

    def _advance(self, rows: Indices) -> NDArray[np.bool_]:
        """Moves on by a step; the step number stays at the last one, so that the last observation repeats it."""
        terminated = self.step_number[rows] == self.num_steps - 1
        self.step_number, self.running = self.step_number.copy(), self.running.copy()
        self.step_number[rows] += ~terminated
        self.running[rows] = ~terminated
        return terminated
